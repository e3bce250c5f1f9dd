"""Time limits: what of a job's upstream is given to train in, and what planning says of the rest."""

from __future__ import annotations

import re
from typing import Any

import pytest

from cai.engines.nemo_aligner.settings import NemoAlignerSettings
from cai.engines.nemo_aligner.time_limit import per_run
from tests.support.nemo_experiment import SLURM, commands_of, notes, plan, problems, put

LIMITED = "exp_manager.max_time_per_run"


def limits(raw: dict[str, Any]) -> dict[str, str]:
    """The words that limit a command's time, by ``step.role``."""
    every = {name: [word for word in argv if LIMITED in word] for name, argv in commands_of(raw).items()}
    return {name: words[0] for name, words in every.items() if words}


def test_training_commands_end_before_their_jobs(raw):
    assert limits(raw) == {}
    assert limits(put(raw, SLURM)) == {
        # 4 hours without Slurm's warning, which may come a minute early, and a quarter of an hour for each model.
        "sft.train": f"++{LIMITED}=00:03:42:00",
        "reward.train": f"{LIMITED}=00:03:42:00",
        "rl.actor": f"++{LIMITED}=00:03:27:00",
    }


@pytest.mark.parametrize(
    ("launcher", "step", "given"),
    [
        ({"time": "2-00:00:00"}, {}, "01:23:42:00"),
        ({"time": "2-00:00:00"}, {"time": "1-00"}, "00:23:42:00"),
        ({"time": "40"}, {}, "00:00:27:00"),
        ({"time": "40", "warn": 0}, {}, "00:00:30:00"),
        ({"time": "40", "warn": 0}, {"time_margin": 60}, "00:00:39:00"),
        ({"time": "2", "warn": 0}, {"time_margin": 600}, "00:00:00:01"),
        ({"time": "0"}, {}, ""),
    ],
)
def test_what_is_given_is_the_limit_without_margins(launcher, step, given):
    settings = NemoAlignerSettings.model_validate({"launcher": {"kind": "slurm", **launcher}, "steps": {"sft": step}})
    assert per_run(settings, "sft", "sft") == given


def test_ppo_has_the_longer_limit_of_actor_and_critic_as_its_job_has():
    engine = {"launcher": {"kind": "slurm"}, "steps": {"rl": {"time": "02:00:00", "critic": {"time": "06:00:00"}}}}
    assert per_run(NemoAlignerSettings.model_validate(engine), "rl", "rl") == "00:05:27:00"


def test_a_user_s_own_limit_wins(raw):
    changed = put(raw, SLURM | {"engine/steps/sft/overrides": {f"++{LIMITED}": "00:01:00:00"}})
    assert limits(changed)["sft.train"] == f"++{LIMITED}=00:01:00:00"


def test_limits_and_margins_change_no_key(raw):
    def keys(changes: dict[str, Any]) -> list[str]:
        return [step.key for step in plan(put(raw, changes)).steps]

    launcher = {"engine/launcher": {"kind": "slurm", "time": "1-00:00:00", "warn": 600}}
    steps = {"engine/steps/sft/time": "08:00:00", "engine/steps/rl/time_margin": 60}
    assert keys({}) == keys(SLURM) == keys(SLURM | launcher | steps)


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"engine/launcher": {"kind": "slurm", "time": "3", "warn": 240}}, "engine.launcher.time"),
        ({"engine/steps/sft/time": "00:04:00"}, "engine.steps.sft.time"),
        ({"engine/steps/sft/time_margin": 20000}, "engine.launcher.time"),
        ({"engine/steps/rl/critic/time": "5"}, "engine.steps.rl.critic.time"),
    ],
)
def test_a_limit_that_leaves_nothing_is_refused(raw, changes, where):
    found = [problem for problem in problems(put(raw, SLURM | changes)) if "no time to train" in problem.message]
    assert found
    assert {problem.where for problem in found} == {where}
    assert "time_margin" in found[0].next


@pytest.mark.parametrize("time", ["4h", "1-", "::", "1-2-3", "infinite"])
@pytest.mark.parametrize("where", ["launcher", "steps/sft"])
def test_a_limit_that_slurm_would_not_read_is_refused(raw, where, time):
    launcher = {"kind": "slurm"} | ({"time": time} if where == "launcher" else {})
    step = {"engine/steps/sft/time": time} if where != "launcher" else {}
    found = problems(put(raw, SLURM | {"engine/launcher": launcher} | step))
    assert any(problem.where.endswith("time") and f"got '{time}'" in problem.message for problem in found), found


LONG = {"models/base/parameters": 7.2e9, "engine/cluster": {"nodes": 2, "gpu_memory": 8000.0}}


def test_a_plan_says_how_many_jobs_a_training_takes(raw):
    hours = put(raw, SLURM | LONG | {"stages/rl/training/iterations": 20000, "stages/rl/training/rollouts": 64})
    (told,) = re.findall(r"about .* of training take (\d+) jobs of 4 h 00 min, one after the other", notes(hours, "rl"))
    jobs = int(told)
    assert jobs > 1
    few = put(hours, {"engine/launcher": {"kind": "slurm", "max_requeues": jobs - 2}})
    assert f"{jobs - 1} are allowed: raise engine.launcher.time" in notes(few, "rl")
    enough = put(hours, {"engine/launcher": {"kind": "slurm", "max_requeues": jobs - 1}})
    assert "are allowed" not in notes(enough, "rl")
    assert "one after the other" not in notes(put(raw, SLURM | LONG), "sft")
    assert "jobs of" not in notes(put(raw, LONG), "rl")


def test_a_save_must_fit_into_a_job(raw):
    many = {"stages/rl/training/iterations": 20000, "stages/rl/training/rollouts": 64}
    seldom = put(raw, SLURM | LONG | many | {"stages/rl/training/checkpoint_every": 20000})
    told = notes(seldom, "rl")
    assert re.search(r"saves every 20000 iterations, about \d+ h \d+ min, and its job's limit is 4 h 00 min", told)
    assert "lower stages.rl.training.checkpoint_every: at least one save must fit" in told
    assert "at least one save" not in notes(put(seldom, {"stages/rl/training/checkpoint_every": 5}), "rl")
