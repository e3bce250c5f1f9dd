"""A plan is checked, not believed: what a step is called in the store is derived anew from what the step would do.

A plan's file may come from a stranger, or have been changed by hand. Its keys are names under which artifacts are kept
and found by every later run, so kind, key, what it makes and the seed of every step follow from its spec, its frozen
texts, its inputs and its engine, by the code that made them while planning; a plan that says otherwise is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from cai.constitution import Constitution
from cai.engines import ENGINES
from cai.errors import Problem, SpecError, did_you_mean
from cai.experiment.model import ModelSpec
from cai.files.library import Library
from cai.plan import Ingredients, Plan, Step, inputs_of
from cai.planning.engines import PlanEngine, method_problem, open_engine
from cai.planning.identity import complete, former_key, stage_ingredients
from cai.planning.models import NOT_FETCHED, former_identity, model_identity
from cai.stages.base import StageSpec, fits, take_apart
from cai.stages.fetch import API, FetchSpec, is_local
from cai.stages.read import ReadSpec

AGAIN = "make the plan again"
_DIGEST = re.compile(r"[0-9a-f]{64}")


def differences(plan: Plan, specs: Mapping[str, StageSpec]) -> Iterator[Problem]:
    """Where a plan says of a step what does not follow from it. ``specs`` are those of its steps, validated."""
    engines: dict[str, PlanEngine] = {}
    for label, block in {"": plan.engine, **plan.engines}.items():
        try:
            engines[label] = planned_engine(label, block)
        except SpecError as error:
            yield from error.problems
    if len(engines) <= len(plan.engines):
        return
    keys: dict[str, str] = {}
    makes: dict[str, str] = {}
    former: dict[str, str] = {}
    for step in plan.steps:
        where, spec, engine = f"plan: {step.name}", specs[step.name], engines[step.engine]
        try:
            own = own_ingredients(step, spec, engine, makes)
            ingredients = complete(own, spec, step.name, step.inputs, keys=keys, engine=engine, seed=plan.seed)
            made = spec.makes({entry.place: makes[entry.step] for entry in step.inputs})
        except SpecError as error:
            yield from (Problem(f"{where}.{problem.where}", problem.message, AGAIN) for problem in error.problems)
            keys[step.name], makes[step.name] = step.key, step.makes
            continue
        keys[step.name], makes[step.name] = ingredients.key(), step.makes
        if step.seed != plan.seed:
            yield Problem(f"{where}.seed", f"is {step.seed}, and the plan's is {plan.seed}", AGAIN)
        if made != step.makes:
            yield Problem(f"{where}.makes", f"is {step.makes!r}, but such a step makes {made!r}", AGAIN)
        if keys[step.name] != step.key:
            yield Problem(f"{where}.key", _difference(step.ingredients, ingredients), AGAIN)
            keys[step.name] = step.key  # told once, not again for every step after it
        # What an older program kept under another key is taken over, so that key is derived as well.
        then = former_key(ingredients, step.inputs, keys=keys, former=former, model=former_model(spec, ingredients))
        if step.former and step.former != then:
            yield Problem(f"{where}.former", "is not the key that an older program gave such a step", AGAIN)
        elif step.former:
            former[step.name] = then
        if lacking := method_problem(engine, spec.kind):
            yield Problem(where, *lacking)


def planned_engine(label: str, block: Mapping[str, Any]) -> PlanEngine:
    """The engine of a plan's block.

    Raises:
        SpecError: when there is no such engine, or it has other settings.
    """
    where = f"plan: engines.{label}" if label else "plan: engine"
    kind = block.get("kind")
    if kind not in ENGINES:
        raise SpecError(Problem(f"{where}.kind", f"unknown engine {kind!r}", did_you_mean(str(kind), ENGINES)))
    try:
        return open_engine(label, {name: value for name, value in block.items() if name != "uses"})
    except ValidationError as error:
        details = error.errors(include_url=False)
        raise SpecError(
            Problem(".".join(map(str, (where, *detail["loc"]))), detail["msg"], AGAIN) for detail in details
        ) from error


def own_ingredients(step: Step, spec: StageSpec, engine: PlanEngine, makes: Mapping[str, str]) -> Ingredients:
    """What counts of a step by itself; ``makes`` is what the steps before it make.

    Raises:
        SpecError: when the step's inputs and frozen texts are not those that its spec names.
    """
    if isinstance(spec, FetchSpec):
        return _model(step, spec, engine)
    if isinstance(spec, ReadSpec):
        if not spec.identity:
            raise SpecError(Problem("spec.identity", "says nothing of the data"))
        return Ingredients(data=spec.identity, part=spec.part)
    parts = take_apart(spec)
    places = [(entry.role, entry.label) for entry in inputs_of(parts.inputs)]
    if places != [(entry.role, entry.label) for entry in step.inputs]:
        raise SpecError(Problem("inputs", "are not those that its spec names"))
    frozen = step.resources
    for entry in step.inputs:
        made, wants = makes[entry.step], parts.wants[entry.role]
        if not fits(made, wants):
            raise SpecError(
                Problem(f"inputs.{entry.role}", f"wants {' or '.join(wants)}, and '{entry.step}' makes {made}")
            )
    for name, needed in (("constitution", spec.PRINCIPLE_FIELDS), ("template", spec.USES_TEMPLATE)):
        if needed and name not in frozen:
            raise SpecError(Problem(f"resources.{name}", "is missing"))
    if parts.texts.keys() != frozen.get("texts", {}).keys():
        raise SpecError(Problem("resources.texts", "are not those that its spec names"))
    constitution = None
    if spec.PRINCIPLE_FIELDS:
        constitution = Constitution.from_json(frozen["constitution"], "resources.constitution")
    return stage_ingredients(spec, parts.semantic, frozen, constitution)


def _model(step: Step, spec: FetchSpec, engine: PlanEngine) -> Ingredients:
    """What counts of a model. The digest of a file without one in its spec is the plan's to say: fetching checks it."""
    planned = dict(step.ingredients.model or {})
    digest = str(planned.get("sha256", ""))
    local = is_local(spec.source) or (spec.source.startswith("hf:") and not spec.revision)
    if local and not spec.sha256 and planned.keys() == {"sha256"} and _DIGEST.fullmatch(digest):
        identity: dict[str, Any] = planned
    else:
        model = _model_of(spec)
        identity = model_identity(model, engine, Library.here(), "spec")
        # A plan that was written while the address counted goes on under its own keys.
        if planned == former_identity(model):
            identity = planned
    served = spec.source.startswith("api:")
    return Ingredients(model=identity, format=None if served else engine.kind.model_format or None)


