"""Shards: real processes that share a step's rows leave the bytes of one process, whatever dies on the way."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cai.errors import Incomplete, PlanError, PrerequisiteError, SpecError
from cai.experiment.model import parse
from cai.files.library import Library, shipped_root
from cai.files.locks import SHARING, holder
from cai.plan import Step
from cai.planning.resolver import resolve
from cai.run.executor import run_shard
from cai.run.job_files import word_file, write_json
from cai.run.scripts import write_scripts
from cai.run.shards import Merging, ShardProgress, parse_shard, shards_of, with_usage
from cai.run.submission import Phase, cancel, resume, states, submit, watch
from cai.run.watch import Silent
from cai.stages.base import Shard
from cai.stages.flow.base import Flow, ShardDone
from cai.stages.flow.drive import drive
from cai.stages.flow.generation import as_prompt, source_of
from cai.store.artifacts import artifact_name
from cai.store.events import read_events
from cai.terminal.plan_view import plan_data
from tests.support.fake_api import KEY, FakeServer, Reply
from tests.support.flows import Flowing, chained, flow_context
from tests.support.shared_rows import CALLS, ROWS, Project, answer
from tests.support.slurm_cluster import Cluster


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("TEST_KEY", KEY)
    # An answer that is in the cache is not asked, which is not what these tests count.
    monkeypatch.setenv("CAI_REQUEST_CACHE", "off")
    made = FakeServer(answer)
    yield made
    made.close()


@pytest.fixture
def project(tmp_path: Path, server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.chdir(tmp_path)
    return Project(tmp_path, server)


def until(holds: Callable[[], Any], what: str, timeout: float = 30.0) -> None:
    end = time.monotonic() + timeout
    while not holds():
        assert time.monotonic() < end, f"not in {timeout:g} s: {what}"
        time.sleep(0.02)


class Told(Silent):
    """A watcher that remembers how many rows it was told of."""

    def __init__(self) -> None:
        self.rows, self.expected, self.notes = 0, 0, list[tuple[str, dict[str, Any]]]()

    def step_started(self, step: Step, resumed: bool) -> Any:
        return self if step.name == "sample" else super().step_started(step, resumed)

    def expect(self, rows: int | None = None, tokens: int | None = None) -> None:
        self.expected = rows or self.expected

    def advance(self, rows: int = 0, tokens: int = 0) -> None:
        self.rows += rows

    def note(self, event: str, **fields: Any) -> None:
        self.notes.append((event, fields))


def test_shards_are_no_part_of_the_identity_and_the_plan_tells_them(project: Project) -> None:
    one, four = project.plan(1), project.plan(4)
    assert [step.key for step in one.steps] == [step.key for step in four.steps]
    assert (shards_of(one.step("sample")), shards_of(four.step("sample")), shards_of(four.step("asked"))) == (1, 4, 1)
    status = [type("S", (), {"step": step, "action": "run", "reason": ""}) for step in four.steps]
    assert plan_data(four, status)["steps"][-1]["notes"] == ["in 4 shards"]
    with pytest.raises(SpecError, match=r"stages\.sample.*shards: .*less than or equal to 1000"):
        project.plan(1001)


@pytest.mark.parametrize("text", ["", "1", "3/3", "-1/3", "a/b", "0/1001", "0/0", "1/2/3"])
def test_what_is_no_part_of_a_step_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match=r"--shard: .* is no part of a step; write K/N"):
        parse_shard(text)
    assert parse_shard("2/3") == Shard(2, 3)


def test_what_shards_asked_is_added_to_the_record_in_the_order_of_the_alphabet(tmp_path: Path) -> None:
    own = {"pairs": 2, "usage": {"asked": 1, "rows done before": 40, "cost": 0.5}, "ties": 1}
    assert with_usage(own, tmp_path, "sample") == own, "no shard has said anything"
    usages = [
        {"asked": 8, "attempts": 9, "most calls at once": 4, "tried again: 429": 1, "cost": 0.1},
        {"asked": 3},
        {},
    ]
    for index, usage in enumerate(usages):
        word = word_file(tmp_path, "sample", index)
        word.parent.mkdir(exist_ok=True)
        write_json(word, {"code": 0, **({"usage": usage} if usage else {})})
    added = {"asked": 12, "attempts": 9, "cost": 0.6, "most calls at once": 4, "tried again: 429": 1}
    assert json.dumps(with_usage(own, tmp_path, "sample")) == json.dumps({**own, "usage": added})


@pytest.mark.long
def test_processes_that_share_the_rows_leave_the_bytes_of_one(project: Project, server: FakeServer) -> None:
    whole, told, count = project.whole(), Told(), 5
    result = project.run(project.plan(count), watch=told)
    assert project.rows() == whole
    assert len(server.asked) == CALLS, "each row was asked by one of them"
    assert (told.rows, told.expected) == (ROWS, ROWS)
    assert not result.steps[-1].reused
    used = result.artifact("sample").record["outcome"]["metrics"]["usage"]
    assert (used["asked"], used["attempts"], used.get("rows done before", 0)) == (CALLS, CALLS, 0)
    events = [(e["event"], e.get("shard")) for e in read_events(project.folder / "run/home/events.jsonl")]
    assert [events.count(("shard.done", f"{i}/{count}")) for i in range(count)] == [1] * count
    logs = sorted(path.name for path in (project.folder / "run/home/logs").iterdir())
    assert logs == [f"sample.shard-{i}.log" for i in range(count)]
    assert KEY not in "".join(p.read_text() for p in (project.folder / "run").rglob("*") if p.is_file())
    # Again, with another number: nothing is left to do.
    assert project.run(project.plan(3)).steps[-1].reused
    assert len(server.asked) == CALLS


@pytest.mark.long
def test_shards_one_by_one_by_hand_and_one_that_never_came(project: Project, server: FakeServer) -> None:
    whole, plan = project.whole(), project.plan(1)
    for index in (2, 0):
        project.shard(plan, index, 3)
    assert 0 < len(server.asked) < CALLS
    asked = len(server.asked)
    project.shard(plan, 0, 3)
    assert len(server.asked) == asked, "what is done is not asked again"
    project.run(plan)
    assert project.rows() == whole
    assert len(server.asked) == CALLS
    project.shard(plan, 1, 3)
    assert len(server.asked) == CALLS, "a shard of a step that is done ends well at once"


@pytest.mark.long
def test_a_refused_key_is_told_once_and_nothing_is_asked_again(project: Project, server: FakeServer) -> None:
    server.answer = lambda path, body: Reply({"error": {"message": "Incorrect key"}}, 401)
    with pytest.raises(PrerequisiteError, match=r"sample: shard \d of 2: .*TEST_KEY"):
        project.run(project.plan(2))
    words = [json.loads(word_file(project.folder / "run/home", "sample", i).read_text()) for i in range(2)]
    assert [word["code"] for word in words] == [2, 2]
    assert KEY not in str(words)


@pytest.mark.long
def test_the_same_shard_twice_at_once(project: Project, server: FakeServer) -> None:
    whole, plan = project.whole(), project.plan(1)
    go = threading.Event()

    def held(path: str, body: dict[str, Any]) -> Reply:
        go.wait(30)
        return answer(path, body)

    server.answer = held
    first = threading.Thread(target=project.shard, args=(plan, 0, 2))
    first.start()
    step = plan.step("sample")
    lock = project.store().lock_of(artifact_name(step.kind, step.key))
    until(lambda: server.asked, "the first call")
    assert holder(lock) == SHARING
    with pytest.raises(Incomplete, match="another process is writing it") as hit:
        project.shard(plan, 0, 2)
    assert hit.value.exit_code == 3
    # Another part does not mind; who builds waits for both.
    waiting = Told()
    seen: list[str] = []
    waiting.waiting = lambda step, who: seen.append(who)  # type: ignore[method-assign]
    second = threading.Thread(target=project.shard, args=(plan, 1, 2))
    second.start()
    builder = threading.Thread(target=project.run, args=(plan,), kwargs={"watch": waiting})
    builder.start()
    until(lambda: seen, "the builder waits")
    assert seen == [SHARING]
    go.set()
    for thread in (first, second, builder):
        thread.join()
    assert project.rows() == whole
    assert len(server.asked) == CALLS


@pytest.mark.long
def test_a_damaged_artifact_and_an_attempt_that_all_but_ended_are_found_by_shards_too(project: Project) -> None:
    whole, plan = project.whole(), project.plan(1)
    store, step = project.store("whole"), plan.step("sample")
    name = artifact_name(step.kind, step.key)
    (store.root / name / "rows.jsonl").write_bytes(b"rot")
    (store.root / f"{name}.seen").unlink()
    with store.sharing(step.kind, step.key) as build:
        assert build.stored is None
        assert (build.partial / "work").is_dir()
    assert list(store.damaged.glob(f"{name}.*"))
    project.run(plan, "whole")
    assert project.rows("whole") == whole
    # As it is after kill -9 between the last two renames.
    partial = store.root / f"{name}.partial"
    partial.mkdir()
    (store.root / f"{name}.json").rename(partial / "record.json")
    with store.sharing(step.kind, step.key) as build:
        assert build.stored is not None
    assert store.find(step.kind, step.key) is not None


def test_kinds_without_rows_to_deal_and_steps_with_servers_are_refused(project: Project) -> None:
    plan = project.plan(1)
    with pytest.raises(SpecError, match="a step of kind read is not done in parts; leave --shard out"):
        run_shard(plan, "asked", Shard(0, 2), store=project.store(), run_dir=project.folder, make_engine=lambda _: None)
    raw = project.raw(2)
    raw["models"]["own"] = {"source": f"nemo:{project.folder}/m.nemo"}
    (project.folder / "m.nemo").write_bytes(b"x")
    raw["stages"]["sample"]["model"] = "own"
    raw["engine"] = {"kind": "nemo_aligner"}
    with pytest.raises(PlanError) as refused:
        resolve(parse(raw), Library((project.folder, shipped_root())))
    assert "stages.sample.shards: 2 shards would each start the servers" in str(refused.value)
    assert "engine.servers.own.count" in str(refused.value)


@pytest.mark.long
def test_a_script_of_one_machine_does_the_parts_side_by_side(project: Project, server: FakeServer) -> None:
    whole, plan = project.whole(), project.plan(2)
    ran = write_scripts(plan, project.store(), project.folder / "scripts")
    text = (ran.parent / "03-sample.sh").read_text()
    assert 'sample --shard "$shard"/2 >>' in text
    env = {**os.environ, "CAI_HOME": str(project.folder / "home")}
    project.inputs(plan)
    done = subprocess.run(["bash", ran.parent / "03-sample.sh"], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert project.rows() == whole
    assert len(server.asked) == CALLS


def test_a_script_of_a_cluster_is_an_array_and_the_step_after_its_end(project: Project) -> None:
    raw = project.raw(3)
    raw["engine"] = {"kind": "nemo_aligner", "launcher": {"kind": "slurm", "cpu_partition": "cpu"}}
    plan = resolve(parse(raw), Library((project.folder, shipped_root())))
    ran = write_scripts(plan, project.store(), project.folder / "scripts")
    array = (ran.parent / "03-sample.shards.sbatch").read_text()
    assert "#SBATCH --array=0-2\n" in array
    assert f"#SBATCH --output={ran.parent}/logs/sample.shard-%a.out\n" in array
    assert array.rstrip().endswith('sample --shard "$SLURM_ARRAY_TASK_ID"/3')
    assert "--array" not in (ran.parent / "03-sample.sbatch").read_text()
    lines = ran.read_text().splitlines()
    (first,) = (line for line in lines if "03-sample.shards.sbatch" in line)
    (then,) = (line for line in lines if "03-sample.sbatch" in line)
    assert "--dependency=afterok:" in first
    assert "afterany:$shards" in then
    assert "--kill-on-invalid-dep=yes" in then
    assert subprocess.run(["bash", "-n", ran], check=False).returncode == 0


def test_rows_are_told_once_and_a_shard_tells_its_share(tmp_path: Path) -> None:
    told = Told()
    part = ShardProgress(told, Shard(1, 4), tmp_path)
    part.expect(rows=10, tokens=100)
    assert told.expected == 3
    assert (tmp_path / "rows").read_text() == "10"
    merging = Merging(told, 7)
    for rows in (5, 3, 2):
        merging.advance(rows=rows)
    assert told.rows == 3


def test_rows_beside_the_stages_own_do_not_end_a_shard(tmp_path: Path) -> None:
    ctx = flow_context(tmp_path, Flowing(), shard=Shard(0, 2))
    source = source_of(ctx.input("prompts"), as_prompt)
    with Flow(ctx, "model", source, chained, size=16, name="labelled") as flow:
        drive(flow)
    with Flow(ctx, "model", source, chained, size=16) as flow, pytest.raises(ShardDone) as done:
        drive(flow)
    assert done.value.flow is flow


# Processes that die.


def slow(seconds: float) -> Callable[[str, dict[str, Any]], Reply]:
    def reply(path: str, body: dict[str, Any]) -> Reply:
        time.sleep(seconds)
        return answer(path, body)

    return reply


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_whatever_ends_the_run_ends_its_shards_and_the_same_command_goes_on(
    project: Project, server: FakeServer, number: signal.Signals
) -> None:
    whole, draw = project.whole(), random.Random(int(number))
    server.answer = slow(0.1)
    process = project.start(2)
    at = draw.randint(CALLS // 2, CALLS * 2 // 3)
    until(lambda: len(server.asked) > at, "some calls")
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 3, signal.SIGKILL: -9}[number], out + err
    until(lambda: not project.shards(), "no shard is left", 10)
    # And when it goes on, one of the shards is killed.
    before, told = len(server.asked), Told()
    assert before < CALLS
    done = threading.Thread(target=project.run, args=(project.plan(2),), kwargs={"watch": told})
    done.start()
    until(lambda: len(server.asked) > before + draw.randint(0, 5), "some calls")
    for victim in project.shards()[:1]:
        os.kill(victim, signal.SIGKILL)
    done.join()
    assert project.rows() == whole
    assert told.rows == ROWS
    assert len(server.asked) < CALLS + before, "what was written is not asked again"
    failed = [fields["error"] for event, fields in told.notes if event == "shard.failed"]
    assert all("was killed by SIGKILL" in error for error in failed)


# On a cluster.


@pytest.fixture
def cluster(slurm: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    for name, value in slurm.env.items():
        monkeypatch.setenv(name, value)
    yield slurm
    slurm.clear()


def submitted(project: Project, shards: int) -> Path:
    raw = project.raw(shards)
    raw["engine"] = {"kind": "nemo_aligner", "launcher": {"kind": "slurm", "poll": 0.1, "cpu_time": "10:00"}}
    plan = resolve(parse(raw), Library((project.folder, shipped_root())))
    at = project.folder / "runs" / "parts" / "r1"
    submit(plan, project.store(), at)
    return at


def watched(at: Path) -> str:
    with open(os.devnull, "w") as nowhere:
        console = Console(file=nowhere, record=True, width=200)
        watch(at, console)
        return console.export_text()


def record(at: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((at / "jobs" / "sample.json").read_text())
    return found


def sample(at: Path) -> Any:
    return states(at)[-1]


def test_an_array_of_shards_and_the_job_that_merges_leave_the_bytes_of_one_process(
    cluster: Cluster, project: Project, server: FakeServer
) -> None:
    whole = project.whole()
    server.answer = slow(0.15)
    at = submitted(project, 3)
    assert sample(at).phase is Phase.QUEUED
    cluster.wait("some calls", lambda: len(server.asked) > 8)
    view, facts = sample(at), record(at)
    assert (view.phase, view.job) == (Phase.RUNNING, facts["job"])
    assert view.reason.startswith("shards ")
    assert resume(at)[-1].job == facts["job"], "what is alive is not submitted again"
    assert record(at) == facts
    # One task is killed without a word; the others go on.
    (victim, *_) = project.shards()
    os.kill(victim, signal.SIGKILL)
    said = watched(at)
    assert project.rows() == whole
    assert len(server.asked) < CALLS + 40
    assert "shards " in said
    assert (at / "jobs" / "sample.shard-2.out").exists()
    codes = [word_file(at, "sample", i).exists() for i in range(3)]
    assert sorted(codes) == [False, True, True]
    events = [e["event"] for e in read_events(at / "events.jsonl") if e.get("step") == "sample"]
    assert events.index("shards.submitted") < events.index("shard.started") < events.index("step.started")


def test_cancel_takes_the_array_down_and_resume_goes_on_with_what_is_alive(
    cluster: Cluster, project: Project, server: FakeServer
) -> None:
    whole = project.whole()
    server.answer = slow(0.2)
    at = submitted(project, 2)
    cluster.wait("some calls", lambda: len(server.asked) > 20)  # two shards begin with 8 each
    first = record(at)
    # As after a submission that was interrupted between the two jobs, and before it could note the array's id.
    cluster.command("scancel", first["job"])
    (at / "jobs" / "sample.json").write_text(json.dumps({**first, "job": "", "array": {**first["array"], "job": ""}}))
    resume(at)
    second = record(at)
    assert second["array"]["job"] == first["array"]["job"]
    assert second["job"] not in ("", first["job"])
    assert [view.step.name for view in cancel(at)] == ["sample"]
    assert cluster.command("squeue", "--noheader").strip() == ""
    assert project.shards() == []
    assert sample(at).phase is Phase.CANCELLED
    server.answer, before = answer, len(server.asked)
    assert before < CALLS
    resume(at)
    assert record(at)["array"]["job"] != first["array"]["job"]
    watched(at)
    assert project.rows() == whole
    assert len(server.asked) < CALLS + before
    assert [json.loads(word_file(at, "sample", i).read_text())["code"] for i in range(2)] == [0, 0]
