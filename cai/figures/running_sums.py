"""Figures that are summed up while rows stream by, with intervals that know that a row's figures hang together.

A row may be asked many questions, and its answers resemble each other. So no interval takes questions for independent:
every figure is a ratio of two sums over rows, and its variance is taken between rows (the linearised variance of a
ratio, as in surveys; W. G. Cochran, Sampling Techniques, 1977, chapter 6). That takes a few sums and no resampling,
whatever the number of rows, and it gives the same digits every time.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from cai.figures.intervals import Z95, Interval, PlainFigure, wilson

DIGITS = 6


def rounded(value: float | None) -> float | None:
    """To as many digits as every machine agrees on; no minus zero. A whole bound (``mean(0, 1)``) stays whole."""
    return value if value is None or isinstance(value, int) else round(value, DIGITS) + 0.0


def rounded_interval(figure: Interval) -> Interval:
    """A figure whose value and interval are rounded."""
    return Interval(rounded(figure.value), rounded(figure.low), rounded(figure.high), figure.n)


@dataclass(slots=True)
class Mean:
    """The mean of values that come in groups, one group a row."""

    rows: int = 0
    n: int = 0
    total: float = 0.0
    squares: float = 0.0
    crossed: float = 0.0
    sizes: float = 0.0

    def add(self, values: Sequence[float]) -> None:
        """The values of one row; a row without any does not count."""
        if values:
            total, n = math.fsum(values), len(values)
            self.rows += 1
            self.n += n
            self.total += total
            self.squares += total * total
            self.crossed += total * n
            self.sizes += n * n

    @property
    def value(self) -> float | None:
        """The mean, where there is any value."""
        return self.total / self.n if self.n else None

    def variance(self) -> float:
        """Of the mean, between rows."""
        if not self.n:
            return 0.0
        mean = self.total / self.n
        return max(0.0, self.squares - 2 * mean * self.crossed + mean * mean * self.sizes) / (self.n * self.n)

    def mean(self, lowest: float = -math.inf, highest: float = math.inf) -> Interval:
        """With its 95 % interval (Student's t between rows) within what is possible; none below three rows."""
        if not self.n:
            return Interval()
        value = self.total / self.n
        if self.rows < 3:
            return Interval(rounded(value), n=self.n)
        from scipy.special import stdtrit  # scipy.stats has it too, and takes seconds to load

        half = float(stdtrit(self.rows - 1, 0.975)) * math.sqrt(self.variance() * self.rows / (self.rows - 1))
        low, high = max(lowest, value - half), min(highest, value + half)
        return rounded_interval(Interval(value, low, high, self.n))

    def share(self) -> Interval:
        """As a share, with Wilson's 95 % interval for as many values as would vary as much if all were independent.

        With one value a row it is Wilson's own. Where all are alike nothing is known of how they vary: rows count.
        """
        if not self.n:
            return Interval()
        value = self.total / self.n
        alone = value * (1 - value) / self.n
        if alone <= 0:
            worth = float(self.rows)
        else:
            worth = self.n / max(1.0, self.variance() / alone) if self.n > self.rows else float(self.n)
        low, high = wilson(value, worth)  # a share of 12.5 values is as good
        return rounded_interval(Interval(value, low, high, self.n))


@dataclass(slots=True)
class Correlation:
    """Of two figures of a pair that change their sign when the pair is turned round.

    Which of the two comes first means nothing, so both ways round count: the means are 0 by construction.
    """

    rows: int = 0
    n: int = 0
    xx: float = 0.0
    yy: float = 0.0
    xy: float = 0.0

    def add(self, pairs: Sequence[tuple[float, float]]) -> None:
        """The pairs of one row."""
        if pairs:
            self.rows += 1
            self.n += len(pairs)
            self.xx += math.fsum(x * x for x, _ in pairs)
            self.yy += math.fsum(y * y for _, y in pairs)
            self.xy += math.fsum(x * y for x, y in pairs)

    def figure(self) -> Interval:
        """With Fisher's 95 % interval for as many pairs as there are rows; none below five rows."""
        if self.xx <= 0 or self.yy <= 0:
            return Interval(n=self.n)
        value = max(-1.0, min(1.0, self.xy / math.sqrt(self.xx * self.yy)))
        low = high = None
        if self.rows >= 5 and abs(value) < 1:
            middle, half = math.atanh(value), Z95 / math.sqrt(self.rows - 3)
            low, high = math.tanh(middle - half), math.tanh(middle + half)
        return rounded_interval(Interval(value, low, high, self.n))


@dataclass(slots=True)
class Alpha:
    """Krippendorff's alpha for nominal verdicts on pairs: 1 full agreement, 0 what chance would give.

    Written by hand: neither scipy nor numpy has it. Verdicts are 1, 0 or 0.5 (a tie) for the first answer of a pair;
    as which answer is called the first means nothing, every pair counts both ways round.
    """

    values: Counter[float] = field(default_factory=Counter)
    apart: float = 0.0
    pairs: int = 0

    def add(self, verdicts: Sequence[float]) -> None:
        """The verdicts of all principles on one pair; a single one cannot be compared."""
        m = len(verdicts)
        if m < 2:
            return
        verdict_counts = Counter(verdicts)
        self.pairs += 1
        self.apart += 2 * (m * m - sum(count * count for count in verdict_counts.values())) / (m - 1)
        for verdict, count in verdict_counts.items():
            self.values[verdict] += count
            self.values[1 - verdict] += count

    def figure(self) -> PlainFigure:
        """Alpha; without an interval."""
        n = sum(self.values.values())
        chance = n * n - sum(count * count for count in self.values.values())
        value = 1 - (n - 1) * self.apart / chance if chance else None
        return PlainFigure(rounded(value), self.pairs)


@dataclass(slots=True)
class Bins:
    """Values between ``low`` and ``high`` in ``count`` bins, with a second figure averaged in each."""

    low: float = 0.5
    high: float = 1.0
    count: int = 10
    n: list[int] = field(default_factory=list)
    x: list[float] = field(default_factory=list)
    y: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.n = [0] * self.count
        self.x = [0.0] * self.count
        self.y = [0.0] * self.count

    def add(self, x: float, y: float = 0.0) -> None:
        """One value, with the other figure that belongs to it."""
        # The small part lets 0.55 fall in the bin that begins with it, whatever its last bit.
        bin_index = min(self.count - 1, max(0, int((x - self.low) / (self.high - self.low) * self.count + 1e-9)))
        self.n[bin_index] += 1
        self.x[bin_index] += x
        self.y[bin_index] += y

    def bounds(self) -> list[tuple[float, float]]:
        """Of every bin."""
        step = (self.high - self.low) / self.count
        return [(round(self.low + i * step, 4), round(self.low + (i + 1) * step, 4)) for i in range(self.count)]

    def apart(self) -> float | None:
        """Mean distance of the two figures over bins, each with the weight of its n."""
        n = sum(self.n)
        return math.fsum(abs(x - y) for x, y in zip(self.x, self.y, strict=True)) / n if n else None


def signs(p: float) -> float:
    """The verdict of a probability: 1, 0, or 0.5 where it is exactly even."""
    return 0.5 if p == 0.5 else float(p > 0.5)


def mean_of(values: Iterable[float]) -> float:
    """Their mean; there must be one."""
    listed = list(values)
    return sum(listed) / len(listed)
