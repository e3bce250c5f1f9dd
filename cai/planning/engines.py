"""Which engine does which step, and whether it can: its methods, its formats, its launcher."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from cai.engines import ENGINES, EngineKind, snapshots
from cai.engines.methods import method_of
from cai.errors import PlanError, Problem, did_you_mean
from cai.experiment.model import Experiment
from cai.launchers.settings import Local, Slurm
from cai.plan import Plan
from cai.stages.base import EngineSpec, StageSpec

Where = Callable[[str], str]


@dataclass(frozen=True)
class PlanEngine:
    """An engine of a plan: ``label`` is its name among the plan's ``engines``, empty for the experiment's own."""

    label: str
    block: Mapping[str, Any]
    kind: EngineKind
    settings: Any

    @property
    def name(self) -> str:
        """Its kind's name."""
        return str(self.block["kind"])

    def plan_block(self) -> dict[str, Any]:
        """The block that the plan holds: the settings, and what the engine will use on this machine."""
        return {**self.block, "uses": dict(self.kind.describe(self.settings))}


def open_engine(label: str, block: Mapping[str, Any]) -> PlanEngine:
    """An engine from its checked block."""
    kind = ENGINES[block["kind"]]
    settings = kind.settings.model_validate({name: value for name, value in block.items() if name != "kind"})
    return PlanEngine(label, block, kind, settings)


class PlanEngines:
    """The engines of an experiment, each opened when a stage first names it."""

    def __init__(self, experiment: Experiment) -> None:
        self._experiment = experiment
        self.own = open_engine("", experiment.engine)
        self._by_label: dict[str, PlanEngine] = {"": self.own}

    def of(self, spec: StageSpec) -> PlanEngine | None:
        """The engine of a stage; None when it names one that is not there."""
        label = spec.engine if isinstance(spec, EngineSpec) else ""
        if label == self.own.name and label not in self._experiment.engines:
            label = ""
        if label not in self._by_label:
            if label in self._experiment.engines:
                self._by_label[label] = open_engine(label, self._experiment.engines[label])
            elif label in ENGINES:
                defaults = ENGINES[label].settings().model_dump(mode="json")
                self._by_label[label] = open_engine(label, {"kind": label, **defaults})
            else:
                return None
        return self._by_label[label]

    def unknown(self, spec: StageSpec) -> tuple[str, str]:
        """What is wrong with the engine that a stage names, and what to do."""
        label = spec.engine if isinstance(spec, EngineSpec) else ""
        return f"no engine is called '{label}'", did_you_mean(label, [*self._experiment.engines, *ENGINES])

    def blocks(self) -> dict[str, dict[str, Any]]:
        """The plan's ``engines``: those that a stage has named, beside the experiment's own."""
        return {label: engine.plan_block() for label, engine in self._by_label.items() if label}

    def check(self, plan: Plan, where: Where) -> Plan:
        """Ask every engine what it says of its steps; the plan with their notes.

        Raises:
            PlanError: with every problem found.
        """
        problems: list[Problem] = []
        notes: dict[str, list[str]] = {}
        for label, engine in self._by_label.items():
            problems += _launcher_problems(engine, self.own, where)
            engine_plan = plan.seen_by(label)
            unkept = snapshots.problems(engine_plan, where)
            if not engine.kind.snapshots:
                unkept = snapshots.refused(engine_plan, engine.name, where)
            if unkept:
                problems += unkept
                continue  # the engine's own checks read settings that have no snapshots
            checked = engine.kind.check(engine.settings, engine_plan, _block_where(label, where))
            problems += checked.problems
            for step, lines in checked.notes.items():
                notes.setdefault(step, []).extend(lines)
        if problems:
            raise PlanError(dict.fromkeys(problems))
        steps = (replace(step, notes=[*step.notes, *notes.get(step.name, [])]) for step in plan.steps)
        return replace(plan, steps=tuple(steps))


def method_problem(engine: PlanEngine, kind: str) -> tuple[str, str] | None:
    """Why an engine cannot do a stage of some kind, and what could; None where it can."""
    method = method_of(kind)
    if method is None or method.name in engine.kind.methods:
        return None
    able = [name for name, engine_kind in ENGINES.items() if method.name in engine_kind.methods]
    hint = f"name one that does: engine: {' or '.join(able)}" if able else ""
    return f"engine {engine.name} does not train by {method.name}, only by {', '.join(engine.kind.methods)}", hint


def _launcher_problems(engine: PlanEngine, own: PlanEngine, where: Where) -> Iterator[Problem]:
    """The plan as a whole goes where the experiment's own engine goes."""
    launcher = engine.kind.launcher(engine.settings)
    if isinstance(launcher, Slurm) and isinstance(own.kind.launcher(own.settings), Local):
        path = f"engines.{engine.label}.launcher"
        hint = "make it the experiment's `engine`, and name the local one in the stages that run here"
        yield Problem(where(path), "is a cluster's, but the experiment's own engine runs on this machine", hint)


def _block_where(label: str, where: Where) -> Where:
    """Where the fields of an engine's block are: below ``engine``, or below its name in ``engines``."""
    if not label:
        return where
    return lambda path: where(f"engines.{label}{path.removeprefix('engine')}" if path.startswith("engine") else path)
