"""The judge's spec is one of four shapes: what fits each scoring, what does not, and keys as they were before."""

from __future__ import annotations

from typing import Any

import pytest

from cai.errors import SpecError
from cai.experiment.model import parse
from cai.experiment.schema import experiment_schema
from cai.judging.settings import Scoring
from cai.stages.base import take_apart
from cai.stages.judge.spec import JUDGES, BestWorstJudge, ChoiceJudge, ContrastJudge, LogprobJudge, judge_spec

FLAT: dict[str, Any] = {
    "kind": "judge",
    "labelled_limit": 200,
    "scoring": "logprob",
    "n_exemplars": 6,
    "principles": "one",
    "ensemble": 4,
    "order": "both",
    "options": ["(A)", "(B)"],
    "tie_option": "",
    "structured": True,
    "reasoning": False,
    "sampling": {
        "max_tokens": 128,
        "temperature": 0.0,
        "top_p": 1.0,
        "top_k": 0,
        "repetition_penalty": 1.0,
        "stop": [],
    },
    "samples": 1,
    "temperature": 1.0,
    "per_token": True,
    "pairs": "all",
    "margin": 0.0,
    "ties": "keep",
    "abstain": "drop",
    "clamp": None,
    "labels": "soft",
    "limit": None,
    "chunk": 32,
}
"""What counted of every judge when all scorings had one spec."""


def counted(**fields: Any) -> dict[str, Any]:
    return take_apart(judge_spec(model="m", candidates="c", **fields)).semantic


@pytest.mark.parametrize(
    ("fields", "flat"),
    [
        ({}, {}),
        ({"scoring": "logprob", "temperature": 0.5, "reasoning": True}, {"temperature": 0.5, "reasoning": True}),
        ({"scoring": "contrast"}, {}),
        ({"scoring": "contrast", "n_exemplars": 3, "per_token": False}, {"n_exemplars": 3, "per_token": False}),
        ({"scoring": "choice", "tie_option": "(C)", "order": "random"}, {"tie_option": "(C)", "order": "random"}),
        ({"scoring": "choice", "structured": False}, {"structured": False}),
        ({"scoring": "best_worst"}, {"pairs": "best_worst"}),
        ({"scoring": "best_worst", "chunk": 8}, {"pairs": "best_worst", "chunk": 8}),
    ],
)
def test_a_spec_counts_for_its_key_as_it_did_when_all_scorings_had_one(
    fields: dict[str, Any], flat: dict[str, Any]
) -> None:
    assert counted(**fields) == {**FLAT, "scoring": fields.get("scoring", "logprob"), **flat}


@pytest.mark.parametrize("scoring", list(Scoring))
def test_a_plan_that_was_made_before_is_read(scoring: Scoring) -> None:
    """Its specs hold the fields of all scorings, at the values that they had by themselves."""
    spec = judge_spec(model="m", candidates="c", scoring=scoring)
    once = {"exemplars": None, **FLAT, "pairs": spec.pairs.value, **spec.model_dump(mode="json")}
    again = judge_spec(**once)
    assert type(again) is JUDGES[scoring]
    assert again == spec


def problems(**judge: Any) -> str:
    raw = {
        "models": {"base": "pypi:package==1.0/model.gguf"},
        "stages": {"judge": {"model": "base", "candidates": "sample", **judge}},
    }
    with pytest.raises(SpecError) as error:
        parse(raw)
    return str(error.value)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"scoring": "contrast", "tie_option": "(C)"}, "tie_option: is read by scoring 'logprob' and 'choice' only"),
        ({"scoring": "contrast", "reasoning": True}, "reasoning: is read by scoring"),
        ({"exemplars": "x.yaml"}, "exemplars: is read by scoring 'contrast' only, and this is 'logprob'; leave it out"),
        ({"scoring": "choice", "temperature": 0.5}, "temperature: is read by scoring 'logprob' and 'contrast' only"),
        ({"scoring": "best_worst", "options": ["1", "2"]}, "options: is read by scoring 'logprob' and 'choice' only"),
        ({"scoring": "logprob", "structured": False}, "structured: is read by scoring 'choice' and 'best_worst' only"),
        ({"scoring": "choice", "tempreature": 1.0}, "tempreature: unknown field"),
    ],
)
def test_a_field_that_does_not_fit_the_scoring_is_an_error(fields: dict[str, Any], words: str) -> None:
    assert f"stages.judge.{words}" in problems(**fields)


def test_of_an_unknown_scoring_nothing_else_is_said() -> None:
    told = problems(scoring="logpob", n_exemplars=3, tie_option="(C)")
    assert "stages.judge.scoring" in told
    assert "n_exemplars" not in told
    assert "tie_option" not in told


def test_editors_complete_only_what_fits() -> None:
    shapes = experiment_schema()["$defs"]["stage_judge"]["anyOf"]
    by_scoring = {shape["properties"]["scoring"]["const"]: set(shape["properties"]) for shape in shapes}
    assert set(by_scoring) == {scoring.value for scoring in Scoring}
    assert "exemplars" in by_scoring["contrast"]
    assert "order" not in by_scoring["contrast"]
    assert "options" not in by_scoring["best_worst"]
    assert all(shape["additionalProperties"] is False for shape in shapes)
    for spec in (LogprobJudge, ContrastJudge, ChoiceJudge, BestWorstJudge):
        assert set(spec.model_fields) == by_scoring[spec.model_fields["scoring"].default.value]
