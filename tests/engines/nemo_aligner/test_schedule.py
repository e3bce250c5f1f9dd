"""Upstream's cosine as the plan tells it; the lab holds it against the real scheduler."""

from __future__ import annotations

import math

import pytest

from cai.engines.nemo_aligner.schedule import LearningRateCurve


def curve(
    updates: int = 100, *, total: int = 0, warmup: int = 0, constant: int = 0, floor: float = 1e-7
) -> LearningRateCurve:
    return LearningRateCurve(updates, total or updates, 1e-6, floor, warmup, constant)


def test_a_cosine_falls_from_its_peak_to_its_floor():
    made = curve()
    assert made.rate(0) == 1e-6
    assert made.rate(50) == pytest.approx(5.5e-7)
    assert made.rate(100) == pytest.approx(1e-7)
    assert made.mean == pytest.approx(5.5e-7, rel=0.01)


def test_a_warm_up_reaches_the_peak():
    assert curve(warmup=10).rate(10) == pytest.approx(1e-6)
    assert curve(warmup=10).rate(0) == pytest.approx(1e-6 / 11)
    assert curve(warmup=10, constant=5).rate(0) == 0.0


def test_constant_steps_longer_than_the_run_leave_the_floor():
    """NVIDIA's guide's reward model: 212 updates under a schedule with 1000 constant ones."""
    made = LearningRateCurve(212, 212, 9e-6, 9e-7, 10, 1000)
    assert made.rate(11) == 9e-7
    assert made.mean == pytest.approx(1.1e-6, rel=0.05)


def test_a_floor_at_the_peak_is_a_constant_rate():
    made = curve(floor=1e-6)
    assert {made.rate(i) for i in range(101)} == {1e-6}


def test_a_schedule_that_is_laid_out_for_more_is_cut_off():
    assert curve(total=1000).rate(99) == pytest.approx(1e-7 + 9e-7 * 0.5 * (1 + math.cos(math.pi * 0.099)))
    assert curve(0).mean == 0.0
