"""Sets of principles: what a preset, or explicit sets, make of one constitution. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from cai.constitution.model import Constitution
from cai.constitution.resolve import matching
from cai.errors import Problem, SpecError, did_you_mean
from cai.identity import rendezvous_order
from cai.sweep.settings import SweepSpec

VariationKind = Literal["whole", "without", "only", "first", "set"]


@dataclass(frozen=True, slots=True)
class Variation:
    """One set of principles. ``ids`` are those kept, in the order of the file; ``name`` what a person calls it.

    ``principle`` is the one that is left out or alone, ``draw`` the number of the random order.
    """

    kind: VariationKind
    name: str
    ids: tuple[str, ...]
    principle: str = ""
    draw: int = 0


def variations(spec: SweepSpec, constitution: Constitution, seed: int) -> list[Variation]:
    """The sets of principles of one constitution, each once; ``seed`` is the experiment's.

    Raises:
        SpecError: when a set matches nothing, or a preset cannot be made of so few principles.
    """
    makers = {"": _sets, "one_principle_at_a_time": _alone, "leave_one_out": _without, "nested_subsets": _nested}
    candidates = list(makers[spec.preset](spec, constitution, seed))
    ids = tuple(p.id for p in constitution.active)
    if spec.whole and spec.preset != "nested_subsets" and all(len(v.ids) < len(ids) for v in candidates):
        candidates.insert(0, Variation("whole", "whole", ids))
    once: dict[tuple[str, ...], Variation] = {}
    for variation in candidates:
        once.setdefault(variation.ids, variation)
    return list(once.values())


def _alone(spec: SweepSpec, constitution: Constitution, seed: int) -> Iterator[Variation]:
    for p in constitution.active:
        yield Variation("only", f"only {p.id}", (p.id,), p.id)


def _without(spec: SweepSpec, constitution: Constitution, seed: int) -> Iterator[Variation]:
    ids = [p.id for p in constitution.active]
    if len(ids) < 2:
        message = f"'{constitution.name}' has {len(ids)} principle: without it nothing is left"
        raise SpecError(Problem("sweep.preset", message, "take a constitution with two or more"))
    for left_out in ids:
        yield Variation("without", f"without {left_out}", tuple(i for i in ids if i != left_out), left_out)


def _nested(spec: SweepSpec, constitution: Constitution, seed: int) -> Iterator[Variation]:
    ids = [p.id for p in constitution.active]
    sizes = sorted({size for size in spec.sizes if size < len(ids)})
    # The largest set is the whole constitution wherever a size reaches it, and always when `whole` asks for it.
    if spec.whole or max(spec.sizes) >= len(ids):
        sizes.append(len(ids))
    for draw in range(spec.draws):
        order = ids
        if spec.order == "random":
            order = rendezvous_order(seed, str(draw), "sweep/nested", [(i, 1.0) for i in ids])
        for size in sizes:
            chosen = set(order[:size])
            chosen_ids = tuple(i for i in ids if i in chosen)
            if size == len(ids):
                yield Variation("whole", "whole", chosen_ids)
            else:
                label = f"{size} principle{'s' * (size > 1)}" + (f", draw {draw}" if spec.draws > 1 else "")
                yield Variation("first", label, chosen_ids, draw=draw)


def _sets(spec: SweepSpec, constitution: Constitution, seed: int) -> Iterator[Variation]:
    ids = [p.id for p in constitution.active]
    for name, selectors in spec.sets.items():
        chosen: set[str] = set()
        for selector in selectors:
            matched = matching(selector, constitution.active)
            if not matched:
                valid_selectors = {*ids, *(f"tag:{t}" for p in constitution.active for t in p.tags)}
                message = f"'{selector}' matches no principle of '{constitution.name}'"
                raise SpecError(Problem(f"sweep.sets.{name}", message, did_you_mean(selector, valid_selectors)))
            chosen |= matched
        yield Variation("set", name, tuple(i for i in ids if i in chosen))


def varied(raw: Mapping[str, Any], variation: Variation, ids: Sequence[str]) -> tuple[dict[str, Any], str]:
    """The constitution's data with only these principles, and the override that says the same on a command line.

    ``ids`` are all that can be drawn. What is left out is named where that is shorter than what is kept.
    """
    gone = [i for i in ids if i not in set(variation.ids)]
    if not gone:
        return dict(raw), ""
    field, names = "include", list(variation.ids)
    if variation.kind == "without":
        before = raw.get("exclude") or []
        field, names = "exclude", [*([before] if isinstance(before, str) else before), *gone]
    quoted = ",".join(_quoted(name) for name in names)
    return {**raw, field: names}, f"constitution.{field}=[{quoted}]"


def _quoted(name: str) -> str:
    """A selector as Hydra's grammar reads it: quoted unless it is a plain word."""
    plain = name.replace("-", "").replace("_", "").isalpha() and name.lower() not in ("true", "false", "null", "nan")
    return name if plain else f'"{name}"'
