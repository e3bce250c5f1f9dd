"""The plan: steps in order, each frozen with its identity. Pure data; opens no file and starts nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from cai.errors import Problem, SpecError

FORMAT = 1

Names = str | list[str] | dict[str, str]


@dataclass(frozen=True)
class Step:
    """One stage in one plan, resolved.

    ``key`` is the hash of ``ingredients`` (64 hexadecimal digits). ``inputs`` names the steps that make each role's
    artifacts. ``spec`` is the whole stage spec, runtime fields included. ``resources`` holds what the work reads
    besides its inputs, frozen: ``constitution`` (plain data), ``template`` ({name, text}), ``texts`` (field -> text).
    """

    name: str
    kind: str
    makes: str
    key: str
    seed: int
    inputs: dict[str, Names] = field(default_factory=dict)
    spec: dict[str, Any] = field(default_factory=dict)
    resources: dict[str, Any] = field(default_factory=dict)
    ingredients: dict[str, Any] = field(default_factory=dict)
    estimate: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def needs(self) -> list[str]:
        """Names of the steps this one reads, each once, in order."""
        names: list[str] = []
        for value in self.inputs.values():
            names += [value] if isinstance(value, str) else list(value.values() if isinstance(value, dict) else value)
        return list(dict.fromkeys(names))


@dataclass(frozen=True)
class Plan:
    """The steps of one experiment in an order in which they can run."""

    experiment: str
    seed: int
    engine: dict[str, Any]
    steps: tuple[Step, ...]
    source: dict[str, Any] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)

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
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1, sort_keys=False, ensure_ascii=False) + "\n"


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
        steps = tuple(Step(**s) for s in data.pop("steps"))
        return Plan(steps=steps, **data)
    except (ValueError, TypeError, KeyError) as error:
        raise SpecError(
            Problem(where, f"cannot be read as a plan ({error})", "make one with `plan --out FILE`")
        ) from error
