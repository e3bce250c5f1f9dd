"""What to write where no row can be made of records: other columns, another reader, or another kind of rows.

Nothing is guessed from names alone: what is proposed has made rows of the records at hand.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cai.data.readers import READERS, Reader
from cai.data.readers.shape import Odd
from cai.data.source import DataSource, part_makes
from cai.errors import did_you_mean
from cai.text import one_line

MOST_COLUMNS = 12
"""Columns that are told."""

NAMES: Mapping[str, tuple[str, ...]] = {
    "prompt": (
        *("question", "instruction", "query", "request", "goal", "behavior", "input", "user", "human", "task"),
        *("problem", "user_prompt", "text", "context", "message"),
    ),
    "answer": (
        *("response", "output", "completion", "answers", "reply", "target", "assistant", "solution", "generation"),
        *("model_response", "best_answer", "answer_text"),
    ),
    "chosen": ("chosen_response", "response_chosen", "preferred", "accepted", "positive", "winner", "better", "good"),
    "rejected": ("rejected_response", "response_rejected", "dispreferred", "negative", "loser", "worse", "bad"),
    "messages": ("conversation", "conversations", "dialogue", "dialog", "chat", "turns", "history"),
}
"""What other data sets call our columns."""

_NEEDS = {
    "prompts": (("prompt",), ("messages",)),
    "conversations": (("prompt", "answer"), ("messages",)),
    "comparisons": (("prompt", "chosen", "rejected"), ("chosen", "rejected")),
}
"""The columns of which rows of each kind can be made, in either of several ways."""

Records = Sequence[Mapping[str, Any]]


def columns_of(records: Records) -> list[str]:
    """The columns of some records, in order, at most ``MOST_COLUMNS`` of them."""
    names = list(dict.fromkeys(name for record in records for name in record))
    listed = [one_line(name, 40) for name in names[:MOST_COLUMNS]]
    return [*listed, f"... ({len(names)} in all)"] if len(names) > MOST_COLUMNS else listed


def reading_hint(path: Path, records: Records, source: DataSource) -> str:
    """What to write so that rows can be made of these records, the first of a file."""
    makes = part_makes(source)
    if not records:
        return _format_hint(path)
    if "columns" in READERS[source.reader].options:
        for columns in _renamings(records, source.options, makes):
            if _makes_rows(READERS[source.reader], records, makes, {"columns": columns}):
                written = ", ".join(f"{ours}: {theirs}" for ours, theirs in columns.items())
                return f"write `options: {{columns: {{{written}}}}}`"
    for name, reader in READERS.items():
        if reader.records is READERS[source.reader].records:
            for kind in (makes, *reader.makes):
                if kind in reader.makes and _makes_rows(reader, records, kind, {}):
                    return _written(source, name, kind)
    if misnamed := _misnamed(records, source.options):
        return misnamed
    needed = " or ".join(" and ".join(way) for way in _NEEDS[makes])
    if "columns" in READERS[source.reader].options:
        ours = _NEEDS[makes][0][0]
        return f"{makes} want {needed}: write `options: {{columns: {{{ours}: COLUMN}}}}`, or another `reader`"
    return f"is '{source.reader}' the right reader? known: {', '.join(READERS)}"


def _written(source: DataSource, reader: str, makes: str) -> str:
    lines = [f"`reader: {reader}`"] if reader != source.reader else []
    if makes != part_makes(source):
        return f"of these records only {makes} can be made: write {' and '.join([*lines, f'`makes: {makes}`'])}"
    return f"write {lines[0]}" if lines else ""


def _makes_rows(reader: Reader, records: Records, makes: str, options: Mapping[str, Any]) -> bool:
    """Whether a reader makes rows of at least half of the records."""
    rows = 0
    for record in records:
        try:
            reader.parse(record, makes, options)
            rows += 1
        except Odd:
            continue
    return rows * 2 >= len(records)


def _renamings(records: Records, options: Mapping[str, Any], makes: str) -> Iterator[dict[str, str]]:
    """Ways to call columns by our names, the likeliest first."""
    columns = {str(name): records[0][name] for name in records[0]}
    given = options.get("columns")
    sound = {ours: theirs for ours, theirs in given.items() if theirs in columns} if isinstance(given, Mapping) else {}
    for way in _NEEDS[makes]:
        renaming = dict(sound)
        for ours in way:
            if ours not in columns and ours not in renaming:
                free = {name.lower(): name for name in columns if name not in renaming.values() and name not in way}
                theirs = next((free[name] for name in NAMES[ours] if name in free), None)
                if theirs is not None:
                    renaming[ours] = theirs
        lacking = [ours for ours in way if ours not in columns and ours not in renaming]
        texts = [name for name, value in columns.items() if isinstance(value, str)]
        rest = [name for name in texts if name not in renaming.values() and name not in way]
        if len(lacking) == 1 == len(rest):
            renaming[lacking[0]] = rest[0]
        if renaming and renaming != given:
            yield renaming


def _misnamed(records: Records, options: Mapping[str, Any]) -> str:
    """A column that is named and not there."""
    columns, renamed = list(records[0]), options.get("columns")
    for ours, theirs in renamed.items() if isinstance(renamed, Mapping) else ():
        if theirs not in columns:
            return f"there is no column '{theirs}' for {ours}; {did_you_mean(str(theirs), columns)}"
    return ""


def _format_hint(path: Path) -> str:
    """What a file without any record may be."""
    with path.open("rb") as file:
        head = file.read(4096)
    if head.startswith(b"PAR1"):
        return "it is a parquet file: write `reader: parquet`"
    first = head.partition(b"\n")[0]
    if first.count(b",") or first.count(b"\t"):
        published = "xstest, or_bench, strongreject and harmbench read a CSV as published"
        return f"it looks like a table of text (CSV, TSV): write it as JSON, one object a line; {published}"
    return "readers want JSON: one object a line, or one array of objects"
