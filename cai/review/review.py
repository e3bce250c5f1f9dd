"""A review: everything that is different between two sides, and what follows from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cai.review.changes import Change
from cai.review.compare import compare
from cai.review.reruns import Effect, effects, totals
from cai.review.results import Results, results
from cai.review.sides import Side
from cai.store.artifacts import Store


@dataclass(frozen=True, slots=True)
class Review:
    """One pair of sides. ``problems`` are those of a side that cannot be compiled; then there is nothing else.

    ``subject`` is the experiment's name; ``before`` and ``after`` are (label, what it is).
    """

    subject: str
    before: tuple[str, str]
    after: tuple[str, str]
    changes: tuple[Change, ...] = ()
    effects: tuple[Effect, ...] = ()
    totals: Mapping[str, Any] = field(default_factory=dict)
    results: Results | None = None
    problems: tuple[str, ...] = ()

    @property
    def same(self) -> bool:
        """Whether nothing at all is different."""
        ran = any(effect.action != "same" for effect in self.effects)
        return not self.changes and not ran and not self.problems

    @property
    def counting(self) -> tuple[Change, ...]:
        """The changes that can change a result."""
        return tuple(change for change in self.changes if change.counts)


def review(before: Side, after: Side, store: Store, subject: str = "") -> Review:
    """Hold two sides against each other.

    Raises:
        SpecError: when an artifact of a finished run cannot be read.
    """
    changes = compare(before.plan, after.plan)
    step_effects = effects(before.plan, after.plan, changes, store)
    old, new = before.finished, after.finished
    compared = results(old, new) if old is not None and new is not None else None
    return Review(
        subject=subject or after.plan.experiment,
        before=(before.label, before.kind),
        after=(after.label, after.kind),
        changes=changes,
        effects=step_effects,
        totals=totals(step_effects),
        results=compared,
    )
