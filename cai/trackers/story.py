"""A run's event log, folded into what trackers are told. The same log tells the same, however often it is read."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from cai.identity import canonical, text_digest
from cai.plan import Plan, Step
from cai.store.artifacts import Stored
from cai.trackers.base import CurvePoint, Ending, Figures, Scalar, Telling, number
from cai.trackers.figures import accounts, point_of, step_end

Find = Callable[[Step], Stored | None]

_ENDS = {"run.done": "done", "run.failed": "failed", "run.incomplete": "incomplete", "run.cancelled": "incomplete"}
_LONGEST = 500
"""Characters of one value of the config; older MLflow servers take no more."""


class Story:
    """What has happened so far. ``find`` looks a step's artifact up in the store."""

    def __init__(self, plan: Plan, find: Find) -> None:
        self._steps, self._find = {step.name: step for step in plan.steps}, find
        self._at: dict[str, int] = {}
        self._done: dict[str, bool] = {}
        """Step -> whether it was reused."""
        self._sums: Counter[str] = Counter()
        self._began: float | None = None
        self._seconds, self._t = 0.0, 0.0
        self.status = "running"

    def take(self, event: Mapping[str, Any]) -> list[Telling]:
        """What the next event of the log tells."""
        kind, t = str(event.get("event", "")), number(event.get("t")) or self._t
        if self._began is None or kind == "run.started":
            self._rest()
            self._began = t
        self._t = t
        step = self._steps.get(str(event.get("step", "")))
        if kind == "step.done" and step is not None:
            return self._end(step, bool(event.get("reused")), t)
        if step is not None and isinstance(event.get("data"), Mapping):
            point = point_of(step.name, event["data"], t)
            return self._rising([point]) if point is not None else []
        if kind == "run.started":
            self.status = "running"
        if kind not in _ENDS:
            return []
        self.status = _ENDS[kind]
        self._rest()
        told: list[Telling] = []
        if kind == "run.done":  # on a cluster, steps that were there already had no job, and so no event
            for left in self._steps.values():
                told += self._end(left, True, t)
        return told

    def ending(self, unfinished: str) -> Ending:
        """The run's end as far as the log goes; ``unfinished`` is its status where the log has no end."""
        reused = tuple(name for name, again in self._done.items() if again)
        sums = {**self._sums, "steps_reused": len(reused), "steps_made": len(self._done) - len(reused)}
        values = {f"run/{name}": float(total) for name, total in sorted(sums.items())}
        values["run/seconds"] = round(self._seconds + (0.0 if self._began is None else self._t - self._began), 3)
        return Ending(unfinished if self.status == "running" else self.status, values, self._t, reused)

    def _rest(self) -> None:
        """What passes until the run is taken up again is no time of the run's."""
        if self._began is not None:
            self._seconds += self._t - self._began
            self._began = None

    def _end(self, step: Step, reused: bool, t: float) -> list[Telling]:
        if step.name in self._done:
            return []
        stored = self._find(step)
        if stored is None:
            return []
        self._done[step.name] = reused
        values, points = step_end(step.name, step.kind, stored.path, stored.record, t)
        if not reused:
            told = accounts(stored.record)
            self._sums.update({name: told[name] for name in ("calls", "tokens", "cost") if told.get(name)})
        return [*self._rising(points), Figures(step.name, values, reused, t)]

    def _rising(self, points: list[CurvePoint]) -> list[Telling]:
        """Those beyond what has been told: training that goes on from a checkpoint does some steps again."""
        told: list[Telling] = []
        for point in points:
            if point.at > self._at.get(point.prefix, -1):
                self._at[point.prefix] = point.at
                told.append(point)
        return told


def config_of(plan: Plan) -> dict[str, Scalar]:
    """What decides a run's result, flat: ``stages.sft.training.learning_rate``. Settings of launchers stay out."""
    engine = {"kind": plan.engine.get("kind", ""), **plan.engine.get("uses", {})}
    found: dict[str, Scalar] = {"experiment": plan.experiment, "seed": plan.seed}
    _flatten("engine", engine, found)
    for step in plan.steps:
        if step.kind == "fetch":
            _flatten(
                f"models.{step.name}", {k: step.spec[k] for k in ("source", "revision") if step.spec.get(k)}, found
            )
        elif step.kind != "read":
            _flatten(f"stages.{step.name}", {**step.spec, "kind": step.kind}, found)
        found[f"keys.{step.name}"] = step.key[:16]
    constitutions = [step.resources["constitution"] for step in plan.steps if step.resources.get("constitution")]
    if constitutions:
        principles = constitutions[0].get("principles", [])
        found["constitution.name"] = str(constitutions[0].get("name", ""))
        found["constitution.id"] = text_digest(canonical(principles))[:16]
        found["constitution.principles"] = len(principles)
    return found


def _flatten(prefix: str, value: Any, found: dict[str, Scalar]) -> None:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _flatten(f"{prefix}.{key}", inner, found)
    elif isinstance(value, list | tuple):
        if value:
            found[prefix] = json.dumps(value, ensure_ascii=False)[:_LONGEST]
    elif value is not None and value != "":
        found[prefix] = value[:_LONGEST] if isinstance(value, str) else value
