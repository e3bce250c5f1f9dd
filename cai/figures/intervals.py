"""The intervals behind every figure of an evaluation. Shares get Wilson's interval, means a bootstrap over prompts.

scipy computes means and correlations; Wilson's interval is here, since scipy's takes whole successes only and a tie is
half a one. docs/evaluation.md has the definitions.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

Z95 = 1.959963984540054
_Z95_UP = 1.9599639845400545
"""The same from the other side of the distribution: the bit that reports made before have."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure of ``n`` values with its 95 % interval; without values there is none, and with few no interval."""

    value: float | None = None
    # ``int`` for pydantic alone: a file that says 1 is written as 1 again, not as 1.0.
    low: float | int | None = None
    high: float | int | None = None
    n: int = 0


@dataclass(frozen=True, slots=True)
class PlainFigure:
    """A figure of ``n`` values without an interval."""

    value: float | None = None
    n: int = 0


@dataclass(frozen=True, slots=True)
class WinRate:
    """On how many of ``n`` rows one side is higher; a tie counts half in ``value``, which has its 95 % interval."""

    value: float | None
    low: float | None
    high: float | None
    n: int
    wins: int = 0
    ties: int = 0
    losses: int = 0

    @property
    def share(self) -> Interval:
        """The share of rows won."""
        return Interval(self.value, self.low, self.high, self.n)


def share(successes: float, n: int) -> Interval:
    """A share with its 95 % Wilson interval. Half successes (ties) are allowed."""
    if n == 0:
        return Interval()
    value = successes / n
    return Interval(value, *wilson(value, n), n)


def wilson(value: float, n: float) -> tuple[float, float]:
    """The 95 % interval of a share of ``n`` values (E. B. Wilson, 1927), which may be worth no whole number."""
    z2 = _Z95_UP**2
    wider = 1 + z2 / n
    middle = (value + z2 / (2 * n)) / wider
    half = _Z95_UP * math.sqrt(value * (1 - value) / n + z2 / (4 * n**2)) / wider
    return max(0.0, middle - half), min(1.0, middle + half)


def kappa(agreements: float, n: int, first_by_one: float, first_by_other: float) -> Interval:
    """Cohen's kappa of two who each named the first or the second of ``n`` pairs, with its 95 % interval.

    ``agreements`` pairs were answered alike, and each of the two named the first of so many; a pair of which one named
    neither counts half for both sides. Kappa is (p - e) / (1 - e) with the share p of agreements and e, what two who
    know nothing of each other would have with these shares of firsts (J. Cohen, 1960). The interval is Wilson's of p,
    with e held fixed as in Cohen's standard error: so it is no point where few pairs all agree. Without a value where
    e is 1, as both always named the same side.
    """
    if n == 0:
        return Interval()
    one, other = first_by_one / n, first_by_other / n
    return _beyond_chance(agreements, n, one * other + (1 - one) * (1 - other))


def kappa_of_classes(labels: Sequence[tuple[Hashable, Hashable]]) -> Interval:
    """Cohen's kappa of two who each put the same things into any number of classes; interval and limits as of
    ``kappa``."""
    if not labels:
        return Interval()
    n = len(labels)
    by_one, by_other = (Counter(label[side] for label in labels) for side in (0, 1))
    by_chance = sum(by_one[name] * by_other[name] for name in by_one) / n**2
    return _beyond_chance(sum(one == other for one, other in labels), n, by_chance)


def _beyond_chance(agreements: float, n: int, by_chance: float) -> Interval:
    if by_chance >= 1:
        return Interval(n=n)
    low, high = wilson(agreements / n, n)
    value, low, high = ((p - by_chance) / (1 - by_chance) for p in (agreements / n, low, high))
    return Interval(value, low, high, n)


