"""Readers: one table from the name of a format to how its records become rows.

A new format is one function ``(record, makes, options) -> Row`` and one line here. Reading streams, counts what it
cannot use by reason, and drops rows that it has seen before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from cai.data.bounds import check_useful
from cai.data.readers.csv_files import csv_records
from cai.data.readers.plain import nemo_chat, nemo_rl_preference, openai_messages, simple
from cai.data.readers.safety import (
    harmbench,
    hhh_alignment,
    hhh_records,
    or_bench,
    rewardbench,
    rewardbench_records,
    strongreject,
    xstest,
)
from cai.data.readers.shape import FILTERED, Odd
from cai.data.readers.tables import parquet_records
from cai.data.readers.transcripts import hh_red_team, hh_rlhf
from cai.data.records import json_records
from cai.data.rows import Row
from cai.data.seen import Seen

Parse = Callable[[Mapping[str, Any], str, Mapping[str, Any]], Row]


class Records(Protocol):
    """How the records of a file are had."""

    def __call__(self, path: Path, tally: Counter[str], most: int | None = None) -> Iterator[dict[str, Any]]:
        """The records, streamed; what is none is counted by reason.

        Raises:
            BeginningRead: after ``most`` bytes, where the file has more.
        """
        ...


NUMBER: tuple[type, ...] = (int, float)

_ANY = ("prompts", "conversations", "comparisons")
_JSON_FILES = (".jsonl", ".json", ".jsonl.gz", ".json.gz")
_CSV_FILES = (".csv", ".csv.gz")


@dataclass(frozen=True)
class Reader:
    """How one format is read.

    ``makes`` lists the kinds of rows that it can make; ``default`` is the kind when none is asked for, None where the
    experiment must say. ``options`` gives each option's types. ``suffixes`` are the files taken from a folder.
    """

    name: str
    makes: tuple[str, ...]
    parse: Parse
    default: str | None = None
    options: Mapping[str, tuple[type, ...]] = field(default_factory=dict)
    records: Records = json_records
    suffixes: tuple[str, ...] = _JSON_FILES

    def rows(self, files: Sequence[Path], makes: str, options: Mapping[str, Any], tally: Counter[str]) -> Iterator[Row]:
        """Rows of the files, in order, each id once; every record that makes no row is counted in ``tally``.

        Raises:
            PrerequisiteError: when a file cannot be read or is damaged.
        """
        seen_ids = Seen()
        useless = useful = 0
        for path in files:
            for raw in self.records(path, tally):
                try:
                    row = self.parse(raw, makes, options)
                except Odd as odd:
                    tally[odd.reason] += 1
                    if odd.reason != FILTERED:  # that was asked for
                        useless += 1
                        check_useful(path, useless, useful)
                    continue
                useful += 1
                if seen_ids.add(row.id):
                    yield row
                else:
                    tally["duplicate"] += 1


_COLUMNS = {"columns": (dict,)}
_RED_TEAM = {"min_rating": NUMBER, "max_rating": NUMBER, "max_score": NUMBER, "exclude_tags": (list,)}
_MERGE = {"merge_turns": (bool,)}
_LABEL = {"label": (str,)}
_TOPIC = {"topic": (str,)}
_SUBSET = {"subset": (list,)}


def _requests(name: str, parse: Parse, options: Mapping[str, tuple[type, ...]] | None = None) -> Reader:
    """A safety set of requests alone, published as CSV."""
    return Reader(name, _ANY[:1], parse, "prompts", options or {}, csv_records, _CSV_FILES)


READERS: dict[str, Reader] = {
    r.name: r
    for r in (
        Reader("jsonl", _ANY, simple, options=_COLUMNS),
        Reader("parquet", _ANY, simple, options=_COLUMNS, records=parquet_records, suffixes=(".parquet",)),
        Reader("hh_rlhf", _ANY, hh_rlhf, "comparisons", _MERGE),
        Reader("hh_red_team", _ANY[:2], hh_red_team, "prompts", {**_RED_TEAM, **_MERGE}),
        Reader("openai_messages", _ANY[:2], openai_messages, "conversations"),
        Reader("sft_datablend", _ANY[:2], nemo_chat, "conversations"),
        Reader("nemo_sft_chat", _ANY[:2], nemo_chat, "conversations"),
        Reader("nemo_rl_preference", ("comparisons",), nemo_rl_preference, "comparisons"),
        _requests("xstest", xstest),
        _requests("or_bench", or_bench, _LABEL),
        _requests("strongreject", strongreject),
        _requests("harmbench", harmbench),
        Reader("hhh_alignment", (_ANY[2], _ANY[0]), hhh_alignment, "comparisons", _TOPIC, hhh_records),
        Reader(
            "rewardbench",
            _ANY[2:],
            rewardbench,
            "comparisons",
            _SUBSET,
            rewardbench_records,
            (*_JSON_FILES, ".parquet"),
        ),
    )
}
