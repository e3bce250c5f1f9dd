"""The executor: carries a plan out, one of its steps, or a part of one, reusing what the store has.

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
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

from cai.errors import CaiError, Incomplete, Problem, SpecError, StepFailed, did_you_mean
from cai.figures.usage import FlowUsage
from cai.files.durable import write_durably
from cai.plan import Plan, Step
from cai.run.building import Site, build_part, build_step, check_parts, find_inputs
from cai.run.checks import StageWork, check_key_destinations, check_keys, checked_specs
from cai.run.engines import Engines, MakeEngine
from cai.run.faults import keep_traceback
from cai.run.results import RunResult, StepResult
from cai.run.side_by_side import SideBySide
from cai.run.status import Action, statuses_since
from cai.run.stopping import sigterm_raises, stopped_error
from cai.run.watch import Silent, Watcher
from cai.stages.base import Shard
from cai.store.artifacts import Store, versions
from cai.store.events import EventLog, point_latest
from cai.store.takeover import take_over_former
from cai.store.upkeep import register_run


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
    """Make or reuse every step's artifact, each after those that it reads (cai/run/side_by_side.py).

    Writes ``plan.json``, ``events.jsonl`` and ``record.json`` into ``run_dir``, and points ``latest`` beside it to it.
    ``previous`` serves only to tell the watcher why a step runs.

    Raises:
        SpecError: when the plan is not one that the stage kinds can run; nothing has been started.
        PrerequisiteError: when the home folder cannot be written, or a stage misses something.
        StepFailed: when a step's work fails, or the program does (``run_dir/traceback.txt``); its work is kept.
        Incomplete: when the run was stopped (130 for Ctrl-C) or the disk is full; the same command goes on.
    """
    kinds = kinds or _shipped_kinds()
    specs = checked_specs(plan, kinds)
    store.prepare()
    taken_over = take_over_former(store, plan.steps)
    planned = statuses_since(previous, plan, store)
    working = [status.step.name for status in planned if status.action is not Action.REUSE]
    check_key_destinations(plan, working)
    check_keys(plan, working)
    run_dir.mkdir(parents=True, exist_ok=True)
    write_durably(run_dir / "plan.json", plan.to_json())
    point_latest(run_dir)
    register_run(store, run_dir, plan.experiment, {step.key for step in plan.steps})
    log = EventLog(run_dir / "events.jsonl")
    site = Site(plan, store, run_dir, kinds, specs, watch or Silent(), Engines(make_engine, plan), log)
    steps = SideBySide(site, working)
    began, clock = datetime.now(timezone.utc), time.perf_counter()

    def end(status: str, error: str) -> None:
        log.write(f"run.{status}", **_error_fields(error))
        write_record(
            run_dir,
            plan,
            status=status,
            error=error,
            began=began,
            seconds=time.perf_counter() - clock,
            steps=steps.results,
        )

    log.write("run.started", experiment=plan.experiment, steps=len(plan.steps), versions=versions())
    for name in taken_over:
        log.write("step.taken_over", name, former=plan.step(name).former)
    with _ending(site, "the run", end):
        site.watch.run_started(plan, planned)
        steps.run()
    result = RunResult(plan, run_dir, tuple(steps.results), time.perf_counter() - clock)
    site.watch.run_done(result)
    return result


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
    site, step = _site_of(plan, name, store=store, run_dir=run_dir, make_engine=make_engine, kinds=kinds, watch=watch)

    def end(status: str, error: str) -> None:
        site.log.write(f"job.{status}", name, **_error_fields(error))

    site.log.write("job.started", name, process=os.getpid(), host=socket.gethostname(), versions=versions())
    with _ending(site, name, end):
        site.watch.run_started(plan, [])
        stored = store.find(step.kind, step.key)
        return build_step(site, step, find_inputs(site, step) if stored is None else {})


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
) -> FlowUsage:
    """Do one part of a step's rows, beside the processes that do the others; ``run_step`` then makes the artifact.

    A step that is done already is left as it is. Returns what this part asked of its model.

    Raises:
        SpecError: as ``run_step``, or when a step of this kind is not done in parts.
        PrerequisiteError, StepFailed, Incomplete: as ``run``; Incomplete too when this part is being done elsewhere.
    """
    site, step = _site_of(plan, name, store=store, run_dir=run_dir, make_engine=make_engine, kinds=kinds, watch=watch)
    check_parts(site, step)
    place = f"{shard.index}/{shard.count}"

    def end(status: str, error: str) -> None:
        site.log.write(f"shard.{status}", name, shard=place, **_error_fields(error))

    site.log.write("shard.started", name, shard=place, process=os.getpid(), host=socket.gethostname())
    with _ending(site, name, end):
        site.watch.run_started(plan, [])
        if store.find(step.kind, step.key) is None:
            return build_part(site, step, find_inputs(site, step), shard)
    return FlowUsage()


def _shipped_kinds() -> Mapping[str, StageWork]:
    from cai.stages import KINDS

    return KINDS


def _site_of(
    plan: Plan,
    name: str,
    *,
    store: Store,
    run_dir: Path,
    make_engine: MakeEngine,
    kinds: Mapping[str, StageWork] | None,
    watch: Watcher | None,
) -> tuple[Site, Step]:
    """What one step of a plan is built with, and the step."""
    kinds = kinds or _shipped_kinds()
    specs = checked_specs(plan, kinds)
    if name not in specs:
        raise SpecError(Problem(name, f"the plan of {plan.experiment} has no such step", did_you_mean(name, specs)))
    store.prepare()
    take_over_former(store, plan.steps)
    run_dir.mkdir(parents=True, exist_ok=True)
    log = EventLog(run_dir / "events.jsonl")
    site = Site(plan, store, run_dir, kinds, specs, watch or Silent(), Engines(make_engine, plan), log)
    return site, plan.step(name)


def _error_fields(error: str) -> dict[str, str]:
    return {"error": error} if error else {}


@contextmanager
def _ending(site: Site, name: str, end: Callable[[str, str], None]) -> Iterator[None]:
    """Close everything at the end, whatever it is, and write down how it ended; ``name`` is what ends, in words."""
    status, error = "failed", ""
    try:
        with sigterm_raises():
            yield
        status = "done"
    except BaseException as raised:
        stopped = stopped_error(name, raised)
        if isinstance(stopped, Exception) and not isinstance(stopped, CaiError):
            stopped = _fault(site.run_dir, name, stopped)
        status = "incomplete" if isinstance(stopped, Incomplete) else "failed"
        error = str(stopped)
        if stopped is raised:
            raise
        raise stopped from raised
    finally:
        site.engines.close()
        try:
            end(status, error)
        except (Incomplete, OSError):
            # On a full disk the run's own error says so already; it must not be replaced by this one.
            if status == "done":
                raise
        finally:
            site.log.close()


def _fault(run_dir: Path, name: str, error: Exception) -> StepFailed:
    said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return StepFailed(f"{name}: {said}; {keep_traceback(run_dir, name, error)}: please report this fault")


def write_record(
    run_dir: Path, plan: Plan, *, status: str, error: str, began: datetime, seconds: float, steps: Sequence[StepResult]
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
