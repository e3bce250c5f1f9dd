"""Runs as jobs of a cluster: one job for each step, chained, frozen when they are submitted.

The run's folder is all that is needed to come back: ``plan.json`` (what the jobs run), ``submission.json`` (from where,
into which store), and for each job ``jobs/<step>.sbatch``, ``.json`` (its id), ``.out`` (what it printed) and
``.exit.json`` (how it ended). What has become of the jobs is looked up in cai.run.jobs. A step in shards is two
jobs: an array that does its parts (cai.run.arrays), then the step's own, which puts them together.

A record is written before ``sbatch`` is called, so that a submission that died in the middle is taken up without
doubling a job.
"""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from cai.engines.base import Places
from cai.errors import CaiError, Incomplete, Problem, SpecError, StepFailed
from cai.files.durable import write_durably
from cai.files.locks import locked_if_free
from cai.launchers import slurm_cli
from cai.plan import Plan, Step
from cai.run.arrays import ids_of, is_alive, write_array
from cai.run.checks import StageWork, check_key_destinations, check_keys, checked_specs
from cai.run.executor import write_record
from cai.run.job_files import now, read_json, word_file, write_json
from cai.run.job_graph import planned_job
from cai.run.jobs import ALIVE, JobView, Phase, exit_record_of, views_of
from cai.run.results import RunResult, StepResult
from cai.run.shards import check_servers, shards_of
from cai.run.submitted import Submission, is_submitted, launcher_of, open_submission
from cai.stages.base import Artifact
from cai.store.artifacts import Store
from cai.store.events import EventLog, point_latest
from cai.store.takeover import take_over_former
from cai.store.upkeep import register_run
from cai.text import one_line, plain

__all__ = [
    "JobView",
    "Phase",
    "cancel",
    "is_submitted",
    "launcher_of",
    "line_of",
    "resume",
    "shown_run",
    "states",
    "submit",
    "watch",
]

FORMAT = 1
_PATIENCE = 90.0
"""Seconds that ``cancel`` waits for jobs to be gone; Slurm itself kills them after its KillWait (30 s)."""


def submit(plan: Plan, store: Store, run_dir: Path, kinds: Mapping[str, StageWork] | None = None) -> list[JobView]:
    """Freeze the plan in ``run_dir`` and submit a job for each step that is not in the store.

    Raises:
        SpecError: when the plan cannot be run, or its engine runs on no cluster; nothing has been submitted.
        PrerequisiteError: when there is no Slurm here.
        StepFailed: when Slurm refuses a job; those submitted before it are cancelled again.
    """
    if kinds is None:
        from cai.stages import KINDS

        kinds = KINDS
    checked_specs(plan, kinds)
    launcher = launcher_of(plan)
    if launcher is None:
        raise SpecError(Problem("engine.launcher", "runs in this process", "set engine.launcher.kind=slurm"))
    for step in plan.steps:
        if shards_of(step) > 1:
            check_servers(plan, step.name, store, run_dir / "plan.json")
    store.prepare()
    take_over_former(store, plan.steps)
    working = [step.name for step in plan.steps if store.find(step.kind, step.key) is None]
    check_key_destinations(plan, working)
    if not launcher.setup:  # its lines may export the key
        check_keys(plan, working)
    (run_dir / "jobs").mkdir(parents=True, exist_ok=True)
    write_durably(run_dir / "plan.json", plan.to_json())
    facts = {"format": FORMAT, "home": str(store.home), "cwd": os.getcwd(), "submitted": now()}
    write_json(run_dir / "submission.json", facts)
    point_latest(run_dir)
    register_run(store, run_dir, plan.experiment, {step.key for step in plan.steps})
    return resume(run_dir)


def resume(run_dir: Path) -> list[JobView]:
    """Submit, from the frozen plan, every step that is neither done nor queued nor running.

    A job that waits for one that has been submitted anew is submitted anew too.

    Raises:
        Incomplete: when another process is submitting this run's jobs.
        PrerequisiteError, StepFailed: as ``submit``.
    """
    sub = open_submission(run_dir)
    with _alone(sub):
        _find_lost(sub)
        _submit_missing(sub)
    return states(run_dir)