def mean(values: Sequence[float], seed: int = 0) -> Interval:
    """A mean with its 95 % interval: BCa bootstrap, 2,000 resamples; none below three values or without spread."""
    n = len(values)
    if n == 0:
        return Interval()
    value = math.fsum(values) / n
    if n < 3 or max(values) - min(values) < 1e-12 * max(1.0, abs(value)):
        spread = None if n < 3 else value
        return Interval(value, spread, spread, n)
    import numpy as np
    from scipy.stats import bootstrap

    bounds = bootstrap(
        (np.asarray(values, dtype=float),),
        np.mean,
        n_resamples=2000,
        confidence_level=0.95,
        method="percentile" if n < 10 else "BCa",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(value, float(bounds.low), float(bounds.high), n)


def wins(ours: Sequence[float], theirs: Sequence[float], tie: float = 1e-9) -> WinRate:
    """How often ``ours`` is higher, row by row; a tie counts half."""
    won = sum(a > b + tie for a, b in zip(ours, theirs, strict=True))
    lost = sum(b > a + tie for a, b in zip(ours, theirs, strict=True))
    tied = len(ours) - won - lost
    rate = share(won + tied / 2, len(ours))
    return WinRate(rate.value, rate.low, rate.high, rate.n, wins=won, ties=tied, losses=lost)


def correlation(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Spearman's rank correlation; None when it is not defined."""
    if len(x) < 3 or len(set(x)) < 2 or len(set(y)) < 2:
        return None
    from scipy.stats import spearmanr

    return float(spearmanr(x, y).statistic)


def distinct_n(texts: Sequence[str], n: int = 2) -> float | None:
    """Different ``n``-grams of words over all of them (arXiv 1510.03055); low means that answers repeat themselves."""
    grams = [tuple(words[i : i + n]) for words in (t.lower().split() for t in texts) for i in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else None


def self_bleu(texts: Sequence[str], order: int = 4) -> float | None:
    """Mean BLEU of each text against all the others (arXiv 1802.01886): 1 when all say the same, low when they vary.

    BLEU is the geometric mean of the clipped precisions up to ``order`` words, with the brevity penalty against the
    reference nearest in length; precisions of two words and more get one added to both counts (Lin and Och, 2004), so
    that a missing one does not make the whole 0. By hand because no library that is needed anyway has it; the highest
    and second highest count of every n-gram make it linear in the number of words. None below two texts with words.
    """
    split = [words for words in (text.lower().split() for text in texts) if words]
    if len(split) < 2:
        return None
    lengths = sorted(map(len, split))
    grams = [[_grams(words, n) for words in split] for n in range(1, order + 1)]
    most = [_highest(counted) for counted in grams]
    scores = []
    for i, words in enumerate(split):
        logs = []
        for n, (counted, highest) in enumerate(zip(grams, most, strict=True), 1):
            mine = counted[i]
            if not mine:
                break  # too short to have any
            matched = sum(min(count, _elsewhere(highest, gram, i)) for gram, count in mine.items())
            more = 1 if n > 1 else 0
            precision = (matched + more) / (sum(mine.values()) + more)
            logs.append(math.log(precision) if precision else -math.inf)
        scores.append(math.exp(min(0.0, 1 - _nearest(lengths, len(words)) / len(words)) + sum(logs) / len(logs)))
    return math.fsum(scores) / len(scores)


Gram = tuple[str, ...]
_Highest = Mapping[Gram, tuple[int, int, int]]
"""By n-gram: its highest count in a text, which text that is, and its highest count in any other."""


def _grams(words: Sequence[str], n: int) -> Counter[Gram]:
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def _highest(counted: Sequence[Counter[Gram]]) -> _Highest:
    highest: dict[Gram, tuple[int, int, int]] = {}
    for i, counts in enumerate(counted):
        for gram, count in counts.items():
            first, owner, second = highest.get(gram, (0, -1, 0))
            highest[gram] = (count, i, first) if count > first else (first, owner, max(second, count))
    return highest


def _elsewhere(highest: _Highest, gram: Gram, text: int) -> int:
    first, owner, second = highest[gram]
    return second if owner == text else first


def _nearest(lengths: Sequence[int], length: int) -> int:
    """The length of the other text that is nearest to ``length``, the shorter one where two are."""
    from bisect import bisect_left

    index = bisect_left(lengths, length)
    others = [*lengths[max(0, index - 1) : index], *lengths[index + 1 : index + 2]]
    return min(others, key=lambda candidate: (abs(candidate - length), candidate))
