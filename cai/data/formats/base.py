"""What every format of files shares: what it takes and cannot say, how rows become lines, and what became of them.

Files appear when they are whole. A row that a file cannot hold is left out and counted by reason, never written as
something else.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Generic, Protocol, TypeVar

from cai.chat import ChatTemplate, Message
from cai.chat.messages import has_tools, turns_text
from cai.data.rows import Comparison, Conversation, Row
from cai.data.seen import Seen
from cai.errors import Problem, SpecError
from cai.files.durable import disk_space, sync_folder

REFUSED = "refused by the template"
SOFT = "soft label within margin"
"""As the engine ``nemo_aligner`` calls a label that says nothing."""
NO_TOOLS = "tool turns have no place in this format"
NO_THINKING = "thinking has no place in this format"

MAX_LINE = 4 << 20
"""Bytes; a longer line is left out before its tokens are counted."""

Count = Callable[[str], int]
"""Tokens of a text as the model's own tokenizer makes them from text alone: no BOS, no EOS."""

Item = TypeVar("Item")
Item_contra = TypeVar("Item_contra", contravariant=True)
S = TypeVar("S")
T = TypeVar("T")
Lines = tuple[list[bytes], list[int]]
"""The lines of one item, and the tokens of each of its texts."""


@dataclass(frozen=True, slots=True)
class Written:
    """What is in a file: ``rows`` of the data, ``samples`` that upstream sees (replicas each), and what was left out.

    ``dropped`` counts rows by reason. ``tokens`` of all texts in the file, ``longest`` of one of them.
    """

    path: Path
    rows: int
    samples: int
    dropped: dict[str, int]
    tokens: int
    longest: int


class Dropped(Exception):
    """This row is left out; the message is the reason that the ledger counts."""


class WriteItems(Protocol[Item_contra]):
    """Writes items as a file: at least ``at_least`` of them, none with more than ``max_length`` tokens."""

    def __call__(
        self, path: Path, items: Iterable[Item_contra], count: Count, /, *, max_length: int, at_least: int = 1
    ) -> Written:
        """``count`` counts a text's tokens; a file that would hold less than ``at_least`` is not written."""
        ...


@dataclass(frozen=True, slots=True)
class FileFormat(Generic[Item]):
    """One format. ``takes`` are the kinds of rows; empty where any will do, since only the prompt is written.

    ``rendered``: a chat template makes the texts. ``tools`` and ``thinking``: whether it can say what a tool did, and
    what was thought before an answer. ``items`` makes of rows what ``write`` takes; an engine, which renders and labels
    in its own way, hands ``write`` its own.
    """

    takes: tuple[str, ...]
    rendered: bool
    about: str
    items: Callable[[Iterable[Any], ChatTemplate, Counter[str]], Iterator[Item]]
    write: WriteItems[Item]
    tools: bool = False
    thinking: bool = False

    def fitting(self, rows: Iterable[Row], tally: Counter[str]) -> Iterator[Row]:
        """The rows that the format can say all of; the others are counted. Prompts hold no thinking anywhere."""
        for row in rows:
            if self.takes and row.MAKES not in self.takes:
                raise TypeError(f"row {row.id} is one of {row.MAKES}, not of {' or '.join(self.takes)}")
            if not self.tools and has_tools(row.messages if self.takes else asked(row)):
                tally[NO_TOOLS] += 1
            elif self.takes and not self.thinking and isinstance(row, Conversation) and _thinks(row):
                tally[NO_THINKING] += 1
            else:
                yield row


def _thinks(row: Conversation) -> bool:
    return any(message.thinking for message in row.messages)


def asked(row: Row) -> tuple[Message, ...]:
    """The prompt of a row of any kind."""
    return row.prompt if isinstance(row, Conversation) else row.messages


def rendered(rows: Iterable[T], render: Callable[[T], S], tally: Counter[str]) -> Iterator[S]:
    """What ``render`` makes of the rows; those that the template refuses are counted."""
    for row in rows:
        try:
            yield render(row)
        except SpecError:
            tally[REFUSED] += 1


def hard_labels(rows: Iterable[Comparison], tally: Counter[str]) -> Iterator[Comparison]:
    """Comparisons whose first answer is the likelier one; ties are counted."""
    for row in rows:
        if row.p_chosen == 0.5:
            tally[SOFT] += 1
        elif row.p_chosen < 0.5:
            yield replace(row, chosen=row.rejected, rejected=row.chosen, p_chosen=1 - row.p_chosen)
        else:
            yield row


def distinct_prompts(rows: Iterable[Row], tally: Counter[str]) -> Iterator[tuple[Message, ...]]:
    """What was asked, each once: a comparison of the same prompt would only ask it again."""
    seen_prompts = Seen()
    for row in rows:
        messages = asked(row)
        if seen_prompts.add("\x1f".join(turns_text(messages))):
            yield messages
        else:
            tally["repeated prompt"] += 1


def json_line(record: Mapping[str, Any]) -> bytes:
    """One record as a line of UTF-8.

    Raises:
        Dropped: when it cannot be written as UTF-8, or is longer than ``MAX_LINE``.
    """
    try:
        line = json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
    except UnicodeEncodeError as error:
        raise Dropped("not utf-8") from error
    if len(line) > MAX_LINE:
        raise Dropped("line too large")
    return line


def write_lines(
    path: Path, items: Iterable[tuple[Item, bool]], lines_of: Callable[[Item], Lines], *, at_least: int, noun: str
) -> Written:
    """Write all items; each comes with whether it opens a row. Replicas share their row's fate: the same two texts.

    Raises:
        SpecError: fewer items than ``at_least`` are left; ``path`` is then as it was.
    """
    dropped: Counter[str] = Counter()
    rows = samples = tokens = longest = 0
    with _whole_file(path) as file:
        for item, first in items:
            try:
                lines, counts = lines_of(item)
            except Dropped as reason:
                dropped[str(reason)] += first
                continue
            file.writelines(lines)
            rows, samples, tokens = rows + first, samples + 1, tokens + sum(counts)
            longest = max(longest, *counts)
        if samples < at_least or not samples:
            why = ", ".join(f"{n} {reason}" for reason, n in sorted(dropped.items())) or "none left out"
            problem = f"{samples} {noun} are left for a batch of {at_least} ({why}): upstream would train nothing"
            raise SpecError(Problem(path.name, problem, "make the batch smaller, or give more data"))
    return Written(path, rows, samples, dict(sorted(dropped.items())), tokens, longest)


@contextmanager
def _whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A file that replaces ``path`` when the block ends well, flushed to the disk; upstream's indexes of the old go."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with disk_space(path):
        try:
            with draft.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            for suffix in (".idx.npy", ".idx.info"):
                path.with_name(path.name + suffix).unlink(missing_ok=True)
            draft.replace(path)
            sync_folder(path.parent)
        except BaseException:
            with suppress(FileNotFoundError):
                draft.unlink()
            raise
