"""The journal of a step: finished calls and finished rows, appended as they come, so that a killed step goes on.

One JSON object a line: ``{"crc":"1f0c2b7a","row":12,"kind":"row","from":4096,"left":0,"out":1,"dropped":0,"v":{...}}``.
``crc`` is the CRC-32 of the rest of the line. An append is a group of lines that counts as a whole: ``from`` is the
byte at which it begins, ``left`` how many lines of it are still to come. Every append is flushed to the disk before
the next begins, so only the last one can be torn: it is cut off and asked again. Damage before it means that the disk
or a person changed the file. Then the file as it is goes beside it (``journal.jsonl.damaged-1``), and it is cut where
the damaged append begins: what is left is what an interruption there would have left, so that going on ends with the
same bytes, also where rows that are asked together decide each other's last digits. Rows go by their number in the
input, so that a million of them take 14 MB of memory, in however many files they lie. Written by hand because no
library gives JSON lines with group commit and repair.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import resource
import shutil
import weakref
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

from cai.errors import Incomplete, StepFailed
from cai.files.durable import disk_space, sync_file, sync_folder, write_whole
from cai.identity import parse_json

# Made once: json.dumps would make it anew for every record.
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_log = logging.getLogger(__name__)
_MANY = 200  # files beside its own for which the usual number of open files may be too small
_CRC = len(b'{"crc":"00000000",')
_HEAD = re.compile(
    rb'\{"crc":"([0-9a-f]{8})","row":(\d+),"kind":"(row|call)","from":(\d+),"left":(\d+),"out":(\d+),"dropped":(\d+),'
    rb'"v":'
)


@dataclass(frozen=True, slots=True)
class Record:
    """What is known of row number ``row``: one of its calls (``call``), or all that became of it.

    ``out`` and ``dropped`` count the rows that it turned into.
    """

    row: int
    value: Mapping[str, Any]
    call: bool = False
    out: int = 0
    dropped: int = 0


class Journal:
    """Finished rows by number, and the calls of rows that were on their way when the files were last open.

    ``path`` is what ``append`` writes. ``others`` are journals of the same rows by other processes, read into the same
    index: locked and repaired like this one or, with ``look``, only looked at, by any number of processes. A row that
    is there already is left as it is, so that doing one twice changes nothing. ``torn`` is the number of bytes cut off
    at the ends (or passed over, where one only looks). ``damaged`` says of each file that was damaged before its last
    append what was lost and where the file is kept; it is logged too. ``out`` and ``dropped`` are sums over the
    finished rows. One process has a journal open for writing at a time.

    Raises:
        Incomplete: when another process has it open, or the disk has no room to keep a damaged file.
    """

    def __init__(self, path: Path, others: Sequence[Path] = (), look: bool = False) -> None:
        self.path = path
        self.torn = 0
        self.damaged: list[str] = []
        self.out = 0
        self.dropped = 0
        # The index, 14 bytes a row: where the line of each finished row is.
        self._offset = array("q")
        """Byte in its file at which a row's line begins; -1 for a row that is not finished."""
        self._length = array("I")
        self._file = array("H")
        self._rows = 0
        self._calls: dict[int, list[tuple[int, int, int]]] = {}
        """Row that is not finished -> (file, offset, length) of each of its calls."""
        self._fds: list[int] = []
        self._paths = (path, *others)
        self._end = 0
        self.close = weakref.finalize(self, _close, self._fds)
        if len(others) > _MANY:
            _allow_files(len(others) + 1024)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            for number, each in enumerate(self._paths):
                self._fds.append(_opened(each, number > 0 and look))
                end = self._scan(number, each, number > 0 and look)
                self._end = self._end if number else end
        except BaseException:
            self.close()
            raise

    def __contains__(self, row: int) -> bool:
        return row < len(self._offset) and self._offset[row] >= 0

    def __len__(self) -> int:
        """Finished rows."""
        return self._rows

    def __iter__(self) -> Iterator[int]:
        """Numbers of the finished rows, ascending."""
        return (row for row, offset in enumerate(self._offset) if offset >= 0)

    def __getitem__(self, row: int) -> dict[str, Any]:
        if row not in self:
            raise KeyError(row)
        return self._value(row, self._file[row], self._offset[row], self._length[row])

    def calls(self, row: int) -> list[dict[str, Any]]:
        """Values of the calls of an unfinished row that earlier processes left, in the order in which they came."""
        return [self._value(row, *place) for place in self._calls.get(row, ())]

    def append(self, records: Sequence[Record]) -> None:
        """Add records, as a whole or not at all; they are on the disk when this returns.

        Raises:
            Incomplete: when the disk is full; the journal is as it was before.
        """
        fresh: list[Record] = []
        finishing: set[int] = set()
        for record in records:
            if record.row in self or (not record.call and record.row in finishing):
                continue
            if not record.call:
                finishing.add(record.row)
            fresh.append(record)
        if not fresh:
            return
        lines = [_line(record, self._end, len(fresh) - i - 1) for i, record in enumerate(fresh)]
        self._write(b"".join(lines))
        offset = self._end
        for record, line in zip(fresh, lines, strict=True):
            if not record.call:
                self._finished(
                    record.row, file=0, offset=offset, length=len(line), out=record.out, dropped=record.dropped
                )
            offset += len(line)
        self._end = offset

    def _finished(self, row: int, *, file: int, offset: int, length: int, out: int, dropped: int) -> None:
        if row >= len(self._offset):
            more = max(row + 1 - len(self._offset), len(self._offset) // 8, 1024)
            self._offset.extend(array("q", [-1]) * more)
            self._length.extend(array("I", [0]) * more)
            self._file.extend(array("H", [0]) * more)
        if self._offset[row] < 0:
            self._offset[row], self._length[row], self._file[row] = offset, length, file
            self._rows += 1
            self.out += out
            self.dropped += dropped
            self._calls.pop(row, None)

    def _value(self, row: int, file: int, offset: int, length: int) -> dict[str, Any]:
        line = os.pread(self._fds[file], length, offset)
        if _head(line) is None:
            raise StepFailed(f"{self._paths[file]}: byte {offset}: row {row} changed on the disk while it was in use")
        value: dict[str, Any] = parse_json(line)["v"]
        return value

    def _write(self, data: bytes) -> None:
        with disk_space(self.path, needed=len(data)):
            try:
                os.lseek(self._fds[0], self._end, os.SEEK_SET)
                write_whole(self._fds[0], data)
                os.fsync(self._fds[0])
            except BaseException:
                # A half-written group goes at once; should even this fail, the next opening cuts it off.
                with suppress(OSError):
                    os.ftruncate(self._fds[0], self._end)
                raise

    def _scan(self, number: int, path: Path, look: bool) -> int:
        """Note the place of every row and cut a torn end off; returns the length of what is whole, in bytes."""
        offset = good = 0
        bad = bad_line = -1
        damaged = False
        behind = array("q")
        group: list[tuple[int, int, int, re.Match[bytes]]] = []
        match, crc = _HEAD.match, crc32
        with path.open("rb", buffering=1 << 20) as file:
            for counted, line in enumerate(file, 1):
                # As ``_head``, which would be half as fast: a million lines are opened here.
                head = match(line)
                if head is None or crc(line[_CRC:-1]) != int(head[1], 16) or line[-2:] != b"}\n":
                    head = None
                if bad < 0:
                    if head is None or int(head[4]) != good:
                        bad, bad_line = offset, counted
                    else:
                        group.append((int(head[2]), offset, len(line), head))
                        if head[5] == b"0":
                            self._take(number, group)
                            group, good = [], offset + len(line)
                elif head is not None:
                    # An append that begins behind it was written when all before it was whole on the disk.
                    damaged = damaged or int(head[4]) > bad
                    behind.append(int(head[2]))
                offset += len(line)
        if damaged:
            lost = {*behind, *(row for row, *_ in group)}
            self._note_damage(path, f"line {bad_line} (byte {bad})", lost, look)
        if good < offset:
            self.torn += offset - good
            if not look:
                os.ftruncate(self._fds[number], good)
                os.fsync(self._fds[number])
        return good

    def _note_damage(self, path: Path, place: str, rows: set[int], look: bool) -> None:
        """Keep a damaged file, unless one only looks, and say which of its rows are done again."""
        lost = sorted(row for row in rows if row not in self)
        again = f"rows {lost[0]} to {lost[-1]} ({len(lost)} that can be read, and those in it) are" if lost else "it is"
        message = f"{path}: {place} is damaged: the disk or a person changed it; {again} done again"
        if not look:
            message += f", everything before it is kept; the file as it was: {_kept_beside(path)}"
        self.damaged.append(message)
        _log.warning("%s", message)

    def _take(self, number: int, group: Sequence[tuple[int, int, int, re.Match[bytes]]]) -> None:
        for row, offset, length, head in group:
            if head[3] == b"row":
                self._finished(row, file=number, offset=offset, length=length, out=int(head[6]), dropped=int(head[7]))
            elif row not in self:
                self._calls.setdefault(row, []).append((number, offset, length))


def _opened(path: Path, look: bool) -> int:
    if look:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    with disk_space(path):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            sync_folder(path.parent)
        except BlockingIOError:
            os.close(fd)
            raise Incomplete(f"{path}: another process is writing it; wait until that one has ended") from None
    return fd


def _kept_beside(path: Path) -> Path:
    """A copy of a file under the next free name, on the disk when this returns."""
    with disk_space(path, needed=path.stat().st_size):
        number = 1
        while (copy := path.with_name(f"{path.name}.damaged-{number}")).exists():
            number += 1
        draft = path.with_name(f".{copy.name}.tmp")
        shutil.copyfile(path, draft)
        sync_file(draft)
        draft.rename(copy)
        sync_folder(path.parent)
    return copy


def _allow_files(count: int) -> None:
    """Let this process have so many files open, as far as the system lets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY:
        count = min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))


def _close(fds: list[int]) -> None:
    while fds:
        os.close(fds.pop())


def _line(record: Record, begin: int, remaining: int) -> bytes:
    value = _encode(record.value)
    kind = "call" if record.call else "row"
    place = f'"row":{record.row},"kind":"{kind}","from":{begin},"left":{remaining}'
    head = f'{place},"out":{record.out},"dropped":{record.dropped}'
    # surrogatepass: a model may answer half a character, and json.loads reads it back the same way.
    rest = f'{head},"v":{value}}}'.encode("utf-8", "surrogatepass")
    return b'{"crc":"%08x",%s\n' % (crc32(rest), rest)


def _head(line: bytes) -> re.Match[bytes] | None:
    """The fields before the value of a whole line; None for anything else."""
    match = _HEAD.match(line)
    if match is None or not line.endswith(b"}\n") or int(match[1], 16) != crc32(line[_CRC:-1]):
        return None
    return match
