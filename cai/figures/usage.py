"""What a step asked of its model, as its record keeps it among the metrics of its outcome: calls, retries, the cost.

A record leaves out what is 0. Nothing says of which version the shape is: names are only ever added to it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

USAGE = "usage"
"""The metric that holds what the rows of a step asked."""
USAGE_OF_LABELLED = "usage of the labelled set"
"""The metric of a judge that holds what its labelled set asked."""
_CALLS = "asked"
_ATTEMPTS = "attempts"
_FROM_CACHE = "from the cache"
_MOST_AT_ONCE = "most calls at once"
_ROWS_DONE_BEFORE = "rows done before"
_TRIED_AGAIN = "tried again: "
_COST = "cost"


@dataclass(frozen=True, slots=True)
class FlowUsage:
    """What flows of rows asked of their model in one run.

    ``calls`` were sent to the model, in ``attempts`` requests; ``tried_again`` counts those that failed, by reason.
    ``rows_done_before`` were in the journal of an earlier run. ``cost`` is in the currency of the model's prices, None
    where it has no prices.
    """

    calls: int = 0
    attempts: int = 0
    from_cache: int = 0
    most_at_once: int = 0
    rows_done_before: int = 0
    tried_again: Mapping[str, int] = field(default_factory=dict)
    cost: float | None = None

    @classmethod
    def from_metrics(cls, metrics: Mapping[str, Any], name: str = USAGE) -> FlowUsage:
        """What the metrics of an outcome say; nothing where they say nothing."""
        counts = metrics.get(name) or {}
        return cls(
            calls=counts.get(_CALLS, 0),
            attempts=counts.get(_ATTEMPTS, 0),
            from_cache=counts.get(_FROM_CACHE, 0),
            most_at_once=counts.get(_MOST_AT_ONCE, 0),
            rows_done_before=counts.get(_ROWS_DONE_BEFORE, 0),
            tried_again={
                key.removeprefix(_TRIED_AGAIN): count for key, count in counts.items() if key.startswith(_TRIED_AGAIN)
            },
            cost=counts.get(_COST),
        )

    def to_metrics(self, name: str = USAGE, *, cost_last: bool = True) -> dict[str, Any]:
        """The metric that ``from_metrics`` reads; none where nothing was asked and no row was done.

        Of one flow the cost stands last; steps that add up several have it where the alphabet puts it.
        """
        counts: dict[str, Any] = {
            _CALLS: self.calls,
            _ATTEMPTS: self.attempts,
            _FROM_CACHE: self.from_cache,
            _MOST_AT_ONCE: self.most_at_once,
            _ROWS_DONE_BEFORE: self.rows_done_before,
            **{f"{_TRIED_AGAIN}{reason}": count for reason, count in sorted(self.tried_again.items())},
        }
        counts = {key: count for key, count in counts.items() if count}
        if self.cost is not None:
            counts[_COST] = self.cost
        return {name: counts if cost_last else dict(sorted(counts.items()))} if counts else {}

    def followed_by(self, later: FlowUsage) -> FlowUsage:
        """Of two flows, one after the other."""
        return replace(self.beside(later), most_at_once=max(self.most_at_once, later.most_at_once))

    def beside(self, other_flow: FlowUsage) -> FlowUsage:
        """Of two flows at the same time."""
        costs = [usage.cost for usage in (self, other_flow) if usage.cost is not None]
        return FlowUsage(
            calls=self.calls + other_flow.calls,
            attempts=self.attempts + other_flow.attempts,
            from_cache=self.from_cache + other_flow.from_cache,
            most_at_once=self.most_at_once + other_flow.most_at_once,
            rows_done_before=self.rows_done_before + other_flow.rows_done_before,
            tried_again=Counter(self.tried_again) + Counter(other_flow.tried_again),
            cost=sum(costs) if costs else None,
        )


@dataclass(slots=True)
class UsageTally:
    """Counts of one flow while it runs; the fields are those of ``FlowUsage``."""

    calls: int = 0
    attempts: int = 0
    from_cache: int = 0
    most_at_once: int = 0
    rows_done_before: int = 0
    tried_again: Counter[str] = field(default_factory=Counter)
    cost: float = 0.0

    def usage(self) -> FlowUsage:
        """What has been counted so far."""
        return FlowUsage(
            calls=self.calls,
            attempts=self.attempts,
            from_cache=self.from_cache,
            most_at_once=self.most_at_once,
            rows_done_before=self.rows_done_before,
            tried_again={reason: count for reason, count in self.tried_again.items() if count},
            cost=round(self.cost, 6) if self.cost else None,
        )
