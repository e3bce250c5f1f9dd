"""What a step's key is the hash of, from what its plan holds: the spec, the frozen texts, the inputs and the engine.

Planning makes keys by it, and whoever runs a plan makes them again: a plan's file is checked, not believed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from cai.constitution import Constitution
from cai.identity import text_digest
from cai.plan import Ingredients, Input, InputKeys, Names, by_role
from cai.planning.engines import PlanEngine
from cai.stages.base import EngineSpec, StageSpec


def stage_ingredients(
    spec: StageSpec, semantic: Mapping[str, Any], resources: Mapping[str, Any], constitution: Constitution | None
) -> Ingredients:
    """What counts of a stage by itself: of its spec (``semantic``, by ``take_apart``), and of its texts."""
    principles = None
    if spec.PRINCIPLE_FIELDS and constitution is not None:
        principles = {"principles": constitution.identity(spec.PRINCIPLE_FIELDS)}
    template, templates, texts = (resources.get(name) for name in ("template", "templates", "texts"))
    return Ingredients(
        spec={name: value for name, value in semantic.items() if name != "kind"},
        constitution=principles,
        template=text_digest(template["text"]) if template else None,
        templates={label: text_digest(own["text"]) for label, own in templates.items()} if templates else None,
        texts={name: text_digest(text) for name, text in texts.items()} if texts else None,
    )


def complete(
    ingredients: Ingredients,
    spec: StageSpec,
    name: str,
    inputs: tuple[Input, ...],
    *,
    keys: Mapping[str, str],
    engine: PlanEngine,
    seed: int,
) -> Ingredients:
    """The ingredients of step ``name`` with what all kinds of steps have; ``keys`` are those of the steps before it."""
    steps_by_role = by_role(inputs)
    identity: dict[str, Any] | None = None
    if isinstance(spec, EngineSpec):
        decides = engine.kind.identity(engine.settings, spec.kind, name, steps_by_role)
        identity = {"kind": engine.name, **decides}
    return replace(
        ingredients,
        kind=spec.kind,
        version=spec.VERSION,
        inputs={role: _keys(keys, names) for role, names in steps_by_role.items()} if inputs else None,
        engine=identity,
        seed=seed if spec.kind not in ("fetch", "read", "decontaminate") else None,
    )


def former_key(
    step_ingredients: Ingredients,
    inputs: tuple[Input, ...],
    *,
    keys: Mapping[str, str],
    former: Mapping[str, str],
    model: Mapping[str, Any] | None = None,
) -> str:
    """The key of a step while the address of a model behind an API counted; empty where it is what it was.

    ``step_ingredients`` are complete. ``former`` has the steps before it that had another key then, ``model`` what
    counted of the model that the step fetches.
    """
    if model is not None:
        return replace(step_ingredients, model=model).key()
    if not any(entry.step in former for entry in inputs):
        return ""
    then = {**keys, **former}
    read = {role: _keys(then, names) for role, names in by_role(inputs).items()}
    return replace(step_ingredients, inputs=read).key()


def _keys(keys: Mapping[str, str], names: Names) -> InputKeys:
    if isinstance(names, str):
        return keys[names]
    if isinstance(names, dict):
        # Pairs, not a mapping: the order of the labels decides what is compared with what.
        return [[label, keys[name]] for label, name in names.items()]
    return [keys[name] for name in names]
