"""What goes wrong in the middle of a night: the end result is the same, and nothing is left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.nemo_runs import KEY, Finished, cai, leftovers
from tests.support.plan_keys import rekeyed
from tests.support.slurm_cluster import Cluster

pytestmark = pytest.mark.long
another_of_its_kind = pytest.mark.skipif(
    os.environ.get("CAI_TESTS") != "all", reason="another fault of its kind is tried; CAI_TESTS=all tries every one"
)


def step(finished: Finished, to: Path, name: str, **env: str) -> subprocess.CompletedProcess[str]:
    return cai("step", str(to / "run" / "plan.json"), name, cwd=to, env={"CAI_HOME": str(to / "home"), **env})


@contextmanager
def started(to: Path, name: str, **env: str) -> Iterator[subprocess.Popen[bytes]]:
    argv = [sys.executable, "-m", "cai", "step", str(to / "run" / "plan.json"), name]
    full = {**os.environ, "NGC_API_KEY": KEY, "CAI_HOME": str(to / "home"), **env}
    with (to / "driver.log").open("ab") as log, subprocess.Popen(argv, cwd=to, env=full, stdout=log, stderr=log) as it:
        try:
            yield it
        finally:
            it.kill()


def change(to: Path, name: str, overrides: dict[str, object], **training: object) -> None:
    """Change a training step in the frozen plan of ``to``: how often it saves, not what it ends with."""
    path = to / "run" / "plan.json"
    plan = json.loads(path.read_text())
    (spec,) = (each["spec"] for each in plan["steps"] if each["name"] == name)
    spec["training"] |= training
    plan["engine"]["steps"][name].setdefault("overrides", {}).update(overrides)
    path.write_text(json.dumps(rekeyed(plan)))


def events(to: Path, name: str) -> list[dict[str, Any]]:
    """What the run's log holds of an event."""
    lines = map(json.loads, (to / "run" / "events.jsonl").read_text().splitlines())
    return [line["data"] for line in lines if line["event"] == name]


def said(to: Path, *words: str) -> bool:
    return any(word in log.read_text() for log in (to / "run" / "logs").glob("*") for word in words)


def wait(what: str, holds, seconds: float = 30) -> None:  # type: ignore[no-untyped-def]
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"still not: {what}"
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("name", "fault", "says"),
    [
        ("sft", "train_gpt_sft:exit-after=2", "train (train_gpt_sft.py) exited with code 1"),
        pytest.param("reward", "train_reward_model:die-after=2", "SIGKILL", marks=another_of_its_kind),
        pytest.param("rl", "train_gpt_ppo_actor:exit-after=1", "actor", marks=another_of_its_kind),
        ("rl", "serve_ppo_critic:die-after=2", "critic"),
        ("respond", "megatron_gpt_eval:start", "asked to fail at the start"),
    ],
)
def test_a_command_that_fails_is_named_with_its_log_and_the_next_attempt_ends_the_same(
    tmp_path: Path,
    finished: Finished,
    name: str,
    fault: str,
    says: str,
):
    home = finished.without(tmp_path, name)
    failed = step(finished, tmp_path, name, STANDIN_FAIL=fault)
    assert failed.returncode == 1, failed.stdout + failed.stderr
    assert says in failed.stderr
    assert "log" in failed.stderr
    assert leftovers(str(tmp_path)) == []
    again = step(finished, tmp_path, name)
    assert again.returncode == 0, again.stderr
    assert finished.same(home, name)


def test_a_server_that_never_opens_its_port_is_given_up(tmp_path: Path, finished: Finished):
    finished.without(tmp_path, "respond")
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    plan["engine"]["servers"]["default"]["ready_timeout"] = 4
    (tmp_path / "run" / "plan.json").write_text(json.dumps(plan))
    failed = step(finished, tmp_path, "respond", STANDIN_FAIL="megatron_gpt_eval:no-port")
    assert failed.returncode == 1, failed.stdout + failed.stderr
    assert "within 4.0 s" in failed.stderr
    assert leftovers(str(tmp_path)) == []


