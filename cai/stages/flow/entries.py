"""Entries: what became of one row of the input, as the journal keeps it and as the artifact's rows are written."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cai.data.rows import Row, to_json
from cai.stages.base import Context, Ledger, Outcome

ROWS = "rows.jsonl"
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


@dataclass(frozen=True, slots=True)
class Entry:
    """What became of one row: the rows it turned into, what was dropped by reason, and other counts to add up.

    ``calls`` and ``tokens`` are what it took, wherever the answers came from. ``facts`` are for the stage's own report.
    """

    id: str
    rows: tuple[Row, ...] = ()
    dropped: Mapping[str, int] = field(default_factory=dict)
    counts: Mapping[str, float] = field(default_factory=dict)
    calls: int = 0
    tokens: int = 0
    facts: Mapping[str, Any] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """As the journal keeps it."""
        record: dict[str, Any] = {"id": self.id, "rows": [to_json(row) for row in self.rows]}
        rest = {
            "dropped": self.dropped,
            "counts": self.counts,
            "calls": self.calls,
            "tokens": self.tokens,
            "facts": self.facts,
        }
        return record | {name: value for name, value in rest.items() if value}


@dataclass(frozen=True, slots=True)
class StoredEntry:
    """An entry read back: its rows as plain data, which is all that writing them needs."""

    id: str
    rows: list[dict[str, Any]]
    dropped: Mapping[str, int]
    counts: Mapping[str, float]
    calls: int
    tokens: int
    facts: Mapping[str, Any]


def stored_entry(plain: Mapping[str, Any]) -> StoredEntry:
    """What ``Entry.plain`` wrote."""
    return StoredEntry(
        plain["id"],
        plain["rows"],
        plain.get("dropped", {}),
        plain.get("counts", {}),
        plain.get("calls", 0),
        plain.get("tokens", 0),
        plain.get("facts", {}),
    )


def write_entries(ctx: Context, entries: Iterable[StoredEntry], name: str = ROWS) -> tuple[Outcome, Counter[str]]:
    """Write the rows of all entries to a file of ``ctx.out``; the outcome, and the sums of their other counts.

    A row in is what was written or dropped, so that rows in = rows out + rows dropped whatever one input row makes.
    """
    dropped: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    written = calls = tokens = 0
    with (ctx.out / name).open("w", encoding="utf-8") as file:
        for entry in entries:
            for row in entry.rows:
                file.write(_encode(row) + "\n")
            written += len(entry.rows)
            dropped.update(entry.dropped)
            counts.update(entry.counts)
            calls, tokens = calls + entry.calls, tokens + entry.tokens
    dropped = _bounded(dropped)
    ledger = Ledger(written + sum(dropped.values()), written, dict(sorted(dropped.items())))
    return Outcome(ledger, {}, calls, tokens), counts


MOST_REASONS = 100
"""Reasons that a ledger tells apart; a server may have other words for every row that it refuses."""


def _bounded(dropped: Counter[str]) -> Counter[str]:
    """The reasons in the order in which rows met them, those after the first ones together."""
    if len(dropped) <= MOST_REASONS:
        return dropped
    first = dict(list(dropped.items())[:MOST_REASONS])
    return Counter({**first, "other reasons": sum(dropped.values()) - sum(first.values())})
