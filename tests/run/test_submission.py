"""Runs as jobs: the scripts, and the jobs themselves on a real Slurm of two nodes."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from cai.errors import Incomplete, PrerequisiteError, SpecError, StepFailed
from cai.launchers.base import Command, Resources
from cai.launchers.settings import Slurm
from cai.launchers.slurm_script import Component, components_of, script
from cai.plan import Plan, by_role, inputs_of
from cai.run.executor import run
from cai.run.job_files import job_file
from cai.run.submission import Phase, cancel, resume, states, submit, watch
from cai.store.artifacts import Store
from cai.store.events import read_events
from tests.support.executor_kinds import KINDS, SIDE, no_engine, small_plan
from tests.support.paths import ROOT
from tests.support.slurm_cluster import Cluster

# The scripts

ONE = (Component(time="01:00:00"),)


def text_of(settings: Slurm | None = None, components: tuple[Component, ...] = ONE, body=("exec true",), **more) -> str:
    options = {"step_name": "sft", "log": Path("/runs/sft.out"), "job_name": "x.sft", **more}
    return script(settings or Slurm(), components=components, body=body, **options)


def bash_accepts(text: str) -> None:
    done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_script_asks_for_what_its_settings_say():
    settings = Slurm(
        account="lab", partition="gpu", cpu_partition="small", qos="high", constraint="a100&nvlink", warn=300,
        options=("exclusive", "reservation=x"), setup=("module load cuda", 'echo "$UNSET"'),
    )  # fmt: skip
    text = text_of(settings, (Component(2, 8, 8, "2-00:00:00"),))
    bash_accepts(text)
    lines = text.splitlines()
    assert lines[0] == "#!/bin/bash"
    assert [line.removeprefix("#SBATCH --") for line in lines if line.startswith("#SBATCH")] == [
        "job-name=x.sft",
        "account=lab",
        "partition=gpu",
        "qos=high",
        'constraint="a100&nvlink"',
        "time=2-00:00:00",
        "nodes=2",
        "ntasks-per-node=8",
        "gpus-per-node=8",
        "output=/runs/sft.out",
        "open-mode=append",
        "signal=B:USR1@300",
        "requeue",
        "exclusive",
        "reservation=x",
    ]
    assert lines[-1] == "exec true"
    assert lines.index("set -euo pipefail") < lines.index("set +u") < lines.index("module load cuda")
    on_cpu = text_of(settings).splitlines()
    assert "#SBATCH --partition=small" in on_cpu
    assert not [line for line in on_cpu if "gpus" in line or "constraint" in line]


def test_every_component_has_a_header_and_the_batch_script_is_said_once():
    text = text_of(Slurm(requeue=False, warn=0), (Component(1, 4, 4, "04:00"), Component(2, 8, 8, "04:00")))
    bash_accepts(text)
    first, second = text.split("#SBATCH hetjob\n")
    assert "#SBATCH --gpus-per-node=4\n" in first
    assert "#SBATCH --gpus-per-node=8\n" in second
    assert "#SBATCH --nodes=2\n" in second
    assert "#SBATCH --no-requeue\n" in second
    assert first.count("--output") == text.count("--output") == 1
    assert "--signal" not in text


def test_clusters_that_give_whole_nodes_are_not_asked_for_gpus():
    text = text_of(Slurm(partition="gpu", cpu_partition="cpu", gpus=False), (Component(1, 8, 8, "1:00"),))
    assert "gpus-per-node" not in text
    assert "--partition=gpu" in text


def test_odd_names_stay_what_they_are_and_lines_cannot_be_slipped_in():
    text = text_of(log=Path("/my runs/100%/a b.out"), job_name='odd "name"', folder=Path("/my work"))
    bash_accepts(text)
    assert '#SBATCH --chdir="/my work"' in text
    assert '#SBATCH --output="/my runs/100%%/a b.out"' in text
    assert '#SBATCH --job-name="odd \\"name\\""' in text
    with pytest.raises(SpecError, match=r"account: .* spans lines"):
        text_of(Slurm(account="a\n#SBATCH --uid=0"))
    assert job_file(Path("r"), "data.a/b%", ".out") == Path("r/jobs/data.a%2Fb%25.out")


def test_a_failing_setup_line_fails_the_job_and_an_unset_variable_there_does_not(tmp_path: Path):
    def code(*setup: str, body: str = "exec echo began") -> tuple[int, str]:
        text = text_of(Slurm(setup=setup), body=(body,))
        done = subprocess.run(
            ["bash", "-c", text], capture_output=True, text=True, check=False, env={"PATH": os.defpath}
        )
        return done.returncode, done.stdout

    assert code("false | true") == (1, "")
    assert code('test -z "$UNSET"') == (0, "began\n")
    assert code(body='echo "$UNSET"')[0] != 0
    # Slurm's warning may come while the program is still starting.
    assert code(body="kill -USR1 $$; exec echo began") == (0, "began\n")


def work(**more) -> Command:
    return Command("work", ("python",), **more)


def command(role: str, nodes: int, gpus: int, component: int = 0, relative: int = 0, time: str = "") -> Command:
    needs = Resources(nodes, gpus or 1, gpus, time)
    return Command(role, ("x",), background=role != "train", resources=needs, component=component, relative=relative)


@pytest.mark.parametrize(
    ("commands", "wanted"),
    [
        ((), (Component(1, 0, 1, "10:00"),)),
        ((work(),), (Component(1, 0, 1, "10:00"),)),
        ((work(), command("train", 2, 8)), (Component(2, 8, 8, "99:00"),)),
        # Commands in the foreground follow each other: the largest counts.
        ((work(), command("train", 1, 1), command("train", 2, 8)), (Component(2, 8, 8, "99:00"),)),
        # Servers run side by side: two share node 0, the third has node 1.
        (
            (work(), command("server", 1, 4, 1), command("server-1", 1, 4, 1), command("server-2", 1, 4, 1, 1)),
            (Component(1, 0, 1, "99:00"), Component(2, 8, 8, "99:00")),
        ),
        # Servers of another turn take the place of those before.
        (
            (work(), command("server", 1, 4, 1), replace(command("server", 2, 8, 1), turn=1)),
            (Component(1, 0, 1, "99:00"), Component(2, 8, 8, "99:00")),
        ),
        (
            (work(), command("critic", 2, 8, 1, 0, "1-00:00:00"), command("train", 4, 8, 0, 0, "30:00")),
            (Component(4, 8, 8, "1-00:00:00"), Component(2, 8, 8, "1-00:00:00")),
        ),
        ((work(), command("convert", 1, 0)), (Component(1, 0, 1, "10:00"),)),
    ],
)
def test_a_job_holds_what_all_its_commands_need(commands, wanted):
    assert components_of(Slurm(time="99:00", cpu_time="10:00"), commands) == wanted


def test_time_limits_are_compared_as_slurm_reads_them():
    times = ["90", "1:30:01", "91:00", "2:30", "1-0", "0-23:59", "1-00:01"]
    by_length = ["2:30", "90", "1:30:01", "91:00", "0-23:59", "1-0", "1-00:01"]
    found = []
    while times:
        commands = [command("train", 1, 1, time=t) for t in times]
        found.append(components_of(Slurm(), commands)[0].time)
        times.remove(found[-1])
    assert found == by_length[::-1]


# On a cluster


class Toy:
    """A plan of toy steps, whose jobs are this program with the toy kinds known to it."""

    def __init__(self, tmp_path: Path) -> None:
        self.store, self.run_dir, self.side = (
            Store(tmp_path / "home"),
            tmp_path / "runs" / "small" / "r1",
            tmp_path / "s",
        )
        self.side.touch()
        self.program = tmp_path / "program"
        self.program.write_text(
            f"#!{sys.executable}\n"
            f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
            "from cai import stages\n"
            "from cai.cli import main\n"
            "from tests.support.executor_kinds import KINDS\n"
            "stages.KINDS.update(KINDS)\n"
            "sys.exit(main(sys.argv[3:]))\n"
        )
        self.program.chmod(self.program.stat().st_mode | stat.S_IXUSR)

    def plan(self, plan: Plan, **launcher) -> Plan:
        settings = {"kind": "slurm", "poll": 0.1, "cpu_time": "10:00", **launcher}
        return replace(plan, engine={"kind": "nemo_aligner", "program": str(self.program), "launcher": settings})

    def submit(self, plan: Plan, **launcher):
        return submit(self.plan(plan, **launcher), self.store, self.run_dir, KINDS)

    def watch(self) -> tuple[object, str]:
        with open(os.devnull, "w") as nowhere:
            console = Console(file=nowhere, record=True, width=200)
            try:
                return watch(self.run_dir, console), console.export_text()
            except (StepFailed, Incomplete) as error:
                return error, console.export_text()

    def view(self, step: str):
        return next(view for view in states(self.run_dir) if view.step.name == step)

    def work_done(self) -> Counter[str]:
        return Counter(self.side.read_text().splitlines())


@pytest.fixture
def cluster(slurm: Cluster, monkeypatch: pytest.MonkeyPatch):
    for name, value in slurm.env.items():
        monkeypatch.setenv(name, value)
    yield slurm
    slurm.clear()


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Toy:
    toy = Toy(tmp_path)
    monkeypatch.setenv(SIDE, str(toy.side))
    return toy


def bytes_of(store: Store, plan: Plan) -> dict[str, bytes]:
    found = {}
    for step in plan.steps:
        stored = store.find(step.kind, step.key)
        assert stored is not None, step.name
        found |= {f"{step.name}/{p.name}": p.read_bytes() for p in stored.path.iterdir()}
    return found


def undisturbed(tmp_path: Path, plan: Plan) -> dict[str, bytes]:
    """The bytes that a local run of the plan makes."""
    before, os.environ[SIDE] = os.environ.get(SIDE, ""), os.devnull
    pause = os.environ.pop("CAI_TEST_PAUSE", None)
    try:
        other = Store(tmp_path / "other")
        run(plan, store=other, run_dir=tmp_path / "local", make_engine=no_engine, kinds=KINDS)
        return bytes_of(other, plan)
    finally:
        os.environ[SIDE] = before
        if pause is not None:
            os.environ["CAI_TEST_PAUSE"] = pause


def queue(cluster: Cluster) -> list[str]:
    return cluster.command("squeue", "--noheader", "--format=%i").split()


def is_empty(cluster: Cluster, patience: float = 20.0) -> bool:
    """Whether Slurm lists nothing any more; jobs that are on their way out have a while to be gone."""
    end = time.monotonic() + patience
    while queue(cluster) and time.monotonic() < end:
        time.sleep(0.1)
    return not queue(cluster)


def test_a_plan_runs_as_a_chain_of_jobs_and_leaves_what_a_local_run_leaves(
    cluster: Cluster, toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    plan = small_plan()
    submitted = toy.submit(plan)
    assert [view.phase for view in submitted] != [Phase.DONE] * 3
    result, said = toy.watch()
    assert bytes_of(toy.store, plan) == undisturbed(tmp_path, plan)
    assert max(toy.work_done().values()) == 1
    assert [step.reused for step in result.steps] == [False] * 3
    assert result.artifact("all").path.is_dir()
    assert "[3/3] all  done  made in" in said
    record = json.loads((toy.run_dir / "record.json").read_text())
    assert (record["status"], record["steps"]["all"]["reused"]) == ("done", False)
    assert 0 < record["seconds"] == round(result.seconds, 3) < 60
    events = [(e["event"], e.get("step")) for e in read_events(toy.run_dir / "events.jsonl")]
    for step in ("one", "two", "all"):
        mine = [event for event, of in events if of == step]
        wanted = ["job.submitted", "job.started", "step.started", "step.done", "job.done"]
        assert [e for e in mine if e in wanted] == wanted
    assert events[-1] == ("run.done", None)
    word = json.loads(job_file(toy.run_dir, "all", ".exit.json").read_text())
    assert (word["code"], word["error"], word["restarts"]) == (0, "", 0)
    assert word["job"] == json.loads(job_file(toy.run_dir, "all", ".json").read_text())["job"]
    # A finished run can be looked at where there is no Slurm.
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("PATH", str(tmp_path))
        assert [(view.phase, view.job != "") for view in states(toy.run_dir)] == [(Phase.DONE, True)] * 3
    # Again: everything is there, so nothing is submitted.
    toy.run_dir = toy.run_dir.with_name("r2")
    assert [(view.phase, view.job) for view in toy.submit(plan)] == [(Phase.DONE, "")] * 3
    assert [step.reused for step in toy.watch()[0].steps] == [True] * 3
    assert not list((toy.run_dir / "jobs").glob("*.sbatch"))


def test_a_failed_step_cancels_what_needs_it_and_says_why(cluster: Cluster, toy: Toy):
    toy.submit(small_plan(lose=1))
    error, said = toy.watch()
    assert isinstance(error, StepFailed)
    assert "one (job " in str(error)
    assert "the ledger does not balance: 8 rows in, 7 out" in str(error)
    assert "one.out:\n" in str(error)
    assert "not made because of that: all" in str(error)
    assert f"resume {toy.run_dir}" in str(error)
    assert "all  cancelled  cancelled because 'one' failed" in said
    found = {view.step.name: view for view in states(toy.run_dir)}
    assert [found[name].phase for name in ("one", "two", "all")] == [Phase.FAILED, Phase.DONE, Phase.CANCELLED]
    assert found["one"].code == 1
    assert "error:" in found["one"].tail
    assert is_empty(cluster)
    record = json.loads((toy.run_dir / "record.json").read_text())
    assert (record["status"], list(record["steps"])) == ("failed", ["two"])


def test_a_job_that_was_killed_without_a_word_is_a_failure_too(cluster: Cluster, toy: Toy, monkeypatch):
    monkeypatch.setenv("CAI_TEST_KILL_AFTER", "2")
    toy.submit(small_plan())
    error, _ = toy.watch()
    assert "one (job " in str(error)
    assert "without a word: killed" in str(error)
    monkeypatch.delenv("CAI_TEST_KILL_AFTER")
    resume(toy.run_dir)
    result, _ = toy.watch()
    assert len(result.steps) == 3
    assert max(toy.work_done().values()) == 1, "a finished row was done again"


def test_a_crash_while_submitting_is_continued_without_doubling_a_job(cluster: Cluster, toy: Toy, monkeypatch):
    monkeypatch.setenv("CAI_TEST_PAUSE", "0.3")
    toy.submit(small_plan())
    before = {view.step.name: view.job for view in states(toy.run_dir)}
    # What is on the disk after kill -9 between `sbatch` and noting its answer, and before the next `sbatch`.
    two = job_file(toy.run_dir, "two", ".json")
    two.write_text(json.dumps({**json.loads(two.read_text()), "job": ""}))
    cluster.command("scancel", before["all"])
    job_file(toy.run_dir, "all", ".json").unlink()
    assert toy.view("two").phase is Phase.UNSUBMITTED
    after = {view.step.name: view.job for view in resume(toy.run_dir)}
    assert (after["one"], after["two"]) == (before["one"], before["two"])
    assert after["all"] not in ("", before["all"])
    assert sorted(queue(cluster)) == sorted(after.values())
    assert {view.step.name: view.job for view in resume(toy.run_dir)} == after
    result, _ = toy.watch()
    assert len(result.steps) == 3


@pytest.mark.long
def test_cancel_leaves_no_job_and_resume_goes_on_in_the_frozen_plan(cluster: Cluster, toy: Toy, tmp_path, monkeypatch):
    monkeypatch.setenv("CAI_TEST_PAUSE", "0.2")
    plan = small_plan(20)
    toy.submit(plan)
    cluster.wait("some rows", lambda: toy.work_done().total() > 4)
    cancelled = cancel(toy.run_dir)
    assert {view.step.name for view in cancelled} >= {"one", "all"}
    assert is_empty(cluster)
    assert toy.view("one").phase is toy.view("all").phase is Phase.CANCELLED
    word = json.loads(job_file(toy.run_dir, "one", ".exit.json").read_text())
    assert (word["code"], "SIGTERM" in word["error"]) == (3, True)
    error, _ = toy.watch()
    assert isinstance(error, Incomplete)
    assert cancel(toy.run_dir) == []
    monkeypatch.setenv("CAI_TEST_PAUSE", "0")
    resume(toy.run_dir)
    toy.watch()
    assert bytes_of(toy.store, plan) == undisturbed(tmp_path, plan)
    assert max(toy.work_done().values()) == 1


@pytest.mark.long
def test_a_queued_job_whose_input_is_submitted_anew_waits_for_the_new_one(cluster: Cluster, toy: Toy, monkeypatch):
    monkeypatch.setenv("CAI_TEST_PAUSE", "0.3")
    toy.submit(small_plan(12))
    first = {view.step.name: view.job for view in states(toy.run_dir)}
    cluster.command("scontrol", "hold", first["all"])
    cluster.command("scancel", first["one"])
    cluster.wait("its end", lambda: toy.view("one").phase is Phase.CANCELLED)
    second = {view.step.name: view.job for view in resume(toy.run_dir)}
    assert second["one"] != first["one"]
    assert second["all"] != first["all"]
    assert first["all"] not in queue(cluster)
    assert second["one"] in json.loads(job_file(toy.run_dir, "all", ".json").read_text())["after"]
    result, _ = toy.watch()
    assert len(result.steps) == 3


@pytest.mark.long
def test_a_requeued_job_ends_in_the_same_bytes(cluster: Cluster, toy: Toy, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("CAI_TEST_PAUSE", "0.1")
    plan = small_plan(20)
    toy.submit(plan)
    cluster.wait("some rows", lambda: toy.work_done()["one r5"] > 0)
    cluster.command("scontrol", "requeue", toy.view("one").job)
    result, _ = toy.watch()
    assert len(result.steps) == 3
    assert json.loads(job_file(toy.run_dir, "one", ".exit.json").read_text())["restarts"] == 1
    assert bytes_of(toy.store, plan) == undisturbed(tmp_path, plan)
    assert max(toy.work_done().values()) == 1


def warn(cluster: Cluster, toy: Toy, row: str) -> None:
    """What Slurm does shortly before the time limit (--signal=B:USR1), without waiting a minute for it."""
    cluster.wait(row, lambda: toy.work_done()[f"one {row}"] > 0)
    cluster.command("scancel", "--batch", "--signal=USR1", toy.view("one").job)


@pytest.mark.long
def test_a_warned_job_stops_and_queues_itself_again_until_that_was_often_enough(
    cluster: Cluster, toy: Toy, tmp_path: Path, monkeypatch
):
    monkeypatch.setenv("CAI_TEST_PAUSE", "0.15")
    plan = small_plan(24)
    toy.submit(plan, max_requeues=1)
    warn(cluster, toy, "r2")
    cluster.wait("the queue", lambda: toy.view("one").restarts == 1 and toy.view("one").phase is Phase.QUEUED)
    assert "stopped shortly before the time limit; queued again, 1 of 1" in toy.view("one").reason
    assert toy.view("all").phase is Phase.QUEUED
    warn(cluster, toy, "r8")
    error, said = toy.watch()
    assert "one: time limit reached 2 times; raise engine.launcher.time" in str(error)
    assert "cancelled because 'one' failed" in said
    # A person raises nothing here, but resumes: the counter begins anew and the rows that are done stay done.
    resume(toy.run_dir)
    toy.watch()
    assert bytes_of(toy.store, plan) == undisturbed(tmp_path, plan)
    assert max(toy.work_done().values()) == 1


def test_what_slurm_refuses_leaves_no_half_of_a_chain(cluster: Cluster, toy: Toy, tmp_path: Path, monkeypatch):
    # The cluster's own sbatch, which refuses the last job.
    wrapper = tmp_path / "bin" / "sbatch"
    wrapper.parent.mkdir()
    real = shutil.which("sbatch")
    wrapper.write_text(
        f'#!/bin/sh\ncase "$*" in *all.sbatch) set -- --partition=nowhere "$@";; esac\nexec {real} "$@"\n'
    )
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{wrapper.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("CAI_TEST_PAUSE", "0.3")
    with pytest.raises(StepFailed, match=r"all\.sbatch: sbatch did not take it: .*invalid partition"):
        toy.submit(small_plan())
    cluster.wait("an empty queue", lambda: not queue(cluster))
    assert toy.view("one").phase is Phase.CANCELLED
    assert toy.view("all").phase is Phase.UNSUBMITTED


def test_steps_with_the_same_key_are_one_job(cluster: Cluster, toy: Toy):
    plan = small_plan()
    twin = replace(plan.steps[0], name="twin")
    needs = replace(plan.steps[2], inputs=inputs_of({**by_role(plan.steps[2].inputs), "a": "twin"}))
    toy.submit(replace(plan, steps=(plan.steps[0], twin, plan.steps[1], needs)))
    assert not job_file(toy.run_dir, "twin", ".sbatch").exists()
    result, _ = toy.watch()
    assert [step.reused for step in result.steps] == [False, True, False, False]


def test_without_a_cluster_nothing_is_submitted_and_the_message_says_so(toy: Toy, monkeypatch, tmp_path: Path):
    plan = small_plan()
    with pytest.raises(SpecError, match=r"engine\.launcher"):
        submit(replace(plan, engine={"kind": "embedded"}), toy.store, toy.run_dir, KINDS)
    assert not toy.run_dir.exists()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PrerequisiteError, match="slurm launcher needs Slurm's commands"):
        toy.submit(plan)
    with pytest.raises(SpecError, match=r"submission\.json: cannot be read"):
        states(tmp_path)


def test_two_processes_do_not_submit_the_same_run_at_once(cluster: Cluster, toy: Toy):
    from cai.files.locks import locked

    toy.submit(small_plan())
    with locked(toy.run_dir / "jobs" / ".lock"), pytest.raises(Incomplete, match="another process is submitting"):
        resume(toy.run_dir)
    with locked(toy.run_dir / "jobs" / ".lock"), pytest.raises(Incomplete, match="another process is submitting"):
        cancel(toy.run_dir)
