"""Models behind an API, as the resolver sees them: what they cannot do, and what a step is told of how to ask them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from cai.clients.dialect_table import DIALECTS, Support
from cai.clients.dialects import unheard
from cai.errors import Problem
from cai.experiment.model import Experiment, ModelSpec
from cai.judging.settings import Scoring
from cai.stages.base import Sampled, StageSpec
from cai.stages.evaluate.spec import AdherenceScoring, EvaluateSpec
from cai.stages.fetch import API
from cai.stages.judge.spec import JudgeSpec

ANSWERING = frozenset({"respond", "revise", "sample", "judge", "grade", "evaluate"})
"""Kinds whose models answer prompts; the others read a model's weights or its tokenizer."""

_TELLS = {
    "": (Scoring.CHOICE, Scoring.BEST_WORST),
    "top": (Scoring.CHOICE, Scoring.BEST_WORST, Scoring.LOGPROB),
    "prompt": tuple(Scoring),
}
"""What a judge can read of a server, by what it tells of log-probabilities."""


def served_elsewhere(experiment: Experiment, step: str) -> ModelSpec | None:
    """The model of a step, where it is one behind an API."""
    model = experiment.models.get(step)
    return model if model is not None and model.source.startswith(API) else None


def endpoint_problems(
    experiment: Experiment, path: str, spec: StageSpec, names: Mapping[str, str]
) -> Iterator[Problem]:
    """A model behind an API writes answers; its weights and its tokenizer are not to be had, and of log-probabilities
    what it is said to tell. ``names`` are a stage's steps by role; ``where`` of a problem is a field."""
    for role, step in names.items():
        model = served_elsewhere(experiment, step)
        if model is None:
            continue
        if spec.kind not in ANSWERING:
            message = f"'{step}' is served elsewhere: it has no weights here, and no tokenizer"
            yield Problem(f"{path}.{role}", message, "name a model whose source is hf:, gguf: or pypi:")
        elif isinstance(spec, JudgeSpec) and spec.scoring not in _TELLS[model.logprobs]:
            needed_logprobs = "prompt" if spec.scoring is Scoring.CONTRAST else "top"
            message = f"scoring '{spec.scoring.value}' reads log-probabilities that '{step}' is not said to tell"
            hint = f"use `scoring: choice`, or say `models.{step}.logprobs: {needed_logprobs}` where its server does"
            yield Problem(f"{path}.scoring", message, hint)
        elif role == "adherence" and not model.logprobs and _reads_logprobs(spec):
            message = f"adherence_scoring 'logprob' reads log-probabilities that '{step}' is not said to tell"
            hint = f"use `adherence_scoring: choice`, or say `models.{step}.logprobs: top` where its server does"
            yield Problem(f"{path}.adherence_scoring", message, hint)


def _reads_logprobs(spec: StageSpec) -> bool:
    return isinstance(spec, EvaluateSpec) and spec.adherence_scoring is AdherenceScoring.LOGPROB


def endpoint_resources(experiment: Experiment, names: Mapping[str, str]) -> dict[str, Any]:
    """How a step's endpoints are asked, by role. None of it counts: it changes no answer, and a variable has any name.

    ``api_keys`` are names of variables that hold the keys, ``servers`` the limits and the replicas.
    """
    keys: dict[str, str] = {}
    servers: dict[str, dict[str, Any]] = {}
    for role, step in names.items():
        model = served_elsewhere(experiment, step)
        if model is None:
            continue
        keys[role] = model.api_key_env
        # What is stated counts as stated also where it is the default: a run starts there.
        limits = model.limits.model_dump(mode="json", exclude_unset=True)
        server = {"replicas": list(model.replicas), "limits": limits}
        if any(server.values()):
            servers[role] = {name: value for name, value in server.items() if value}
    return {name: by_role for name, by_role in (("api_keys", keys), ("servers", servers)) if by_role}


def dialect_notes(experiment: Experiment, spec: StageSpec, names: Mapping[str, str]) -> list[str]:
    """What the servers of a step's models will not keep to of what the step asks, where their dialects are named."""
    notes = []
    for step in dict.fromkeys(names.values()):
        model = served_elsewhere(experiment, step)
        if model is None or not model.dialect or spec.kind not in ANSWERING:
            continue
        asked, dialect = _asked(spec), DIALECTS[model.dialect]
        unkept = {**dialect.plain, **dialect.named}
        for fate, verb in ((Support.IGNORED, "ignores"), (Support.REFUSED, "refuses (it is asked without)")):
            words = [_in_words(name) for name in unheard(model.dialect, asked, named=True) if unkept[name] is fate]
            if words:
                notes.append(f"'{step}' ({dialect.title}) {verb}: {', '.join(words)}")
        if dialect.alone and asked.get("seed") and model.limits.concurrency > 1:
            notes.append(f"'{step}' ({dialect.title}) keeps to seeds one call at a time: `limits: {{concurrency: 1}}`")
        notes += _untold(step, model)
    return notes


def _untold(step: str, model: ModelSpec) -> Iterator[str]:
    """A server that does not tell the log-probabilities that its model is said to have."""
    dialect = DIALECTS[model.dialect]
    tells = {"": True, "top": dialect.top_logprobs > 0, "prompt": dialect.prompt_logprobs}
    if dialect.tried and not tells[model.logprobs]:
        yield f"'{step}' ({dialect.title}) told nothing for `logprobs: {model.logprobs}` when {dialect.tried} was tried"


def _asked(spec: StageSpec) -> dict[str, Any]:
    """The protocol's fields that a stage's draws set to something, with the largest value of each."""
    neutral = Sampled(temperature=0.0)
    asked: dict[str, Any] = {"response_format": True} if getattr(spec, "structured", False) else {}
    for name in type(spec).model_fields:
        if isinstance(value := getattr(spec, name), Sampled):
            for key in ("temperature", "top_p", "top_k", "repetition_penalty"):
                if getattr(value, key) != getattr(neutral, key):
                    asked[key] = max(asked.get(key, 0), getattr(value, key))
    return {**asked, "seed": True} if asked.get("temperature") else asked


def _in_words(name: str) -> str:
    return "`structured`" if name == "response_format" else f"`{name}`"
