"""What a run accounts for: rows, calls and judges as tables of plain text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cai.plan import Plan, Step
from cai.stages.base import Artifact
from cai.terminal.accounts import ledger_rows, usage_rows


def made(ledger: dict[str, Any], **metrics: Any) -> Artifact:
    return Artifact("k", "conversations", Path("nowhere"), {"outcome": {"ledger": ledger, "metrics": metrics}})


STEPS = tuple(
    Step(name, kind, "conversations", "k", 0)
    for name, kind in (
        ("base", "fetch"),
        ("clean", "read"),
        ("odd", "read"),
        ("part", "read"),
        ("respond", "respond"),
        ("mix", "mix"),
    )
)
PLAN = Plan("e", 0, {}, STEPS)
ARTIFACTS = {
    "base": made({"rows_in": 0, "rows_out": 0, "dropped": {}}),
    "clean": made({"rows_in": 5, "rows_out": 5, "dropped": {}}),
    "odd": made({"rows_in": 7, "rows_out": 5, "dropped": {"not_json": 2}}),
    "part": made({"rows_in": 9, "rows_out": 5, "dropped": {"other_part": 4}}),
    "respond": made(
        {"rows_in": 12000, "rows_out": 11968, "dropped": {"a": 1, "b": 2, "c": 20, "d": 4, "e": 5}},
        usage={"asked": 12000, "from the cache": 40, "tried again: timed out": 2, "tried again: 429": 3, "cost": 1.234},
    ),
    "mix": made({"rows_in": 10, "rows_out": 10, "dropped": {}}),
}


def test_each_stage_balances_and_names_its_reasons() -> None:
    assert ledger_rows(PLAN, ARTIFACTS) == (
        ("stage", "in", "out", "dropped", "why"),
        ("odd", "7", "5", "2", "not_json 2"),
        ("respond", "12,000", "11,968", "32", "c 20, e 5, d 4, b 2, and 1 more"),
        ("mix", "10", "10", "0", "-"),
    )


def test_what_was_asked_and_what_it_cost() -> None:
    assert usage_rows(PLAN, ARTIFACTS)[1:] == (("respond", "12,000", "40", "5", "1.234"),)