def _model_of(spec: FetchSpec) -> ModelSpec:
    try:
        return ModelSpec.model_validate(spec.model_dump(exclude={"kind", *NOT_FETCHED}))
    except ValidationError as error:
        message = error.errors(include_url=False)[0]["msg"]
        raise SpecError(Problem("spec", message)) from error


def former_model(spec: StageSpec, ingredients: Ingredients) -> dict[str, Any] | None:
    """What counted of a fetched model while its address did, where that is not what counts in this plan."""
    if not isinstance(spec, FetchSpec) or not spec.source.startswith(API):
        return None
    then = former_identity(_model_of(spec))
    return None if then == ingredients.model else then


def _difference(said: Ingredients, derived: Ingredients) -> str:
    """Which ingredients are others than what the step would do."""
    claimed, real = said.to_json(), derived.to_json()
    if claimed.get("version") != real["version"] and claimed.get("kind") == real["kind"]:
        return "was made by another version of this program"
    differ = [name for name in {**real, **claimed} if claimed.get(name) != real.get(name)]
    planned, here = claimed.get("engine"), real.get("engine")
    if differ == ["engine"] and isinstance(planned, Mapping) and isinstance(here, Mapping):
        # Most often the plan of another machine, where ``auto`` was something else.
        fields = (name for name in {**here, **planned} if planned.get(name) != here.get(name))
        differ = [
            f"engine.{name} was planned as {planned.get(name)!r} and is {here.get(name)!r} here" for name in fields
        ]
    return f"is not that of what the step would do ({', '.join(differ) or 'its hash'})"
