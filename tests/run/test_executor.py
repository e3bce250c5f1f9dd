"""The executor: reuse, resume, stop cleanly, and account for every row."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from cai.chat import Message
from cai.constitution import Constitution, Principle
from cai.errors import Incomplete, PrerequisiteError, SpecError, StepFailed
from cai.plan import Plan, inputs_of, plan_from_json
from cai.run.executor import run
from cai.run.ledger import iter_rows, ledger_table
from cai.run.status import Action, previous_plan, statuses, statuses_since
from cai.run.stopping import Interrupted
from cai.run.watch import Silent
from cai.stages.base import Context, Ledger, Outcome
from cai.store.artifacts import Store
from cai.store.events import EventLog, new_run_folder, read_events
from tests.support.executor_kinds import KINDS, SIDE, CountSpec, Kind, no_engine, small_plan, step
from tests.support.paths import ROOT


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "home")


@pytest.fixture
def side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with one line for each piece of work that was really done, in whatever process."""
    path = tmp_path / "side"
    path.touch()
    monkeypatch.setenv(SIDE, str(path))
    return path


def go(plan: Plan, store: Store, kinds=KINDS, **more):
    options = {"make_engine": no_engine, **more}
    return run(plan, store=store, run_dir=new_run_folder(store.home.parent / "runs", plan.experiment), kinds=kinds,
               **options)  # fmt: skip


def one_step(work, spec=CountSpec, **fields) -> tuple[Plan, dict[str, Kind]]:
    return Plan("one", 0, {}, (step("only", "count", **fields),)), {"count": Kind(spec, work)}


def bytes_of(store: Store, plan: Plan) -> dict[str, bytes]:
    found = {}
    for s in plan.steps:
        stored = store.find(s.kind, s.key)
        found |= {f"{s.name}/{p.name}": p.read_bytes() for p in stored.path.iterdir()}
    return found


def test_a_plan_is_run_and_then_reused(store: Store, side: Path):
    plan = small_plan()
    first = go(plan, store)
    assert [r.reused for r in first.steps] == [False, False, False]
    assert side.read_text().count("\n") == 12
    assert len(first.artifact("all").path.joinpath("train.jsonl").read_text()) > 300
    again = go(plan, store)
    assert [r.reused for r in again.steps] == [True, True, True]
    assert side.read_text().count("\n") == 12
    assert again.artifact("all").record["outcome"]["metrics"] == {}
    assert again.artifact("one").record["outcome"]["metrics"] == {"nan": None}


def test_the_run_folder_tells_what_was_done(store: Store):
    plan = small_plan()
    result = go(plan, store)
    folder = result.run_dir
    assert (folder.parent / "latest").resolve() == folder
    assert plan_from_json((folder / "plan.json").read_text()) == plan
    record = json.loads((folder / "record.json").read_text())
    assert (record["status"], record["error"]) == ("done", "")
    assert record["steps"]["one"] == {"key": plan.step("one").key, "reused": False}
    events = list(read_events(folder / "events.jsonl"))
    assert [e["event"] for e in events if e.get("step") == "one"] == ["step.started", "count.done", "step.done"]
    assert [events[0]["event"], events[-1]["event"]] == ["run.started", "run.done"]
    assert all(events[i]["t"] <= events[i + 1]["t"] for i in range(len(events) - 1))


def test_steps_with_the_same_key_run_once(store: Store, side: Path):
    one = step("one", rows=4)
    result = go(Plan("twins", 0, {}, (one, replace(one, name="two"))), store)
    assert [r.reused for r in result.steps] == [False, True]
    assert side.read_text().count("\n") == 4


