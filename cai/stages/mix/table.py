"""The rows of a mix by where they lie: chosen, ordered and split by numbers drawn for them, then copied as they are."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cai.data.rows import Row, from_json
from cai.identity import parse_json

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class RowAt:
    """A row and where its line lies, in bytes."""

    row: Row
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class RowDraws:
    """A row's content, and the draws that decide whether, where and on which side it goes: 64 bits each."""

    content: int
    choice: int
    place: int
    side: int


def rows_at(path: Path, kind: type[Row]) -> Iterator[RowAt]:
    """The rows of a file, streamed, with their places."""
    offset = 0
    with path.open("rb") as file:
        for line in file:
            if line.strip():
                yield RowAt(from_json(kind, parse_json(line)), offset, len(line))
            offset += len(line)


class RowTable:
    """Places of rows and the numbers drawn for them (64 bits each), in flat arrays."""

    def __init__(self) -> None:
        self._files: list[int] = []
        self._file = array("H")
        self._length = array("I")
        self._offset = array("Q")
        self._content = array("Q")
        self._choice = array("Q")
        self._place = array("Q")
        self._side = array("Q")

    def __enter__(self) -> RowTable:
        return self

    def __exit__(self, *exc: object) -> None:
        for fd in self._files:
            os.close(fd)

    def __len__(self) -> int:
        return len(self._offset)

    def open(self, path: Path) -> int:
        """A number for a file whose rows will be added."""
        self._files.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        return len(self._files) - 1

    def add(self, file: int, row_at: RowAt, draws: RowDraws) -> None:
        """A row of a file: where it lies, what it says, and what was drawn for it."""
        self._file.append(file)
        self._length.append(row_at.length)
        self._offset.append(row_at.offset)
        self._content.append(draws.content)
        self._choice.append(draws.choice)
        self._place.append(draws.place)
        self._side.append(draws.side)

    @property
    def _columns(self) -> tuple[array[int], ...]:
        return self._offset, self._content, self._choice, self._place, self._side

    def keep_lowest(self, begin: int, quota: int | None) -> int:
        """Of the rows from ``begin`` on keep the ``quota`` with the lowest draws: a larger number keeps those of a
        smaller one. Returns how many were kept; None keeps all."""
        import numpy as np

        count = len(self) - begin
        if quota is None or quota >= count:
            return count
        order = np.argsort(np.array(self._choice[begin:], dtype=np.uint64), kind="stable")
        kept_rows = np.sort(order[:quota]) + begin
        for column in (*self._columns, self._file, self._length):
            chosen = np.array(column, copy=True)[kept_rows]
            del column[begin:]
            column.frombytes(chosen.tobytes())
        return quota

    def write(self, paths: Mapping[str, Path], share: float) -> dict[str, int]:
        """Copy the rows, in the order of their draws, to the files of ``train`` and ``val``; returns the counts.

        Rows with the same side draw stay together. With two such groups or more neither side is empty when ``share``
        is above 0.
        """
        import numpy as np

        content, place, side = (np.array(c, dtype=np.uint64) for c in (self._content, self._place, self._side))
        order = np.lexsort((content, place))
        val_mask = held_out(side, share)
        written = {}
        for (name, path), is_val in zip(paths.items(), (False, True), strict=True):
            rows = order[val_mask[order] == is_val]
            written[name] = len(rows)
            with path.open("wb") as out:
                for n in rows.tolist():
                    line = os.pread(self._files[self._file[n]], self._length[n], self._offset[n])
                    out.write(line if line.endswith(b"\n") else line + b"\n")
        return written


def held_out(side_N: npt.NDArray[np.uint64], share: float) -> npt.NDArray[np.bool_]:  # noqa: N803 - N rows
    """Which rows go to validation."""
    import numpy as np

    draws_N = (side_N.astype(np.float64) + 0.5) / 2.0**64  # noqa: N806
    held_N = draws_N < share  # noqa: N806
    groups = np.unique(side_N)
    if share > 0 and len(groups) > 1:
        if not held_N.any():
            held_N = side_N == groups[0]  # noqa: N806
        elif held_N.all():
            held_N = side_N != groups[-1]  # noqa: N806
    return held_N
