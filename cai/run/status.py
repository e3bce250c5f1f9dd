"""What a run would do with each step, and why. Looks into the store; changes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from cai.errors import SpecError
from cai.files.locks import holder
from cai.plan import Plan, Step, plan_from_json
from cai.planning.reasons import step_changes
from cai.store.artifacts import Store, artifact_name, default_store

RUNS = Path("runs")
"""Where runs lie, from where the user stands."""


class Action(str, Enum):
    """What happens to a step."""

    REUSE = "reuse"
    RUN = "run"
    RESUME = "resume"


@dataclass(frozen=True, slots=True)
class StepStatus:
    """What would happen to a step, and why, in words."""

    step: Step
    action: Action
    reason: str


def statuses(plan: Plan, store: Store | None = None, runs: Path = RUNS) -> list[StepStatus]:
    """As ``statuses_since`` the newest run of the experiment under ``runs``, by default with the user's own store."""
    return statuses_since(previous_plan(runs, plan.experiment), plan, store or default_store())


def statuses_since(previous: Plan | None, plan: Plan, store: Store) -> list[StepStatus]:
    """For each step: reuse, run or resume, and the reason, told by what differs from the plan run before.

    Raises:
        PrerequisiteError: when the store cannot be read.
    """
    before = {step.name: step for step in previous.steps} if previous else {}
    step_statuses: list[StepStatus] = []
    planned: dict[str, str] = {}
    for step in plan.steps:
        if step.key in planned:
            step_statuses.append(StepStatus(step, Action.REUSE, f"the same work as {planned[step.key]}"))
            continue
        planned[step.key] = step.name
        step_statuses.append(_status(step, store, before.get(step.name), previous is not None))
    return step_statuses


def previous_plan(runs: Path, experiment: str) -> Plan | None:
    """The plan of the experiment's newest run under ``runs``; None where there is none that can be read."""
    try:
        path = runs / experiment / "latest" / "plan.json"
        return plan_from_json(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError, SpecError):
        # It only serves to explain; the decision to run or reuse never rests on it.
        return None


def _status(step: Step, store: Store, before: Step | None, ran_before: bool) -> StepStatus:
    look = store.look(step.kind, step.key)
    if look.stored is not None:
        return StepStatus(step, Action.REUSE, "in the store")
    if look.damage:
        return StepStatus(step, Action.RUN, f"the stored artifact is damaged: {look.damage[0]}")
    lock_holder = holder(store.lock_of(artifact_name(step.kind, step.key)))
    if lock_holder:
        return StepStatus(step, Action.REUSE, f"{lock_holder} is making it; the run will wait")
    if step.former and not store.begun(step.kind, step.key) and (former := _former_status(step, store)) is not None:
        return former
    if store.begun(step.kind, step.key):
        return StepStatus(step, Action.RESUME, "stopped before its end")
    if before is None:
        return StepStatus(step, Action.RUN, "new step" if ran_before else "not in the store yet")
    changes = step_changes(before, step) if before.key != step.key else []
    return StepStatus(step, Action.RUN, "; ".join(changes) or "not in the store yet")


def _former_status(step: Step, store: Store) -> StepStatus | None:
    """What an older program kept of a step under another key: a run takes it over."""
    if store.find(step.kind, step.former) is not None:
        return StepStatus(step, Action.REUSE, "in the store, under the key that it had before")
    if store.begun(step.kind, step.former):
        return StepStatus(step, Action.RESUME, "stopped before its end, under the key that it had before")
    return None
