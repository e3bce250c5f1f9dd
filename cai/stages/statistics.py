"""The intervals behind every figure of an evaluation. Shares get Wilson's interval, means a bootstrap over prompts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

Z95 = 1.959963984540054


def share(successes: float, n: int) -> dict[str, Any]:
    """A share with its 95 % Wilson interval (E. B. Wilson, 1927). Half successes (ties) are allowed."""
    if n == 0:
        return {"value": None, "low": None, "high": None, "n": 0}
    p, z = successes / n, Z95
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return {"value": p, "low": max(0.0, middle - half), "high": min(1.0, middle + half), "n": n}


def mean(values: Sequence[float], seed: int = 0) -> dict[str, Any]:
    """A mean with its 95 % interval: BCa bootstrap, 2,000 resamples; none below three values or without spread."""
    n = len(values)
    if n == 0:
        return {"value": None, "low": None, "high": None, "n": 0}
    value = math.fsum(values) / n
    if n < 3 or max(values) - min(values) < 1e-12 * max(1.0, abs(value)):
        spread = None if n < 3 else value
        return {"value": value, "low": spread, "high": spread, "n": n}
    import numpy as np
    from scipy.stats import bootstrap

    found = bootstrap(
        (np.asarray(values, dtype=float),),
        np.mean,
        n_resamples=2000,
        confidence_level=0.95,
        method="percentile" if n < 10 else "BCa",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return {"value": value, "low": float(found.low), "high": float(found.high), "n": n}


def wins(ours: Sequence[float], theirs: Sequence[float], tie: float = 1e-9) -> dict[str, Any]:
    """How often ``ours`` is higher, row by row; a tie counts half."""
    won = sum(a > b + tie for a, b in zip(ours, theirs, strict=True))
    lost = sum(b > a + tie for a, b in zip(ours, theirs, strict=True))
    tied = len(ours) - won - lost
    return {**share(won + tied / 2, len(ours)), "wins": won, "ties": tied, "losses": lost}


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
