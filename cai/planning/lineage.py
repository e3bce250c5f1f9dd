"""Which parts of which data sources reach a step through others: what it trains on, or what it evaluates on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from cai.engines.methods import method_of
from cai.plan import Input, Step
from cai.stages import KINDS
from cai.stages.base import IS_A

_NO_ROWS = frozenset({"model", "reward_model", "evaluation"})
_NOTHING: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class RowOrigin:
    """A step that reads data, of which rows reach another.

    On the way those are left out that ask nearly what the steps ``apart`` read, and those whose first question is one
    of the steps ``held_out``.
    """

    read_step: str
    apart: frozenset[str] = _NOTHING
    held_out: frozenset[str] = _NOTHING


@dataclass(frozen=True, slots=True)
class EvaluatedPart:
    """A part of a data source that an evaluation's set is made of: ``place`` is the set's field in the experiment.

    ``limit`` is how many of its first rows are used; None for all.
    """

    place: str
    read_step: str
    limit: int | None


def trained_inputs(step: Step, steps: Mapping[str, Step]) -> Iterator[Input]:
    """The inputs of whose rows a step learns; none of a step that trains nothing."""
    if method_of(step.kind) is not None:
        yield from _row_inputs(step, steps)


def origins(name: str, steps: Mapping[str, Step]) -> set[RowOrigin]:
    """The reads whose rows reach a step that makes rows, each with what is left out on the way."""
    step = steps[name]
    if step.kind == "read":
        return {RowOrigin(name)}
    against = _reads(step, "against", steps) if step.kind == "decontaminate" else _NOTHING
    held_out = _reads(step, "held_out", steps) if step.kind == "mix" else _NOTHING
    return {
        replace(origin, apart=origin.apart | against, held_out=origin.held_out | held_out)
        for entry in _row_inputs(step, steps)
        for origin in origins(entry.step, steps)
    }


def bound_for_training(step: Step, steps: Mapping[str, Step]) -> list[tuple[Input, RowOrigin]]:
    """The inputs that a step reads from data, where some training learns of what it makes of them: each with all that
    is left out on one way or another."""
    ways = [
        origin
        for training in steps.values()
        for entry in trained_inputs(training, steps)
        if _reaches(step.name, entry.step, steps)
        for origin in origins(entry.step, steps)
    ]
    bound: list[tuple[Input, RowOrigin]] = []
    for entry in _row_inputs(step, steps):
        own = [origin for origin in ways if origin.read_step == entry.step]
        if own and steps[entry.step].kind == "read":
            apart = frozenset(name for origin in own for name in origin.apart)
            held_out = frozenset(name for origin in own for name in origin.held_out)
            bound.append((entry, RowOrigin(entry.step, apart, held_out)))
    return bound


def evaluated_parts(steps: Mapping[str, Step]) -> list[EvaluatedPart]:
    """What all evaluations of a plan ask and compare, but for sets that are ``seen`` by intent, and mixes.

    Of a mix its own validation part is used, which it has held apart.
    """
    parts: dict[EvaluatedPart, None] = {}
    for step in steps.values():
        if step.kind != "evaluate":
            continue
        for entry in step.inputs:
            if entry.role not in ("prompts", "comparisons") or entry.label in step.spec.get("seen", ()):
                continue
            limit = step.spec.get("limit") if entry.role == "prompts" and steps[entry.step].kind == "read" else None
            for read_step in sorted(_unmixed(entry.step, steps)):
                parts[EvaluatedPart(f"{step.name}.{entry.role}.{entry.label}", read_step, limit)] = None
    return list(parts)


def split_apart(step: Step, another: Step) -> bool:
    """Whether two steps read different parts of one data source: its split then holds them apart, by whole first
    questions or topics. What people asked again in other words is on both sides of it, as in every such split."""
    if step.kind != "read" or another.kind != "read":
        return False
    return step.spec["part"] != another.spec["part"] and step.ingredients.data == another.ingredients.data


def _row_inputs(step: Step, steps: Mapping[str, Step]) -> Iterator[Input]:
    compared = KINDS[step.kind].spec.ONLY_COMPARED if step.kind in KINDS else ()
    for entry in step.inputs:
        makes = steps[entry.step].makes
        if makes in IS_A and makes not in _NO_ROWS and entry.role not in compared:
            yield entry


def _reaches(name: str, later: str, steps: Mapping[str, Step]) -> bool:
    """Whether rows of a step are among those of a later one."""
    return name == later or any(_reaches(name, entry.step, steps) for entry in _row_inputs(steps[later], steps))


def _reads(step: Step, role: str, steps: Mapping[str, Step]) -> frozenset[str]:
    return frozenset(origin.read_step for name in step.sources(role) for origin in origins(name, steps))


def _unmixed(name: str, steps: Mapping[str, Step]) -> set[str]:
    step = steps[name]
    if step.kind == "mix":
        return set()
    if step.kind == "read":
        return {name}
    return {name for entry in _row_inputs(step, steps) for name in _unmixed(entry.step, steps)}
