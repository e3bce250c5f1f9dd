"""The executor: the only room that acts. Runs a plan step by step, reusing what the store has.

A step that stops before its end (an error, Ctrl-C, SIGTERM, kill -9, a full disk) keeps its work, and the same
command goes on from there. The engine is made when a stage first asks something of it, so that a run in which every
step is reused loads no torch.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from cai.durable import disk_full, is_disk_full, write_durably
from cai.engines.base import Engine
from cai.errors import CaiError, Incomplete, PrerequisiteError, Problem, SpecError, StepFailed, did_you_mean
from cai.events import EventLog, plain_json, point_latest
from cai.execution.checks import Kind, check_keys, check_ledger, checked_specs
from cai.execution.status import Action, StepStatus, previous_plan
from cai.execution.status import statuses as _statuses
from cai.execution.stopping import Interrupted, sigterm_raises, stopped_error
from cai.execution.watch import Recorded, Silent, Watcher
from cai.home import cai_home
from cai.launchers.outside import Prepared
from cai.plan import Plan, Step
from cai.stages.base import Artifact, Context, Outcome, StageSpec
from cai.store import Build, Store, Stored, versions
from cai.upkeep import register_run

__all__ = [
    "Action",
    "Interrupted",
    "RunResult",
    "Silent",
    "StepResult",
    "StepStatus",
    "Watcher",
    "default_store",
    "run",
    "run_step",
    "statuses",
    "write_record",
]

MakeEngine = Callable[[dict[str, Any]], Engine]
RUNS = Path("runs")


@dataclass(frozen=True, slots=True)
class StepResult:
    """A step's artifact, and whether it was there before."""

    step: Step
    artifact: Artifact
    reused: bool


@dataclass(frozen=True, slots=True)
class RunResult:
    """A finished run: every step's artifact in the plan's order; ``seconds`` is wall time."""

    plan: Plan
    run_dir: Path
    steps: tuple[StepResult, ...]
    seconds: float

    def artifact(self, name: str) -> Artifact:
        """The artifact of the step of that name.

        Raises:
            KeyError: when the plan has no such step.
        """
        return {result.step.name: result.artifact for result in self.steps}[name]


def default_store() -> Store:
    """The store under ``$CAI_HOME``."""
    return Store(cai_home())


def statuses(
    plan: Plan, store: Store | None = None, previous: Plan | None = None, runs: Path = RUNS
) -> list[StepStatus]:
    """What a run would do with each step and why; ``previous`` is by default the plan of the newest run."""
    return _statuses(plan, store or default_store(), previous or previous_plan(runs, plan.experiment))


def run(
    plan: Plan,
    *,
    store: Store,
    run_dir: Path,
    make_engine: MakeEngine,
    kinds: Mapping[str, Kind] | None = None,
    watch: Watcher | None = None,
    previous: Plan | None = None,
) -> RunResult:
    """Make or reuse every step's artifact, in order.

    Writes ``plan.json``, ``events.jsonl`` and ``record.json`` into ``run_dir``, and points ``latest`` beside it to it.
    ``previous`` serves only to tell the watcher why a step runs.

    Raises:
        SpecError: when the plan is not one that the stage kinds can run; nothing has been started.
        PrerequisiteError: when the home folder cannot be written, or a stage misses something.
        StepFailed: when a step's work fails; its work is kept.
        Incomplete: when the run was stopped (130 for Ctrl-C) or the disk is full; the same command goes on.
    """
    if kinds is None:
        from cai.stages import KINDS

        kinds = KINDS
    specs = checked_specs(plan, kinds)
    store.prepare()
    found = _statuses(plan, store, previous)
    check_keys(plan, [status.step.name for status in found if status.action is not Action.REUSE])
    run_dir.mkdir(parents=True, exist_ok=True)
    write_durably(run_dir / "plan.json", plan.to_json())
    point_latest(run_dir)
    register_run(store, run_dir, plan.experiment, {step.key for step in plan.steps})
    job = _Job(plan, store, run_dir, kinds, specs, watch or Silent(), _LazyEngine(make_engine, plan.engine))
    return job.run(found)


