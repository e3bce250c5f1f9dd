"""Sets of answers that a judge sees together, and what it says of each set: which is the best, which is the worst.

A reading is two votes. On a pair of answers the vote for the best counts for the answer that it names, the vote for the
worst against it; a vote that names neither of the two counts half for each side, like a tie. So

    p(i better than j) = 1/2 + (score i - score j) / 4,

where an answer's score is how often it was the best less how often it was the worst, as shares of the readings: the
score of best-worst scaling (J. J. Louviere, T. N. Flynn and A. A. J. Marley, Best-Worst Scaling, 2015). With two
answers p is the mean of the readings, as for any pair. Shares are exact fractions: equal scores are equal everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from fractions import Fraction
from typing import Any


@dataclass(frozen=True, slots=True)
class Reading:
    """What a judge said of one set: ``best`` and ``worst`` are numbers of candidates, as are all in ``shown_order``,
    which has them in the order in which they were shown. Without the two ``why`` says in a few words why nothing could
    be read.

    ``k`` is the number of the principle among those that the row was asked; ``order`` 1 is the reverse of order 0.
    """

    k: int
    order: int
    sample: int
    shown_order: tuple[int, ...]
    best: int | None = None
    worst: int | None = None
    why: str = ""

    def plain(self) -> list[Any]:
        """As an entry's facts keep it."""
        return [self.k, self.order, self.sample, list(self.shown_order), self.why or [self.best, self.worst]]


def readings_of(plain: Iterable[Sequence[Any]]) -> list[Reading]:
    """What ``Reading.plain`` wrote."""
    return [
        Reading(k, order, sample, tuple(shown_order), why=ends_or_why)
        if isinstance(ends_or_why, str)
        else Reading(k, order, sample, tuple(shown_order), *ends_or_why)
        for k, order, sample, shown_order, ends_or_why in plain
    ]


def distinct(answers: Sequence[str]) -> list[int]:
    """The numbers of the answers that differ from all before them: the set that is shown."""
    return [i for i, answer in enumerate(answers) if answer not in answers[:i]]


@dataclass(frozen=True, slots=True)
class Standing:
    """How often an answer was named the best and the worst, as shares of the readings."""

    best: Fraction = Fraction(0)
    worst: Fraction = Fraction(0)

    @property
    def score(self) -> Fraction:
        """-1 where it was always the worst, 1 where it was always the best."""
        return self.best - self.worst


Standings = Mapping[int, Standing]
"""Of every answer of a set, by its number."""

SetQuestion = tuple[int, int]
"""Number of the principle, order."""


def _mean(standings: Sequence[Standings]) -> dict[int, Standing]:
    n = len(standings)

    def mean(shares: Iterable[Fraction]) -> Fraction:
        return sum(shares, Fraction()) / n

    return {
        i: Standing(mean(each[i].best for each in standings), mean(each[i].worst for each in standings))
        for i in standings[0]
    }


def by_question(readings: Iterable[Reading]) -> dict[SetQuestion, Standings]:
    """Standings by question, averaged over what was read of its samples, in the order asked."""
    standings_of_samples: dict[SetQuestion, list[Standings]] = {}
    for reading in readings:
        if not reading.why:
            standings = {
                i: Standing(Fraction(i == reading.best), Fraction(i == reading.worst)) for i in reading.shown_order
            }
            standings_of_samples.setdefault((reading.k, reading.order), []).append(standings)
    return {question: _mean(samples) for question, samples in standings_of_samples.items()}


def overall(questions: Mapping[SetQuestion, Standings], both: bool, k: int | None = None) -> Standings | None:
    """Standings over orders and principles, or those of principle ``k`` alone; None where nothing was read.

    With ``both`` a question counts only where it was read in both orders: one alone would carry the judge's liking for
    a place into the label.
    """
    counting = [
        standings
        for (number, order), standings in questions.items()
        if k in (None, number) and (not both or (number, 1 - order) in questions)
    ]
    return _mean(counting) if counting else None


