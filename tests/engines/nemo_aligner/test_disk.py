"""How much disk a plan says that it needs, by hand."""

from __future__ import annotations

import pytest

from cai.commands.planning import compile_plan
from cai.files.library import Library, shipped_root

N = 7.24e9
MODEL, CHECKPOINT = 2 * N / 1e9, 14 * N / 1e9
"""Gigabytes."""


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.delenv("CAI_UPSTREAM", raising=False)
    plan = compile_plan(["experiment=mistral_rl_cai"], Library((shipped_root(),)))
    return {step.name: "\n".join(step.notes) for step in plan.steps}


@pytest.mark.parametrize(
    ("step", "working"),
    [
        ("base", 3 * MODEL),  # downloaded, packed, unpacked
        ("sft", 3 * CHECKPOINT + 2 * MODEL),  # the best, the last, the one being written
        ("reward", 3 * CHECKPOINT + 2 * MODEL),
        ("rl", 5 * CHECKPOINT + 2 * MODEL),  # actor and critic, which keeps no best one
    ],
)
def test_a_step_tells_what_it_needs_while_it_works(notes: dict[str, str], step: str, working: float) -> None:
    said = f"disk: {working:.0f} GB in the store while it works, {MODEL:.0f} GB of a node's temporary folder"
    assert said in notes[step]


def test_the_plan_tells_its_largest_moment_where_that_is(notes: dict[str, str]) -> None:
    peak = 4 * MODEL + 5 * CHECKPOINT + 2 * MODEL  # two models, SFT and reward model stay
    assert f"disk of the whole plan: {peak:.0f} GB in the store at most, now; {5 * MODEL:.0f} GB stay" in notes["rl"]
    assert sum("whole plan" in text for text in notes.values()) == 1
    assert "disk" not in notes["mixtral"]
