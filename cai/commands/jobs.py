"""``step``, ``status``, ``resume`` and ``cancel``: runs whose steps are jobs, from inside a job and from outside."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from cai.commands.common import find_run, options, read_plan
from cai.errors import (
    CaiError,
    Incomplete,
    OutOfTime,
    PrerequisiteError,
    Problem,
    SpecError,
    StepFailed,
    did_you_mean,
)
from cai.figures.usage import FlowUsage
from cai.launchers.outside import COMMANDS, Half, Prepared
from cai.plan import Plan
from cai.run.job_files import now, word_file, write_json
from cai.run.stopping import sigterm_raises, stopped_error
from cai.text import json_text

if TYPE_CHECKING:
    from cai.stages.base import Shard


def step_verb(args: Sequence[str]) -> int:
    """Make one step of a plan and leave word of how that ended, in ``jobs/`` beside the plan."""
    parser = options("step", "Make one step of a plan whose inputs are in the store: what a cluster's jobs run.")
    parser.add_argument("plan", type=Path, help="plan.json; the run's folder is the one that it lies in")
    parser.add_argument("step")
    half = parser.add_mutually_exclusive_group()
    half.add_argument("--prepare", action="store_true", help="only write what the step's commands read, then stop")
    half.add_argument("--finish", action="store_true", help="the step's commands have been run; go on from there")
    half.add_argument("--done", action="store_true", help="only ask: code 0 when the step is in the store, else 1")
    half.add_argument("--shard", metavar="K/N", help="only do part K (from 0) of N of its rows; the step merges them")
    parser.add_argument(
        "--requeues", type=int, default=0, metavar="N", help="in a job: times it may go back into the queue"
    )
    parsed = parser.parse_args(list(args))
    if parsed.done:
        return _is_done(read_plan(parsed.plan), parsed.step)
    from cai.run.shards import parse_shard

    if parsed.prepare or parsed.finish:
        os.environ[COMMANDS] = (Half.PREPARE if parsed.prepare else Half.FINISH).value
    run_dir = parsed.plan.resolve().parent
    shard = parse_shard(parsed.shard) if parsed.shard is not None else None
    word = word_file(run_dir, parsed.step, shard.index if shard else None)
    word.parent.mkdir(parents=True, exist_ok=True)
    word.unlink(missing_ok=True)
    before = [(number, signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGUSR1)]
    try:
        usages: list[FlowUsage] = []
        error, warned = _guarded(parsed.step, lambda: usages.append(_make(parsed.plan, parsed.step, run_dir, shard)))
        if isinstance(error, Prepared):
            print(error)
            return 0
        stopped = warned and error is not None and not isinstance(error, SpecError | PrerequisiteError)
        # Whatever the stopped work ended with: being stopped is what it ended of. Or it stopped in time by itself.
        if stopped or (isinstance(error, OutOfTime) and _job() and parsed.requeues):
            error = _out_of_time(parsed.step, parsed.requeues, word)
        else:
            _leave_word(word, error, *usages)
    finally:
        for number, handler in before:
            signal.signal(number, handler)
    if error is not None:
        raise error
    return 0


def _is_done(plan: Plan, name: str) -> int:
    from cai.store.artifacts import default_store

    steps = {step.name: step for step in plan.steps}
    if name not in steps:
        raise SpecError(Problem(name, f"the plan of {plan.experiment} has no such step", did_you_mean(name, steps)))
    return 0 if default_store().find(steps[name].kind, steps[name].key) else 1


def _make(path: Path, name: str, run_dir: Path, shard: Shard | None) -> FlowUsage:
    """Make the step, or do one part of it; what that part asked."""
    from cai.engines import make_engine
    from cai.run.executor import run_shard, run_step
    from cai.run.shards import check_servers
    from cai.store.artifacts import default_store
    from cai.terminal.console import ConsoleWatcher

    gc.enable()
    plan, store = read_plan(path), default_store()
    engine = partial(make_engine, plan=plan, run_dir=run_dir)
    with ConsoleWatcher(live=False, show_plan=False) as watcher:
        if shard is None:
            run_step(plan, name, store=store, run_dir=run_dir, make_engine=engine, watch=watcher)
            return FlowUsage()
        check_servers(plan, name, store, path)
        usage = run_shard(plan, name, shard, store=store, run_dir=run_dir, make_engine=engine, watch=watcher)
    print(f"{name}: shard {shard.index} of {shard.count} is done")
    return usage


def _guarded(name: str, work: Callable[[], None]) -> tuple[BaseException | None, bool]:
    """The error that ended the work, if any, and whether Slurm warned of the time limit. Signals are ignored after."""
    warned = False

    def warn(signum: int, frame: FrameType | None) -> None:
        nonlocal warned
        if not warned:
            warned = True
            signal.raise_signal(signal.SIGTERM)

    # Before and after the work: the job's last word must be written whatever else arrives.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if _job():
        signal.signal(signal.SIGUSR1, warn)
    error: BaseException | None = None
    try:
        with sigterm_raises():
            work()
    except BaseException as raised:
        error = stopped_error(name, raised)
    return error, warned


def _out_of_time(name: str, requeues: int, word: Path) -> CaiError:
    """Put this job back into the queue where it may go there; the error that it ends with."""
    from cai.launchers import slurm_cli

    restarts = _restarts()
    if restarts >= requeues:
        times = "once" if not restarts else f"{restarts + 1} times"
        error: CaiError = StepFailed(
            f"{name}: time limit reached {times}; raise engine.launcher.time (its work is kept and goes on from there)"
        )
        _leave_word(word, error)
        return error
    error = Incomplete(f"{name}: stopped shortly before the time limit; queued again, {restarts + 1} of {requeues}")
    # First the word: Slurm ends this process as soon as the job is back in the queue.
    _leave_word(word, error)
    try:
        slurm_cli.requeue(_task() or _job())
    except CaiError as refused:
        error = StepFailed(f"{name}: time limit reached, and the job could not be queued again: {refused}")
        _leave_word(word, error)
    return error


def _leave_word(word: Path, error: BaseException | None, usage: FlowUsage = FlowUsage()) -> None:
    code = 0 if error is None else error.exit_code if isinstance(error, CaiError) else 1
    text = "" if error is None else str(error) if isinstance(error, CaiError) else f"{type(error).__name__}: {error}"
    # On a full disk the job's own error and exit code say so already.
    with suppress(Incomplete, OSError):
        facts = {"code": code, "error": text, "job": _job(), "restarts": _restarts(), "ended": now()}
        write_json(word, facts | usage.to_metrics())


def _job() -> str:
    return os.environ.get("SLURM_JOB_ID", "")


def _task() -> str:
    """The name of an array's task. Its id would not do: one of them is also the whole array's."""
    array, task = (os.environ.get(f"SLURM_ARRAY_{part}_ID", "") for part in ("JOB", "TASK"))
    return f"{array}_{task}" if array and task else ""


def _restarts() -> int:
    return int(os.environ.get("SLURM_RESTART_COUNT") or 0)


STATUS_CODES = "Exit code: 0 done; 1 failed; 3 neither: running or queued, or stopped and `resume` goes on."


def code_of(state: str) -> int:
    """The exit code that says what a run's state says: 0 done, 1 failed, 3 at work or to be gone on with."""
    return {"done": 0, "failed": StepFailed.exit_code}.get(state, Incomplete.exit_code)


