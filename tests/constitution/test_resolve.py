import json
from pathlib import Path

import pytest

from cai.constitution import constitution_schema, load_constitution, resolve_constitution
from cai.errors import SpecError

BASE = {
    "source": "base source",
    "licence": "MIT",
    "preamble": "Base preamble.",
    "principles": [
        {"id": "calm", "critique": "Is it calm?", "revision": "Make it calm.", "tags": ["tone", "style"], "weight": 2},
        {"id": "true", "critique": "Is it true?", "revision": "Make it true.", "tags": ["fact"]},
        {"id": "kind", "critique": "Is it kind?", "revision": "Make it kind.", "tags": ["tone"]},
    ],
}
FILES = {"base": BASE}


def resolved(raw, files=FILES):
    return resolve_constitution(raw, files.__getitem__, "x.yaml")


def problems(raw, files=FILES) -> list[str]:
    with pytest.raises(SpecError) as caught:
        resolved(raw, files)
    return [str(p) for p in caught.value.problems]


def ids(raw) -> list[str]:
    return [p.id for p in resolved(raw).principles]


def test_extending_keeps_the_order_and_puts_new_principles_last() -> None:
    new = {"id": "brief", "comparison": "Which is briefer?"}
    assert ids({"extends": "base", "principles": [new]}) == ["calm", "true", "kind", "brief"]


def test_the_same_id_overrides_only_the_fields_given() -> None:
    p = resolved({"extends": ["base"], "principles": [{"id": "calm", "critique": "Calm?"}]}).principle("calm")
    assert (p.critique, p.revision, p.weight, p.tags) == ("Calm?", "Make it calm.", 2.0, ("tone", "style"))


def test_preamble_source_and_licence_come_from_the_parent_unless_given() -> None:
    child = resolved({"name": "child", "extends": "base", "source": "own"})
    assert (child.name, child.preamble, child.source, child.licence) == ("child", "Base preamble.", "own", "MIT")


@pytest.mark.parametrize(
    ("raw", "left"),
    [
        ({"include": ["tag:tone"]}, ["calm", "kind"]),
        ({"include": "k*"}, ["kind"]),
        ({"include": ["true", "tag:sty*"]}, ["calm", "true"]),
        ({"exclude": ["tag:fact"]}, ["calm", "kind"]),
        ({"include": ["tag:tone"], "exclude": ["c?lm"]}, ["kind"]),
        ({"include": []}, ["calm", "true", "kind"]),
    ],
)
def test_include_and_exclude_select_by_id_tag_and_glob(raw, left) -> None:
    assert ids({"extends": "base", **raw}) == left


def test_a_number_sets_the_weight_a_factor_multiplies_it_and_later_ones_win() -> None:
    weights = {"*": 1.5, "tag:tone": "x2", "kind": 0}
    found = resolved({"extends": "base", "weights": weights})
    assert [p.weight for p in found.principles] == [3.0, 1.5, 0.0]
    factor_alone = resolved({"extends": "base", "weights": {"calm": "x0.5"}})
    assert factor_alone.principle("calm").weight == 1.0


def test_order_of_keys_does_not_change_the_identity() -> None:
    turned = {k: BASE[k] for k in reversed(BASE)}
    turned["principles"] = [{k: p[k] for k in reversed(p)} for p in BASE["principles"]]
    assert resolved(turned).identity() == resolved(BASE).identity()


def test_a_resolved_constitution_resolves_to_itself() -> None:
    once = resolved({"extends": "base", "name": "n", "include": ["tag:tone"], "weights": {"kind": 3}})
    assert resolved(once.to_json()) == once


def test_a_cycle_is_named() -> None:
    files = {"a": {"extends": "b"}, "b": {"extends": "a"}}
    assert problems({"extends": "a"}, files) == ["b: extends: extends itself (a -> b -> a); take one link out"]


def test_a_wide_and_deep_family_resolves_each_member_once() -> None:
    calls = []
    files = {f"l{n}{s}": {"extends": [f"l{n + 1}a", f"l{n + 1}b"]} for n in range(24) for s in "ab"}
    files |= {"l24a": BASE, "l24b": BASE}

    def find(name):
        calls.append(name)
        return files[name]

    assert len(resolve_constitution({"extends": "l0a"}, find, "x").principles) == 3
    assert len(calls) == len(set(calls))


