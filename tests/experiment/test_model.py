from __future__ import annotations

import pytest

from cai.errors import SpecError
from cai.experiment.model import parse

GOOD = {
    "name": "mine",
    "models": {"base": "hf:/somewhere"},
    "data": {"asked": {"path": "x.jsonl", "makes": "prompts"}},
    "stages": {"respond": {"model": "base", "prompts": "asked"}},
}


def problems(raw):
    with pytest.raises(SpecError) as error:
        parse(raw)
    return {p.where: p for p in error.value.problems}


def test_a_good_experiment_is_typed():
    experiment = parse(GOOD)
    assert experiment.stages["respond"].model == "base"
    assert experiment.models["base"].source == "hf:/somewhere"
    assert experiment.engine["kind"] == "embedded"
    assert experiment.seed == 0


def test_every_problem_comes_at_once():
    found = problems(
        GOOD
        | {
            "nam": 1,
            "seed": -1,
            "engine": {"kind": "embeded"},
            "stages": {
                "respond": {"modle": "base", "prompts": "asked", "sampling": {"max_tokens": "many"}},
                "ft": {"kind": "sftt"},
                "judgement": {},
            },
        }
    )
    assert "did you mean 'name'" in found["nam"].next
    assert "seed" in found
    assert "did you mean 'embedded'" in found["engine.kind"].next
    assert "did you mean 'model'" in found["stages.respond.modle"].next
    assert found["stages.respond.model"].message == "is missing"
    assert "many" in found["stages.respond.sampling.max_tokens"].message
    assert "did you mean 'sft'" in found["stages.ft.kind"].next
    assert "judge" in found["stages.judgement"].next
    assert len(found) == 8


@pytest.mark.parametrize("name", ["strategy", "str", "tuples", "literal[x]", "function-of", "list"])
def test_an_unknown_field_may_be_called_like_a_type(name):
    found = problems(GOOD | {"stages": {"respond": {"model": "base", "prompts": "asked", name: 1}}})
    assert found[f"stages.respond.{name}"].message == "unknown field"


@pytest.mark.parametrize("name", ["../up", "a b", "", "1st", "x" * 65, "naïve", None, 3, "a/b", "a.b"])
def test_names_that_are_no_names_are_refused(name):
    assert "name" in problems(GOOD | {"name": name})


def test_one_name_stands_for_one_thing():
    found = problems(GOOD | {"models": {"respond": "hf:/x"}})
    assert "two things" in found["stages.respond"].message


@pytest.mark.parametrize("section", ["models", "data", "stages"])
@pytest.mark.parametrize("value", [[1], "text", 3])
def test_sections_of_the_wrong_shape_are_refused(section, value):
    assert section in problems(GOOD | {section: value})


def test_steps_that_the_resolver_makes_cannot_be_written():
    assert "stages.fetch" in problems(GOOD | {"stages": {"fetch": {"source": "hf:x"}}})


def test_where_is_told_by_the_caller():
    with pytest.raises(SpecError, match=r"x\.yaml:3: seed"):
        parse(GOOD | {"seed": "x"}, lambda path: f"x.yaml:3: {path}")
