"""Why a step runs again, in words."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from cai.plan import Ingredients, Plan, Step, inputs_of
from cai.planning.reasons import diff_ingredients, plan_changes, step_changes

BASE = {
    "seed": 0,
    "spec": {"epochs": 1, "lora": {"rank": 8}, "stop": ["a"]},
    "engine": {"generator": "transformers"},
    "template": "0123456789abcdef" * 4,
    "constitution": {
        "principles": [
            {"id": "kind", "weight": 1, "critique": "Is it kind? Say how it could be kinder than it is now."},
            {"id": "privacy", "weight": 1, "critique": "Does it respect privacy? Say where it does not do so."},
            {"id": "law", "weight": 1, "critique": "Is it lawful? Say which part of it breaks a law."},
        ]
    },
}


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    return diff_ingredients(Ingredients.from_json(old), Ingredients.from_json(new))


def principles(*items: dict) -> dict:
    return {**BASE, "constitution": {"principles": list(items)}}


def test_nothing_changed():
    assert differences(BASE, BASE) == []


def test_short_values_are_shown_and_long_ones_are_said_to_change():
    new = {**BASE, "seed": 1, "spec": {**BASE["spec"], "epochs": 2, "lora": None}, "template": "f" * 64}
    assert differences(BASE, new) == [
        "spec.epochs: 1 -> 2",
        "spec.lora changed",
        "template changed",
        "seed 0 -> 1",
    ]


def test_one_and_one_point_nought_are_the_same():
    assert differences({"spec": {"epochs": 1}}, {"spec": {"epochs": 1.0}}) == []


def test_principles_are_matched_by_id():
    kind, privacy, law = BASE["constitution"]["principles"]
    new = {"id": "new", "weight": 1, "critique": "?"}
    changed = {**privacy, "critique": "Another request, longer than what is shown in one line."}
    assert differences(BASE, principles(kind, changed, law)) == [
        "constitution.principles[1] (privacy).critique changed"
    ]
    assert differences(BASE, principles(new, kind, privacy, law)) == ["constitution.principles[0] (new) added"]
    assert differences(BASE, principles(kind, law)) == ["constitution.principles[1] (privacy) removed"]
    assert differences(BASE, principles(law, kind, privacy)) == ["constitution.principles reordered"]
    assert differences(BASE, principles(kind, privacy, {**law, "weight": 2.5})) == [
        "constitution.principles[2] (law).weight: 1 -> 2.5"
    ]


def test_a_preamble_without_id_stands_beside_principles_with_ids():
    kind, _, law = BASE["constitution"]["principles"]
    old, new = principles({"preamble": "x" * 50}, kind), principles({"preamble": "y" * 50}, kind, law)
    assert differences(old, new) == [
        "constitution.principles[0].preamble changed",
        "constitution.principles[2] (law) added",
    ]


def test_lists_without_ids_are_compared_by_place():
    assert differences({"stop": ["a", "b"]}, {"stop": ["a", "c"]}) == ["stop[1] b -> c"]
    assert differences({"stop": ["a"]}, {"stop": ["a", "c"]}) == ["stop: 1 -> 2 items"]


def test_fields_that_come_and_go():
    assert differences({"a": 1, "b": {"c": 2}}, {"b": {"d": "x y"}}) == [
        "b.d added: x y",
        "b.c removed",
        "a removed",
    ]


def step(name: str, key: str, inputs: dict, keys: dict) -> Step:
    return Step(name, "mix", "conversations", key, 0, inputs_of(inputs), ingredients=Ingredients(inputs=keys))


def test_inputs_are_named_by_the_steps_that_make_them():
    old = step("sft", "1", {"data": "mix", "model": "base"}, {"data": "k1", "model": "m"})
    new = step("sft", "2", {"data": "mix", "model": "base"}, {"data": "k2", "model": "m"})
    assert step_changes(old, new) == ["input data (mix) changes"]
    old = step("mix", "1", {"sources": ["a", "b"]}, {"sources": ["k1", "k2"]})
    new = step("mix", "2", {"sources": ["a", "b"]}, {"sources": ["k1", "k3"]})
    assert step_changes(old, new) == ["input sources (b) changes"]
    old = step("e", "1", {"models": {"x": "a", "y": "b"}}, {"models": [["x", "k1"], ["y", "k2"]]})
    new = step("e", "2", {"models": {"x": "a", "y": "b"}}, {"models": [["x", "k9"], ["y", "k2"]]})
    assert step_changes(old, new) == ["input models (a) changes"]


def test_plan_changes_name_new_and_removed_steps():
    one, two = step("a", "1", {}, {}), step("b", "2", {}, {})
    old, new = Plan("x", 0, {}, (one, two)), Plan("x", 0, {}, (one, replace(two, name="c")))
    assert plan_changes(old, new) == {"c": ["new step"], "b": ["removed"]}
