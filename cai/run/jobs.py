"""What has become of a submitted run's steps, in words: from the store, the queue, and what the jobs said at their end.

Whether a step is done, the store alone decides; whether it is still to come, the queue. Looking changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from enum import Enum
from pathlib import Path
from typing import Any

from cai.launchers import slurm_cli
from cai.launchers.tail import tail
from cai.plan import Step
from cai.run.arrays import Tasks, ids_of, tasks_of
from cai.run.job_files import read_json, word_file
from cai.run.submitted import Submission
from cai.store.artifacts import Stored
from cai.text import duration

_WHY = {
    "TIMEOUT": "the time limit was reached before it could stop; raise engine.launcher.time (or warn)",
    "OUT_OF_MEMORY": "out of memory on its node",
    "NODE_FAIL": "its node failed",
    "BOOT_FAIL": "its node did not start",
    "DEADLINE": "its deadline passed",
    "PREEMPTED": "preempted by another job",
}
_BEFORE = "waits for the step before"
_UNSEEN = 60.0
"""Seconds for which an artifact that a job says it made may not be visible here yet: shared folders are cached."""


class Phase(str, Enum):
    """Where a step of a submitted run is."""

    DONE = "done"
    RUNNING = "running"
    QUEUED = "queued"
    FAILED = "failed"
    CANCELLED = "cancelled"
    UNSUBMITTED = "not submitted"


ALIVE = (Phase.RUNNING, Phase.QUEUED)


@dataclass(frozen=True, slots=True)
class JobView:
    """A step of a submitted run as it is now.

    ``job`` is empty where the step needed none; ``state`` is Slurm's own word, empty when Slurm no longer knows the
    job. ``reason`` says in words why it waits, failed or was cancelled; ``tail`` is the end of a failed job's output;
    ``tasks`` are those of its array while it waits for them.
    """

    step: Step
    phase: Phase
    job: str = ""
    state: str = ""
    reason: str = ""
    code: int | None = None
    restarts: int = 0
    log: Path | None = None
    tail: str = ""
    tasks: Tasks | None = None


@dataclass(frozen=True, slots=True)
class SubmittedJob:
    """What is known of a step's job: what was noted when it was submitted, Slurm's word, and its own at its end."""

    step: Step
    record: Mapping[str, Any]
    state: slurm_cli.JobState | None
    exit_record: dict[str, Any] | None


def views_of(sub: Submission) -> list[JobView]:
    """Every step as it is now, in the plan's order.

    Raises:
        PrerequisiteError: when there is no Slurm here.
        StepFailed: when the controller does not answer for long.
    """
    records: dict[str, dict[str, Any]] = {}
    for step in sub.plan.steps:
        with suppress(FileNotFoundError):
            records[step.name] = read_json(sub.file(step.name, ".json"))
    # The queue first, the store after it: a job that ends in between is seen as running, never as gone for nothing. A
    # job that said it ended well is not asked for, so a finished run can be looked at where there is no Slurm.
    exit_records = {name: exit_record_of(sub, name, record["job"]) for name, record in records.items()}
    ids = [job for name, r in records.items() if (exit_records[name] or {}).get("code") != 0 for job in ids_of(r)]
    queue = slurm_cli.jobs(ids) if ids else {}
    views: dict[str, JobView] = {}
    first: dict[str, str] = {}
    for step in sub.plan.steps:
        stored = sub.store.find(step.kind, step.key)
        twin = first.setdefault(step.key, step.name)
        record = records.get(step.name)
        state = queue.get(record["job"]) if record else None
        if stored is not None:
            views[step.name] = _done_view(step, stored, record, state)
        elif twin != step.name:
            views[step.name] = replace(views[twin], step=step)
        elif record is None:
            views[step.name] = JobView(step, Phase.UNSUBMITTED, reason=_broken(step, views))
        else:
            job = SubmittedJob(step, record, state, exit_records[step.name])
            views[step.name] = _view(sub, job, views)
            if views[step.name].state == "PENDING" and (tasks := tasks_of(sub.run_dir, step.name, record, queue)):
                views[step.name] = _in_parts(views[step.name], tasks)
    return list(views.values())


def _done_view(
    step: Step, stored: Stored, record: Mapping[str, Any] | None, state: slurm_cli.JobState | None
) -> JobView:
    if record is None:
        return JobView(step, Phase.DONE, reason="in the store")
    if state is not None and not state.ended and state.state != "PENDING":
        return JobView(step, Phase.RUNNING, record["job"], state.state, "made; its job is ending", None, state.restarts)
    return JobView(step, Phase.DONE, record["job"], reason=f"made in {duration(stored.record.get('seconds'))}")


def _view(sub: Submission, job: SubmittedJob, before: Mapping[str, JobView]) -> JobView:
    step, record, state, exit_record = job.step, job.record, job.state, job.exit_record
    log = sub.file(step.name, ".out")
    view = JobView(step, Phase.UNSUBMITTED, str(record["job"]), log=log)
    if not view.job:
        return replace(view, reason="submitting it was interrupted")
    if state is not None:
        view = replace(view, state=state.state, restarts=state.restarts)
        if not state.ended:
            return _alive(view, state, exit_record, before)
    broken = _broken(step, before)
    if exit_record is None and broken and "cancelled" not in record:
        return replace(view, phase=Phase.CANCELLED, reason=broken)
    if view.state == "CANCELLED" or "cancelled" in record:
        return replace(
            view, phase=Phase.CANCELLED, reason="cancelled", code=exit_record["code"] if exit_record else None
        )
    if exit_record is not None and exit_record["code"] == 0 and _age(exit_record["ended"]) < _UNSEEN:
        return replace(view, phase=Phase.RUNNING, reason="ended; what it made is not visible here yet")
    reason, code = _failure(view.state, state, exit_record)
    log_tail = tail(log, int(record.get("log_start", 0))) if log.exists() else ""
    return replace(view, phase=Phase.FAILED, reason=reason, code=code, tail=log_tail)


def _in_parts(view: JobView, tasks: Tasks) -> JobView:
    """A step whose own job waits for its array."""
    if view.phase is not Phase.QUEUED or view.reason != _BEFORE:
        return replace(view, tasks=tasks)
    phase = Phase.RUNNING if tasks.running else Phase.QUEUED
    return replace(view, phase=phase, reason=str(tasks), tasks=tasks)


def _alive(view: JobView, state: slurm_cli.JobState, exit_record: Any, before: Mapping[str, JobView]) -> JobView:
    if state.state != "PENDING":
        return replace(view, phase=Phase.RUNNING, reason=f"on {state.nodes}" if state.nodes else "")
    if state.reason.startswith("DependencyNeverSatisfied"):
        # Slurm is about to cancel it.
        return replace(view, phase=Phase.CANCELLED, reason=_broken(view.step, before) or "what it waits for has failed")
    if state.restarts and exit_record is not None:
        return replace(view, phase=Phase.QUEUED, reason=exit_record["error"])
    if state.reason == "Dependency":
        waits = [name for name in view.step.needs() if before[name].phase is not Phase.DONE]
        return replace(view, phase=Phase.QUEUED, reason=f"waits for {', '.join(waits)}" if waits else _BEFORE)
    why = f" ({state.reason})" if state.reason else ""
    return replace(view, phase=Phase.QUEUED, reason=f"waits in the queue{why}")


def _failure(word: str, state: slurm_cli.JobState | None, exit_record: Any) -> tuple[str, int | None]:
    """Why a job failed and its exit code, from its own last words or else from Slurm's."""
    if word in _WHY:
        return _WHY[word], None
    if exit_record is not None:
        return exit_record[
            "error"
        ] or f"ended with code {exit_record['code']}, yet its artifact is not in the store", exit_record["code"]
    if state is None:
        return "Slurm no longer knows the job, which ended without a word: killed, or its node failed", None
    return f"ended as {word.lower()} with code {state.exit_code} without a word: killed, or it could not start", None


def _broken(step: Step, views: Mapping[str, JobView]) -> str:
    """``cancelled because 'sft' failed`` when something that the step needs did not end well; else empty."""
    for name in step.needs():
        needed = views[name]
        if needed.phase is Phase.FAILED:
            return f"cancelled because '{name}' failed"
        if needed.phase is Phase.CANCELLED:
            because = needed.reason.startswith("cancelled because")
            return needed.reason if because else f"cancelled because '{name}' was cancelled"
    return ""


def exit_record_of(sub: Submission, step: str, job: str) -> dict[str, Any] | None:
    """What the job itself said when it ended; None when it said nothing, or another job did."""
    try:
        exit_record = read_json(word_file(sub.run_dir, step))
    except (FileNotFoundError, ValueError):
        return None
    return exit_record if exit_record.get("job") == job else None


def _age(stamp: str) -> float:
    return (datetime.now(timezone.utc) - datetime.fromisoformat(stamp)).total_seconds()
