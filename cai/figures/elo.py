"""Bradley-Terry strengths on the Elo scale: one figure for each model from all comparisons between all of them.

That model i beats model j has the probability 1 / (1 + 10^((E_j - E_i) / 400)) (Bradley and Terry, 1952; Elo, 1978).
Every prompt compares every two models; a tie is half a win for each. Beside what was seen, every two models are taken
to have tied once: so a model that always wins stays finite, and with many prompts it changes nothing. scipy maximises
the likelihood; the interval is a bootstrap over prompts, since the comparisons of one prompt hang together. In names of
arrays b is a resample, p a prompt, m a model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cai.figures.intervals import Interval
from cai.figures.running_sums import rounded_interval

if TYPE_CHECKING:
    import numpy as np

SCALE = 400 / math.log(10)
"""Elo points in one unit of log odds."""
RESAMPLES = 1000
PRIOR = 0.5
"""Wins of each of two models over the other that are taken for granted: together one tie."""
_TIE = 1e-9


def ratings(rewards: Sequence[Sequence[float]], models: Sequence[str], seed: int = 0) -> dict[str, Interval]:
    """The Elo of every model, the first one at 0, from the rewards of its answers: a row a prompt, a column a model.

    Each with its 95 % interval (percentiles of ``RESAMPLES`` bootstrap resamples of the prompts). There is none below
    three prompts, nor where this model or the first one wins or loses every comparison: how far apart they are then
    follows from the prior, and no resample knows better. ``n`` is the number of prompts.
    """
    import numpy as np

    wins_pmm = outcomes(np.asarray(rewards, dtype=float).reshape(len(rewards), len(models)))
    n = len(wins_pmm)
    rng = np.random.default_rng(seed)
    drawn_bp = rng.multinomial(n, np.full(n, 1 / n), size=RESAMPLES if n >= 3 else 0)
    weights_bp = np.concatenate([np.ones((1, n)), drawn_bp])
    elo_bm = SCALE * strengths(np.tensordot(weights_bp, wins_pmm, axes=1))
    share_m = wins_pmm.sum(axis=(0, 2)) / max(1, n * (len(models) - 1))
    sound = [0 < share < 1 for share in share_m]
    elo_by_model: dict[str, Interval] = {}
    for model, column, is_sound in zip(models, elo_bm.T, sound, strict=True):
        low = high = None
        if len(column) > 1 and is_sound and sound[0]:
            low, high = (float(x) for x in np.quantile(column[1:], (0.025, 0.975)))
        elo_by_model[model] = rounded_interval(Interval(float(column[0]), low, high, n))
    return elo_by_model | {models[0]: Interval(0.0, 0.0, 0.0, n)}


def outcomes(rewards_pm: np.ndarray) -> np.ndarray:
    """For every prompt, how far model i beats model j: 1, 0.5 for a tie, 0; the diagonal is 0."""
    import numpy as np

    apart_pmm = rewards_pm[:, :, None] - rewards_pm[:, None, :]
    wins_pmm = np.where(apart_pmm > _TIE, 1.0, np.where(apart_pmm < -_TIE, 0.0, 0.5))
    wins_pmm[:, np.arange(wins_pmm.shape[1]), np.arange(wins_pmm.shape[1])] = 0.0
    return wins_pmm


def strengths(wins_bmm: np.ndarray) -> np.ndarray:
    """Log odds of every model against the first, for each of B tables of wins (row beats column), prior included.

    All tables are fitted by one call: their likelihoods share no parameter, so the best of the sum is the best of each.
    """
    import numpy as np
    from scipy.optimize import minimize
    from scipy.special import expit, log_expit

    tables, models = wins_bmm.shape[:2]
    if models < 2:
        return np.zeros((tables, models))
    counted_bmm = wins_bmm + PRIOR * (1 - np.eye(models))
    games = counted_bmm.sum(axis=(1, 2), keepdims=True)
    shares_bmm = counted_bmm / games

    def loss(free: np.ndarray) -> tuple[float, np.ndarray]:
        s_bm = np.concatenate([np.zeros((tables, 1)), free.reshape(tables, models - 1)], axis=1)
        apart_bmm = s_bm[:, :, None] - s_bm[:, None, :]
        surprise_bmm = shares_bmm * expit(-apart_bmm)
        slope_bm = surprise_bmm.sum(axis=1) - surprise_bmm.sum(axis=2)
        return float(-(shares_bmm * log_expit(apart_bmm)).sum()), slope_bm[:, 1:].ravel()

    start = np.zeros(tables * (models - 1))
    fit = minimize(loss, start, jac=True, method="L-BFGS-B", options={"ftol": 0.0, "gtol": 1e-8, "maxiter": 1000})
    return np.concatenate([np.zeros((tables, 1)), fit.x.reshape(tables, models - 1)], axis=1)
