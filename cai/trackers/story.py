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
        self._steps = {step.name: step for step in plan.steps}
        self._find = find
        self._last_position: dict[str, int] = {}
        """Prefix of a curve -> position of its last point."""
        self._reused: dict[str, bool] = {}
        """Step that has ended -> whether it was reused."""
        self._sums: Counter[str] = Counter()
        self._began: float | None = None
        self._seconds = 0.0
        """Until the run was last taken up; what has passed since is ``_t - _began``."""
        self._t = 0.0
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
        entries: list[Telling] = []
        if kind == "run.done":  # on a cluster, steps that were there already had no job, and so no event
            for remaining_step in self._steps.values():
                entries += self._end(remaining_step, True, t)
        return entries

    def ending(self, unfinished: str) -> Ending:
        """The run's end as far as the log goes; ``unfinished`` is its status where the log has no end."""
        reused = tuple(name for name, again in self._reused.items() if again)
        sums = {**self._sums, "steps_reused": len(reused), "steps_made": len(self._reused) - len(reused)}
        values = {f"run/{name}": float(total) for name, total in sorted(sums.items())}
        values["run/seconds"] = round(self._seconds + (0.0 if self._began is None else self._t - self._began), 3)
        return Ending(unfinished if self.status == "running" else self.status, values, self._t, reused)

    def _rest(self) -> None:
        """What passes until the run is taken up again is no time of the run's."""
        if self._began is not None:
            self._seconds += self._t - self._began
            self._began = None

    def _end(self, step: Step, reused: bool, t: float) -> list[Telling]:
        if step.name in self._reused:
            return []
        stored = self._find(step)
        if stored is None:
            return []
        self._reused[step.name] = reused
        values, points = step_end(step.name, step.kind, folder=stored.path, record=stored.record, t=t)
        if not reused:
            figures = accounts(stored.record)
            self._sums.update({name: figures[name] for name in ("calls", "tokens", "cost") if figures.get(name)})
        return [*self._rising(points), Figures(step.name, values, reused, t)]

    def _rising(self, points: list[CurvePoint]) -> list[Telling]:
        """Those beyond what has been told: training that goes on from a checkpoint does some steps again."""
        risen: list[Telling] = []
        for point in points:
            if point.position > self._last_position.get(point.prefix, -1):
                self._last_position[point.prefix] = point.position
                risen.append(point)
        return risen


def config_of(plan: Plan) -> dict[str, Scalar]:
    """What decides a run's result, flat: ``stages.sft.training.learning_rate``. Settings of launchers stay out."""
    engine = {"kind": plan.engine.get("kind", ""), **plan.engine.get("uses", {})}
    config: dict[str, Scalar] = {"experiment": plan.experiment, "seed": plan.seed}
    config |= _flat("engine", engine)
    for step in plan.steps:
        if step.kind == "fetch":
            source = {k: step.spec[k] for k in ("source", "revision") if step.spec.get(k)}
            config |= _flat(f"models.{step.name}", source)
        elif step.kind != "read":
            config |= _flat(f"stages.{step.name}", {**step.spec, "kind": step.kind})
        config[f"keys.{step.name}"] = step.key[:16]
    constitutions = [step.resources["constitution"] for step in plan.steps if step.resources.get("constitution")]
    if constitutions:
        principles = constitutions[0].get("principles", [])
        config["constitution.name"] = str(constitutions[0].get("name", ""))
        config["constitution.id"] = text_digest(canonical(principles))[:16]
        config["constitution.principles"] = len(principles)
    return config


def _flat(prefix: str, value: Any) -> dict[str, Scalar]:
    if isinstance(value, Mapping):
        flat: dict[str, Scalar] = {}
        for key, inner in value.items():
            flat |= _flat(f"{prefix}.{key}", inner)
        return flat
    if isinstance(value, list | tuple):
        return {prefix: json.dumps(value, ensure_ascii=False)[:_LONGEST]} if value else {}
    if value is None or value == "":
        return {}
    return {prefix: value[:_LONGEST] if isinstance(value, str) else value}