def test_the_engine_is_made_once_when_first_asked_and_closed(store: Store):
    log: list[str] = []

    class Session:
        def client(self, path: Path) -> str:
            log.append(f"client {path}")
            return "client"

        def close(self) -> None: ...

    class Engine:
        def session(self, step) -> Session:
            return Session()

        def close(self) -> None:
            log.append("closed")

    def make(settings: dict) -> Engine:
        log.append(f"made {settings['kind']}")
        return Engine()

    def work(spec: CountSpec, ctx: Context) -> Outcome:
        if spec.rows > 1:
            ctx.engine.client(Path(ctx.name))
        (ctx.out / "x").write_text("x")
        return Outcome(Ledger())

    plan = Plan("e", 0, {"kind": "fake"}, (step("a", rows=1), step("b", rows=2), step("c", rows=3)))
    go(plan, store, {"count": Kind(CountSpec, work)}, make_engine=make)
    assert log == ["made fake", "client b", "client c", "closed"]
    go(plan, store, {"count": Kind(CountSpec, work)}, make_engine=make)
    assert len(log) == 4


def test_the_engine_is_closed_when_a_step_fails(store: Store):
    closed: list[bool] = []
    closing_soon = SimpleNamespace(close=lambda: None)

    class Engine:
        def session(self, step) -> object:
            return closing_soon

        def close(self) -> None:
            closed.append(True)

    def work(spec: CountSpec, ctx: Context) -> Outcome:
        ctx.engine.client(Path())
        return Outcome(Ledger())

    plan, kinds = one_step(work)
    with pytest.raises(StepFailed, match="AttributeError"):
        go(plan, store, kinds, make_engine=lambda settings: Engine())
    assert closed == [True]


def test_a_reused_run_loads_no_torch(store: Store, tmp_path: Path):
    go(small_plan(), store)
    program = (
        "import sys; sys.argv = ['x', *sys.argv[1:]]\n"
        "from tests.support.executor_kinds import main; main()\n"
        "heavy = {'torch', 'transformers', 'datasets', 'openvino'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", program, store.home, tmp_path / "r", "8"], check=True, cwd=ROOT)


def test_a_stage_is_given_its_frozen_resources(store: Store):
    seen: list[Context] = []

    def work(spec: CountSpec, ctx: Context) -> Outcome:
        seen.append(ctx)
        return Outcome(Ledger())

    constitution = Constitution(name="c", principles=(Principle(id="kind", critique="Is it kind?"),))
    template = (ROOT / "prompt_templates" / "chatml.jinja").read_text()
    plan, kinds = one_step(work, rows=1)
    resources = {
        "template": {"name": "chatml", "text": template},
        "constitution": constitution.to_json(),
        "texts": {"critique": "Say so."},
    }
    go(replace(plan, steps=(replace(plan.steps[0], resources=resources),)), store, kinds)
    (ctx,) = seen
    assert ctx.principles == constitution
    assert ctx.chat.prompt([Message("user", "hi")]).startswith("<|im_start|>")
    assert ctx.stops == ctx.chat.stops != ()
    assert ctx.texts == {"critique": "Say so."}


# Failing


def test_a_failing_stage_names_itself_its_cause_and_where_its_work_is(store: Store):
    def work(spec: CountSpec, ctx: Context) -> Outcome:
        (ctx.work / "kept").write_text("x")
        raise KeyError("missing field")

    plan, kinds = one_step(work)
    failed: list[str] = []

    class Watch(Silent):
        def step_failed(self, step, error):
            failed.append(step.name)

    with pytest.raises(StepFailed, match=r"only \(count\): KeyError: 'missing field'; its work is kept in") as hit:
        go(plan, store, kinds, watch=Watch())
    assert isinstance(hit.value.__cause__, KeyError)
    assert failed == ["only"]
    assert statuses(plan, store)[0].action is Action.RESUME
    (folder,) = [p for p in (store.home.parent / "runs" / "one").iterdir() if not p.is_symlink()]
    kept = (folder / "traceback.txt").read_text()
    assert 'raise KeyError("missing field")' in kept
    assert str(folder / "traceback.txt") in str(hit.value)
    assert json.loads((folder / "record.json").read_text())["status"] == "failed"
    assert [e["event"] for e in read_events(folder / "events.jsonl")][-2:] == ["step.failed", "run.failed"]