def states(run_dir: Path) -> list[JobView]:
    """Every step as it is now, in the plan's order. Changes nothing.

    Raises:
        SpecError: when the run was not submitted to a cluster.
        PrerequisiteError: when there is no Slurm here.
    """
    return views_of(open_submission(run_dir))


def cancel(run_dir: Path) -> list[JobView]:
    """Cancel every job that is queued or running, and wait until they are gone; returns what was cancelled, as it was.

    Raises:
        Incomplete: when some are still ending after a while, or another process is submitting this run's jobs.
    """
    sub = open_submission(run_dir)
    with _alone(sub):
        _find_lost(sub)
        records = _records(sub)
        job_states = slurm_cli.jobs([job for record in records.values() for job in ids_of(record)])
        alive = {name: record for name, record in records.items() if is_alive(record, job_states)}
        if not alive:
            return []
        views = [view for view in views_of(sub) if view.step.name in alive]
        for name, record in alive.items():
            write_json(sub.file(name, ".json"), {**record, "cancelled": now()})
        ids = [job for record in alive.values() for job in ids_of(record)]
        slurm_cli.cancel(ids)
    _log(sub, "run.cancelled", jobs=ids)
    deadline = time.monotonic() + _PATIENCE
    while still_ending := sorted(job for job, state in slurm_cli.jobs(ids).items() if not state.ended):
        if time.monotonic() > deadline:
            raise Incomplete(f"{run_dir}: cancelled, but still ending: {', '.join(still_ending)}")
        time.sleep(min(sub.launcher.poll, 0.5))
    return views


def watch(run_dir: Path, console: Console) -> RunResult:
    """Tell each change as one line until every step is done; then write the run's record.

    Raises:
        StepFailed: when nothing is queued or running any more and a step failed: which, why, the end of its output.
        Incomplete: when jobs were cancelled; or at Ctrl-C, or when Slurm does not answer: the jobs are left alone.
    """
    sub = open_submission(run_dir)
    printed: dict[str, tuple[Phase, int, int]] = {}
    try:
        while True:
            views = _look(sub)
            for number, view in enumerate(views, 1):
                eighths = 8 * view.tasks.ended // view.tasks.count if view.tasks else 0
                if printed.get(view.step.name) != (news := (view.phase, view.restarts, eighths)):
                    printed[view.step.name] = news
                    console.print(Text(line_of(view, number, views)), soft_wrap=True)
            if not any(view.phase in ALIVE for view in views):
                return _finish(sub, views)
            time.sleep(sub.launcher.poll)
    except KeyboardInterrupt:
        raise _away(run_dir, "no longer watching") from None


def _look(sub: Submission) -> list[JobView]:
    try:
        return views_of(sub)
    except StepFailed as error:
        raise _away(sub.run_dir, str(error)) from error


def _away(run_dir: Path, why: str) -> Incomplete:
    run_argument = shown_run(run_dir)
    return Incomplete(
        f"{why}; the jobs go on. `python -m cai status {run_argument}` tells how far they are, "
        f"`python -m cai resume {run_argument}` watches again, `python -m cai cancel {run_argument}` ends them"
    )


def line_of(view: JobView, number: int, views: Sequence[JobView]) -> str:
    """A step on one line; ``number`` counts from 1."""
    total, widest = len(views), max(len(step_view.step.name) for step_view in views)
    job = f"  (job {view.job})" if view.job and view.phase is not Phase.DONE else ""
    reason = f"  {one_line(view.reason, 300)}" if view.reason else ""
    return plain(f"[{number:>{len(str(total))}}/{total}] {view.step.name:<{widest}}  {view.phase.value}{reason}{job}")


