"""The head of a GGUF file: what it says of its model, read without the library, and bounded: the file is a stranger's.

https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cai.errors import PrerequisiteError

HEADS = (16 * 2**20, 256 * 2**20)
"""Bytes that are read of a file: enough for every vocabulary that is known, and what no head is longer than."""
MAX_FIELDS = 10_000
MAX_DEPTH = 4
"""Lists within lists; none is known to have more than one."""

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9


def gguf_metadata(path: Path, texts: Sequence[str] = (), *, before: str = "") -> dict[str, Any]:
    """The scalar metadata of a GGUF file.

    Lists (vocabulary, merges) are passed over but for those of ``texts``, whose entries are texts. Reading ends at the
    first name that begins with ``before``, if any: the tokenizer's come last, and passing them takes 50 ms.

    Raises:
        PrerequisiteError: when the file is no GGUF of version 2 or 3, or damaged.
    """
    with path.open("rb") as file:
        content = file.read(HEADS[0])
        if len(content) < 24 or content[:4] != b"GGUF" or struct.unpack("<I", content[4:8])[0] not in (2, 3):
            raise PrerequisiteError(f"{path}: no GGUF file of version 2 or 3; its first bytes are {content[:8]!r}")
        try:
            return _Head(content, texts).metadata(before)
        except (struct.error, KeyError, ValueError) as error:
            more = file.read(HEADS[1] - HEADS[0])
            why: Exception = error
        if more:
            try:
                return _Head(content + more, texts).metadata(before)
            except (struct.error, KeyError, ValueError) as error:
                why = error
    raise PrerequisiteError(f"{path}: damaged GGUF metadata ({why}); fetch the file again") from why


class _Head:
    """The beginning of a file, read from left to right. What its numbers promise and the bytes do not hold is an error:
    ``struct.error`` or ``ValueError``."""

    def __init__(self, content: bytes, texts: Sequence[str]) -> None:
        self._content = content
        self._texts = frozenset(texts)
        self._position = 8

    def metadata(self, before: str) -> dict[str, Any]:
        self.skip(8)  # how many tensors there are
        metadata: dict[str, Any] = {}
        for _ in range(_at_most(self.number("<Q"), MAX_FIELDS, "fields")):
            name = self.text()
            if before and name.startswith(before):
                break
            value = self.value(self.number("<I"), name in self._texts)
            if value is not None:
                metadata[name] = value
        return metadata

    def number(self, form: str) -> Any:
        (number,) = struct.unpack_from(form, self._content, self._position)
        self._position += struct.calcsize(form)
        return number

    def text(self) -> str:
        start = self._position + 8
        self.pass_texts(1)
        return self._content[start : self._position].decode("utf-8", "replace")

    def value(self, kind: int, wanted: bool = False, depth: int = 0) -> Any:
        """A scalar, or a list of texts that is ``wanted``; None for another list, which is passed over."""
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            return self.number(_SCALARS[kind])
        inner, count = self.number("<I"), self.number("<Q")
        if inner in _SCALARS:
            self.skip(count * struct.calcsize(_SCALARS[inner]))
            return None
        _at_most(count, len(self._content) // 8, "entries")
        if inner == _STRING and wanted:
            return [self.text() for _ in range(count)]
        if inner == _STRING:
            self.pass_texts(count)
            return None
        for _ in range(count):
            self.value(inner, depth=_at_most(depth + 1, MAX_DEPTH, "lists in one another"))
        return None

    def pass_texts(self, count: int) -> None:
        content, position, end = self._content, self._position, len(self._content)
        for _ in range(count):
            position += 8 + int.from_bytes(content[position : position + 8], "little")
            if position > end:
                raise ValueError("a text goes on behind the end")
        self._position = position

    def skip(self, count: int) -> None:
        self._position += _at_most(count, len(self._content) - self._position, "bytes")


def _at_most(count: int, most: int, of: str) -> int:
    if count > most:
        raise ValueError(f"{count:,} {of}")
    return count