@pytest.mark.parametrize("error", [PrerequisiteError("no openvino"), SpecError([]), Incomplete("server gone")])
def test_errors_with_a_meaning_of_their_own_pass(store: Store, error: Exception):
    def work(spec: CountSpec, ctx: Context) -> Outcome:
        raise error

    plan, kinds = one_step(work)
    with pytest.raises(type(error)) as hit:
        go(plan, store, kinds)
    assert hit.value is error
    assert hit.value.__cause__ is None


def test_a_fault_outside_a_stage_leaves_its_traceback_too(store: Store):
    class Watch(Silent):
        def run_started(self, plan, statuses):
            raise ZeroDivisionError

    with pytest.raises(StepFailed, match=r"the run: ZeroDivisionError; the traceback is kept in .*traceback\.txt"):
        go(*one_step(None)[:1], store, {"count": KINDS["count"]}, watch=Watch())
    (path,) = (store.home.parent / "runs" / "one").glob("2*/traceback.txt")
    assert "ZeroDivisionError" in path.read_text()


def test_a_ledger_that_does_not_balance_fails_with_the_numbers(store: Store):
    with pytest.raises(StepFailed, match=r"8 rows in, 5 out, 2 dropped \(too long 2\)"):
        go(small_plan(drop=2, lose=1), store)
    assert store.find("count", small_plan(drop=2, lose=1).step("one").key) is None


def test_too_many_dropped_rows_fail_with_the_reasons_and_a_higher_limit_goes_on(store: Store, side: Path):
    with pytest.raises(StepFailed, match=r"dropped 2 of 8 rows \(25.0%\), more than max_drop_rate 10.0%: too long 2"):
        go(small_plan(drop=2, max_drop_rate=0.1), store)
    done = go(small_plan(drop=2, max_drop_rate=0.25), store)
    assert done.artifact("one").record["outcome"]["ledger"]["dropped"] == {"too long": 2}
    assert Counter(side.read_text().split("\n"))["one r3"] == 1


@pytest.mark.parametrize(
    ("harm", "what"),
    [
        ({"kind": "conut"}, "unknown kind 'conut'; did you mean 'count'"),
        ({"key": "0" * 64}, "its key is not that of its ingredients"),
        ({"inputs": inputs_of({"a": "later"})}, "reads 'later', which is no earlier step"),
        ({"spec": {"kind": "count", "rwos": 3}}, r"spec\.rwos: Extra inputs"),
    ],
)
def test_a_plan_changed_by_hand_is_refused_before_anything_starts(store: Store, harm: dict, what: str):
    good = small_plan()
    with pytest.raises(SpecError, match=what):
        go(replace(good, steps=(replace(good.steps[0], **harm), *good.steps[1:])), store)
    assert not store.home.exists()


def test_a_damaged_artifact_is_made_again(store: Store, side: Path):
    plan = small_plan()
    first = go(plan, store)
    file = first.artifact("one").path / "train.jsonl"
    good = file.read_bytes()
    time.sleep(0.02)
    file.write_bytes(good.replace(b"r1", b"r9"))
    assert "damaged" in statuses(plan, store)[0].reason
    again = go(plan, store)
    assert [r.reused for r in again.steps] == [False, True, True]
    assert file.read_bytes() == good
    assert "artifact.damaged" in [e["event"] for e in read_events(again.run_dir / "events.jsonl")]


# Stopping


