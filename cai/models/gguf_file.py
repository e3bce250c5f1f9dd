"""The head of a GGUF file: what it says of its model, read without the library, and bounded: the file is a stranger's.

https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import IO, Any

from cai.errors import PrerequisiteError

MAX_TEXT = 16 * 2**20
"""Bytes of one text; the longest, chat templates, have some 20 KiB."""
MAX_FIELDS = 10_000
MAX_TENSORS = 100_000
MAX_DEPTH = 4
"""Lists within lists; none is known to have more than one."""

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9


def gguf_metadata(path: Path) -> dict[str, Any]:
    """The scalar metadata of a GGUF file, and under ``parameters`` how many weights its tensors have.

    Lists (vocabulary, merges) are skipped, so this is quick.

    Raises:
        PrerequisiteError: when the file is no GGUF of version 2 or 3, or damaged.
    """
    with path.open("rb") as file:
        head = file.read(24)
        if len(head) < 24 or head[:4] != b"GGUF" or struct.unpack("<I", head[4:8])[0] not in (2, 3):
            raise PrerequisiteError(f"{path}: no GGUF file of version 2 or 3; its first bytes are {head[:8]!r}")
        tensors, count = struct.unpack("<QQ", head[8:24])
        reader = _Head(file, os.fstat(file.fileno()).st_size)
        try:
            metadata = reader.fields(count)
            return {**metadata, "parameters": reader.weights(tensors)}
        except (struct.error, KeyError, ValueError) as error:
            raise PrerequisiteError(f"{path}: damaged GGUF metadata ({error}); fetch the file again") from error


class _Head:
    """A file that is read from its beginning, never beyond its ``size``."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file = file
        self._size = size

    def fields(self, count: int) -> dict[str, Any]:
        metadata: dict[str, Any] = {}
        for _ in range(_at_most(count, MAX_FIELDS, "fields")):
            name = self.text()
            value = self.value(self.number("<I"))
            if value is not None:
                metadata[name] = value
        return metadata

    def weights(self, tensors: int) -> int:
        """Numbers in all tensors, by their shapes."""
        total = 0
        for _ in range(_at_most(tensors, MAX_TENSORS, "tensors")):
            self.text()
            product = 1
            for _ in range(_at_most(self.number("<I"), 8, "axes")):
                product *= self.number("<Q")
            total += product
            self.skip(4 + 8)  # its type, and where it begins
        return total

    def number(self, form: str) -> Any:
        return struct.unpack(form, self._file.read(struct.calcsize(form)))[0]

    def text(self) -> str:
        return self._file.read(_at_most(self.number("<Q"), MAX_TEXT, "bytes of a text")).decode("utf-8")

    def value(self, kind: int, depth: int = 0) -> Any:
        """A scalar; None for a list, which is skipped."""
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            return self.number(_SCALARS[kind])
        inner, count = self.number("<I"), self.number("<Q")
        if inner in _SCALARS:
            self.skip(count * struct.calcsize(_SCALARS[inner]))
            return None
        for _ in range(_at_most(count, self._size, "entries")):
            if inner == _STRING:
                self.skip(self.number("<Q"))
            else:
                self.value(inner, _at_most(depth + 1, MAX_DEPTH, "lists in one another"))
        return None

    def skip(self, count: int) -> None:
        self._file.seek(_at_most(count, self._size - self._file.tell(), "bytes"), 1)


def _at_most(count: int, most: int, of: str) -> int:
    if count > most:
        raise ValueError(f"{count:,} {of}")
    return count
