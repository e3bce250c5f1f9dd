"""What the embedded engine could not do with a plan's models, told by their passports before anything runs.

A model that is not on this disk yet has none; it is looked at when it is fetched, before any other step.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from cai.engines.base import PlanCheck
from cai.engines.embedded.settings import EmbeddedSettings, Generator, choose
from cai.engines.methods import method_of
from cai.errors import PrerequisiteError, Problem
from cai.models.passport import Passport, passport_of
from cai.models.places import place_of_model
from cai.plan import Plan, Step

GIB = 2**30
_STARTS = ("model", "policy")
"""The roles from which a training step starts: what comes out is of that family."""
_ANSWERS = ("model", "models")
"""The roles of models that are asked for text."""


def check(settings: EmbeddedSettings, plan: Plan, where: Callable[[str], str] = str) -> PlanCheck:
    """Check a plan's steps for this engine. ``where`` turns a field's path into a place in the experiment's files."""
    passports = known_passports(plan)
    problems: list[Problem] = []
    notes: dict[str, list[str]] = {}
    for step in plan.steps:
        models = {entry.place: passports[entry.step] for entry in step.inputs if entry.step in passports}
        if step.engine or step.kind == "fetch" or not models:
            continue
        trains = method_of(step.kind) is not None
        wrong = _untrainable(step, models) if trains else _ungenerable(settings, step, models)
        problems += [Problem(where(f"stages.{step.name}.{p.where}"), p.message, p.next) for p in wrong]
        own_notes = _training_notes(step, models) if trains else _generation_notes(settings, step, models)
        notes[step.name] = list(dict.fromkeys(own_notes))
    return PlanCheck(tuple(problems), notes)


def known_passports(plan: Plan) -> dict[str, Passport]:
    """The passports of a plan's models by step, where they are known: of those fetched, and of what is made of them."""
    passports: dict[str, Passport] = {}
    for step in plan.steps:
        if step.kind == "fetch":
            if (passport := _of_source(step.spec)) is not None:
                passports[step.name] = passport
        elif step.makes in ("model", "reward_model"):
            starts = [entry.step for role in _STARTS for entry in step.inputs if entry.role == role]
            if starts and starts[0] in passports:
                passports[step.name] = passports[starts[0]]
    return passports


def _of_source(spec: Mapping[str, Any]) -> Passport | None:
    source, revision, sha256 = (str(spec.get(name) or "") for name in ("source", "revision", "sha256"))
    place = place_of_model(source, revision, sha256)
    try:
        return None if place is None else passport_of(place)
    except (PrerequisiteError, OSError):
        return None  # told where the model is named, and again when it is fetched


def _untrainable(step: Step, models: Mapping[str, Passport]) -> Iterator[Problem]:
    for role, passport in models.items():
        message, todo = passport.untrainable()
        if message:
            yield Problem(role, message, todo)
    starts = next((models[role] for role in _STARTS if role in models), None)
    answer = _training(step).get("max_tokens")
    if starts is not None and isinstance(answer, int):
        yield from _no_room("training.max_tokens", answer, starts)


def _ungenerable(settings: EmbeddedSettings, step: Step, models: Mapping[str, Passport]) -> Iterator[Problem]:
    for place, passport in _answering(step, models).items():
        for name, sampling in _samplings(step).items():
            yield from _no_room(f"{name}.max_tokens", int(sampling["max_tokens"]), passport)
        reason = passport.unknown_to_openvino()
        if reason and settings.generator is Generator.OPENVINO:
            hint = "set engine.generator to auto or transformers"
            yield Problem(place, f"openvino-genai cannot generate with it: {reason}", hint)


def _no_room(field: str, tokens: int, passport: Passport) -> Iterator[Problem]:
    if passport.context and tokens >= passport.context:
        message = f"{tokens:,} tokens leave no room for a prompt: the model reads {passport.context:,} in all"
        yield Problem(field, message, "ask for fewer")


def _answering(step: Step, models: Mapping[str, Passport]) -> dict[str, Passport]:
    """The models that a step asks for text, by place; none where it only has likelihoods computed."""
    if not _samplings(step):
        return {}
    return {place: passport for place, passport in models.items() if place.partition(".")[0] in _ANSWERS}


def _samplings(step: Step) -> dict[str, Mapping[str, Any]]:
    """The fields of a step's spec that say how tokens are drawn, but for what its own judge writes."""
    return {
        name: value
        for name, value in step.spec.items()
        if isinstance(value, Mapping) and {"max_tokens", "temperature"} <= value.keys() and name != "adherence_sampling"
    }


def _generation_notes(settings: EmbeddedSettings, step: Step, models: Mapping[str, Passport]) -> Iterator[str]:
    if settings.generator is Generator.AUTO and choose(settings).generator is Generator.OPENVINO:
        for passport in _answering(step, models).values():
            if reason := passport.unknown_to_openvino():
                yield f"generates with transformers: openvino-genai cannot ({reason})"


def _training(step: Step) -> Mapping[str, Any]:
    """The settings of a step's training."""
    settings = step.spec.get("training")
    return settings if isinstance(settings, Mapping) else {}


def _training_notes(step: Step, models: Mapping[str, Passport]) -> Iterator[str]:
    passport = next((models[role] for role in _STARTS if role in models), None)
    if passport is None:
        return
    training = _training(step)
    for name in ("max_length", "max_prompt_tokens"):
        tokens = training.get(name)
        if isinstance(tokens, int) and 0 < passport.context < tokens:
            yield f"{name} {tokens:,} is beyond the model's {passport.context:,} tokens: longer rows drop out"
    needed, there = passport.training_bytes(training.get("lora") is None), memory_bytes()
    if 0 < there < needed:
        yield f"needs at least {needed / GIB:.0f} GiB of memory; this machine has {there / GIB:.0f} GiB"


def memory_bytes() -> int:
    """This machine's memory; 0 where it cannot be told."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0
