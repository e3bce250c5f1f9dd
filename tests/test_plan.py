"""A plan's file: what is read is what was written, byte for byte, by this program and by others."""

import json
from dataclasses import fields, replace
from typing import Any

import pytest

from cai.commands.planning import compile_plan
from cai.errors import SpecError
from cai.files.library import Library, shipped_root
from cai.identity import key_of
from cai.plan import (
    _INGREDIENT_TYPES,
    Ingredients,
    Plan,
    Step,
    StepEstimate,
    StepGpuTime,
    plan_from_json,
)

OLD_STEP: dict[str, Any] = {
    "name": "respond",
    "kind": "respond",
    "makes": "responses",
    "key": "0" * 64,
    "seed": 3,
    "inputs": {"model": "base", "prompts": "asked"},
    "spec": {"kind": "respond"},
    "resources": {},
    "ingredients": {
        "kind": "respond",
        "version": 1,
        "spec": {"chunk": 4},
        "template": "f" * 64,
        "inputs": {"model": "a" * 64, "prompts": "b" * 64},
        "engine": {"kind": "embedded"},
        "seed": 3,
    },
    "estimate": {"rows": None, "calls": 0, "prompt_tokens": 0, "tokens": 0},
    "notes": [],
}
"""A step as plans had it before an estimate told the answers of a row, and a step its engine."""


BEFORE = [{"name": name, "kind": "read", "makes": "prompts", "key": "0" * 64, "seed": 3} for name in ("base", "asked")]
BEFORE = [json.loads(Plan("x", 0, {}, (Step(**step),)).to_json())["steps"][0] for step in BEFORE]
"""The steps that it reads."""


def plan_text(*steps: dict[str, Any]) -> str:
    plan = {
        "format": 1,
        "experiment": "old",
        "seed": 3,
        "engine": {"kind": "embedded"},
        "steps": [*BEFORE, *steps],
        "source": {},
        "outputs": {},
    }
    return json.dumps(plan, indent=1, ensure_ascii=False) + "\n"


@pytest.mark.parametrize("experiment", ["quickstart", "mistral_rl_cai", "dpo_cai"])
def test_a_plan_that_is_read_and_written_again_has_the_same_bytes(experiment: str) -> None:
    text = compile_plan([f"experiment={experiment}"], Library((shipped_root(),))).to_json()
    plan = plan_from_json(text)
    assert plan.to_json() == text
    for step, written in zip(plan.steps, json.loads(text)["steps"], strict=True):
        assert list(step.ingredients.to_json()) == list(written["ingredients"])
        assert step.ingredients.key() == key_of(written["ingredients"]) == step.key


def test_a_plan_of_an_older_program_is_read_and_written_as_it_was() -> None:
    text = plan_text(OLD_STEP)
    plan = plan_from_json(text)
    assert plan.to_json() == text
    *_, step = plan.steps
    assert step.estimate == StepEstimate(rows=None, calls=0, prompt_tokens=0, tokens=0)
    assert step.ingredients.inputs == {"model": "a" * 64, "prompts": "b" * 64}
    assert step.ingredients.key() == key_of(OLD_STEP["ingredients"])


def test_a_step_without_ingredients_and_estimate_is_read() -> None:
    bare = {name: OLD_STEP[name] for name in ("name", "kind", "makes", "key", "seed")}
    *_, step = plan_from_json(plan_text(bare)).steps
    assert (step.ingredients, step.estimate) == (Ingredients(), StepEstimate())
    assert json.loads(Plan("x", 0, {"kind": "none"}, (step,)).to_json())["steps"][0]["ingredients"] == {}


def test_an_ingredient_that_is_not_known_is_kept_and_counts() -> None:
    written = {**OLD_STEP["ingredients"], "moon": "full", "other": [1, None]}
    *_, step = plan_from_json(plan_text({**OLD_STEP, "ingredients": written})).steps
    assert step.ingredients.other == {"moon": "full", "other": [1, None]}
    assert step.ingredients.to_json() == written
    assert step.ingredients.key() == key_of(written) != key_of(OLD_STEP["ingredients"])


def test_what_is_empty_counts_and_what_is_not_there_does_not() -> None:
    empty, absent = Ingredients(kind="mix", spec={}, inputs={}), Ingredients(kind="mix")
    assert empty.to_json() == {"kind": "mix", "spec": {}, "inputs": {}}
    assert absent.to_json() == {"kind": "mix"}
    for ingredients in (empty, absent):
        assert Ingredients.from_json(ingredients.to_json()) == ingredients


def test_every_known_ingredient_has_a_field_in_its_place() -> None:
    assert [*_INGREDIENT_TYPES, "other"] == [entry.name for entry in fields(Ingredients)]


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"ingredients": {"spec": "all of it"}}, "cannot be read as a plan (ingredients.spec: not Mapping)"),
        ({"ingredients": {"template": None}}, "cannot be read as a plan (ingredients.template: not str)"),
        ({"ingredients": ["kind"]}, "respond.ingredients: Input should be a valid dictionary"),
        ({"estimate": {"rows": "many"}}, "cannot be read as a plan (estimate.rows: not a number)"),
        ({"estimate": 4}, "respond.estimate: Input should be a valid dictionary"),
    ],
)
def test_parts_of_another_type_are_refused_by_name(part: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as error:
        plan_from_json(plan_text({**OLD_STEP, **part}), "old.json")
    assert f"old.json: {message}" in str(error.value)


@pytest.mark.parametrize(
    "written",
    [
        {},
        {"rows": 40},
        {"rows": None, "calls": 0, "prompt_tokens": 0, "tokens": 0, "width": 1},
        {"rows": 40, "calls": 80, "prompt_tokens": 9, "tokens": 7, "width": 2, "seconds": 1.5},
    ],
)
def test_an_estimate_is_written_as_it_was_read(written: dict[str, Any]) -> None:
    assert json.dumps(StepEstimate.from_json(written).to_json()) == json.dumps(written)


def test_the_gpu_time_of_an_estimate_is_read_back() -> None:
    gpu_time = StepGpuTime("estimate", 8, 2, 0.5, {"training": 900.0}, "rows of 300 tokens")
    timed = StepEstimate(40, 80, 9, 7, 1, 900.0, 2.0, gpu_time)
    assert StepEstimate.from_json(json.loads(json.dumps(timed.to_json()))) == timed
    assert list(timed.to_json())[-3:] == ["seconds", "gpu_hours", "gpu_time"]
    untimed = replace(timed, seconds=None, gpu_hours=None, gpu_time=None)
    assert list(untimed.to_json()) == ["rows", "calls", "prompt_tokens", "tokens", "width"]


def test_what_another_program_estimates_besides_is_let_go() -> None:
    *_, step = plan_from_json(plan_text({**OLD_STEP, "estimate": {"rows": 4, "calls": 8, "watts": 300}})).steps
    assert step.estimate == StepEstimate(rows=4, calls=8)


def test_a_step_made_by_hand_has_no_ingredients_and_no_estimate() -> None:
    step = Step("a", "mix", "conversations", "k", 0)
    assert (step.to_json()["ingredients"], step.to_json()["estimate"]) == ({}, {})
