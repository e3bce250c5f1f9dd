"""Records: JSON objects streamed out of files as people really keep them: JSONL or one array, gzipped or not.

Memory is bounded by the largest record, never by the file. A line that cannot be used is counted, a damaged file
(cut off in the middle) is an error, because what it lost cannot be counted.
"""

from __future__ import annotations

import codecs
import gzip
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from cai.data.bounds import beginning_of, check_useful, open_gzip
from cai.errors import PrerequisiteError
from cai.identity import parse_json

MAX_RECORD = 64 << 20
"""Bytes, in an array characters; a larger record is counted as ``too_large``."""
_BLOCK = 1 << 14
_POINTER = b"version https://git-lfs"
_SPACES = re.compile(r"[ \t\r\n]+")
_MARK = re.compile(r'\\.?|["\[\]{}]', re.DOTALL)
_MARKS = 1_000_000
_TAIL = 16
"""Characters at the end of what has been read in which an error may mean only that more is to come."""
_DEEP = b"[" * 64
_LEFT_OUT = object()
"""Stands for what was counted already, or is empty."""


def open_bytes(path: Path, most: int | None = None) -> IO[bytes]:
    """The file's bytes, unpacked when it is gzipped (told by its first two bytes, not by its name).

    Where it has more than ``most`` bytes, reading beyond them raises ``BeginningRead``.

    Raises:
        PrerequisiteError: when a clone of a repository left a pointer in the file's place.
    """
    with path.open("rb") as file:
        head = file.read(len(_POINTER))
    if head == _POINTER:
        raise PrerequisiteError(f"{path}: a pointer of Git LFS, not the file itself; run `git lfs pull` in its folder")
    whole = open_gzip(path) if head[:2] == b"\x1f\x8b" else path.open("rb")
    return whole if most is None else beginning_of(whole, most)


def json_records(path: Path, tally: Counter[str], most: int | None = None) -> Iterator[dict[str, Any]]:
    """The objects of a JSONL file or of one JSON array, in order; odd ones are counted in ``tally`` by reason.

    Raises:
        PrerequisiteError: when the file cannot be read, is damaged, or has hardly any objects among many values.
        BeginningRead: after ``most`` bytes, where it has more.
    """
    try:
        with open_bytes(path, most) as file:
            values = _array(file, path, tally) if _starts_array(file) else _lines(file, tally)
            useless = useful = 0
            for value in values:
                if isinstance(value, dict):
                    useful += 1
                    yield value
                    continue
                if value is not _LEFT_OUT:
                    tally["not_object"] += 1
                useless += 1
                check_useful(path, useless, useful)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise PrerequisiteError(f"{path}: damaged ({error}); fetch the file again") from error
    except OSError as error:
        raise PrerequisiteError(f"{path}: cannot be read ({error.strerror or error})") from error


def _starts_array(file: IO[bytes]) -> bool:
    head = b""
    while not (head := head.removeprefix(codecs.BOM_UTF8).lstrip()):
        if not (head := file.read(_BLOCK)):
            break
    file.seek(0)
    return head.startswith(b"[")


def _lines(file: IO[bytes], tally: Counter[str]) -> Iterator[Any]:
    while line := file.readline(MAX_RECORD):
        if len(line) >= MAX_RECORD and not line.endswith(b"\n"):
            while (rest := file.readline(MAX_RECORD)) and not rest.endswith(b"\n"):
                pass
            tally["too_large"] += 1
            yield _LEFT_OUT
            continue
        # Anywhere: files put end to end keep theirs.
        if not (line := line.removeprefix(codecs.BOM_UTF8)).strip():
            yield _LEFT_OUT
            continue
        try:
            if _DEEP in line and _opens_deep(line):  # before time is spent on it
                tally["too_deep"] += 1
                yield _LEFT_OUT
            else:
                yield parse_json(line.decode())
        except UnicodeDecodeError:
            tally["not_utf8"] += 1
            yield _LEFT_OUT
        except ValueError:
            tally["not_json"] += 1
            yield _LEFT_OUT