def shown_run(run_dir: Path) -> str:
    """A run's folder as a word of the next command line."""
    relative = os.path.relpath(run_dir)
    return shlex.quote(str(run_dir) if relative.startswith("..") else relative)


# ---- submitting ------------------------------------------------------------------------------------------------------


@contextmanager
def _alone(sub: Submission) -> Iterator[None]:
    """Nobody else submits or cancels this run's jobs."""
    with locked_if_free(sub.run_dir / "jobs" / ".lock") as is_ours:
        if not is_ours:
            raise Incomplete(f"{sub.run_dir}: another process is submitting its jobs; try again when it is through")
        yield


def _submit_missing(sub: Submission) -> None:
    views = {view.step.name: view for view in views_of(sub)}
    records = _records(sub)
    # These wait for what has failed; not every cluster takes them out of the queue at once.
    stuck = [name for name, view in views.items() if view.phase is Phase.CANCELLED and view.state == "PENDING"]
    slurm_cli.cancel([job for name in stuck if name in records for job in ids_of(records[name])])
    jobs = {name: view.job for name, view in views.items() if view.phase in ALIVE}
    first = {step.key: step.name for step in reversed(sub.plan.steps)}
    fresh: list[str] = []
    try:
        for step in sub.plan.steps:
            twin = first[step.key]
            if views[step.name].phase is Phase.DONE:
                continue
            if twin != step.name:
                jobs[step.name] = jobs[twin]  # the same work, made once
                continue
            after = list(dict.fromkeys(jobs[name] for name in step.needs() if name in jobs))
            if step.name in jobs:
                if views[step.name].phase is Phase.RUNNING or not set(after) & set(fresh):
                    continue
                slurm_cli.cancel(ids_of(records[step.name]))  # it waits for a job that ended without a result
            jobs[step.name], *array = _submit_step(sub, step, after, records.get(step.name, {}))
            fresh += [jobs[step.name], *array]
    except CaiError:
        # A chain of which the end is missing would only use up the cluster.
        if fresh:
            slurm_cli.cancel(fresh)
        raise


def _submit_step(sub: Submission, step: Step, after: list[str], before: Mapping[str, Any]) -> list[str]:
    """Submit a step's job, and before it the array of its shards; the ids of both. ``before`` is the last record."""
    job = planned_job(sub.plan, step, Places(sub.store.root, str(sub.run_dir / "plan.json")))
    name = f"{sub.plan.experiment}.{step.name}"
    log, path, record = (sub.file(step.name, end) for end in (".out", ".sbatch", ".json"))
    requeues = sub.launcher.max_requeues if sub.launcher.requeue else 0
    body = [
        f"export CAI_HOME={shlex.quote(str(sub.store.home))} PYTHONUNBUFFERED=1",
        f"exec {shlex.join([*job.work.argv, '--requeues', str(requeues)])}",
    ]
    write_durably(path, job.script(sub.launcher, body, log=log, name=name, folder=Path(sub.cwd)))
    facts: dict[str, Any] = {
        "job": "",
        "submitted": now(),
        "script": str(path),
        "after": after,
        "log_start": log.stat().st_size if log.exists() else 0,
    }
    word_file(sub.run_dir, step.name).unlink(missing_ok=True)
    parts: list[str] = []
    try:
        if job.shards > 1:
            facts["array"] = _alive_array(before) or {"job": "", "count": job.shards}
            if not facts["array"]["job"]:
                facts["array"]["script"] = str(write_array(sub, job, body))
                write_json(record, facts)
                facts["array"]["job"] = slurm_cli.submit(Path(facts["array"]["script"]), after)
                _log(sub, "shards.submitted", step.name, job=facts["array"]["job"], shards=job.shards, after=after)
            parts = [facts["array"]["job"]]
        write_json(record, facts)
        job_id = slurm_cli.submit(path, after, parts)
    except CaiError:
        slurm_cli.cancel(parts)
        record.unlink(missing_ok=True)
        raise
    write_json(record, {**facts, "job": job_id})
    _log(sub, "job.submitted", step.name, job=job_id, after=[*after, *parts])
    return [job_id, *parts]


