"""The rows that a stage reads, streamed and numbered: what is done already is passed over without being parsed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Generic, TypeVar

from cai.data.rows import Row, from_json
from cai.data.seen import Seen
from cai.identity import parse_json

R = TypeVar("R", bound=Row)

REPEATED = "repeated id"
_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class Numbered(Generic[R]):
    """A row and its number in the input. ``reason`` says why it cannot be used; then there is no row."""

    number: int
    id: str
    row: R | None
    reason: str = ""


@dataclass(frozen=True)
class RowSource(Generic[R]):
    """The rows of ``path``, a file of ``kind`` rows; at most the first ``limit``.

    ``convert`` makes of each what the stage works on, or says in a few words why it cannot.
    """

    path: Path
    kind: type[Row]
    convert: Callable[[Row], R | str]
    limit: int | None = None

    def __len__(self) -> int:
        """How many rows there are; reads the file once, in blocks."""
        lines = 0
        with self.path.open("rb") as file:
            while block := file.read(_BLOCK):
                lines += block.count(b"\n")
        return lines if self.limit is None else min(lines, self.limit)

    def missing(
        self, is_done: Callable[[int], bool], is_mine: Callable[[int], bool] | None = None
    ) -> Iterator[Numbered[R]]:
        """The rows that are not done (and, where ``is_mine`` is given, ours), in order. A row whose id an earlier
        one has comes with that as its reason."""
        seen_ids = Seen()
        with self.path.open("rb") as file:
            for number, line in enumerate(islice(file, self.limit)):
                name = _id(line)
                new = seen_ids.add(name)
                if is_done(number) or (is_mine is not None and not is_mine(number)):
                    continue
                if not new:
                    yield Numbered(number, name, None, REPEATED)
                    continue
                row_or_reason = self.convert(from_json(self.kind, parse_json(line)))
                if isinstance(row_or_reason, str):
                    yield Numbered(number, name, None, row_or_reason)
                else:
                    yield Numbered(number, name, row_or_reason)


def _id(line: bytes) -> str:
    """A row's id; written first, so that it need not be parsed for."""
    if line.startswith(b'{"id":"'):
        name = line[7 : line.find(b'"', 7)]
        if b"\\" not in name:
            return name.decode()
    return str(parse_json(line)["id"])
