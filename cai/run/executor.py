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
from dataclasses import asdict, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, cast

from cai.engines.base import Engine, Progress
from cai.errors import CaiError, Incomplete, PrerequisiteError, Problem, SpecError, StepFailed, did_you_mean
from cai.files.durable import disk_full, is_disk_full, write_durably
from cai.files.home import cai_home, request_cache
from cai.launchers.outside import Prepared
from cai.plan import Plan, Step
from cai.run.checks import StageWork, check_keys, check_ledger, checked_specs
from cai.run.lazy_engine import LazyEngine, MakeEngine
from cai.run.results import RunResult, StepResult
from cai.run.status import Action, StepStatus, previous_plan
from cai.run.status import statuses as _statuses
from cai.run.stopping import Interrupted, sigterm_raises, stopped_error
from cai.run.watch import Recorded, Silent, Watcher
from cai.stages.base import Artifact, Context, Outcome, Shard, StageSpec
from cai.store.artifacts import Build, Store, Stored, versions
from cai.store.events import EventLog, plain_json, point_latest
from cai.store.upkeep import register_run

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
    "run_shard",
    "run_step",
    "statuses",
    "write_record",
]

RUNS = Path("runs")


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
    kinds: Mapping[str, StageWork] | None = None,
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
    job = _Job(plan, store, run_dir, kinds, specs, watch or Silent(), LazyEngine(make_engine, plan.engine))
    return job.run(found)


def run_step(
    plan: Plan,
    name: str,
    *,
    store: Store,
    run_dir: Path,
    make_engine: MakeEngine,
    kinds: Mapping[str, StageWork] | None = None,
    watch: Watcher | None = None,
) -> StepResult:
    """Make or reuse one step's artifact; what the step reads must be in the store. What a job of a cluster runs.

    Appends to ``events.jsonl`` of ``run_dir``, as several jobs may at once; ``plan.json`` and ``record.json`` belong
    to whoever submits the jobs.

    Raises:
        SpecError: when the plan has no such step, cannot be run, or a step that must run before has not been.
        PrerequisiteError, StepFailed, Incomplete: as ``run``.
    """
    job, step = _job_of(plan, name, store, run_dir, make_engine, kinds, watch)
    return job.run_one(step)


def run_shard(
    plan: Plan,
    name: str,
    shard: Shard,
    *,
    store: Store,
    run_dir: Path,
    make_engine: MakeEngine,
    kinds: Mapping[str, StageWork] | None = None,
    watch: Watcher | None = None,
) -> dict[str, Any]:
    """Do one part of a step's rows, beside the processes that do the others; ``run_step`` then makes the artifact.

    A step that is done already is left as it is. Returns what this part asked of its model, as a record holds it.

    Raises:
        SpecError: as ``run_step``, or when a step of this kind is not done in parts.
        PrerequisiteError, StepFailed, Incomplete: as ``run``; Incomplete too when this part is being done elsewhere.
    """
    job, step = _job_of(plan, name, store, run_dir, make_engine, kinds, watch)
    return job.run_part(step, shard)


