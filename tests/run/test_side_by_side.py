"""Steps beside each other: those that ask models behind an API run together, all others one by one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

import pytest

from cai.errors import Incomplete, StepFailed
from cai.plan import Ingredients, Plan, Step, inputs_of
from cai.run.executor import run
from cai.run.finished import read_run_record
from cai.run.results import RunResult
from cai.run.stopping import Interrupted
from cai.stages.base import ENDPOINT, Context, Ledger, Outcome, StageSpec, Wants
from cai.store.artifacts import Store
from cai.store.events import new_run_folder, read_events
from tests.support.executor_kinds import Kind, no_engine


class OriginSpec(StageSpec):
    MAKES: ClassVar[str] = "model"
    kind: str = "origin"
    outside: bool = True


class AskSpec(StageSpec):
    MAKES: ClassVar[str] = "prompts"
    kind: str = "ask"
    number: int = 0
    model: Annotated[str, Wants("model")] = ""
    after: Annotated[str, Wants("prompts")] = ""


def origin(spec: OriginSpec, ctx: Context) -> Outcome:
    (ctx.out / (ENDPOINT if spec.outside else "weights")).write_text("{}")
    return Outcome(Ledger())


def step_of(name: str, kind: str, makes: str, spec: dict[str, Any], **inputs: Step) -> Step:
    keys = {role: step.key for role, step in inputs.items()}
    ingredients = Ingredients(kind=kind, version=1, spec=spec, seed=0, inputs=keys)
    names = {role: step.name for role, step in inputs.items()}
    whole = {"kind": kind, **spec, **names}
    return Step(name, kind, makes, ingredients.key(), 0, inputs_of(names), whole, ingredients=ingredients)


def model(name: str, *, outside: bool = True) -> Step:
    return step_of(name, "origin", "model", {"outside": outside})


def ask(name: str, number: int, **inputs: Step) -> Step:
    return step_of(name, "ask", "prompts", {"number": number}, **inputs)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "home")


def go(store: Store, work: Callable[[AskSpec, Context], None], *steps: Step) -> RunResult:
    def asked(spec: AskSpec, ctx: Context) -> Outcome:
        work(spec, ctx)
        (ctx.out / "rows.jsonl").write_text("{}\n")
        return Outcome(Ledger(1, 1))

    kinds = {"origin": Kind(OriginSpec, origin), "ask": Kind(AskSpec, asked)}
    plan = Plan("beside", 0, {}, steps)
    folder = new_run_folder(store.home.parent / "runs", plan.experiment)
    return run(plan, store=store, run_dir=folder, make_engine=no_engine, kinds=kinds)


def run_folder(store: Store) -> Path:
    return store.home.parent / "runs" / "beside" / "latest"


def test_steps_that_ask_elsewhere_run_at_the_same_time(store: Store) -> None:
    there = model("there")
    both = threading.Barrier(3)
    asks = [ask(f"ask{n}", n, model=there) for n in range(3)]
    result = go(store, lambda spec, ctx: both.wait(20) and None, there, *asks)
    assert [r.step.name for r in result.steps] == ["there", "ask0", "ask1", "ask2"]


def test_steps_of_a_model_on_this_machine_run_one_by_one(store: Store) -> None:
    here = model("here", outside=False)
    at_work: list[int] = []

    def work(spec: AskSpec, ctx: Context) -> None:
        assert not at_work
        at_work.append(spec.number)
        time.sleep(0.1)
        at_work.pop()

    go(store, work, here, *(ask(f"ask{n}", n, model=here) for n in range(3)))


def test_a_step_of_this_machine_has_others_beside_it_and_those_that_wait_for_them(store: Store) -> None:
    here, there = model("here", outside=False), model("there")
    first = ask("first", 1, model=there)
    second = ask("second", 2, model=there, after=first)
    done = threading.Event()

    def work(spec: AskSpec, ctx: Context) -> None:
        if spec.number == 0:
            assert done.wait(20), "what waits for a step beside this one begins while this one works"
        if spec.number == 2:
            done.set()

    go(store, work, here, there, ask("local", 0, model=here), first, second)


def test_the_first_failure_lets_nothing_begin_and_stops_what_asks_elsewhere(store: Store) -> None:
    there = model("there")
    begun = threading.Barrier(2)
    later: list[int] = []

    def work(spec: AskSpec, ctx: Context) -> None:
        if spec.number > 1:
            later.append(spec.number)
            return
        begun.wait(20)
        if spec.number == 1:
            raise StepFailed("no credit")
        for _ in range(400):
            time.sleep(0.05)
            ctx.progress.advance()
        raise AssertionError("it was not stopped")

    slow = ask("slow", 0, model=there)
    with pytest.raises(StepFailed, match=r"broken .*no credit"):
        go(store, work, there, slow, ask("broken", 1, model=there), ask("later", 2, model=there, after=slow))
    assert later == []
    ends = {
        e["step"]: e["error"] for e in read_events(run_folder(store) / "events.jsonl") if e["event"] == "step.failed"
    }
    assert "stopped because broken failed" in ends["slow"]
    record = read_run_record(run_folder(store))
    assert record is not None
    assert list(record["steps"]) == ["there"]


def test_a_step_of_this_machine_comes_to_its_end_when_one_beside_it_fails(store: Store) -> None:
    here, there = model("here", outside=False), model("there")
    failed = threading.Event()

    def work(spec: AskSpec, ctx: Context) -> None:
        if spec.number == 1:
            failed.set()
            raise StepFailed("no credit")
        failed.wait(20)
        time.sleep(0.2)
        ctx.progress.advance()

    with pytest.raises(StepFailed, match="no credit"):
        go(store, work, here, there, ask("local", 0, model=here), ask("broken", 1, model=there))
    record = read_run_record(run_folder(store))
    assert record is not None
    assert list(record["steps"]) == ["here", "there", "local"]


def test_ctrl_c_stops_all_and_the_same_command_goes_on(store: Store) -> None:
    there = model("there")
    asks = [ask(f"ask{n}", n, model=there) for n in range(2)]
    both = threading.Barrier(2)
    stopped: list[int] = []

    def interrupted(spec: AskSpec, ctx: Context) -> None:
        both.wait(20)
        if threading.current_thread() is threading.main_thread():
            raise KeyboardInterrupt
        try:
            for _ in range(400):
                time.sleep(0.05)
                ctx.progress.advance()
        except Incomplete:
            stopped.append(spec.number)
            raise

    with pytest.raises(Interrupted):
        go(store, interrupted, there, *asks)
    assert len(stopped) == 1
    assert len(go(store, lambda spec, ctx: None, there, *asks).steps) == 3


def test_steps_that_are_there_are_told_in_the_order_of_the_plan(store: Store) -> None:
    there = model("there")
    asks = [ask(f"ask{n}", n, model=there) for n in range(5)]
    go(store, lambda spec, ctx: None, there, *asks)
    again = go(store, lambda spec, ctx: None, there, *(replace(step) for step in asks))
    assert all(r.reused for r in again.steps)
    done = [e["step"] for e in read_events(run_folder(store) / "events.jsonl") if e["event"] == "step.done"]
    assert done == ["there", *(step.name for step in asks)]