@pytest.mark.parametrize("after", [0, 1, 4, 7])
def test_kill_9_and_the_same_command_give_the_bytes_of_an_uninterrupted_run(
    store: Store, side: Path, tmp_path: Path, after: int
):
    command = [sys.executable, "-m", "tests.support.executor_kinds", str(store.home)]
    killed = subprocess.run([*command, tmp_path / "r1", "8", str(after)], cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL
    plan = small_plan()
    assert [s.action for s in statuses(plan, store)] == [Action.RESUME, Action.RUN, Action.RUN]
    events = [e["event"] for e in read_events(tmp_path / "r1" / "events.jsonl")]
    assert events == ["run.started", "step.started"]
    subprocess.run([*command, tmp_path / "r2", "8"], cwd=ROOT, check=True)
    assert max(Counter(side.read_text().splitlines()).values()) == 1, "a finished row was done again"
    other = Store(tmp_path / "other")
    go(plan, other)
    assert bytes_of(store, plan) == bytes_of(other, plan)


def test_two_processes_on_one_store_do_the_work_once(
    store: Store, side: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("CAI_TEST_PAUSE", "0.15")
    command = [sys.executable, "-m", "tests.support.executor_kinds", str(store.home)]
    both = [subprocess.Popen([*command, tmp_path / f"r{i}", "12"], cwd=ROOT) for i in range(2)]
    assert [p.wait(60) for p in both] == [0, 0]
    assert sorted(Counter(side.read_text().splitlines()).values()) == [1] * 16
    events = [e for i in range(2) for e in read_events(tmp_path / f"r{i}" / "events.jsonl")]
    assert Counter((e["step"], e["reused"]) for e in events if e["event"] == "step.done") == Counter(
        {(name, reused): 1 for name in ("one", "two", "all") for reused in (True, False)}
    )
    assert any(e["event"] == "step.waiting" and e["holder"].startswith("process") for e in events)


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 3)])
def test_a_stopped_run_is_incomplete_and_goes_on(store: Store, side: Path, sent: signal.Signals, code: int):
    plan = Plan("stop", 0, {}, (step("only", rows=6),))

    class Stop(Silent):
        rows = 0

        def step_started(self, step, resumed):
            quiet = super().step_started(step, resumed)

            def advance(rows: int = 0, tokens: int = 0) -> None:
                self.rows += rows
                if self.rows == 3:
                    os.kill(os.getpid(), sent)

            quiet.advance = advance
            return quiet

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Incomplete, match=r"only \(count\): .* run the same command again") as hit:
        go(plan, store, watch=Stop())
    assert hit.value.exit_code == code
    assert isinstance(hit.value, Interrupted) is (code == 130)
    assert signal.getsignal(signal.SIGTERM) is before
    assert statuses(plan, store)[0].action is Action.RESUME
    assert [r.reused for r in go(plan, store).steps] == [False]
    assert sorted(side.read_text().split()) == sorted(" ".join(f"only r{i}" for i in range(6)).split())
    runs = sorted(p for p in (store.home.parent / "runs" / "stop").iterdir() if not p.is_symlink())
    states = sorted(json.loads((r / "record.json").read_text())["status"] for r in runs)
    assert states == ["done", "incomplete"]


def test_a_run_outside_the_main_thread_works(store: Store):
    results = []
    thread = threading.Thread(target=lambda: results.append(go(small_plan(), store)))
    thread.start()
    thread.join(30)
    assert len(results) == 1


def test_a_full_disk_stops_the_run_and_it_goes_on_when_there_is_space(tmp_path: Path, side: Path):
    disk = tmp_path / "disk"
    disk.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
    try:
        store, calls = Store(disk / "home"), []

        def work(spec: CountSpec, ctx: Context) -> Outcome:
            calls.append(1)
            (ctx.work / "checkpoint").write_text("kept")
            if len(calls) == 1:
                try:
                    (ctx.out / "model").write_bytes(b"x" * 4_000_000)
                except OSError as error:
                    raise RuntimeError("library cannot write the model") from error
            (ctx.out / "model").write_bytes(b"x")
            return Outcome(Ledger())

        plan, kinds = one_step(work)
        with pytest.raises(Incomplete, match="no space is left on the disk"):
            run(plan, store=store, run_dir=tmp_path / "r1", make_engine=no_engine, kinds=kinds)
        run(plan, store=store, run_dir=tmp_path / "r2", make_engine=no_engine, kinds=kinds)
        assert len(calls) == 2
        events = {e["event"]: e for e in read_events(tmp_path / "r2" / "events.jsonl")}
        assert events["step.started"]["resumed"] is True
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


# The dry run