def _job_of(
    plan: Plan,
    name: str,
    store: Store,
    run_dir: Path,
    make_engine: MakeEngine,
    kinds: Mapping[str, StageWork] | None,
    watch: Watcher | None,
) -> tuple[_Job, Step]:
    if kinds is None:
        from cai.stages import KINDS

        kinds = KINDS
    specs = checked_specs(plan, kinds)
    if name not in specs:
        raise SpecError(Problem(name, f"the plan of {plan.experiment} has no such step", did_you_mean(name, specs)))
    store.prepare()
    run_dir.mkdir(parents=True, exist_ok=True)
    engine = LazyEngine(make_engine, plan.engine)
    return _Job(plan, store, run_dir, kinds, specs, watch or Silent(), engine), plan.step(name)


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
        kinds: Mapping[str, StageWork],
        specs: Mapping[str, StageSpec],
        watch: Watcher,
        engine: LazyEngine,
    ) -> None:
        self.plan, self.store, self.run_dir, self.kinds, self.specs = plan, store, run_dir, kinds, specs
        self.watch, self.engine = watch, engine
        self.shard: Shard | None = None
        self.spread = False
        self.log = EventLog(run_dir / "events.jsonl")
        self.results: list[StepResult] = []
        self.artifacts: dict[str, Artifact] = {}
        self.began, self.clock = datetime.now(timezone.utc), time.perf_counter()

    def run(self, found: list[StepStatus]) -> RunResult:
        self.spread = True
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

    def run_part(self, step: Step, shard: Shard) -> dict[str, Any]:
        from cai.run.shards import check_shard

        check_shard(self.specs[step.name], step)
        self.shard = shard
        of = f"{shard.index}/{shard.count}"

        def end(status: str, error: str) -> None:
            self.log.write(f"shard.{status}", step.name, shard=of, **({"error": error} if error else {}))

        self.log.write("shard.started", step.name, shard=of, process=os.getpid(), host=socket.gethostname())
        with self._ending(step.name, end):
            self.watch.run_started(self.plan, [])
            if self.store.find(step.kind, step.key) is None:
                self._find_inputs(step)
                return self._part(step, shard)
        return {}

    def _part(self, step: Step, shard: Shard) -> dict[str, Any]:
        from cai.run.shards import ShardProgress
        from cai.stages.flow.base import ShardDone
        from cai.stages.flow.generation import usage

        with self.store.sharing(step.kind, step.key, lambda who: self.watch.waiting(step, who)) as build:
            if build.done is not None:
                return {}
            told = Recorded(step, self.watch.step_started(step, build.resumed), self.log)
            try:
                self._work(step, build, ShardProgress(told, shard, build.work))
            except ShardDone as done:
                return dict(usage(done.flow).get("usage", {}))
            except BaseException as raised:
                self.watch.step_failed(step, stopped_error(f"{step.name} ({step.kind})", raised))
                raise
            raise StepFailed(f"{step.name} ({step.kind}): its work knows no parts; leave --shard out")

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
        from cai.run.shards import Merging, run_shards, shards_of

        def on_wait(who: str) -> None:
            self.log.write("step.waiting", step.name, holder=who)
            self.watch.waiting(step, who)

        shards = shards_of(step) if self.spread else 1
        with self.store.building(step.kind, step.key, on_wait) as build:
            if build.done is not None:
                return build.done, True
            began = time.perf_counter()
            if build.aside is not None:
                self.log.write("artifact.damaged", step.name, moved_to=str(build.aside))
            self.log.write("step.started", step.name, resumed=build.resumed, shards=shards)
            progress: Progress = Recorded(step, self.watch.step_started(step, build.resumed), self.log)
            if shards == 1:
                return self._make(step, build, progress, began), False
        # A model that this process holds would only take memory from the shards.
        self.engine.rest()
        told, _ = run_shards(step, self.store, self.run_dir, progress)
        with self.store.building(step.kind, step.key, on_wait) as build:
            if build.done is not None:
                return build.done, True
            return self._make(step, build, Merging(progress, told), began), False

    def _make(self, step: Step, build: Build, progress: Progress, began: float) -> Stored:
        from cai.run.shards import with_usage

        outcome = self._work(step, build, progress)
        outcome = replace(outcome, metrics=with_usage(outcome.metrics, self.run_dir, step.name))
        return build.commit(
            makes=step.makes,
            seed=step.seed,
            seconds=time.perf_counter() - began,
            ingredients=step.ingredients,
            outcome=plain_json(asdict(outcome)),
        )

    def _work(self, step: Step, build: Build, progress: Progress) -> Outcome:
        from cai.stages.flow.base import ShardDone

        spec = self.specs[step.name]
        self.engine.begin(step)
        try:
            outcome = self.kinds[step.kind].run(spec, self._context(step, build, progress))
            check_ledger(spec, outcome.ledger)
            return outcome
        except (Incomplete, PrerequisiteError, SpecError, ShardDone):
            raise
        except Exception as error:
            if is_disk_full(error, build.partial):
                raise disk_full(build.partial, error) from error
            what = str(error) if isinstance(error, CaiError) else f"{type(error).__name__}: {error}"
            raise StepFailed(
                f"{step.name} ({step.kind}): {what}; its work is kept in {build.partial}, and the same command "
                "goes on from there"
            ) from error

    def _context(self, step: Step, build: Build, progress: Progress) -> Context:
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
            servers=step.resources.get("servers", {}),
            key=step.key,
            serves=step.ingredients.get("engine", {}),
            cache=request_cache(self.store.home),
            shard=self.shard,
        )

    def _inputs(self, names: str | list[str] | dict[str, str]) -> Artifact | tuple[Artifact, ...] | dict[str, Artifact]:
        if isinstance(names, str):
            return self.artifacts[names]
        if isinstance(names, dict):
            return {label: self.artifacts[name] for label, name in names.items()}
        return tuple(self.artifacts[name] for name in names)