def run_step(
    plan: Plan,
    name: str,
    *,
    store: Store,
    run_dir: Path,
    make_engine: MakeEngine,
    kinds: Mapping[str, Kind] | None = None,
    watch: Watcher | None = None,
) -> StepResult:
    """Make or reuse one step's artifact; what the step reads must be in the store. What a job of a cluster runs.

    Appends to ``events.jsonl`` of ``run_dir``, as several jobs may at once; ``plan.json`` and ``record.json`` belong
    to whoever submits the jobs.

    Raises:
        SpecError: when the plan has no such step, cannot be run, or a step that must run before has not been.
        PrerequisiteError, StepFailed, Incomplete: as ``run``.
    """
    if kinds is None:
        from cai.stages import KINDS

        kinds = KINDS
    specs = checked_specs(plan, kinds)
    if name not in specs:
        raise SpecError(Problem(name, f"the plan of {plan.experiment} has no such step", did_you_mean(name, specs)))
    store.prepare()
    run_dir.mkdir(parents=True, exist_ok=True)
    job = _Job(plan, store, run_dir, kinds, specs, watch or Silent(), _LazyEngine(make_engine, plan.engine))
    return job.run_one(plan.step(name))


def write_record(
    run_dir: Path, plan: Plan, status: str, error: str, began: datetime, seconds: float, steps: Sequence[StepResult]
) -> None:
    """Write how a run ended: ``record.json`` of its folder; ``steps`` are those whose artifacts are there."""
    record = {
        "experiment": plan.experiment,
        "status": status,
        "error": error,
        "started": began.isoformat(timespec="seconds"),
        "seconds": round(seconds, 3),
        "steps": {r.step.name: {"key": r.step.key, "reused": r.reused} for r in steps},
        "versions": versions(),
    }
    write_durably(run_dir / "record.json", json.dumps(record, indent=1, ensure_ascii=False) + "\n")