def test_all_problems_come_at_once_with_their_places() -> None:
    raw = {
        "extends": ["base", "nowhere"],
        "descripton": "?",
        "weights": {"calm": "twice"},
        "principles": [{"id": "ok", "critique": "x", "weight": -1}, {"id": "Bad Id"}, {"critque": "?"}, "text"],
    }
    assert problems(raw) == [
        "x.yaml: weights.calm: 'twice' is no weight; a number sets it, a text such as 'x0.5' multiplies it",
        "x.yaml: principles[0].weight: must be greater than or equal to 0, and is -1",
        "x.yaml: principles[1].id: 'Bad Id' is no id (small letters, digits and . _ - in between, at most 80)",
        "x.yaml: principles[2].id: is missing",
        "x.yaml: principles[2].critque: unknown field; did you mean 'critique'?",
        "x.yaml: principles[3]: must be a mapping of fields, and is 'text'",
        "x.yaml: descripton: unknown field; did you mean 'description'?",
        "x.yaml: extends: no constitution 'nowhere'",
    ]


def test_selectors_that_match_nothing_are_problems_with_the_nearest_name() -> None:
    raw = {"extends": "base", "include": ["kindd", "tag:tonne"], "exclude": ["zz*"], "weights": {"clam": 2}}
    found = problems(raw)
    assert [f.partition("; ")[2] for f in found[:2]] == ["did you mean 'kind'?", "did you mean 'tag:tone'?"]
    assert found[2].startswith("x.yaml: exclude[0]: 'zz*' matches no principle")
    assert found[3] == "x.yaml: weights.clam: 'clam' matches no principle; did you mean 'calm'?"


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        ({"extends": "base", "exclude": "*"}, "x.yaml: exclude: leaves no principle"),
        ({}, "x.yaml: principles: leaves no principle"),
        ({"extends": "base", "weights": {"*": 0}}, "x.yaml: weights: every principle has weight 0"),
        ({"principles": [{"id": "a"}]}, "x.yaml: principles[0]: has no critique, revision or comparison"),
        ({"principles": [{"id": "a", "critique": "x"}] * 2}, "x.yaml: principles[1].id: 'a' is there twice"),
        ({"extends": "base", "principles": [{"id": "clam"}]}, "did you mean 'calm'?"),
        ({"principles": [{"id": "a", "critique": "x", "weight": float("nan")}]}, "principles[0].weight"),
        ({"principles": [{"id": "a", "critique": "x", "weight": True}]}, "must be a number, and is True"),
        ({"extends": "base", "weights": {"calm": True}}, "True is no weight"),
        ({"extends": "base", "weights": {"calm": "x9" + "9" * 400}}, "is no weight"),
        ({"extends": {"a": 1}}, "x.yaml: extends: must be a text or a list of texts, and is a dict"),
    ],
)
def test_a_constitution_that_cannot_work_is_refused(raw, says) -> None:
    assert any(says in p for p in problems(raw)), problems(raw)


def test_a_file_s_problems_have_its_lines_and_a_parent_s_have_the_parent_s(tmp_path: Path) -> None:
    (tmp_path / "parent.yaml").write_text("principles:\n  - id: a\n    critique: x\n    weight: heavy\n")
    (tmp_path / "child.yaml").write_text("extends: parent\nprinciples:\n  - id: b\n\n    citique: y\n")
    with pytest.raises(SpecError) as caught:
        load_constitution(tmp_path / "child.yaml", display_path="c/child.yaml")
    assert [str(p) for p in caught.value.problems] == [
        "c/child.yaml:5: principles[0].citique: unknown field; did you mean 'critique'?",
        "c/parent.yaml:4: principles[0].weight: must be a number, and is 'heavy'",
    ]


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "parnt"])
def test_extending_never_leaves_the_folder_and_names_the_nearest(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret.yaml").write_text("principles: [{id: a, critique: x}]\n")
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "parent.yaml").write_text("principles: [{id: a, critique: x}]\n")
    (folder / "child.yaml").write_text(f"extends: {name}\n")
    with pytest.raises(SpecError, match=r"child\.yaml:1: extends: cannot extend"):
        load_constitution(folder / "child.yaml")


def test_a_caller_can_say_where_fields_come_from() -> None:
    with pytest.raises(SpecError) as caught:
        resolve_constitution({"nam": "x"}, FILES.__getitem__, "x", locate=lambda f: f"command line: constitution.{f}")
    assert caught.value.problems[0].where == "command line: constitution.nam"


def test_the_schema_knows_every_field_and_forbids_others() -> None:
    schema = constitution_schema()
    assert json.loads(json.dumps(schema)) == schema
    assert schema["additionalProperties"] is False
    assert {"extends", "include", "exclude", "weights", "preamble", "principles", "licence"} <= schema[
        "properties"
    ].keys()
    assert schema["$defs"]["PrincipleEntry"]["required"] == ["id"]