def p_between(standings: Standings, i: int, j: int) -> float:
    """p that answer ``i`` is better than ``j``: two votes a reading, half for each where a vote names neither."""
    return float(Fraction(1, 2) + (standings[i].score - standings[j].score) / 4)


def pair_of(readings: Sequence[Reading], both: bool) -> tuple[tuple[int, int], float | None]:
    """The two answers (i < j) that come out of a set's readings, the highest and the lowest score, with p that ``i`` is
    better than ``j``: None where nothing was read.

    Of answers with the same score the one that was named more often comes out, so that of a judge who named two and
    then took both back these two are the tie. Of those still alike it is the one that was shown first: an order that
    was drawn.
    """
    shown_order = readings[0].shown_order
    standings = overall(by_question(readings), both)
    if standings is None:
        return _ordered(shown_order[0], shown_order[-1]), None

    def share_named(i: int) -> Fraction:
        return standings[i].best + standings[i].worst

    best = max(shown_order, key=lambda i: (standings[i].score, share_named(i)))
    worst = min((i for i in shown_order if i != best), key=lambda i: (standings[i].score, -share_named(i)))
    i, j = _ordered(best, worst)
    return (i, j), p_between(standings, i, j)


def _ordered(i: int, j: int) -> tuple[int, int]:
    return min(i, j), max(i, j)


class Agreement(str, Enum):
    """How two readings of a set compare."""

    FULL = "same best and worst"
    BEST = "same best, another worst"
    WORST = "same worst, another best"
    NEITHER = "another best and another worst"
    HALF = "one answer the best and the worst"
    SWAPPED = "best and worst changed places"


def in_both_orders(questions: Mapping[SetQuestion, Standings]) -> list[tuple[Standings, Standings]]:
    """The standings in one order and in the other, of every question that was read in both."""
    return [
        (standings, questions[k, 1])
        for (k, order), standings in questions.items()
        if order == 0 and (k, 1) in questions
    ]


def agreement(standings: Standings, reversed_standings: Standings) -> Agreement:
    """How a question's two orders compare."""
    best, worst = _ends(standings)
    reversed_best, reversed_worst = _ends(reversed_standings)
    if best & reversed_worst and worst & reversed_best:
        return Agreement.SWAPPED
    if best & reversed_worst or worst & reversed_best:
        return Agreement.HALF
    if best == reversed_best:
        return Agreement.FULL if worst == reversed_worst else Agreement.BEST
    return Agreement.WORST if worst == reversed_worst else Agreement.NEITHER


def _ends(standings: Standings) -> tuple[frozenset[int], frozenset[int]]:
    """The answers with the highest and those with the lowest score; none where samples leave all with the same."""
    scores = {i: standing.score for i, standing in standings.items()}
    high, low = max(scores.values()), min(scores.values())
    if high == low:
        return frozenset(), frozenset()
    return frozenset(i for i in scores if scores[i] == high), frozenset(i for i in scores if scores[i] == low)


def lean_to_the_front(standings: Standings, shown_order: Sequence[int]) -> float:
    """p of the answer shown first less 0.5, averaged over all pairs of a set: what ``position.bias`` is the mean of."""
    places = len(shown_order)
    ahead = sum(standings[i].score * (places - 1 - 2 * place) for place, i in enumerate(shown_order))
    return float(ahead / (2 * places * (places - 1)))


def apart(standings: Standings, reversed_standings: Standings) -> float:
    """How far p moves between two orders, on the pairs that these name: 0 where both name the same, 1 where best and
    worst change places."""
    moved = []
    for mine, yours in ((standings, reversed_standings), (reversed_standings, standings)):
        best, worst = (max(mine, key=lambda i: sign * mine[i].score) for sign in (1, -1))
        moved.append(abs(p_between(mine, best, worst) - p_between(yours, best, worst)))
    return sum(moved) / 2
