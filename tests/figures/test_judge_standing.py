"""Kappa, its interval, and the verdict that is drawn from it."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from cai.figures.intervals import Interval, kappa, wilson
from cai.figures.judge_report import (
    ALWAYS_LONGER,
    BaselineFigures,
    BeyondChance,
    LabelFigures,
    read_judge_report,
)
from cai.figures.judge_standing import JudgeStanding, agreement_words, kappa_of, rule_words, standing


def of_table(both_first: int, only_one: int, only_other: int, neither: int) -> Interval:
    n = both_first + only_one + only_other + neither
    return kappa(both_first + neither, n, both_first + only_one, both_first + only_other)


def labels(low: float | None, *, above: float = -0.1, value: float = 0.2) -> LabelFigures:
    beyond = BeyondChance(Interval(value, low, 0.4, 100), ALWAYS_LONGER, Interval(0.05, above, 0.2, 100))
    baselines = {ALWAYS_LONGER: BaselineFigures(Interval(0.55, 0.45, 0.64, 100))}
    return LabelFigures(
        counts={"rows": 100}, accuracy=Interval(0.6, 0.5, 0.7, 100), baselines=baselines, beyond_chance=beyond
    )


def test_kappa_is_agreement_above_what_the_shares_alone_give() -> None:
    # The worked example of two readers of 50 grants: 20 and 15 alike, 5 and 10 not; kappa 0.40.
    assert of_table(20, 5, 10, 15).value == pytest.approx(0.4)
    assert of_table(25, 25, 25, 25).value == pytest.approx(0)
    assert of_table(0, 50, 50, 0).value == pytest.approx(-1)
    assert of_table(45, 45, 5, 5).value == pytest.approx(0), "right in half, and says the first nine times in ten"


def test_its_interval_is_wilsons_of_the_agreement_with_chance_held_fixed() -> None:
    found = of_table(20, 5, 10, 15)
    low, high = wilson(0.7, 50)
    assert (found.low, found.high) == (pytest.approx((low - 0.5) / 0.5), pytest.approx((high - 0.5) / 0.5))
    perfect = of_table(2, 0, 0, 1)
    assert perfect.value == pytest.approx(1)
    assert perfect.low is not None
    assert perfect.low < 0, "three pairs that agree prove nothing"


def test_a_constant_judge_has_a_kappa_of_nothing_whatever_people_say() -> None:
    for first in (10, 50, 90):
        found = of_table(first, 100 - first, 0, 0)
        assert found.value == pytest.approx(0)
        assert found.low is not None
        assert found.low < 0
    assert of_table(40, 0, 0, 0) == Interval(n=40), "all pairs on one side: nothing can be told from them"
    assert kappa(0, 0, 0, 0) == Interval()


@pytest.mark.parametrize("firsts", [0.5, 0.8])
def test_a_judge_that_knows_nothing_passes_as_seldom_as_the_interval_says(firsts: float) -> None:
    draw = random.Random(7)
    passed = 0
    for _ in range(2000):
        judge = [draw.random() < firsts for _ in range(200)]
        people = [draw.random() < 0.5 for _ in range(200)]
        alike = sum(a == b for a, b in zip(judge, people, strict=True))
        low = kappa(alike, 200, sum(judge), sum(people)).low
        passed += low is not None and low > 0
    assert passed / 2000 < 0.035, "2.5 % by the interval"


def test_a_judge_that_is_right_in_two_of_three_is_found_with_200_pairs() -> None:
    draw = random.Random(3)
    passed = 0
    for _ in range(500):
        people = [draw.random() < 0.5 for _ in range(200)]
        judge = [label == (draw.random() < 2 / 3) for label in people]
        alike = sum(a == b for a, b in zip(judge, people, strict=True))
        low = kappa(alike, 200, sum(judge), sum(people)).low
        passed += low is not None and low > 0
    assert passed / 500 > 0.98


def test_the_verdict_is_by_lower_bounds() -> None:
    assert standing(None) is JudgeStanding.UNKNOWN
    assert standing(labels(-0.01)) is JudgeStanding.AT_CHANCE
    assert standing(labels(0.0)) is JudgeStanding.AT_CHANCE
    assert standing(labels(0.01)) is JudgeStanding.ABOVE_CHANCE
    assert standing(labels(0.01, above=0.01)) is JudgeStanding.ABOVE_RULES
    assert standing(labels(0.15), min_kappa=0.2) is JudgeStanding.AT_CHANCE
    assert standing(labels(0.21), min_kappa=0.2) is JudgeStanding.ABOVE_CHANCE
    assert standing(LabelFigures()) is JudgeStanding.AT_CHANCE, "nothing could be compared"


def test_it_is_told_in_words() -> None:
    words = agreement_words(labels(0.01))
    assert words == "agreement 0.60 (0.50 to 0.70), kappa 0.20 (0.01 to 0.40), over 100 labelled pairs"
    assert rule_words(labels(0.01)) == "'always the longer' has 0.55 (0.45 to 0.64)"
    mute = LabelFigures(counts={"rows": 60, "unreadable": 58, "identical": 2})
    assert agreement_words(mute) == "none of 60 labelled pairs could be compared (unreadable 58, identical 2)"
    assert rule_words(mute) == ""


def test_of_an_older_report_kappa_follows_from_the_agreement() -> None:
    older = read_judge_report(Path(__file__).parent / "judge_report_best_worst.json").labelled
    assert older is not None
    assert older.beyond_chance is None
    low = older.accuracy.low
    assert low is not None
    assert kappa_of(older) == Interval(1.0, 2 * low - 1, 1.0, 60)
    assert standing(older) is JudgeStanding.ABOVE_CHANCE
    assert "kappa 1.00 (0.88 to 1.00), over 60 labelled pairs" in agreement_words(older)
    half = LabelFigures(accuracy=Interval(0.5, 0.4, 0.6, 100))
    assert standing(half) is JudgeStanding.AT_CHANCE