def _alive_array(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """A step's array where it is at work still, though the step's own job is not there any more."""
    array = record.get("array", {})
    state = slurm_cli.jobs([array["job"]]).get(array["job"]) if array.get("job") else None
    return dict(array) if state is not None and not state.ended else None


def _find_lost(sub: Submission) -> None:
    """Note the ids of jobs that were submitted by a process that died before it could note them."""
    for name, record in _records(sub).items():
        if not record["job"]:
            recovered = {**record, "job": slurm_cli.live_job(Path(record["script"])) or ""}
            array = record.get("array", {})
            if array and not array["job"]:
                recovered["array"] = {**array, "job": slurm_cli.live_job(Path(array["script"])) or ""}
            if ids_of(recovered):
                write_json(sub.file(name, ".json"), recovered)
            else:
                sub.file(name, ".json").unlink()


def _records(sub: Submission) -> dict[str, dict[str, Any]]:
    files = {step.name: sub.file(step.name, ".json") for step in sub.plan.steps}
    return {name: read_json(path) for name, path in files.items() if path.exists()}


# ---- the end ---------------------------------------------------------------------------------------------------------


def _finish(sub: Submission, views: list[JobView]) -> RunResult:
    """The result of a run of which nothing is queued or running any more, and its record.

    Raises:
        StepFailed, Incomplete: as ``watch``.
    """
    results = [_result(sub, view) for view in views if view.phase is Phase.DONE]
    failed = [view for view in views if view.phase is Phase.FAILED]
    unmade = [view.step.name for view in views if view.phase not in (Phase.DONE, Phase.FAILED)]
    go_on = f"`python -m cai resume {shown_run(sub.run_dir)}` goes on from there"
    reasons = {view.step.name: view.reason or view.phase.value for view in views}
    error: CaiError | None = None
    if failed:
        failures = "\n".join(map(_failure_text, failed))
        rest = f"not made because of that: {', '.join(unmade)}; " if unmade else ""
        error = StepFailed(f"{failures}\n{rest}when the cause is mended, {go_on}")
    elif unmade:
        error = Incomplete(f"not made: {', '.join(unmade)} ({reasons[unmade[0]]}); {go_on}")
    status = "failed" if failed else "incomplete" if unmade else "done"
    _log(sub, f"run.{status}", **({"error": str(error)} if error else {}))
    seconds = _seconds(sub, views)
    record = {"status": status, "error": str(error or "")}
    write_record(sub.run_dir, sub.plan, **record, began=sub.began, seconds=seconds, steps=results)
    if error is not None:
        raise error
    return RunResult(sub.plan, sub.run_dir, tuple(results), seconds)


def _result(sub: Submission, view: JobView) -> StepResult:
    stored = sub.store.find(view.step.kind, view.step.key)
    assert stored is not None
    artifact = Artifact(view.step.key, stored.makes, stored.path, stored.record)
    return StepResult(view.step, artifact, reused=not view.job)


def _seconds(sub: Submission, views: list[JobView]) -> float:
    """From the submission to the end of the last job, waiting in the queue included."""
    exit_records = [exit_record_of(sub, view.step.name, view.job) for view in views if view.job]
    ended = [datetime.fromisoformat(record["ended"]) for record in exit_records if record is not None]
    return max((end - sub.began).total_seconds() for end in ended) if ended else 0.0


def _failure_text(view: JobView) -> str:
    """A failed step: which, why, and the end of what its job printed."""
    why, _, more = view.reason.partition("\n")
    detail = f"; the end of {view.log}:\n{view.tail}" if view.tail else f"\n{more}" if more else ""
    return f"{view.step.name} (job {view.job}): {why}{detail}"


def _log(sub: Submission, event: str, step: str = "", **fields: Any) -> None:
    log = EventLog(sub.run_dir / "events.jsonl")
    try:
        log.write(event, step, **fields)
    finally:
        log.close()
