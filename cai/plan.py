"""The plan: steps in order, each frozen with its identity. Pure data; opens no file and starts nothing."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from cai.errors import Problem, SpecError

FORMAT = 1

Names = str | list[str] | dict[str, str]
"""The steps of one role as a plan's file has them: one, several in order, or several by label."""


@dataclass(frozen=True, slots=True)
class Input:
    """A step that another one reads, in one of its roles.

    ``label`` tells apart the steps of a role that has several: their names in a mapping, or their places in a list.
    """

    role: str
    label: str | int | None
    step: str


def inputs_of(steps_by_role: Mapping[str, Names]) -> tuple[Input, ...]:
    """The inputs that a plan's file has, by role."""
    inputs: list[Input] = []
    for role, names in steps_by_role.items():
        if isinstance(names, str):
            inputs.append(Input(role, None, names))
        else:
            labelled = names.items() if isinstance(names, Mapping) else enumerate(names)
            inputs += [Input(role, label, name) for label, name in labelled]
    return tuple(inputs)


def by_role(inputs: Iterable[Input]) -> dict[str, Names]:
    """The inverse of ``inputs_of``."""
    steps_by_role: dict[str, Names] = {}
    for entry in inputs:
        if entry.label is None:
            steps_by_role[entry.role] = entry.step
        elif isinstance(entry.label, int):
            places = steps_by_role.setdefault(entry.role, [])
            assert isinstance(places, list)
            places.append(entry.step)
        else:
            labels = steps_by_role.setdefault(entry.role, {})
            assert isinstance(labels, dict)
            labels[entry.label] = entry.step
    return steps_by_role


@dataclass(frozen=True)
class Step:
    """One stage in one plan, resolved.

    ``key`` is the hash of ``ingredients`` (64 hexadecimal digits). ``inputs`` names the steps that make each role's
    artifacts. ``spec`` is the whole stage spec, runtime fields included. ``resources`` holds what the work reads
    besides its inputs, frozen: ``constitution`` (plain data), ``template`` ({name, text}), ``texts`` (field -> text).
    ``engine`` names one of the plan's ``engines``; empty: the plan's own.
    """

    name: str
    kind: str
    makes: str
    key: str
    seed: int
    inputs: tuple[Input, ...] = ()
    spec: dict[str, Any] = field(default_factory=dict)
    resources: dict[str, Any] = field(default_factory=dict)
    ingredients: dict[str, Any] = field(default_factory=dict)
    estimate: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    engine: str = ""

    def needs(self) -> list[str]:
        """Names of the steps this one reads, each once, in order."""
        return list(dict.fromkeys(entry.step for entry in self.inputs))

    def sources(self, role: str) -> tuple[str, ...]:
        """Names of the steps of a role, in order; none where the step has no such role."""
        return tuple(entry.step for entry in self.inputs if entry.role == role)

    def source(self, role: str) -> str | None:
        """Name of the step of a role that has exactly one; None of any other."""
        return next((entry.step for entry in self.inputs if entry.role == role and entry.label is None), None)


@dataclass(frozen=True)
class Plan:
    """The steps of one experiment in an order in which they can run."""

    experiment: str
    seed: int
    engine: dict[str, Any]
    steps: tuple[Step, ...]
    source: dict[str, Any] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)
    engines: dict[str, dict[str, Any]] = field(default_factory=dict)

    def engine_of(self, step: Step) -> dict[str, Any]:
        """The engine block of the engine that a step works with."""
        return self.engines[step.engine] if step.engine else self.engine

    def seen_by(self, name: str) -> Plan:
        """The plan as one of its engines sees it: its block is the plan's own, and other engines' steps name theirs."""
        if not name:
            return self
        steps = tuple(replace(step, engine="" if step.engine == name else step.engine or "plan") for step in self.steps)
        return replace(self, engine=self.engines[name], steps=steps)

    def step(self, name: str) -> Step:
        """The step of that name.

        Raises:
            KeyError: when the plan has none.
        """
        for step in self.steps:
            if step.name == name:
                return step
        raise KeyError(name)

    def to_json(self) -> str:
        """The plan as JSON text, stable: the same plan gives the same bytes."""
        data = {"format": FORMAT, **asdict(self)}
        # Plans with one engine are written as they were before there could be several.
        for step, written in zip(self.steps, data["steps"], strict=True):
            written["inputs"] = by_role(step.inputs)
        for part in (data, *data["steps"]):
            for name in ("engine", "engines"):
                if not part.get(name, True):
                    del part[name]
        return json.dumps(data, indent=1, sort_keys=False, ensure_ascii=False) + "\n"


def plan_from_json(text: str, where: str = "plan") -> Plan:
    """Read a plan back.

    Raises:
        SpecError: when the text is no plan, or one of another format.
    """
    try:
        raw = json.loads(text)
        if not isinstance(raw, Mapping) or raw.get("format") != FORMAT:
            raise SpecError(Problem(where, f"not a plan of format {FORMAT}", "make one with `plan --out FILE`"))
        data = {k: v for k, v in raw.items() if k != "format"}
        steps = tuple(Step(**{**step, "inputs": inputs_of(step.get("inputs", {}))}) for step in data.pop("steps"))
        return Plan(steps=steps, **data)
    except (ValueError, TypeError, KeyError) as error:
        raise SpecError(
            Problem(where, f"cannot be read as a plan ({error})", "make one with `plan --out FILE`")
        ) from error
