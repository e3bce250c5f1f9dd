"""Slurm's commands, the srun in front of NeMo's, and the runner inside a job: on a real cluster of two nodes."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cai.errors import PrerequisiteError, SpecError, StepFailed
from cai.launchers import guard, slurm_cli
from cai.launchers.base import Command, Ready, Resources
from cai.launchers.settings import Slurm
from cai.launchers.slurm_runner import SrunRunner, host_of
from cai.launchers.slurm_wrap import wrap
from tests.support.paths import ROOT
from tests.support.slurm_cluster import Cluster
from tests.support.slurm_jobs import batch_script, ended_jobs, job_state

SERVER = Command("server", ("serve", "port=5656"), background=True, resources=Resources(nodes=1, gpus_per_node=1))


def out(folder: Path, name: str = "job") -> str:
    path = folder / f"{name}.out"
    return path.read_text() if path.exists() else ""


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def running(pids: list[str]) -> list[str]:
    """Those that run; one that is dead and only not yet waited for does not."""
    found = []
    for pid in pids:
        try:
            stat = Path("/proc", pid, "stat").read_text()
        except OSError:
            continue
        if stat.rpartition(")")[2].split()[0] not in "ZX":
            found.append(pid)
    return found


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def until(holds: Callable[[], bool], timeout: float = 20.0) -> None:
    end = time.monotonic() + timeout
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


# The srun in front of a command: pure.


def test_a_server_gets_its_node_its_gpus_and_nothing_more() -> None:
    settings = Slurm(container="nvcr.io/nvidia/nemo:24.09", mounts=("/lustre:/lustre", "/data:/data:ro"))
    command = replace(SERVER, role="server-1", component=1, relative=1, cwd="/opt/NeMo", env={"NCCL_DEBUG": "WARN"})
    assert wrap(settings, command, 2) == replace(
        command,
        cwd="",
        argv=(
            "srun",
            "--het-group=1",
            "--nodes=1",
            "--ntasks=1",
            "--ntasks-per-node=1",
            "--mem=0",
            "--gpus-per-node=1",
            "--exact",
            "--relative=1",
            "--kill-on-bad-exit=1",
            "--container-image=nvcr.io/nvidia/nemo:24.09",
            "--container-mounts=/lustre:/lustre,/data:/data:ro",
            "--container-workdir=/opt/NeMo",
            "--container-env=NCCL_DEBUG",
            "serve",
            "port=5656",
        ),
    )


def test_training_has_its_component_to_itself() -> None:
    need = Resources(nodes=4, tasks_per_node=8, gpus_per_node=8)
    train = Command("train", ("python", "train_gpt_sft.py"), resources=need, cwd="/opt/NeMo-Aligner")
    argv = "srun --nodes=4 --ntasks=32 --ntasks-per-node=8 --mem=0 --gpus-per-node=8 --kill-on-bad-exit=1"
    assert wrap(Slurm(), train, 1) == replace(train, argv=(*argv.split(), "python", "train_gpt_sft.py"))
    assert "--gpus-per-node=8" not in wrap(Slurm(gpus=False), train, 1).argv


def test_work_of_this_program_is_left_alone() -> None:
    work = Command("work", ("python", "-m", "cai", "step"))
    assert wrap(Slurm(container="image"), work, 2) is work


def test_a_component_that_the_job_does_not_have_is_an_error() -> None:
    with pytest.raises(ValueError, match="component 1 of a job of 1"):
        wrap(Slurm(), replace(SERVER, component=1), 1)


def test_outside_a_job_the_error_says_what_to_give(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with pytest.raises(SpecError, match=r"--server http://HOST:PORT.*salloc"):
        SrunRunner(Slurm())


def test_a_missing_tool_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PrerequisiteError, match="squeue: not found on PATH"):
        slurm_cli.jobs(["1"])


@pytest.mark.parametrize(
    ("text", "code"), [("0", 0), ("768", 3), ("15", 143), ("9", 137), ("3:0", 3), ("0:15", 143), ("", 0)]
)
def test_exit_codes_as_any_version_prints_them(text: str, code: int) -> None:
    assert slurm_cli._exit_code(text) == code


def test_a_heterogeneous_job_has_ended_well_only_when_all_its_parts_have() -> None:
    done, lost = slurm_cli.JobState("1", "COMPLETED", nodes="n1"), slurm_cli.JobState("1", "NODE_FAIL", nodes="n2")
    assert slurm_cli._whole([done, done]).state == "COMPLETED"
    assert slurm_cli._whole([done, lost]) == slurm_cli.JobState("1", "NODE_FAIL", nodes="n1,n2")
    assert slurm_cli._whole([done, replace(lost, state="COMPLETING")]).state == "COMPLETING"


# The queue.


def test_a_chain_runs_in_order_and_a_failure_cancels_what_depends_on_it(cluster: Cluster, tmp_path: Path) -> None:
    begun = time.monotonic()
    first = slurm_cli.submit(batch_script(tmp_path, "sleep 0.5; date +%s.%N", name="first"))
    second = slurm_cli.submit(batch_script(tmp_path, "date +%s.%N; exit 3", name="second"), after=[first])
    third = slurm_cli.submit(batch_script(tmp_path, "date", "", "--partition=cpu", name="third"), after=[first, second])
    assert slurm_cli.jobs([third])[third].reason == "Dependency"
    states = ended_jobs(cluster, first, second, third)
    assert [(job.id, job.state, job.exit_code) for job in states] == [
        (first, "COMPLETED", 0),
        (second, "FAILED", 3),
        (third, "CANCELLED", 0),
    ]
    assert states[0].nodes in cluster.nodes
    assert states[2].reason == "DependencyNeverSatisfied"
    assert float(out(tmp_path, "second")) > float(out(tmp_path, "first"))
    assert not out(tmp_path, "third")
    assert time.monotonic() - begun < 20


def test_both_components_wait_for_the_dependency_and_each_gets_a_node_of_its_own(
    cluster: Cluster, tmp_path: Path
) -> None:
    gate = slurm_cli.submit(batch_script(tmp_path, f"while ! test -e {tmp_path}/go; do sleep 0.1; done", name="gate"))
    body = "srun --het-group=0,1 bash -c 'echo $SLURMD_NODENAME'"
    job = slurm_cli.submit(batch_script(tmp_path, body, "--partition=cpu", "--gpus-per-node=2"), after=[gate])
    cluster.wait("the gate", lambda: job_state(gate) == "RUNNING")
    parts = cluster.command("squeue", "-h", f"--jobs={job}", "--Format=HetJobOffset:|,State:|,Reason:")
    assert sorted(parts.split()) == ["0|PENDING|Dependency", "1|PENDING|Dependency"]
    assert list(slurm_cli.jobs([job])) == [job]
    (tmp_path / "go").touch()
    (ended_job,) = ended_jobs(cluster, job)
    assert ended_job.state == "COMPLETED"
    assert sorted(ended_job.nodes.split(",")) == sorted(out(tmp_path).split()) == ["n1", "n2"]


def test_cancel_takes_waiting_running_and_heterogeneous_jobs(cluster: Cluster, tmp_path: Path) -> None:
    done = slurm_cli.submit(batch_script(tmp_path, "true", name="done"))
    ended_jobs(cluster, done)
    running = slurm_cli.submit(batch_script(tmp_path, "srun --het-group=1 sleep 600", "", "--gpus-per-node=8"))
    waiting = slurm_cli.submit(batch_script(tmp_path, "true", "", "", name="waiting"), after=[running])
    cluster.wait("the job", lambda: job_state(running) == "RUNNING")
    slurm_cli.cancel([done, running, waiting, "99999"])
    assert [job.state for job in ended_jobs(cluster, done, running, waiting)] == ["COMPLETED", "CANCELLED", "CANCELLED"]
    cluster.wait("an empty queue", lambda: not cluster.command("squeue", "-h").strip())


@pytest.mark.long
def test_a_requeued_job_runs_again_under_its_id(cluster: Cluster, tmp_path: Path) -> None:
    headers = ("--requeue --open-mode=append", "--requeue")
    body = 'echo ${SLURM_RESTART_COUNT:-0}; test -n "$SLURM_RESTART_COUNT" || sleep 600'
    job = slurm_cli.submit(batch_script(tmp_path, body, *headers))
    cluster.wait("the first attempt", lambda: out(tmp_path) == "0\n")
    slurm_cli.requeue(job)
    again = slurm_cli.jobs([job])[job]
    assert (again.ended, again.restarts) == (False, 1)
    (last,) = ended_jobs(cluster, job)
    assert (last.state, last.exit_code, last.restarts) == ("COMPLETED", 0, 1)
    assert out(tmp_path).splitlines()[-1] == "1"


def test_what_slurm_refuses_fails_in_its_own_words(cluster: Cluster, tmp_path: Path) -> None:
    with pytest.raises(
        StepFailed, match=r"job\.sbatch: sbatch did not take it: .*invalid partition specified: nowhere"
    ):
        slurm_cli.submit(batch_script(tmp_path, "true", "--partition=nowhere"))
    with pytest.raises(StepFailed, match="scontrol requeue 99999: Invalid job id"):
        slurm_cli.requeue("99999")
    with pytest.raises(StepFailed, match="show node n9"):
        slurm_cli.node_address("n9")
    assert slurm_cli.jobs(["99999"]) == slurm_cli.jobs(["99998", "99999"]) == {}


def test_a_job_starts_with_nothing_of_the_job_that_submitted_it(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_RESTART_COUNT", "4")
    monkeypatch.setenv("SLURM_JOB_NODELIST_HET_GROUP_1", "n7")
    monkeypatch.setenv("CAI_HOME", "/kept")
    job = slurm_cli.submit(
        batch_script(tmp_path, 'echo "$SLURM_RESTART_COUNT$SLURM_JOB_NODELIST_HET_GROUP_1$CAI_HOME"')
    )
    ended_jobs(cluster, job)
    assert out(tmp_path) == "/kept\n"


def test_nodes_have_names_and_addresses(cluster: Cluster) -> None:
    assert slurm_cli.hosts("n[1-2],gpu[08-10]") == ["n1", "n2", "gpu08", "gpu09", "gpu10"]
    assert [slurm_cli.node_address(name) for name in cluster.nodes] == ["127.0.0.1", "127.0.0.2"]


def test_the_live_job_of_a_script_is_found_again(cluster: Cluster, tmp_path: Path) -> None:
    path = batch_script(tmp_path, "sleep 600", "", "")
    assert slurm_cli.live_job(path) is None
    job = slurm_cli.submit(path)
    assert slurm_cli.live_job(path) == job
    slurm_cli.cancel([job])
    cluster.wait("its end", lambda: slurm_cli.live_job(path) is None)


def test_a_lost_answer_of_sbatch_does_not_double_the_job(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # An sbatch that submits and then tells what a timed-out one does.
    real = shutil.which("sbatch")
    lossy = tmp_path / "bin" / "sbatch"
    lossy.parent.mkdir()
    message = "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation"
    lossy.write_text(f'#!/bin/bash\n{real} "$@" >/dev/null\necho {message!r} >&2\nexit 1\n')
    lossy.chmod(0o755)
    monkeypatch.setenv("PATH", f"{lossy.parent}{os.pathsep}{os.environ['PATH']}")
    job = slurm_cli.submit(batch_script(tmp_path, "sleep 600"))
    assert cluster.command("squeue", "-h", "--format=%A").split() == [job]


# A controller that goes away.


@pytest.mark.long
def test_a_controller_that_restarts_is_waited_for(cluster: Cluster, tmp_path: Path) -> None:
    job = slurm_cli.submit(batch_script(tmp_path, "sleep 3"))
    cluster.wait("the job", lambda: job_state(job) == "RUNNING")
    cluster.stop_controller()
    back = threading.Timer(1.5, cluster.start_controller)
    back.start()
    try:
        assert job_state(job) in ("RUNNING", "COMPLETED")
        after = slurm_cli.submit(batch_script(tmp_path, "true", name="after"), after=[job])
    finally:
        back.join()
    assert [job.state for job in ended_jobs(cluster, job, after)] == ["COMPLETED"] * 2


def test_a_controller_that_stays_away_is_an_error(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The same cluster, as one would see it whose controller listens nowhere.
    conf = Path(cluster.env["SLURM_CONF"]).read_text()
    lines = [f"SlurmctldPort={free_port()}" if line.startswith("SlurmctldPort") else line for line in conf.split("\n")]
    (tmp_path / "slurm.conf").write_text("\n".join([*lines, "MessageTimeout=1"]))
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))
    monkeypatch.setattr(slurm_cli, "PATIENCE", 0.5)
    with pytest.raises(StepFailed, match=r"squeue .*Unable to contact slurm controller"):
        slurm_cli.jobs(["1"])
    with pytest.raises(StepFailed, match=r"job\.sbatch: sbatch did not take it: .*Unable to contact slurm controller"):
        slurm_cli.submit(batch_script(tmp_path, "true"))


def test_a_cluster_whose_pytest_is_gone_leaves_nothing_behind(cluster: Cluster, tmp_path: Path) -> None:
    keeper = subprocess.Popen(
        [sys.executable, ROOT / "tests/support/slurm_cluster.py"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert keeper.stdout is not None
    said = json.loads(keeper.stdout.readline())
    env = {**os.environ, **said["env"]}
    stubborn = batch_script(tmp_path, "trap '' TERM; setsid sleep 600 & sleep 600")
    subprocess.run(["sbatch", stubborn], env=env, check=True, capture_output=True)

    def its_own() -> list[str]:
        """Processes of that cluster, by their environment."""
        conf = said["env"]["SLURM_CONF"].encode()
        return [p.parent.name for p in Path("/proc").glob("[0-9]*/environ") if conf in read(p)]

    until(lambda: len(its_own()) > 6)
    keeper.communicate()
    assert its_own() == []
    assert not Path(said["folder"]).exists()


# Inside a job.


def inside(cluster: Cluster, folder: Path, function: str, *headers: str) -> str:
    """Run a function of this module as the batch script of a job; its output."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import pathlib, tests.launchers.test_slurm_cluster as t; "
    code += f"t.{function}(pathlib.Path({str(folder)!r}))"
    (folder / "inside.py").write_text(code)
    job = slurm_cli.submit(batch_script(folder, f"exec {sys.executable} {folder}/inside.py", *headers))
    (last,) = ended_jobs(cluster, job, timeout=60)
    assert last.state == "COMPLETED", out(folder)
    return out(folder)