def _opens_deep(line: bytes) -> bool:
    """Whether a run of opening brackets is JSON's own and no text: quotes before it come in pairs."""
    return len(re.findall(rb'(?:\\.)|(")', line[: line.index(_DEEP)], re.DOTALL)) % 2 == 0


def _array(file: IO[bytes], path: Path, tally: Counter[str]) -> Iterator[Any]:
    """Elements of an array, by decoding over a buffer that grows only while an element is incomplete."""
    # Bytes that are no UTF-8 become lone surrogates, which the row builder finds and counts.
    decode = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape").decode
    decoder = json.JSONDecoder()
    buffer, position, ended, begun, after_value = "", 0, False, False, False
    marks = _MARKS

    while True:
        # Elements are parted by one comma; more, or none, is damage.
        position = _space_end(buffer, position)
        if after_value and buffer.startswith(",", position):
            after_value = False
            position = _space_end(buffer, position + 1)
        if position < len(buffer) and not begun:
            position, begun = position + 1, True
            continue
        if position < len(buffer) and buffer[position] == "]":
            return _check_rest(buffer[position + 1 :], file, path)
        if position < len(buffer):
            try:
                value, end = decoder.raw_decode(buffer, position)
                # A number that touches the end of the buffer may go on in the next block.
                if end < len(buffer) or ended:
                    if end - position > MAX_RECORD:
                        tally["too_large"] += 1
                        value = _LEFT_OUT
                    yield value
                    position, after_value = end, True
                    continue
                broken = False
            except json.JSONDecodeError as error:
                broken = ended or (error.pos < len(buffer) - _TAIL and not error.msg.startswith("Unterminated string"))
            except (ValueError, RecursionError):  # a number of thousands of digits; nests deep
                broken = True
            too_large = len(buffer) - position > MAX_RECORD
            if (broken or too_large) and buffer[position] in '[{"':
                brackets = _Brackets(marks)
                while (past := brackets.end(buffer, position)) is None and (block := file.read(_BLOCK)):
                    buffer, position = decode(block), 0
                marks = brackets.left
                if past is not None:
                    tally["too_large" if too_large else "not_json"] += 1
                    yield _LEFT_OUT
                    position, after_value = past, True
                    continue
                ended = True
        if ended or len(buffer) - position > MAX_RECORD:
            raise PrerequisiteError(f"{path}: damaged: the JSON array cannot be read on; fetch the file again")
        # Doubling keeps the work linear in the size of an element.
        block = file.read(max(_BLOCK, len(buffer) - position))
        ended = not block
        buffer, position = buffer[position:] + decode(block, final=ended), 0


def _space_end(text: str, position: int) -> int:
    match = _SPACES.match(text, position)
    return position if match is None else match.end()


class _Brackets:
    """Finds the end of an element that cannot be decoded, by its brackets and quotes alone, block by block.

    ``left`` is how many of them may still be looked at, nearly a second's work: of a file with more nothing is found.
    """

    def __init__(self, left: int) -> None:
        self.left = left
        self._depth = 0
        self._quoted = False  # inside a string, where brackets mean nothing
        self._escaped = False  # the last block ended with a backslash

    def end(self, text: str, position: int) -> int | None:
        """The place behind the element that goes on at ``position``; None where it goes on behind ``text`` too."""
        position += self._escaped and position < len(text)
        self._escaped = False
        for mark in _MARK.finditer(text, position):
            self.left -= 1
            if self.left <= 0:
                return None
            sign = mark[0]
            if sign == '"':
                self._quoted = not self._quoted
            elif sign == "\\":
                self._escaped = True
            elif not self._quoted and sign in "[{":
                self._depth += 1
            elif not self._quoted and sign in "]}":
                self._depth -= 1
            if self._depth <= 0 and not self._quoted and sign in '"]}':
                return mark.end()
        return None


def _check_rest(text: str, file: IO[bytes], path: Path) -> None:
    # To the very end, where a packed file also says whether it is whole.
    while not text.strip(" \t\r\n"):
        if not (block := file.read(_BLOCK)):
            return
        text = block.decode("utf-8", "replace")
    raise PrerequisiteError(f"{path}: goes on after the end of its JSON array; keep one array, or one object a line")
