"""``step``, ``status``, ``resume`` and ``cancel`` as a person types them, here and on a real Slurm of two nodes."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from cai.commands.jobs import code_of
from cai.errors import StepFailed
from cai.launchers.base import Command, Ready
from cai.launchers.outside import Half, OutsideRunner, Prepared
from cai.run.job_files import job_file
from tests.support.executor_kinds import small_plan
from tests.support.paths import ROOT
from tests.support.slurm_cluster import Cluster
from tests.support.toy_project import TOY_EXPERIMENT, ToyProject, conversation_lines

pytestmark = pytest.mark.long


@pytest.fixture
def project(tmp_path: Path) -> ToyProject:
    project = ToyProject(tmp_path / "here", {})
    project.write("{kind: local}")
    return project


# One step


def test_a_step_is_made_when_what_it_reads_is_there_and_leaves_word(project: ToyProject):
    (project.at / "r").mkdir()
    project.cai("plan", "experiment=toy", "--out", "r/plan.json")
    project.cai("step", "r/plan.json", "talk", "--done", code=1)
    said = project.cai("step", "r/plan.json", "sl_mix", code=2)
    assert "sl_mix: reads 'talk', which is not in the store" in said
    assert "run step 'talk' first" in said
    word = job_file(project.at / "r", "sl_mix", ".exit.json")
    assert json.loads(word.read_text())["code"] == 2
    project.cai("step", "r/plan.json", "talk")
    project.cai("step", "r/plan.json", "talk", "--done")
    assert "[2/2] sl_mix" in project.cai("step", "r/plan.json", "sl_mix")
    assert {k: json.loads(word.read_text())[k] for k in ("code", "error", "job", "restarts")} == {
        "code": 0,
        "error": "",
        "job": "",
        "restarts": 0,
    }
    assert not (project.at / "r" / "record.json").exists()
    events = [json.loads(line) for line in (project.at / "r" / "events.jsonl").read_text().splitlines()]
    assert [(e["event"], e["step"]) for e in events if e["event"].startswith("job.")] == [
        ("job.started", "sl_mix"),
        ("job.failed", "sl_mix"),
        ("job.started", "talk"),
        ("job.done", "talk"),
        ("job.started", "sl_mix"),
        ("job.done", "sl_mix"),
    ]
    for more in ((), ("--done",)):
        assert "did you mean 'talk'" in project.cai("step", "r/plan.json", "tlak", *more, code=2)
    assert "not allowed with" in project.cai("step", "r/plan.json", "talk", "--prepare", "--finish", code=2)
    # The same artifacts as a run makes, so that a run has nothing left to do.
    assert "reused" in project.cai("apply", "r/plan.json")


def test_sigterm_ends_a_step_with_a_word_and_its_work_kept(project: ToyProject, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("CAI_TEST_PAUSE", "0.1")
    run_dir = tmp_path / "r"
    run_dir.mkdir()
    (run_dir / "plan.json").write_text(replace(small_plan(), engine={"kind": "embedded"}).to_json())
    program = (
        "from cai import stages; from cai.cli import main; from tests.support.executor_kinds import KINDS\n"
        "import sys; stages.KINDS.update(KINDS); sys.exit(main(sys.argv[1:]))"
    )
    side = tmp_path / "side"
    process = subprocess.Popen(
        [sys.executable, "-c", program, "step", run_dir / "plan.json", "one"],
        env={**project.env, "CAI_TEST_SIDE": str(side), "CAI_TEST_PAUSE": "0.1"},
        cwd=ROOT,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    )
    until(lambda: side.exists() and len(side.read_text().splitlines()) > 1)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 3
    assert b"stopped by SIGTERM" in err
    assert json.loads(job_file(run_dir, "one", ".exit.json").read_text())["code"] == 3


def until(holds, timeout: float = 30.0) -> None:
    end = time.monotonic() + timeout
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


# Commands that somebody else runs

TRAIN = Command("train", ("python", "train.py", "a b"))


def server(port: int, timeout: float = 5.0) -> Command:
    return Command("critic-1", ("python", "serve.py"), background=True, ready=Ready(port, timeout))


def test_the_first_half_of_a_step_stops_at_its_first_command(tmp_path: Path):
    runner = OutsideRunner(Half.PREPARE)
    with pytest.raises(Prepared, match=r"train: everything it reads is written.*\npython train.py 'a b'") as hit:
        runner.run(TRAIN, tmp_path / "log")
    assert hit.value.exit_code == 3
    with pytest.raises(Prepared, match="critic-1: "):
        runner.start(server(1), tmp_path / "log")
    runner.close()


def test_the_second_half_takes_commands_as_run_and_finds_servers_where_they_are(tmp_path: Path, monkeypatch):
    runner = OutsideRunner(Half.FINISH)
    runner.run(TRAIN, tmp_path / "log")
    with pytest.raises(StepFailed, match="opens no port"):
        runner.start(TRAIN, tmp_path / "log")
    monkeypatch.setenv("CAI_CRITIC_1_HOST", "localhost")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        found = runner.start(server(taken.getsockname()[1]), tmp_path / "log")
        assert found.host == "localhost"
        threading.Timer(0.3, taken.listen).start()
        found.wait_ready()
        found.check()
        found.stop()
        found.check()
    with pytest.raises(StepFailed, match="no longer answers"):
        found.check()
    late = runner.start(server(found.port, timeout=0.3), tmp_path / "log")
    with pytest.raises(StepFailed, match=r"was not ready within 0\.3 s .* CAI_CRITIC_1_HOST says where it runs"):
        late.wait_ready()


# A run on this machine


def test_a_local_run_is_shown_gone_on_with_in_its_folder_and_has_nothing_queued(project: ToyProject):
    data = (project.at / "talk.jsonl").read_bytes()
    project.cai("plan", "experiment=toy", "--out", "plan.json")
    (project.at / "talk.jsonl").write_text("changed")
    assert "the data has changed since the plan was made" in project.cai("apply", "plan.json", code=2)
    run = project.run
    shown = project.cai("status", code=1)
    assert "local: failed" in shown
    assert "the data has changed" in shown
    assert "go on with: python -m cai resume runs/toy/" in shown
    assert project.status()["talk"]["state"] == "failed"
    assert "the data has changed" in project.status()["talk"]["reason"]
    assert project.status()["sl_mix"]["state"] == "not begun"
    assert "nothing is queued" in project.cai("cancel")
    (project.at / "talk.jsonl").write_bytes(data)
    # What is edited since changes nothing: the run goes on from its own plan.
    project.write("{kind: local}", TOY_EXPERIMENT.replace("0.25", "0.5"))
    assert "--detach" in project.cai("resume", "--detach", code=2)
    assert "2 steps: 2 done" in project.cai("resume", str(run))
    assert project.run == run
    assert json.loads((run / "record.json").read_text())["status"] == "done"
    assert project.status()[""]["state"] == "done"
    assert {name: step["state"] for name, step in project.status().items() if name} == {
        "talk": "done",
        "sl_mix": "done",
    }
    assert "did you mean 'toy'" in project.cai("status", "tyo", code=2)


def test_a_run_that_was_killed_is_told_from_one_at_work(project: ToyProject):
    project.cai("experiment=toy")
    (project.run / "record.json").unlink()
    assert project.status()[""]["state"] == "killed"


def test_status_says_by_its_exit_code_what_it_says_in_words(project: ToyProject):
    assert {state: code_of(state) for state in ("done", "failed")} == {"done": 0, "failed": 1}
    for state in ("running", "queued", "killed", "incomplete", "cancelled", "not submitted"):
        assert code_of(state) == 3
    said = project.cai("status", "-h")
    assert "0 done; 1 failed; 3 neither" in " ".join(said.split())
    ran = project.cai("experiment=toy")
    # It has made no model, so there is nobody to talk to.
    assert "cai report toy" in ran
    assert "cai chat" not in ran
    assert "this run makes no model" in project.cai("chat", "toy", code=2)
    events = project.run / "events.jsonl"

    def ended(status: str, more: str) -> None:
        (project.run / "record.json").write_text(json.dumps({"status": status, "error": "why"}))
        events.write_text("".join(json.dumps({"t": 0, "event": e}) + "\n" for e in ("run.started", more)))

    for status, code in (("failed", 1), ("incomplete", 3), ("done", 0)):
        ended(status, f"run.{status}")
        assert (project.status()[""]["state"], project.status()[""]["exit_code"]) == (status, code)
    # Gone on with after a failure and killed then: the record of the first attempt says nothing of the second.
    ended("failed", "run.failed")
    with events.open("a") as log:
        log.write(json.dumps({"t": 1, "event": "run.started"}) + "\n")
    assert project.status()[""]["state"] == "killed"


def test_detaching_from_a_run_in_this_process_is_refused(project: ToyProject):
    assert "they run in this process" in project.cai("experiment=toy", "--detach", code=2)
    assert not (project.at / "runs").exists()


# A run on a cluster


def test_a_run_on_a_cluster_ends_like_a_local_one(cluster_project: ToyProject, tmp_path: Path):
    project = cluster_project
    said = project.cai("experiment=toy")
    assert "[2/2] sl_mix  done  made in" in said
    assert "Where everything lies" in said
    assert (project.run / "summary.md").exists()
    assert project.status()[""]["state"] == "done"
    local = ToyProject(tmp_path / "local", {})
    local.write("{kind: local}")
    local.cai("experiment=toy")
    assert project.artifacts() == local.artifacts()
    assert len(local.artifacts()) > 1


@pytest.mark.long
def test_bad_data_cancels_what_needs_it_and_the_mended_run_goes_on(cluster_project: ToyProject):
    project = cluster_project
    good = (project.at / "talk.jsonl").read_bytes()
    project.hold()
    assert "the jobs of runs/toy/" in project.cai("experiment=toy", "--detach")
    (project.at / "talk.jsonl").write_text(conversation_lines(3))
    project.let_go()
    said = project.cai("resume", code=1)
    assert "sl_mix  cancelled  cancelled because 'talk' failed" in said
    assert "the data has changed since the plan was made" in said
    found = project.status()
    assert (found[""]["state"], found["talk"]["code"]) == ("failed", 2)
    assert found["sl_mix"]["reason"] == "cancelled because 'talk' failed"
    assert "talk.out ends with:" in project.cai("status", code=1)
    (project.at / "talk.jsonl").write_bytes(good)
    assert "[2/2] sl_mix  done" in project.cai("resume", "toy")


@pytest.mark.long
def test_editing_the_experiment_changes_no_submitted_job(cluster_project: ToyProject):
    project = cluster_project
    project.cai("plan", "experiment=toy", "--out", "wanted.json")
    wanted = {s["name"]: s["key"] for s in json.loads((project.at / "wanted.json").read_text())["steps"]}
    project.hold()
    project.cai("experiment=toy", "--detach")
    frozen = (project.run / "plan.json").read_bytes()
    templates = project.at / "prompt_templates"
    templates.mkdir()
    (templates / "nemo_extra_id.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    project.write("{kind: local}", TOY_EXPERIMENT.replace("0.25", "0.5").replace("sl_mix", "other"))
    (project.run / "jobs" / "sl_mix.sbatch").write_text("#!/bin/sh\nexit 1\n")
    project.let_go()
    project.cai("resume")
    assert (project.run / "plan.json").read_bytes() == frozen
    assert {name: step["state"] for name, step in project.status().items() if name} == {
        "talk": "done",
        "sl_mix": "done",
    }
    made = {json.loads(p.read_text())["key"] for p in (project.at / "home" / "store").glob("*.json")}
    assert made == set(wanted.values())


@pytest.mark.long
def test_a_driver_that_is_killed_leaves_its_jobs_and_can_come_back(cluster_project: ToyProject):
    project = cluster_project
    project.hold()
    driver = project.start("experiment=toy")
    assert driver.stdout is not None
    for line in driver.stdout:
        if "talk  " in line and "running" in line:
            break
    driver.kill()
    driver.communicate(timeout=10)
    found = project.status()
    assert (found["talk"]["state"], found["sl_mix"]["state"]) == ("running", "queued")
    assert found["sl_mix"]["reason"] == "waits for talk"
    jobs = {name: found[name]["job"] for name in ("talk", "sl_mix")}
    back = project.start("resume")
    assert back.stdout is not None
    assert "running" in back.stdout.readline()
    # Ctrl-C only ends the watching.
    back.send_signal(signal.SIGINT)
    _, err = back.communicate(timeout=10)
    assert back.returncode == 3
    assert "the jobs go on" in err
    assert "python -m cai cancel runs/toy/" in err
    project.let_go()
    project.cai("resume")
    found = project.status()
    assert {name: found[name]["job"] for name in jobs} == jobs
    assert json.loads((project.run / "record.json").read_text())["status"] == "done"


@pytest.mark.long
def test_cancelled_jobs_are_gone_and_the_run_can_go_on(cluster_project: ToyProject, slurm: Cluster):
    project = cluster_project
    project.hold()
    project.cai("experiment=toy", "--detach")
    said = project.cai("cancel", "toy")
    assert "cancelled talk (job " in said
    assert "cancelled sl_mix (job " in said
    assert slurm.command("squeue", "--noheader").strip() == ""
    assert project.status()[""]["state"] == "cancelled"
    assert "nothing of runs/toy/" in project.cai("cancel")
    project.let_go()
    assert "[2/2] sl_mix  done" in project.cai("resume")


@pytest.mark.long
def test_a_sweep_is_submitted_whole_and_each_cell_can_be_come_back_to(cluster_project: ToyProject):
    project = cluster_project
    project.hold()
    said = project.cai("-m", "experiment=toy", "seed=1,2", "--detach")
    assert said.count("are submitted") == 2
    sweep = (project.at / "runs" / "toy" / "sweeps" / "latest").resolve()
    assert f"resume {sweep.relative_to(project.at)}/1" in said
    runs = [sweep / "0", sweep / "1"]
    assert [json.loads((run / "plan.json").read_text())["seed"] for run in runs] == [1, 2]
    project.let_go()
    for run in runs:
        assert "[2/2] sl_mix  done" in project.cai("resume", str(run))
