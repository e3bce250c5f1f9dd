"""Elo: what the likelihood says, what the prior keeps finite, and intervals that hold the truth as often as told."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest

from cai.figures.elo import PRIOR, SCALE, outcomes, ratings, strengths
from cai.figures.intervals import Interval


def rewards_of(strength: list[float], prompts: int, seed: int = 0) -> list[list[float]]:
    """Rewards whose comparisons follow the model exactly: the difference of two Gumbel draws is logistic."""
    rng = np.random.default_rng(seed)
    return (rng.gumbel(size=(prompts, len(strength))) + np.asarray(strength)).tolist()


def test_two_models_differ_by_the_log_odds_of_their_wins() -> None:
    rewards = [[0.0, 1.0]] * 30 + [[1.0, 0.0]] * 10 + [[0.0, 0.0]] * 4
    found = ratings(rewards, ["base", "tuned"])
    assert found["tuned"].value == pytest.approx(SCALE * math.log((32 + PRIOR) / (12 + PRIOR)), abs=1e-3)
    assert found["base"] == Interval(0.0, 0.0, 0.0, 44)
    assert found["tuned"].low < found["tuned"].value < found["tuned"].high


def test_several_models_have_the_estimates_of_a_binomial_regression() -> None:
    from statsmodels.genmod.families import Binomial
    from statsmodels.genmod.generalized_linear_model import GLM

    wins = outcomes(np.asarray(rewards_of([0, 0.5, 1, -1], 60))).sum(axis=0)
    pairs = [(i, j) for i in range(4) for j in range(i)]
    design = np.zeros((len(pairs), 4))
    for row, (i, j) in zip(design, pairs, strict=True):
        row[i], row[j] = 1, -1
    counts = np.array([[wins[i, j] + PRIOR, wins[j, i] + PRIOR] for i, j in pairs])
    expected = GLM(counts, design[:, 1:], family=Binomial()).fit(tol=1e-12).params
    assert strengths(wins[None])[0] == pytest.approx([0.0, *expected], abs=1e-5)


def test_resamples_fitted_together_are_what_each_gives_alone() -> None:
    wins = outcomes(np.asarray(rewards_of([0, 1, 3], 20)))
    tables = np.stack([wins[:10].sum(axis=0), wins[10:].sum(axis=0), wins[:3].sum(axis=0)])
    alone = np.concatenate([strengths(table[None]) for table in tables])
    assert strengths(tables) == pytest.approx(alone, abs=1e-5)


def test_a_model_that_always_wins_is_finite_and_claims_no_interval() -> None:
    rewards = [[value, value + 0.1 * (-1) ** n, 9.0] for n, value in enumerate(np.linspace(0, 1, 40))]
    found = ratings(rewards, ["a", "b", "best"])
    assert 500 < found["best"].value < 1500
    assert found["best"].low is None
    assert found["b"].low < 0 < found["b"].high
    flipped = ratings([row[::-1] for row in rewards], ["best", "b", "a"])
    assert flipped["a"].low is None, "nothing is known of the distance to a reference that always wins"
    assert flipped["best"].value == 0.0


def test_the_interval_holds_the_truth_in_about_19_of_20() -> None:
    truth = SCALE * 0.8
    held = 0
    for seed in range(25):
        found = ratings(rewards_of([0, 0.8], 80, seed), ["a", "c"], seed)["c"]
        held += found.low <= truth <= found.high
    assert 21 <= held <= 25


def test_the_figures_are_the_same_each_time_and_quick() -> None:
    rewards = rewards_of([0, 0.2, 0.4, 0.6, 0.8, 1.0], 100)
    first = ratings(rewards, list("abcdef"), seed=3)
    began = time.perf_counter()
    assert ratings(rewards, list("abcdef"), seed=3) == first
    assert time.perf_counter() - began < 1
    assert ratings(rewards, list("abcdef"), seed=4) != first


@pytest.mark.parametrize("prompts", [1, 2])
def test_few_prompts_have_a_figure_and_no_interval(prompts: int) -> None:
    found = ratings([[0.0, 1.0]] * prompts, ["a", "b"])
    assert found["b"].value > 0
    assert found["b"].low is None