def status_verb(args: Sequence[str]) -> int:
    """Every step of a run as it is now; the exit code is that of the run's state."""
    description = "How far a run is: each step done, running, queued, failed or cancelled, and why."
    parser = options("status", f"{description} {STATUS_CODES}")
    parser.add_argument("run", nargs="?", help="run folder or experiment; by default the newest run")
    parser.add_argument("--format", choices=("text", "json"), default="text")
    parsed = parser.parse_args(list(args))
    from cai.run.finished import stored_steps
    from cai.run.judged import judge_remarks
    from cai.run.submitted import is_submitted
    from cai.store.artifacts import default_store

    run_dir = find_run(parsed.run)
    plan = read_plan(run_dir / "plan.json")
    status = _cluster_status(run_dir) if is_submitted(run_dir) else _local_status(run_dir, plan)
    data = {"format": 1, "run": str(run_dir), "experiment": plan.experiment, "seed": plan.seed, **status}
    data["labels"] = judge_remarks(plan, stored_steps(plan, default_store()))
    data["exit_code"] = code_of(data["state"])
    if parsed.format == "json":
        print(json_text(data, indent=1))
    else:
        _print_status(data)
    return int(data["exit_code"])


def _cluster_status(run_dir: Path) -> dict[str, Any]:
    from cai.run.submission import states

    steps = [
        {
            "name": view.step.name,
            "kind": view.step.kind,
            "state": view.phase.value,
            "reason": view.reason,
            "job": view.job,
            "slurm": view.state,
            "code": view.code,
            "restarts": view.restarts,
            "log": str(view.log or ""),
            "tail": view.tail,
        }
        for view in states(run_dir)
    ]
    step_states = {step["state"] for step in steps}
    for state in ("running", "queued", "failed", "cancelled", "not submitted"):
        if state in step_states:
            return {"launcher": "slurm", "state": state, "error": "", "steps": steps}
    return {"launcher": "slurm", "state": "done", "error": "", "steps": steps}


