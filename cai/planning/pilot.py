"""The steps of a plan that a pilot does on their first rows, so that what all rows will cost is measured.

Only models behind an API are asked. Whatever else makes an input (a training, a model of this machine) must be in the
store: then it is read whole, and the first rows of it are those that the run will ask about first.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass, replace
from typing import Any

from cai.identity import key_of
from cai.plan import Plan, Step
from cai.planning.endpoints import ANSWERING
from cai.stages.fetch import API

LIMITS = ("limit", "labelled_limit", "adherence_limit")
"""Fields of the stages that ask a model which say how many rows they take."""
MIXING = frozenset({"mix", "decontaminate"})
"""Kinds that only choose among rows."""
_CHEAP = frozenset({"read"}) | MIXING
"""Kinds that are done as in a run, for those that read what they make."""
_MODELS = ("model", "models", "adherence", "reward")


@dataclass(frozen=True, slots=True)
class PilotPlan:
    """``plan`` has the limited steps in the place of the plan's own; ``builds`` are to be made, in this order.

    ``measures`` are the steps that ask a model behind an API; ``unmeasured`` are those that a pilot cannot do, and why.
    """

    plan: Plan
    builds: tuple[str, ...]
    measures: tuple[str, ...]
    unmeasured: dict[str, str]


def pilot_plan(plan: Plan, rows: int, stored: Container[str]) -> PilotPlan:
    """The pilot of a plan on so many rows; ``stored`` are the steps whose artifacts are there."""
    blocked: dict[str, str] = {}
    limited: dict[str, Step] = {}
    unmeasured: dict[str, str] = {}
    for step in plan.steps:
        if step.name in stored or is_api(step) or step.kind == "read":
            continue
        lacking = next((name for name in step.needs() if name in blocked), "")
        here = next(_models_here(plan, step), "")
        if _asks_api(plan, step) and not lacking and not here:
            limited[step.name] = _limited(step, rows)
        elif _asks_api(plan, step):
            blocked[step.name] = blocked.get(lacking, step.name)
            why = f"needs '{blocked[lacking]}', which a pilot does not make" if lacking else f"asks '{here}' here too"
            unmeasured[step.name] = f"{why}: run it first" if lacking else why
        elif lacking or step.kind not in _CHEAP:
            blocked[step.name] = blocked.get(lacking, step.name)
    steps = tuple(limited.get(step.name) or _anew(step, rows) for step in plan.steps)
    needed = set(limited)
    for step in reversed(plan.steps):
        if step.name in needed and step.name not in stored:
            needed |= set(step.needs())
    builds = tuple(step.name for step in plan.steps if step.name in needed and step.name not in stored)
    return PilotPlan(replace(plan, steps=steps), builds, tuple(limited), unmeasured)


def is_api(step: Step) -> bool:
    """Whether a step fetches a model behind an API."""
    return step.kind == "fetch" and str(step.spec.get("source", "")).startswith(API)


def _asks_api(plan: Plan, step: Step) -> bool:
    return step.kind in ANSWERING and any(is_api(plan.step(name)) for name in step.needs())


def _models_here(plan: Plan, step: Step) -> Iterator[str]:
    """The models of a step that are not behind an API."""
    for entry in step.inputs:
        if entry.role in _MODELS and not is_api(plan.step(entry.step)):
            yield entry.step


def _limited(step: Step, rows: int) -> Step:
    """The step on its first rows, by one process, however many of them are dropped, and however its judge judges: these
    are too few to tell."""
    spec: dict[str, Any] = dict(step.spec)
    spec |= {name: min(rows, spec[name] or rows) for name in LIMITS if name in spec}
    whole = {"shards": 1, "max_drop_rate": 1.0, "uncalibrated": True}
    spec |= {name: value for name, value in whole.items() if name in spec}
    return replace(step, spec=spec, key=_pilot_key(step, rows), former="")


def _anew(step: Step, rows: int) -> Step:
    """A mix of limited rows is another one than the plan's."""
    return replace(step, key=_pilot_key(step, rows), former="") if step.kind in MIXING else step


def _pilot_key(step: Step, rows: int) -> str:
    return key_of({"pilot": rows, "step": step.key})
