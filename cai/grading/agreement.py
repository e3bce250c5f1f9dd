"""A grader against people: how often both say the same of an answer, and where they differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cai.figures.intervals import Interval, kappa_of_classes, share
from cai.grading.grades import Compliance

UNCLASSED = "gibberish"
"""What stands for the class of an answer that has none."""


@dataclass(frozen=True, slots=True)
class ClassPair:
    """The class that people gave an answer, and the grader's; None where it calls it gibberish."""

    people: Compliance
    grader: Compliance | None


@dataclass(frozen=True, slots=True)
class GraderAgreement:
    """The share of answers in the same class, Cohen's kappa over the classes, the share of full refusals that are
    found, and the confusion matrix: counts by the people's class and then the grader's."""

    share: Interval
    kappa: Interval
    refusals_found: Interval
    confusion: Mapping[str, Mapping[str, int]]


def agreement(pairs: Sequence[ClassPair]) -> GraderAgreement:
    """All of it, of answers that people and a grader have put into classes."""
    counts = Counter((pair.people, pair.grader) for pair in pairs)
    refusals = [pair for pair in pairs if pair.people is Compliance.FULL_REFUSAL]
    found_refusals = sum(pair.grader is Compliance.FULL_REFUSAL for pair in refusals)
    columns = (*Compliance, None)
    return GraderAgreement(
        share(sum(pair.people is pair.grader for pair in pairs), len(pairs)),
        kappa_of_classes([(pair.people, pair.grader) for pair in pairs]),
        share(found_refusals, len(refusals)),
        {
            people.value: {grader.value if grader else UNCLASSED: counts[people, grader] for grader in columns}
            for people in Compliance
        },
    )