def _local_status(run_dir: Path, plan: Plan) -> dict[str, Any]:
    from cai.run.finished import read_run_record
    from cai.run.status import Action, statuses_since
    from cai.store.artifacts import default_store
    from cai.store.events import read_events

    words = {Action.RUN: "not begun", Action.RESUME: "stopped"}
    failed: dict[str, str] = {}
    going = False
    with suppress(FileNotFoundError):
        for event in read_events(run_dir / "events.jsonl"):
            if event["event"] == "run.started":
                failed, going = {}, True
            elif event["event"] in ("run.done", "run.failed", "run.incomplete"):
                going = False
            elif event["event"] == "step.failed":
                failed[event.get("step", "")] = str(event.get("error", ""))
    steps = []
    for status in statuses_since(plan, plan, default_store()):
        in_store = status.reason == "in the store" or status.reason.startswith("the same work as")
        word, reason = words.get(status.action) or ("done" if in_store else "running"), status.reason
        if status.action is not Action.REUSE and status.step.name in failed:
            word, reason = "failed", failed[status.step.name]
        steps.append({"name": status.step.name, "kind": status.step.kind, "state": word, "reason": reason})
    record = read_run_record(run_dir)
    if record is None or going:
        # A run writes its record at its end, whatever end that is but kill -9. One that is gone on with has the record
        # of its last attempt still.
        at_work = any(step["state"] == "running" for step in steps)
        record = {"status": "running" if at_work else "killed", "error": ""}
    state, error = record.get("status", "unknown"), record.get("error", "")
    return {"launcher": "local", "state": state, "error": error, "steps": steps}


def _print_status(data: dict[str, Any]) -> None:
    from cai.run.submission import shown_run
    from cai.text import one_line

    run = shown_run(Path(data["run"]))
    state_line = f"{data['experiment']}, seed {data['seed']}, {data['launcher']}: {data['state']}"
    print(f"{state_line}  ({run}; exit code {data['exit_code']})")
    if data["error"]:
        print(data["error"])
    name, state = (max(len(step[field]) for step in data["steps"]) for field in ("name", "state"))
    for step in data["steps"]:
        job = f"  (job {step['job']})" if step.get("job") else ""
        line = f"  {step['name']:<{name}}  {step['state']:<{state}}  {one_line(step['reason'], 300)}{job}"
        print(line.rstrip())
    for remark in data["labels"]:
        print(remark)
    for step in data["steps"]:
        if step.get("tail"):
            print(f"{step['log']} ends with:\n{step['tail']}")
    if data["state"] not in ("done", "running", "queued"):
        print(f"go on with: python -m cai resume {run}")


def resume_verb(args: Sequence[str]) -> int:
    """Go on with a run from its frozen plan: submit what is missing and watch, or run it here again."""
    parser = options("resume", "Go on with a run from its own plan, whatever has been edited since.")
    parser.add_argument("run", nargs="?", help="run folder or experiment; by default the newest run")
    parser.add_argument("--detach", action="store_true", help="submit what is missing and return; do not watch")
    parsed = parser.parse_args(list(args))
    from cai.commands.running import run_here, see_through
    from cai.run.submitted import is_submitted

    run_dir = find_run(parsed.run)
    if not is_submitted(run_dir):
        return run_here(read_plan(run_dir / "plan.json"), run_dir, detach=parsed.detach)
    from cai.run.submission import resume

    resume(run_dir)
    return see_through(run_dir, detach=parsed.detach)


def cancel_verb(args: Sequence[str]) -> int:
    """Cancel a run's jobs, queued or running."""
    parser = options("cancel", "Cancel the jobs of a run; what is finished stays, and `resume` goes on from there.")
    parser.add_argument("run", nargs="?", help="run folder or experiment; by default the newest run")
    run_dir = find_run(parser.parse_args(list(args)).run)
    from cai.run.submission import cancel, shown_run
    from cai.run.submitted import is_submitted

    if not is_submitted(run_dir):
        print(f"{shown_run(run_dir)} is a run on this machine: nothing is queued (Ctrl-C stops one at work)")
        return 0
    cancelled = cancel(run_dir)
    for view in cancelled:
        print(f"cancelled {view.step.name} (job {view.job}), which was {view.phase.value}")
    if not cancelled:
        print(f"nothing of {shown_run(run_dir)} is queued or running")
    return 0
