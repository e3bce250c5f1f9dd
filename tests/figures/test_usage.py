"""What a step asked of its model: read as any program wrote it, written in the same order, added up."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cai.figures.usage import USAGE_OF_LABELLED, FlowUsage, UsageTally

RECORDED: dict[str, Any] = {
    "asked": 12000,
    "attempts": 12005,
    "from the cache": 40,
    "most calls at once": 64,
    "rows done before": 7,
    "tried again: 429": 3,
    "tried again: timed out": 2,
    "cost": 1.234,
}
USAGE = FlowUsage(
    calls=12000,
    attempts=12005,
    from_cache=40,
    most_at_once=64,
    rows_done_before=7,
    tried_again={"429": 3, "timed out": 2},
    cost=1.234,
)


@pytest.mark.parametrize("left_out", [(), ("cost",), ("attempts", "most calls at once"), tuple(RECORDED)])
def test_a_record_is_read_and_written_as_the_same_bytes(left_out: tuple[str, ...]) -> None:
    counts = {name: count for name, count in RECORDED.items() if name not in left_out}
    metrics = {"usage": counts} if counts else {}
    usage = FlowUsage.from_metrics({"pairs": 3, **metrics})
    assert json.dumps(usage.to_metrics()) == json.dumps(metrics)
    assert list(usage.to_metrics(cost_last=False).get("usage", {})) == sorted(counts)


def test_fields_are_the_names_of_the_record() -> None:
    assert FlowUsage.from_metrics({"usage": RECORDED}) == USAGE
    assert FlowUsage.from_metrics({}) == FlowUsage.from_metrics({"usage": None}) == FlowUsage()
    assert FlowUsage.from_metrics({USAGE_OF_LABELLED: {"asked": 2}}, USAGE_OF_LABELLED) == FlowUsage(calls=2)
    assert FlowUsage(calls=2).to_metrics(USAGE_OF_LABELLED) == {"usage of the labelled set": {"asked": 2}}


def test_flows_add_up_whether_one_after_the_other_or_at_once() -> None:
    more = FlowUsage(calls=1, most_at_once=10, tried_again={"429": 1, "500": 1})
    added = USAGE.followed_by(more)
    assert (added.calls, added.most_at_once, added.rows_done_before, added.cost) == (12001, 64, 7, 1.234)
    assert added.tried_again == {"429": 4, "500": 1, "timed out": 2}
    assert USAGE.beside(more).most_at_once == 74
    assert USAGE.beside(USAGE).cost == 2.468
    assert FlowUsage().beside(FlowUsage()) == FlowUsage()


def test_a_tally_counts_to_a_millionth_of_the_cost() -> None:
    tally = UsageTally()
    assert tally.usage() == FlowUsage()
    tally.calls += 2
    tally.tried_again["429"] += 0
    tally.cost += 0.12345678
    assert tally.usage() == FlowUsage(calls=2, cost=0.123457)
