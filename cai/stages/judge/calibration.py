"""A judge against human labels: how often it is right, and whether it is as sure as it should be.

Beside the judge stand rules that know nothing of the constitution: always the longer answer, always the shorter, always
the same side, a coin. A judge that does no better than these has not shown that it read anything.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Mapping
from typing import Any

from cai.figures.intervals import Interval, PlainFigure, kappa, share
from cai.figures.judge_report import (
    ALWAYS_FIRST,
    ALWAYS_LONGER,
    ALWAYS_SHORTER,
    MAJORITY_SIDE,
    BaselineFigures,
    BeyondChance,
    FittedTemperature,
    LabelFigures,
    LogLoss,
    LongerPreferred,
    ReliabilityBin,
)
from cai.figures.running_sums import Bins, Mean, rounded, rounded_interval, signs
from cai.judging.pairs import by_pair, first_shown, votes_of
from cai.judging.sets import pair_of, readings_of

CLIP = 0.001
"""Probabilities are kept this far from 0 and 1 wherever their logarithm is taken."""
SLOPES = (0.0, 100.0)
TOPICS = 20
"""Topics that are shown, the most frequent ones."""


def clipped(p: float) -> float:
    """A probability whose logarithm can be taken."""
    return min(max(p, CLIP), 1 - CLIP)


def logit(p: float) -> float:
    """log(p / (1 - p)) of the clipped probability."""
    p = clipped(p)
    return math.log(p / (1 - p))


def cross_entropy(p: float, y: float) -> float:
    """Nats that ``p`` loses against the label ``y``, which may be soft."""
    p = clipped(p)
    return -(y * math.log(p) + (1 - y) * math.log(1 - p))


class Calibration:
    """Sums over pairs that people have labelled too: 16 bytes a pair, for the fitted temperature.

    ``both``: a question counts only where it was read in both orders.
    """

    def __init__(self, both: bool) -> None:
        self._both = both
        self.counts: Counter[str] = Counter()
        self.right = Mean()
        # Right more often than the rules that the longer, the shorter, the first, the second answer is the better one.
        self.above = Mean()
        self.above_shorter = Mean()
        self.above_first = Mean()
        self.above_second = Mean()
        self.brier = Mean()
        self.loss = Mean()
        self.longer_right = Mean()  # how often that rule is right
        self.judge_longer = Mean()  # how often the judge prefers the longer answer
        self.bins = Bins()
        self.topics: dict[str, list[float]] = {}  # how many were right, and how many there are
        self.logits = array("d")
        self.labels = array("d")
        # For the baselines: pairs of answers of unequal and of equal length, and sums of their labels.
        self.unequal = 0
        self.equal = 0
        self.y_longer = 0.0
        self.yy_longer = 0.0
        self.equal_squares = 0.0
        # For kappa and the constant rules: how often the judge, and people, named the first; sums of the labels.
        self.judge_first = 0.0
        self.people_first = 0.0
        self.y = 0.0
        self.yy = 0.0

    def see(self, facts: Mapping[str, Any], dropped: Mapping[str, int]) -> None:
        """One pair: its votes, the lengths of both answers, and ``human``, p that the first is the better one."""
        self.counts["rows"] += 1
        if "human" not in facts:
            self.counts.update(dropped)
            return
        votes, readings = votes_of(facts["votes"]), readings_of(facts.get("readings", ()))
        if not votes and not readings:
            self.counts["identical"] += 1
            return
        p = pair_of(readings, self._both)[1] if readings else by_pair(first_shown(votes), self._both).get((0, 1))
        y = float(facts["human"])
        if p is None or y == 0.5:
            self.counts["unreadable" if p is None else "human ties"] += 1
            return
        self._add(p, y, facts["lengths"][0] - facts["lengths"][1], facts.get("topic", ""))

    def _add(self, p: float, y: float, longer: int, topic: str) -> None:
        right = 0.5 if p == 0.5 else float(signs(p) == signs(y))
        rule = 0.5 if longer == 0 else float((longer > 0) == (y > 0.5))
        self.right.add([right])
        first = signs(y)
        self.above.add([right - rule])
        self.above_shorter.add([right - (1 - rule)])
        self.above_first.add([right - first])
        self.above_second.add([right - (1 - first)])
        self.judge_first += signs(p)
        self.people_first += first
        self.y += y
        self.yy += y * y
        self.brier.add([(p - y) ** 2])
        self.loss.add([cross_entropy(p, y)])
        self.bins.add(max(p, 1 - p), right)
        self.logits.append(logit(p))
        self.labels.append(y)
        if topic:
            topic_totals = self.topics.setdefault(topic, [0.0, 0.0])
            topic_totals[0] += right
            topic_totals[1] += 1
        if longer:
            of_longer = y if longer > 0 else 1 - y
            self.unequal += 1
            self.y_longer += of_longer
            self.yy_longer += of_longer * of_longer
            self.longer_right.add([rule])
            self.judge_longer.add([signs(p) if longer > 0 else 1 - signs(p)])
        else:
            self.equal += 1
            self.equal_squares += (y - 0.5) ** 2

    def figures(self, temperature: float | None = None) -> LabelFigures:
        """All of it. ``temperature`` is the one that the judge's p were read at, where it has one."""
        loss = self.loss.mean(0)
        return LabelFigures(
            counts=dict(sorted(self.counts.items())),
            accuracy=self.right.share(),
            above_always_the_longer=self.above.mean(-1, 1),
            brier=self.brier.mean(0, 1),
            log_loss=LogLoss(loss.value, loss.low, loss.high, loss.n, clipped_at=CLIP),
            expected_calibration_error=PlainFigure(rounded(self.bins.apart()), sum(self.bins.n)),
            reliability=_reliability(self.bins),
            fitted=self._fitted(temperature),
            baselines=self._baselines(),
            longer_preferred=LongerPreferred(human=self.longer_right.share(), judge=self.judge_longer.share()),
            topics=self._topics(),
            beyond_chance=self._beyond_chance(),
        )

    def _beyond_chance(self) -> BeyondChance:
        """Against the one of the rules that these pairs suit best: that it is chosen on them is to the judge's loss."""
        n = self.right.n
        if not n:
            return BeyondChance()
        longer = self.longer_right.total + self.equal / 2
        majority = self.above_first if self.people_first >= n / 2 else self.above_second
        rules = (
            (ALWAYS_LONGER, longer, self.above),
            (ALWAYS_SHORTER, n - longer, self.above_shorter),
            (ALWAYS_FIRST, self.people_first, self.above_first),
            (MAJORITY_SIDE, max(self.people_first, n - self.people_first), majority),
        )
        best_rule, _, above = max(rules, key=lambda rule: rule[1])
        return BeyondChance(
            kappa=rounded_interval(kappa(self.right.total, n, self.judge_first, self.people_first)),
            best_rule=best_rule,
            above_best_rule=above.mean(-1, 1),
        )

    def _fitted(self, temperature: float | None) -> FittedTemperature:
        """The temperature that a judge as good as this one should have been read at: p' = sigmoid(slope logit(p)) with
        the slope of least log loss (C. Guo and others, arXiv 1706.04599)."""
        if not self.logits:
            return FittedTemperature()
        import numpy as np
        from scipy.optimize import brentq
        from scipy.special import expit

        x, y = np.frombuffer(self.logits, dtype=float), np.frombuffer(self.labels, dtype=float)

        def rising(slope: float) -> float:
            """The derivative of the log loss, which is convex."""
            return float(np.mean((expit(slope * x) - y) * x))

        low, high = SLOPES
        slope = low if rising(low) >= 0 else high if rising(high) <= 0 else float(brentq(rising, low, high, xtol=1e-12))
        loss = float(np.mean(np.logaddexp(0, slope * x) - y * slope * x))
        return FittedTemperature(
            slope=rounded(slope),
            temperature=rounded(1 / slope) if slope > 0 else None,
            log_loss=rounded(loss),
            setting=rounded(temperature / slope) if temperature is not None and slope > 0 else None,
            n=len(x),
        )

    def _baselines(self) -> dict[str, BaselineFigures]:
        """Each rule with the one certainty that suits it best here, so that it is not punished for being too sure."""
        n = self.unequal + self.equal
        if not n:
            return {}
        q = self.y_longer / self.unequal if self.unequal else 0.5
        brier = (self.yy_longer - 2 * q * self.y_longer + self.unequal * q * q + self.equal_squares) / n
        loss = (self.unequal * cross_entropy(q, q) + self.equal * math.log(2)) / n
        right = self.longer_right.total + self.equal / 2
        first, most = self.people_first, max(self.people_first, n - self.people_first)
        mean = self.y / n
        constant_brier = rounded(self.yy / n - mean * mean)
        constant_loss = rounded(cross_entropy(mean, mean))
        return {
            ALWAYS_LONGER: BaselineFigures(_share(right, n), rounded(brier), rounded(loss)),
            ALWAYS_SHORTER: BaselineFigures(_share(n - right, n), rounded(brier), rounded(loss)),
            ALWAYS_FIRST: BaselineFigures(_share(first, n), constant_brier, constant_loss),
            MAJORITY_SIDE: BaselineFigures(_share(most, n), constant_brier, constant_loss),
            "a coin": BaselineFigures(Interval(value=0.5, n=n), 0.25, rounded(math.log(2))),
        }

    def _topics(self) -> dict[str, Interval]:
        frequent = sorted(self.topics.items(), key=lambda item: (-item[1][1], item[0]))
        accuracies = {topic: _share(right, int(n)) for topic, (right, n) in frequent[:TOPICS]}
        if rest := frequent[TOPICS:]:
            right, n = (math.fsum(counts[i] for _, counts in rest) for i in (0, 1))
            accuracies[f"{len(rest)} other topics"] = _share(right, int(n))
        return accuracies


def _share(right: float, n: int) -> Interval:
    return rounded_interval(share(right, n))


def _reliability(bins: Bins) -> tuple[ReliabilityBin, ...]:
    """How sure the judge was and how often right, by how sure it was."""
    return tuple(
        ReliabilityBin(
            low=low,
            high=high,
            n=n,
            confidence=rounded(x / n) if n else None,
            accuracy=rounded(y / n) if n else None,
        )
        for (low, high), n, x, y in zip(bins.bounds(), bins.n, bins.x, bins.y, strict=True)
    )
