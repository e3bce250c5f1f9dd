"""A plan that was changed by hand, with the keys that planning would have given it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from cai.plan import plan_from_json
from cai.planning.derivation import former_model, own_ingredients, planned_engine
from cai.planning.identity import complete, former_key
from cai.stages import KINDS


def rekeyed(raw: dict[str, Any]) -> dict[str, Any]:
    """The plan with every step's ingredients and key derived anew."""
    plan = plan_from_json(json.dumps(raw))
    engines = {label: planned_engine(label, block) for label, block in {"": plan.engine, **plan.engines}.items()}
    keys: dict[str, str] = {}
    former: dict[str, str] = {}
    makes: dict[str, str] = {}
    steps = []
    for step in plan.steps:
        spec, engine = KINDS[step.kind].spec.variant(step.spec).model_validate(step.spec), engines[step.engine]
        own = own_ingredients(step, spec, engine, makes)
        ingredients = complete(own, spec, step.name, step.inputs, keys=keys, engine=engine, seed=plan.seed)
        keys[step.name], makes[step.name] = ingredients.key(), step.makes
        then = ""
        if step.former:  # where it had another key once, that one is derived anew as well
            model = former_model(spec, ingredients)
            then = former[step.name] = former_key(ingredients, step.inputs, keys=keys, former=former, model=model)
        steps.append(replace(step, ingredients=ingredients, key=ingredients.key(), former=then))
    derived: dict[str, Any] = json.loads(replace(plan, steps=tuple(steps)).to_json())
    return derived