@pytest.mark.parametrize("fault", ["megatron_gpt_eval:die-after=1", "megatron_gpt_eval:errors=1"])
def test_a_server_that_dies_or_errs_is_made_up_for_by_the_other(
    tmp_path: Path,
    finished: Finished,
    fault: str,
):
    home = finished.without(tmp_path, "respond")
    (tmp_path / "marks").mkdir()
    ran = step(finished, tmp_path, "respond", STANDIN_FAIL=fault, STANDIN_MARKS=str(tmp_path / "marks"))
    assert ran.returncode == 0, ran.stderr
    assert finished.same(home, "respond")
    assert leftovers(str(tmp_path)) == []


@pytest.mark.parametrize("name", ["respond", pytest.param("sft", marks=another_of_its_kind), "rl"])
def test_killing_the_driver_leaves_no_process_and_loses_nothing(
    tmp_path: Path,
    finished: Finished,
    name: str,
):
    home = finished.without(tmp_path, name)
    with started(tmp_path, name, STANDIN_STEP_SECONDS="0.4") as driver:
        wait("its commands run", lambda: said(tmp_path, "\nstep ", "\nserving on port"))
        driver.kill()
    wait("everything is down", lambda: leftovers(str(tmp_path)) == [])
    again = step(finished, tmp_path, name)
    assert again.returncode == 0, again.stderr
    assert finished.same(home, name)


def test_ctrl_c_takes_everything_down(tmp_path: Path, finished: Finished):
    home = finished.without(tmp_path, "rl")
    with started(tmp_path, "rl", STANDIN_STEP_SECONDS="0.5", STANDIN_FAIL="serve_ppo_critic:stubborn") as driver:
        wait("the actor runs", lambda: said(tmp_path, "\nstep "))
        driver.send_signal(signal.SIGINT)
        assert driver.wait(timeout=60) == 130
    assert leftovers(str(tmp_path)) == []
    again = step(finished, tmp_path, "rl")
    assert again.returncode == 0, again.stderr
    assert finished.same(home, "rl")


@pytest.mark.parametrize(
    ("name", "fault", "again"),
    [
        ("sft", "train_gpt_sft:in-last=1", False),
        pytest.param("sft", "train_gpt_sft:two-lasts=2", False, marks=another_of_its_kind),
        ("sft", "train_gpt_sft:before-nemo", True),
        ("reward", "train_reward_model:two-lasts=3", False),
        pytest.param("reward", "train_reward_model:before-nemo", True, marks=another_of_its_kind),
        pytest.param("rl", "train_gpt_ppo_actor:in-last=1", False, marks=another_of_its_kind),
        pytest.param("rl", "serve_ppo_critic:in-last=1", False, marks=another_of_its_kind),
        ("rl", "serve_ppo_critic:two-lasts=2", False),
        pytest.param("rl", "train_gpt_ppo_actor:two-lasts=2", True, marks=another_of_its_kind),
        ("rl", "train_gpt_ppo_actor:before-nemo", True),
    ],
)
def test_a_training_that_was_killed_while_it_saved_goes_on(
    tmp_path: Path, finished: Finished, name: str, fault: str, again: bool
):
    home = finished.without(tmp_path, name)
    best = "exp_manager.checkpoint_callback_params.save_top_k"
    change(tmp_path, name, {best: 3}, **{"checkpoint_every" if name == "rl" else "val_every": 1})
    failed = step(finished, tmp_path, name, STANDIN_FAIL=fault)
    assert failed.returncode == 1, failed.stdout + failed.stderr
    ended = step(finished, tmp_path, name)
    assert ended.returncode == 0, ended.stderr
    assert finished.same_files(home, name)
    told = events(tmp_path, "nemo.again")
    assert bool(told) == again
    if again and name != "rl":
        assert told[0]["step"] > 0


def test_training_that_ends_at_its_time_limit_is_incomplete_here_and_goes_on(tmp_path: Path, finished: Finished):
    home = finished.without(tmp_path, "rl")
    change(tmp_path, "rl", {"++exp_manager.max_time_per_run": "00:00:00:01"})
    early = step(finished, tmp_path, "rl", STANDIN_STEP_SECONDS="0.6")
    assert early.returncode == 3, early.stdout + early.stderr
    assert "training ended at its time limit, after step 1; run the same command again" in early.stderr
    ended = step(finished, tmp_path, "rl")
    assert ended.returncode == 0, ended.stderr
    assert finished.same_files(home, "rl")
    assert leftovers(str(tmp_path)) == []


