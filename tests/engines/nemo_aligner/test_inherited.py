"""What upstream would take over from a checkpoint, and what a schedule will be: said, or refused, while planning."""

from __future__ import annotations

import pytest

from tests.support.nemo_experiment import (
    LEAST,
    OVER,
    commands_of,
    notes,
    plan,
    problems,
    put,
)


def test_the_plan_says_what_every_schedule_will_be(raw):
    lower = {"model.optim.sched.min_lr": 1e-9}
    shown = notes(put(raw, {OVER.format("rl"): lower}), "rl")
    assert "actor: 20 updates, no warm-up, mean learning rate 5.3e-05" in shown
    assert "critic: 20 updates, no warm-up, mean learning rate 0.0001" in shown
    assert "nearly all updates are at min_lr" not in shown
    late = {OVER.format("rl"): {**lower, "model.optim.sched.constant_steps": 1000}}
    assert "actor: nearly all updates are at min_lr 1e-09; set model.optim.sched.constant_steps: 0" in notes(
        put(raw, late), "rl"
    )
    assert "train: " in notes(raw, "sft")


def test_what_a_layout_leaves_off_is_written_as_off(raw):
    """Upstream lays the checkpoint's config beneath: SFT's sequence parallelism must not reach the reward model."""
    off = ("sequence_parallel=False", "activations_checkpoint_granularity=null", "activations_checkpoint_method=null")
    off += ("activations_checkpoint_num_layers=null", "context_parallel_size=1")
    at = "engine/steps/sft"
    commands = commands_of(put(raw, {f"{at}/tensor_parallel": 2, f"{at}/sequence_parallel": True}))
    for role in ("reward.train", "rl.critic"):
        assert {f"++model.{word}" for word in off} <= set(commands[role]), role
    assert {"model.sequence_parallel=False", f"++model.{off[1]}"} <= set(commands["rl.actor"])
    assert {"model.sequence_parallel=True", f"model.{off[1]}"} <= set(commands["sft.train"])


@pytest.mark.parametrize("step", ["reward", "rl/critic"])
def test_sequence_parallelism_is_refused_where_upstream_has_a_reward_head(raw, step):
    at = f"engine/steps/{step}"
    for changes in ({f"{at}/sequence_parallel": True}, {f"{at}/overrides": LEAST | {"model.sequence_parallel": True}}):
        (found,) = problems(put(raw, changes))
        assert "reward head refuses sequence parallelism" in found.message


@pytest.mark.parametrize("step", ["sft", "reward", "rl", "rl/critic"])
def test_selective_recomputation_with_a_number_of_layers_is_refused(raw, step):
    at, key = f"engine/steps/{step}", "model.activations_checkpoint"
    selective = {f"{at}/activation_checkpointing": "selective"}
    (found,) = problems(put(raw, {**selective, f"{at}/overrides": LEAST | {f"{key}_num_layers": 1}}))
    assert "selective recomputation takes no number of layers" in found.message
    assert plan(put(raw, {**selective, f"{at}/overrides": LEAST | {f"{key}_method": "uniform"}}))
    missing = problems(put(raw, {f"{at}/overrides": LEAST | {f"{key}_granularity": "full"}}))
    assert [f"{key}_{name}" in found.message for name, found in zip(("method", "num_layers"), missing, strict=True)]