def test_the_dry_run_says_what_would_happen_and_why_and_changes_nothing(store: Store, tmp_path: Path):
    runs, plan = tmp_path / "runs", small_plan()
    assert [s.reason for s in statuses(plan, store, runs=runs)] == ["not in the store yet"] * 3
    assert not store.home.exists()
    go(plan, store)
    assert previous_plan(runs, "small") == plan
    assert [(s.action, s.reason) for s in statuses(plan, store, runs=runs)] == [(Action.REUSE, "in the store")] * 3
    changed = small_plan(rows=9)
    assert [(s.action.value, s.reason) for s in statuses(changed, store, runs=runs)] == [
        ("run", "spec.rows: 8 -> 9"),
        ("reuse", "in the store"),
        ("run", "input a (one) changes; input b (one) changes"),
    ]
    more = replace(plan, steps=(*plan.steps, step("new", rows=5), step("copy", rows=5)))
    assert [s.reason for s in statuses(more, store, runs=runs)][3:] == ["new step", "the same work as new"]
    seeded = [s.reason for s in statuses_since(plan, small_plan(seed=1), store)]
    assert seeded[0] == "seed 0 -> 1"


def test_the_dry_run_sees_that_another_process_is_at_it(store: Store):
    plan = small_plan()
    with store.building("count", plan.step("one").key):
        status = statuses(plan, store)[0]
    assert status.action is Action.REUSE
    assert f"process {os.getpid()}" in status.reason


# Rows and events


def test_the_ledger_of_a_plan_and_the_rows_of_an_artifact(store: Store):
    plan = small_plan(drop=3)
    before = ledger_table(plan, store)
    assert [line.finished for line in before] == [False] * 3
    result = go(plan, store)
    line = ledger_table(plan, store)[0]
    assert (line.rows_in, line.rows_out, line.dropped, line.parts) == (8, 5, {"too long": 3}, {"train": 5})
    assert [r["id"] for r in iter_rows(result.artifact("one"))] == ["r3", "r4", "r5", "r6", "r7"]
    assert len(list(iter_rows(result.artifact("one"), "train"))) == 5
    with pytest.raises(SpecError, match="did you mean 'train'"):
        iter_rows(result.artifact("one"), "trian")


def test_events_survive_a_torn_end_and_odd_values(tmp_path: Path):
    log = EventLog(tmp_path / "events.jsonl")
    log.write("rl.iteration", "rl", kl=float("inf"), path=tmp_path, list=(1, {2: "\ud83d"}))
    with (tmp_path / "events.jsonl").open("ab") as file:
        file.write(b'{"t": 3, "eve')
    (event,) = read_events(tmp_path / "events.jsonl")
    assert (event["event"], event["step"], event["kl"], event["path"]) == ("rl.iteration", "rl", None, str(tmp_path))


def test_events_of_several_threads_do_not_mix(tmp_path: Path):
    log = EventLog(tmp_path / "events.jsonl")
    threads = [
        threading.Thread(target=lambda n=n: [log.write("x", n=n, text="y" * 3000) for _ in range(40)]) for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Counter(e["n"] for e in read_events(tmp_path / "events.jsonl")) == Counter(dict.fromkeys(range(4), 40))


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "-x", "a\0", "x" * 200])
def test_hostile_experiment_names_make_no_folder(tmp_path: Path, name: str):
    with pytest.raises(SpecError, match="cannot name a folder"):
        new_run_folder(tmp_path / "runs", name)
    assert not (tmp_path / "runs").exists()


def test_runs_within_one_second_get_folders_of_their_own(tmp_path: Path):
    folders = [new_run_folder(tmp_path, "x") for _ in range(3)]
    assert len(set(folders)) == 3


def test_a_run_that_could_not_begin_does_not_become_the_latest(store: Store):
    done = go(small_plan(), store)
    store.home.rename(store.home.with_name("moved"))
    store.home.write_text("a file where the home should be")
    with pytest.raises(PrerequisiteError, match="CAI_HOME"):
        go(small_plan(), store)
    assert (done.run_dir.parent / "latest").resolve() == done.run_dir.resolve()
