"""What a stage of grading leaves beside its rows: counts by grader and grade, and how far two graders agree."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cai.figures.documents import write_document
from cai.figures.intervals import Interval, kappa_of_classes, share
from cai.grading.grades import Grade

GRADES = "grades.json"
"""The file of the report."""
VERSION = 1
UNREAD = "unread"


@dataclass(frozen=True, slots=True)
class GraderCounts:
    """One grader's grades: answers by grade, those without a readable one by reason, and each grade's share of the
    readable ones with its 95 % interval."""

    answers: int
    counts: Mapping[str, int]
    unread: Mapping[str, int]
    shares: Mapping[str, Interval]


@dataclass(frozen=True, slots=True)
class TwoGraders:
    """How often two graders gave the same grade to an answer that both could grade; ``confusion`` has counts by the
    first one's grade and then the second's. Grades of two are never averaged."""

    first: str
    second: str
    share: Interval
    kappa: Interval
    confusion: Mapping[str, Mapping[str, int]]


@dataclass
class GradeTally:
    """Counts grades as rows come; ``graders`` in the order in which they are shown."""

    graders: tuple[str, ...]
    answers: int = 0
    counts: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    unread: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    joint: Counter[tuple[str, str]] = field(default_factory=Counter)

    def add(self, grades: Mapping[str, Sequence[str | None]], unread: Sequence[str] = ()) -> None:
        """The grades of one row's answers by grader; ``unread`` has the reasons of the judge's that are None."""
        self.answers += len(next(iter(grades.values()), ()))
        for grader, values in grades.items():
            self.counts[grader].update(value for value in values if value is not None)
        if unread:
            self.unread[self.graders[-1]].update(unread)
        if len(self.graders) == 2:
            pairs = zip(grades[self.graders[0]], grades[self.graders[1]], strict=True)
            self.joint.update((a, b) for a, b in pairs if a is not None and b is not None)

    def metrics(self) -> dict[str, int]:
        """Counts for the record: ``judge/complied``, ``judge/unread``; none of a grade that nothing got."""
        flat = {f"{g}/{grade.value}": self.counts[g][grade.value] for g in self.graders for grade in Grade}
        flat |= {f"{g}/{UNREAD}": self.unread[g].total() for g in self.graders}
        return {name: n for name, n in flat.items() if n}

    def report(self) -> dict[str, Any]:
        """The document as plain data."""
        by_grader = {grader: asdict(self._counts(grader)) for grader in self.graders}
        both = asdict(self._two()) if len(self.graders) == 2 else None
        return {"version": VERSION, "answers": self.answers, "graders": by_grader, "agreement": both}

    def write(self, folder: Path) -> None:
        """Write the document to ``grades.json``."""
        write_document(folder / GRADES, self.report())

    def _counts(self, grader: str) -> GraderCounts:
        counts = {grade.value: self.counts[grader][grade.value] for grade in Grade}
        readable = sum(counts.values())
        shares = {name: share(n, readable) for name, n in counts.items()}
        return GraderCounts(self.answers, counts, dict(sorted(self.unread[grader].items())), shares)

    def _two(self) -> TwoGraders:
        first, second = self.graders
        labels = [pair for pair, n in sorted(self.joint.items()) for _ in range(n)]
        confusion = {a.value: {b.value: self.joint[a.value, b.value] for b in Grade} for a in Grade}
        alike = share(sum(a == b for a, b in labels), len(labels))
        return TwoGraders(first, second, alike, kappa_of_classes(labels), confusion)