SERVE = """
import http.server, json, os, sys
keys = ("SLURMD_NODENAME", "CUDA_VISIBLE_DEVICES", "SLURM_CPUS_PER_TASK", "SLURM_NTASKS", "SLURM_NODELIST")
body = json.dumps({key: os.environ.get(key, "") for key in keys}).encode()
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(body)
http.server.HTTPServer(("0.0.0.0", int(sys.argv[1])), Handler).serve_forever()
"""


def two_servers(folder: Path) -> None:
    settings = Slurm(grace=5)
    ports = [free_port(), free_port()]
    (folder / "serve.py").write_text(SERVE)
    commands = [
        replace(
            SERVER,
            role=role,
            argv=(sys.executable, str(folder / "serve.py"), str(port)),
            ready=Ready(port, 30),
            component=1,
        )
        for role, port in zip(("server", "server-1"), ports, strict=True)
    ]
    runner = SrunRunner(settings)
    try:
        servers = [runner.start(wrap(settings, c, 2), folder / f"{c.role}.log") for c in commands]
        answers = []
        for server in servers:
            server.wait_ready()
            with urllib.request.urlopen(f"http://{server.host}:{server.port}", timeout=10) as answer:
                answers.append(json.load(answer))
        print(json.dumps({"own": os.environ["SLURMD_NODENAME"], "answers": answers}))
        ask = "import os; print(os.environ['CAI_SERVER_HOST'])"
        train = Command("train", (sys.executable, "-c", ask), addresses={"CAI_SERVER_HOST": "server"})
        runner.run(wrap(settings, replace(train, resources=Resources(nodes=1)), 2), folder / "train.log", servers)
        print(json.dumps((folder / "train.log").read_text().splitlines()[-1]))
    finally:
        runner.close()
    with socket.socket() as one, socket.socket() as two:
        closed = [s.connect_ex(("127.0.0.1", port)) != 0 for s, port in zip((one, two), ports, strict=True)]
    print(json.dumps(closed))


