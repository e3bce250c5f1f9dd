"""The row journal: finished rows of a step, appended as they come, so that a killed step goes on where it was.

One JSON object a line: ``{"crc":"1f0c2b7a","at":4096,"row":{"id":...}}``. ``crc`` is the CRC-32 of the rest of the
line. ``at`` is the byte at which the append that wrote the line began. Every append is flushed to the disk before the
next begins, so only the last one can be torn: damage inside it is cut off and its rows are done again; damage before
it means that the disk or a person changed the file, and that is an error. Written by hand because no library gives
JSON lines with group commit and repair.
"""

from __future__ import annotations

import json
import os
import threading
import weakref
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from zlib import crc32

from cai.durable import disk_space, sync_folder, write_whole
from cai.errors import StepFailed

_HEAD = len(b'{"crc":"00000000",')


class Journal:
    """Rows by id. Holds the place of each row in memory, not the row: about 150 bytes each.

    A row id that is there already is left as it is, so that doing a row twice changes nothing. ``torn`` is the number
    of bytes cut off the end when the file was opened. Opened by one process at a time (the store's lock sees to it);
    several threads may append.

    Raises:
        StepFailed: when a line before the last append is damaged; the message says where.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.torn = 0
        self._places: dict[str, tuple[int, int]] = {}
        self._lock = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        with disk_space(path):
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            self.close = weakref.finalize(self, os.close, self._fd)
            sync_folder(path.parent)
        self._end = self._scan()

    def __contains__(self, row: str) -> bool:
        return row in self._places

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[str]:
        """Row ids in the order in which they were written."""
        return iter(self._places)

    def __getitem__(self, row: str) -> dict[str, Any]:
        at, length = self._places[row]
        entry = _read_line(os.pread(self._fd, length, at))
        if entry is None:
            raise StepFailed(f"{self.path}: byte {at}: row {row!r} changed on the disk while it was in use")
        found: dict[str, Any] = entry["row"]
        return found

    def append(self, entries: list[dict[str, Any]]) -> None:
        """Add entries, each with a text ``id``; they are on the disk when this returns.

        Raises:
            ValueError: when an entry has no ``id``.
            Incomplete: when the disk is full; the journal is as it was before.
        """
        with self._lock:
            lines: list[bytes] = []
            places: dict[str, tuple[int, int]] = {}
            at = self._end
            for entry in entries:
                row = entry.get("id")
                if not isinstance(row, str):
                    raise ValueError(f"{self.path}: an entry has no text 'id' but {row!r}")
                if row in self._places or row in places:
                    continue
                line = _line(self._end, entry)
                places[row] = (at, len(line))
                lines.append(line)
                at += len(line)
            if lines:
                self._write(b"".join(lines))
                self._places |= places
                self._end = at

    def _write(self, data: bytes) -> None:
        with disk_space(self.path, needed=len(data)):
            try:
                os.lseek(self._fd, self._end, os.SEEK_SET)
                write_whole(self._fd, data)
                os.fsync(self._fd)
            except BaseException:
                # A half-written group goes at once; should even this fail, the next opening cuts it off.
                with suppress(OSError):
                    os.ftruncate(self._fd, self._end)
                raise

    def _scan(self) -> int:
        """Note the place of every row and cut a torn end off; returns the length of what is whole, in bytes."""
        at, bad, bad_number = 0, -1, 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                entry = _read_line(line)
                if entry is None:
                    if bad < 0:
                        bad, bad_number = at, number
                elif bad < 0:
                    self._places.setdefault(entry["row"]["id"], (at, len(line)))
                elif entry["at"] > bad:
                    self.close()
                    raise StepFailed(
                        f"{self.path}: line {bad_number} (byte {bad}) is damaged, though it was whole on the disk when "
                        f"line {number} was written; check the disk, then remove this file to do its rows again"
                    )
                at += len(line)
        if bad < 0:
            return at
        self.torn = at - bad
        os.ftruncate(self._fd, bad)
        os.fsync(self._fd)
        return bad


def _line(group: int, entry: dict[str, Any]) -> bytes:
    row = json.dumps(entry, ensure_ascii=False, separators=(",", ":"))
    # surrogatepass: a model may answer half a character, and json.loads reads it back the same way.
    rest = f'"at":{group},"row":{row}}}'.encode("utf-8", "surrogatepass")
    return b'{"crc":"%08x",%s\n' % (crc32(rest), rest)


def _read_line(line: bytes) -> dict[str, Any] | None:
    """The entry of a whole line; None for anything else."""
    rest = line[_HEAD:-1]
    if not line.endswith(b"\n") or line[:_HEAD] != b'{"crc":"%08x",' % crc32(rest):
        return None
    entry: dict[str, Any] = json.loads(line)
    return entry