def detached(finished: Finished, to: Path, slurm: Cluster, name: str, slow: str, *overrides: str) -> dict[str, str]:
    """Submit the run with only ``name`` left to do, each step of its commands ``slow`` seconds longer."""
    finished.without(to, name)
    env = {"CAI_HOME": str(to / "home"), **slurm.env}
    words = (*finished.overrides, *overrides, "--detach")
    out = cai(*words, cwd=to, env={**env, "STANDIN_STEP_SECONDS": slow})
    assert out.returncode == 0, out.stderr
    return env


def submitted(finished: Finished, to: Path, slurm: Cluster, name: str) -> dict[str, str]:
    """The same, and wait until its command is at work."""
    launcher = "engine.launcher={kind: slurm, poll: 0.5, time: '00:10:00', warn: 0}"
    env = detached(finished, to, slurm, name, "0.7", launcher)
    run = to / "runs" / "mistral_rl_cai" / "latest"
    wait("its command is at work", lambda: any("\nstep " in p.read_text() for p in (run / "logs").glob("*")), 60)
    return env


def job_of(to: Path, name: str) -> str:
    file = to / "runs" / "mistral_rl_cai" / "latest" / "jobs" / f"{name}.json"
    return str(json.loads(file.read_text())["job"])


def test_a_requeued_heterogeneous_job_ends_the_same(tmp_path: Path, finished: Finished, slurm: Cluster):
    env = submitted(finished, tmp_path, slurm, "rl")
    subprocess.run(["scontrol", "requeue", job_of(tmp_path, "rl")], env={**os.environ, **slurm.env}, check=True)
    ended = cai("resume", "mistral_rl_cai", cwd=tmp_path, env=env)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert finished.same(tmp_path / "home", "rl")
    assert leftovers(str(tmp_path)) == []


def test_a_cancelled_job_leaves_nothing_and_resumes(tmp_path: Path, finished: Finished, slurm: Cluster):
    env = submitted(finished, tmp_path, slurm, "sft")
    gone = cai("cancel", "mistral_rl_cai", cwd=tmp_path, env=env)
    assert gone.returncode == 0, gone.stderr
    assert leftovers(str(tmp_path)) == []
    queue = subprocess.run(
        ["squeue", "-h"], env={**os.environ, **slurm.env}, capture_output=True, text=True, check=True
    )
    assert queue.stdout.strip() == ""
    ended = cai("resume", "mistral_rl_cai", cwd=tmp_path, env=env)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert finished.same(tmp_path / "home", "sft")


@pytest.mark.parametrize(
    ("name", "margin", "slow", "strikes"),
    [("sft", 42, "0.6", 2), pytest.param("rl", 49, "0.6", 1, marks=another_of_its_kind)],
)
def test_training_that_its_time_limit_ends_again_and_again_ends_the_same(
    tmp_path: Path, finished: Finished, slurm: Cluster, name: str, margin: int, slow: str, strikes: int
):
    # Of 120 seconds 10 are the warning's, which may come 60 too early, so 8 and 1 are left to train.
    launcher = "engine.launcher={kind: slurm, poll: 0.5, time: '00:10:00', warn: 10, max_requeues: 9}"
    limits = (f"+engine.steps.{name}.time='00:02:00'", f"+engine.steps.{name}.time_margin={margin}")
    env = detached(finished, tmp_path, slurm, name, slow, launcher, *limits)
    ended = cai("resume", "mistral_rl_cai", cwd=tmp_path, env=env, timeout=250)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert f"stopped shortly before the time limit; queued again, {strikes} of 9" in ended.stdout
    run = tmp_path / "runs" / "mistral_rl_cai" / "latest"
    restarts = json.loads((run / "jobs" / f"{name}.exit.json").read_text())["restarts"]
    assert restarts >= strikes
    # Each was upstream's own end, as it says in its log; the last attempt may come to both ends at once.
    assert sum(log.read_text().count("the time limit of this run") for log in (run / "logs").glob("*")) >= restarts
    assert finished.same(tmp_path / "home", name)
    assert leftovers(str(tmp_path)) == []
