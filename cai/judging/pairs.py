"""Pairs of answers and the votes on them: which are asked, what becomes of the votes, and which come out.

A vote is one reading of the judge: one question (pair, principle, order) and one sample. Samples of a question are
averaged first, then questions over orders and principles, so that an order of which a sample could not be read does
not count for less.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from cai.data.rows import Candidates
from cai.figures.running_sums import mean_of, signs
from cai.judging.sets import Reading
from cai.judging.settings import Pairs

REFUSED = "refused by the server"
NO_ANSWER = "no answer"
Pair = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Vote:
    """``p``: that the answer shown first is the better one (answer ``i`` where the two are not shown together, and
    ``flipped`` is None). Without a ``p``, ``why`` says in a few words why nothing could be read.

    ``k`` is the number of the principle among those that the row was asked; ``flipped`` shows answer ``j`` first.
    """

    i: int
    j: int
    k: int
    flipped: bool | None
    sample: int
    p: float | None
    why: str = ""

    def plain(self) -> list[Any]:
        """As an entry's facts keep it."""
        flipped = None if self.flipped is None else int(self.flipped)
        return [self.i, self.j, self.k, flipped, self.sample, self.why if self.p is None else self.p]


def votes_of(plain: Iterable[Sequence[Any]]) -> list[Vote]:
    """What ``Vote.plain`` wrote."""
    return [
        Vote(i, j, k, None if flipped is None else bool(flipped), sample, None, p)
        if isinstance(p, str)
        else Vote(i, j, k, None if flipped is None else bool(flipped), sample, p)
        for i, j, k, flipped, sample, p in plain
    ]


@dataclass(slots=True)
class Verdict:
    """All votes on one row's candidates, or where they were shown together all readings, and what they took."""

    votes: list[Vote] = field(default_factory=list)
    calls: int = 0
    tokens: int = 0
    readings: list[Reading] = field(default_factory=list)

    def add(self, vote: Vote | Reading) -> None:
        """One more of either."""
        if isinstance(vote, Vote):
            self.votes.append(vote)
        else:
            self.readings.append(vote)


Question = tuple[int, int, int, bool | None]
"""Pair, number of the principle, order."""


def asked_pairs(pairs: Pairs, row: Candidates) -> list[Pair]:
    """Pairs (i, j), i < j, that may come out, equal answers among them."""
    n = len(row.answers)
    if pairs is Pairs.NEIGHBOURS:
        return [(i, i + 1) for i in range(n - 1)]
    return list(combinations(range(n), 2))


def different(pairs: Pairs, row: Candidates) -> list[Pair]:
    """Those of them that the judge is asked about."""
    return [(i, j) for i, j in asked_pairs(pairs, row) if row.answers[i] != row.answers[j]]


def first_shown(votes: Iterable[Vote]) -> dict[Question, float]:
    """p of the answer shown first by question, averaged over what was read of its samples, in the order asked."""
    p_of_samples: dict[Question, list[float]] = {}
    for vote in votes:
        if vote.p is not None:
            p_of_samples.setdefault((vote.i, vote.j, vote.k, vote.flipped), []).append(vote.p)
    return {question: mean_of(values) for question, values in p_of_samples.items()}


def of_pair(question: Question, p_first: float) -> float:
    """p that answer ``i`` is better than ``j``, from p of the one shown first."""
    return 1 - p_first if question[3] else p_first


def by_pair(questions: Mapping[Question, float], both: bool) -> dict[Pair, float]:
    """p that answer ``i`` is better than ``j``: the mean over orders and principles; unread pairs are not there.

    With ``both`` a question counts only where it was read in both orders: one alone would carry the judge's liking for
    a place into the label.
    """
    p_of_questions: dict[Pair, list[float]] = {}
    for question, p in questions.items():
        i, j, k, flipped = question
        if both and flipped is not None and (i, j, k, not flipped) not in questions:
            continue
        p_of_questions.setdefault(question[:2], []).append(of_pair(question, p))
    return {pair: mean_of(values) for pair, values in p_of_questions.items()}


def both_orders(questions: Mapping[Question, float]) -> list[tuple[float, float]]:
    """p of answer ``i`` as read in one order and in the other, for every question that was read in both."""
    p_in_both = []
    for (i, j, k, flipped), p in questions.items():
        if flipped is False and (i, j, k, True) in questions:
            p_in_both.append((p, 1 - questions[i, j, k, True]))
    return p_in_both


def agree(p: float, p_swapped: float) -> bool:
    """Whether two readings of a pair come to the same verdict."""
    return signs(p) == signs(p_swapped)


def unread(votes: Sequence[Vote | Reading]) -> str:
    """Why these votes on a pair, or on a set, came to nothing, as the ledger says it."""
    if any(not vote.why for vote in votes):
        return "read in one order only"
    for prefix in (REFUSED, NO_ANSWER):
        if votes and all(vote.why.startswith(prefix) for vote in votes):
            # Of a refusal the words may differ from vote to vote; the ends that are no answer are few.
            return votes[0].why if prefix is NO_ANSWER and len({vote.why for vote in votes}) == 1 else prefix
    return "unparsed"


def chosen_pairs(pairs: Pairs, row: Candidates, p: Mapping[Pair, float]) -> list[Pair]:
    """The pairs that come out. The best and the worst are those with the highest and lowest mean p over the others."""
    candidate_pairs = asked_pairs(pairs, row)
    n = len(row.answers)
    if pairs is not Pairs.BEST_WORST or n <= 2:
        return candidate_pairs
    means = [0.0] * n
    for i, j in candidate_pairs:
        mine = p.get((i, j), 0.5)
        means[i] += mine
        means[j] += 1 - mine
    best = max(range(n), key=lambda i: (means[i], -i))
    worst = min((i for i in range(n) if i != best), key=lambda i: (means[i], -i))
    return [(min(best, worst), max(best, worst))]