@pytest.mark.long
def test_two_servers_run_side_by_side_in_one_component(cluster: Cluster, tmp_path: Path) -> None:
    headers = ("--partition=cpu --mem=100", "--ntasks-per-node=2 --cpus-per-task=3 --gpus-per-node=2 --mem=4000")
    said, address, gone = map(json.loads, inside(cluster, tmp_path, "two_servers", *headers).splitlines())
    one, two = said["answers"]
    # The GPUs are numbered where pretend devices can be made.
    assert not one["CUDA_VISIBLE_DEVICES"] or {one["CUDA_VISIBLE_DEVICES"], two["CUDA_VISIBLE_DEVICES"]} == {"0", "1"}
    for answer in (one, two):
        assert answer["SLURMD_NODENAME"] != said["own"]
        assert answer["SLURM_NODELIST"] == answer["SLURMD_NODENAME"]
        assert (answer["SLURM_CPUS_PER_TASK"], answer["SLURM_NTASKS"]) == ("3", "1")
    assert address == slurm_cli.node_address(one["SLURMD_NODENAME"])
    assert gone == [True, True]


def stopped_training(folder: Path) -> None:
    settings = Slurm(grace=5)
    # Without the guard's mark, so that what ends the tasks is Slurm, as it must be on other nodes.
    stubborn = f"trap '' TERM; echo $$ >> {folder}/pids; setsid sleep 600 & echo $! >> {folder}/pids; sleep 600"
    argv = ("env", "-u", guard.MARK, "bash", "-c", stubborn)
    command = Command("critic", argv, background=True, resources=Resources(nodes=2, tasks_per_node=2))
    runner = SrunRunner(settings)
    server = runner.start(wrap(settings, command, 1), folder / "critic.log")
    pids = folder / "pids"
    until(lambda: pids.exists() and len(pids.read_text().split()) == 8)
    tasks = pids.read_text().split()
    assert len(running(tasks)) == 8
    begun = time.monotonic()
    server.stop()
    until(lambda: not running(tasks), 10)
    took = time.monotonic() - begun
    # The nodes are free for what comes next.
    runner.run(wrap(settings, replace(command, argv=("true",), background=False), 1), folder / "next.log")
    failing = replace(command, argv=("bash", "-c", "test $SLURM_PROCID = 1 && exit 7; sleep 600"))
    with pytest.raises(StepFailed, match=r"task 1: Exited with exit code 7"):
        runner.run(wrap(settings, failing, 1), folder / "failing.log")
    runner.close()
    print(json.dumps({"took": took}))


@pytest.mark.long
def test_stopping_an_srun_stops_its_tasks_on_every_node(cluster: Cluster, tmp_path: Path) -> None:
    said = json.loads(inside(cluster, tmp_path, "stopped_training", "--nodes=2 --ntasks-per-node=2"))
    assert said["took"] < 10


def test_a_command_knows_the_address_of_its_node(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "n1")
    assert host_of(replace(SERVER, relative=0)) == "127.0.0.1"
    with pytest.raises(StepFailed, match=r"server: wants component 1 of a heterogeneous job"):
        host_of(replace(SERVER, component=1))
    monkeypatch.setenv("SLURM_JOB_NODELIST_HET_GROUP_1", "n[1-2]")
    assert host_of(replace(SERVER, component=1, relative=1)) == "127.0.0.2"
    with pytest.raises(StepFailed, match=r"wants 1 nodes from number 2 on, but component 1 of this job has 2"):
        host_of(replace(SERVER, component=1, relative=2))