class _Job:
    """One run, or one step of one, while it lasts."""

    def __init__(
        self,
        plan: Plan,
        store: Store,
        run_dir: Path,
        kinds: Mapping[str, Kind],
        specs: Mapping[str, StageSpec],
        watch: Watcher,
        engine: _LazyEngine,
    ) -> None:
        self.plan, self.store, self.run_dir, self.kinds, self.specs = plan, store, run_dir, kinds, specs
        self.watch, self.engine = watch, engine
        self.log = EventLog(run_dir / "events.jsonl")
        self.results: list[StepResult] = []
        self.artifacts: dict[str, Artifact] = {}
        self.began, self.clock = datetime.now(UTC), time.perf_counter()

    def run(self, found: list[StepStatus]) -> RunResult:
        self.log.write("run.started", experiment=self.plan.experiment, steps=len(self.plan.steps), versions=versions())
        with self._ending("the run", self._end_run):
            self.watch.run_started(self.plan, found)
            for step in self.plan.steps:
                self._step(step)
        result = RunResult(self.plan, self.run_dir, tuple(self.results), time.perf_counter() - self.clock)
        self.watch.run_done(result)
        return result

    def run_one(self, step: Step) -> StepResult:
        def end(status: str, error: str) -> None:
            self.log.write(f"job.{status}", step.name, **({"error": error} if error else {}))

        self.log.write("job.started", step.name, process=os.getpid(), host=socket.gethostname(), versions=versions())
        with self._ending(step.name, end):
            self.watch.run_started(self.plan, [])
            if self.store.find(step.kind, step.key) is None:
                self._find_inputs(step)
            self._step(step)
        return self.results[-1]

    @contextmanager
    def _ending(self, what: str, end: Callable[[str, str], None]) -> Iterator[None]:
        status, error = "failed", ""
        try:
            with sigterm_raises():
                yield
            status = "done"
        except BaseException as raised:
            stopped = stopped_error(what, raised)
            status = "incomplete" if isinstance(stopped, Incomplete) else "failed"
            error = str(stopped)
            if stopped is raised:
                raise
            raise stopped from raised
        finally:
            self.engine.close()
            try:
                end(status, error)
            except (Incomplete, OSError):
                # On a full disk the run's own error says so already; it must not be replaced by this one.
                if status == "done":
                    raise
            finally:
                self.log.close()

    def _end_run(self, status: str, error: str) -> None:
        self.log.write(f"run.{status}", **({"error": error} if error else {}))
        seconds = time.perf_counter() - self.clock
        write_record(self.run_dir, self.plan, status, error, self.began, seconds, self.results)

    def _find_inputs(self, step: Step) -> None:
        missing: list[Problem] = []
        for name in step.needs():
            needed = self.plan.step(name)
            found = self.store.find(needed.kind, needed.key)
            if found is None:
                what = f"reads '{name}', which is not in the store at {self.store.home}"
                missing.append(Problem(step.name, what, f"run step '{name}' first"))
            else:
                self.store.note_use(found)
                self.artifacts[name] = Artifact(needed.key, found.makes, found.path, found.record)
        if missing:
            raise SpecError(missing)

    def _step(self, step: Step) -> None:
        try:
            stored = self.store.find(step.kind, step.key)
            reused = stored is not None
            if stored is None:
                stored, reused = self._build(step)
        except BaseException as raised:
            stopped = stopped_error(f"{step.name} ({step.kind})", raised)
            with suppress(Incomplete):
                ended = "step.prepared" if isinstance(stopped, Prepared) else "step.failed"
                self.log.write(ended, step.name, error=str(stopped))
            self.watch.step_failed(step, stopped)
            if stopped is raised:
                raise
            raise stopped from raised
        self.store.note_use(stored)
        artifact = Artifact(step.key, stored.makes, stored.path, stored.record)
        self.artifacts[step.name] = artifact
        self.results.append(StepResult(step, artifact, reused))
        outcome = stored.record["outcome"]
        self.log.write("step.done", step.name, reused=reused, key=step.key, outcome={} if reused else outcome)
        self.watch.step_done(step, stored.record, reused)

    def _build(self, step: Step) -> tuple[Stored, bool]:
        def on_wait(who: str) -> None:
            self.log.write("step.waiting", step.name, holder=who)
            self.watch.waiting(step, who)

        with self.store.building(step.kind, step.key, on_wait) as build:
            if build.done is not None:
                return build.done, True
            if build.aside is not None:
                self.log.write("artifact.damaged", step.name, moved_to=str(build.aside))
            self.log.write("step.started", step.name, resumed=build.resumed)
            progress = Recorded(step, self.watch.step_started(step, build.resumed), self.log)
            began = time.perf_counter()
            outcome = self._work(step, build, progress)
            seconds = time.perf_counter() - began
            stored = build.commit(
                makes=step.makes,
                seed=step.seed,
                seconds=seconds,
                ingredients=step.ingredients,
                outcome=plain_json(asdict(outcome)),
            )
            return stored, False

    def _work(self, step: Step, build: Build, progress: Recorded) -> Outcome:
        spec = self.specs[step.name]
        self.engine.begin(step)
        try:
            outcome = self.kinds[step.kind].run(spec, self._context(step, build, progress))
            check_ledger(spec, outcome.ledger)
            return outcome
        except (Incomplete, PrerequisiteError, SpecError):
            raise
        except Exception as error:
            if is_disk_full(error, build.partial):
                raise disk_full(build.partial, error) from error
            what = str(error) if isinstance(error, CaiError) else f"{type(error).__name__}: {error}"
            raise StepFailed(
                f"{step.name} ({step.kind}): {what}; its work is kept in {build.partial}, and the same command "
                "goes on from there"
            ) from error

    def _context(self, step: Step, build: Build, progress: Recorded) -> Context:
        from cai.chat import ChatTemplate
        from cai.constitution import Constitution

        def chat_template(frozen: Mapping[str, str]) -> ChatTemplate:
            return ChatTemplate.from_text(frozen["name"], frozen["text"], frozen["name"])

        template, constitution = step.resources.get("template"), step.resources.get("constitution")
        chat = chat_template(template) if template else None
        return Context(
            name=step.name,
            seed=step.seed,
            inputs={role: self._inputs(names) for role, names in step.inputs.items()},
            out=build.out,
            work=build.work,
            engine=cast(Engine, self.engine),
            progress=progress,
            template=chat,
            constitution=Constitution.from_json(constitution) if constitution else None,
            texts=step.resources.get("texts", {}),
            stops=chat.stops if chat else (),
            templates={label: chat_template(own) for label, own in step.resources.get("templates", {}).items()},
            api_keys=step.resources.get("api_keys", {}),
        )

    def _inputs(self, names: str | list[str] | dict[str, str]) -> Artifact | tuple[Artifact, ...] | dict[str, Artifact]:
        if isinstance(names, str):
            return self.artifacts[names]
        if isinstance(names, dict):
            return {label: self.artifacts[name] for label, name in names.items()}
        return tuple(self.artifacts[name] for name in names)


class _LazyEngine:
    """Stands for the engine and makes it when something is first asked of it."""

    def __init__(self, make: MakeEngine, settings: dict[str, Any]) -> None:
        self._make, self._settings = make, settings
        self._engine: Engine | None = None
        self._step: Step | None = None

    def begin(self, step: Step) -> None:
        """A step's work begins: an engine that starts processes looks up which ones."""
        self._step = step
        self._tell()

    def _tell(self) -> None:
        begin = getattr(self._engine, "begin", None)
        if begin is not None:
            begin(self._step)

    def __getattr__(self, name: str) -> Any:
        if self._engine is None:
            self._engine = self._make(self._settings)
            self._tell()
        return getattr(self._engine, name)

    def close(self) -> None:
        """Close the engine if it was made and can be closed."""
        close = getattr(self._engine, "close", None)
        if close is not None:
            close()
