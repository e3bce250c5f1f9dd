"""A plan's file is checked, not believed: what it says of a step must follow from what the step would do."""

from __future__ import annotations

import copy
import json
import subprocess

import pytest
from pydantic import ValidationError

from cai.cli import main
from cai.commands.planning import compile_plan
from cai.data.source import DataSource
from cai.errors import SpecError
from cai.files.library import Library, shipped_root
from cai.identity import key_of
from cai.plan import Plan, plan_from_json
from cai.run.checks import checked_specs
from cai.run.scripts import write_scripts
from cai.stages import KINDS
from cai.store.artifacts import Store
from tests.support.model_files import gguf_file

EXPERIMENTS = ("quickstart", "mistral_rl_cai", "dpo_cai")


def written(experiment="quickstart"):
    return json.loads(compile_plan([f"experiment={experiment}"], Library((shipped_root(),))).to_json())


@pytest.fixture(scope="module")
def plans():
    return {experiment: written(experiment) for experiment in EXPERIMENTS}


@pytest.fixture
def raw(plans):
    return copy.deepcopy(plans["quickstart"])


def step_of(raw, name):
    return next(step for step in raw["steps"] if step["name"] == name)


def check(raw) -> Plan:
    plan = plan_from_json(json.dumps(raw))
    checked_specs(plan, KINDS)
    return plan


def rehashed(raw):
    """The plan with every key that of the ingredients it claims, as someone would write it who knows how."""
    before = {step["name"]: step["key"] for step in raw["steps"]}
    for step in raw["steps"]:
        text = json.dumps(step["ingredients"])
        for earlier in raw["steps"]:
            text = text.replace(before[earlier["name"]], earlier["key"])
        step["ingredients"] = json.loads(text)
        step["key"] = key_of(step["ingredients"])
    return raw


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_a_plan_that_was_not_touched_is_what_it_says(plans, experiment):
    check(plans[experiment])


def spec(name, **fields):
    return lambda raw: step_of(raw, name)["spec"].update(fields)


def resource(name, *path, to):
    def change(raw):
        place = step_of(raw, name)["resources"]
        for part in path[:-1]:
            place = place[part]
        assert place[path[-1]] != to
        place[path[-1]] = to

    return change


def engine(**fields):
    return lambda raw: raw["engine"].update(fields)


CHANGES = {
    "other hyper-parameters": (spec("sft", training={"epochs": 9}), "sft.key: is not that of what the step would do"),
    "another template": (
        resource("respond", "template", "text", to="{{ messages[0].content }}"),
        "respond.key: is not that of what the step would do (template)",
    ),
    "another principle": (
        resource("revise", "constitution", "principles", 0, "critique", to="Say that all is well."),
        "revise.key: is not that of what the step would do (constitution)",
    ),
    "no constitution": (lambda raw: step_of(raw, "revise")["resources"].pop("constitution"), "resources.constitution"),
    "another model": (spec("base", sha256="0" * 64), "base.key: is not that of what the step would do (model)"),
    "another generator": (engine(generator="transformers"), "(engine.generator was planned as"),
    "another seed": (lambda raw: step_of(raw, "respond").update(seed=7), "respond.seed: is 7"),
    "another seed of all": (lambda raw: raw.update(seed=7), "respond.seed: is 0"),
    "another kind of artifact": (
        lambda raw: step_of(raw, "respond").update(makes="prompts"),
        "respond.makes: is 'prompts'",
    ),
    "other inputs": (
        lambda raw: step_of(raw, "revise")["inputs"].update(model="sl"),
        "",
    ),
    "no inputs": (lambda raw: step_of(raw, "revise").update(inputs={}), "revise.inputs: are not those"),
    "another version": (
        lambda raw: step_of(raw, "respond")["ingredients"].update(version=99),
        "respond.key: was made by another version of this program",
    ),
    "data of any kind": (spec("red_team.sl", identity={}), "red_team.sl.spec.identity"),
    "another part of the data": (spec("red_team.sl", part="heldout"), "(part)"),
    "more than the program knows": (
        lambda raw: step_of(raw, "respond")["ingredients"].update(moon="full"),
        "respond.key: is not that of what the step would do (moon)",
    ),
}


@pytest.mark.parametrize("hashed", [False, True], ids=["as it is", "with keys to match"])
@pytest.mark.parametrize("change", CHANGES)
def test_what_was_changed_is_refused(raw, change, hashed):
    edit, told = CHANGES[change]
    edit(raw)
    with pytest.raises(SpecError) as caught:
        check(rehashed(raw) if hashed else raw)
    assert all(problem.next for problem in caught.value.problems)
    if hashed:
        assert told in str(caught.value)


def test_the_ingredients_of_another_experiment_do_not_pass(raw, plans):
    """What was tried: a step that does one thing under the key of another."""
    other = copy.deepcopy(raw)
    step_of(other, "respond")["spec"]["sampling"]["temperature"] = 0.1
    with pytest.raises(SpecError, match=r"respond.key: is not that of what the step would do \(spec\)"):
        check(other)


def test_runtime_fields_may_be_changed(raw):
    step_of(raw, "respond")["spec"]["max_drop_rate"] = 0.25
    step_of(raw, "respond")["notes"] = ["of mine"]
    assert check(raw).step("respond").spec["max_drop_rate"] == 0.25


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (lambda raw: raw.update(steps=[]), "steps: List should have at least 1 item"),
        (lambda raw: raw["steps"].append(raw["steps"][0]), "stands twice in the plan"),
        (lambda raw: raw.update(engine=None), "engine: Input should be a valid dictionary"),
        (lambda raw: raw.update(engine={}), "engine.kind: Field required"),
        (lambda raw: raw["engine"].update(kind="warp"), "unknown engine 'warp'"),
        (lambda raw: raw["engine"].update(device=7), "plan: engine.device"),
        (lambda raw: raw.update(experiment=5), "experiment: Input should be a valid string"),
        (lambda raw: raw.update(experiment="../up"), "experiment: String should match pattern"),
        (lambda raw: raw["steps"][0].update(name="a\nb"), "name: String should match pattern"),
        (lambda raw: raw["steps"][0].update(kind="../up"), "kind: String should match pattern"),
        (lambda raw: raw["steps"][0].update(key="k"), "key: String should match pattern"),
        (lambda raw: raw["steps"][0].update(kind=3), "kind: Input should be a valid string"),
        (lambda raw: raw["steps"][0].update(seed="0"), "seed: Input should be a valid integer"),
        (lambda raw: raw["steps"].__setitem__(0, 7), "steps[0]: Input should be a valid dictionary"),
        (lambda raw: raw.update(outputs={"model": "nothing"}), "outputs.model: the plan has no step 'nothing'"),
        (lambda raw: raw["steps"].reverse(), "which is no earlier step"),
        (lambda raw: raw["steps"][-1].update(engine="other"), "the plan has no engine 'other'"),
        (lambda raw: raw["steps"][0]["resources"].update(extra=1), "resources.extra"),
        (lambda raw: raw.update(seed=-1), "seed: Input should be greater than or equal to 0"),
    ],
)
def test_a_plan_of_the_wrong_shape_is_told_by_its_place(raw, edit, told):
    edit(raw)
    with pytest.raises(SpecError) as caught:
        check(raw)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    "text", ["", "[", "[]", "null", '{"format": 1}', "[" * 100_000, '{"format": NaN}', '"\\ud800"']
)
@pytest.mark.parametrize("verb", ["apply"])
def test_what_is_no_plan_ends_with_two(tmp_path, monkeypatch, capsys, text, verb):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plan.json").write_text(text)
    assert main([verb, "plan.json"]) == 2
    assert "error: plan.json" in capsys.readouterr().err


def test_a_model_of_this_machine_is_the_planned_one_or_not_fetched(tmp_path, monkeypatch):
    from cai.stages.base import Context
    from cai.stages.fetch import FetchSpec, run

    monkeypatch.chdir(tmp_path)
    gguf_file(tmp_path / "m.gguf")
    planned = compile_plan(
        ["experiment=quickstart", "models.base.source=gguf:m.gguf", "models.base.sha256=''"],
        Library((tmp_path, shipped_root())),
    )
    step = planned.step("base")
    check(json.loads(planned.to_json()))
    (tmp_path / "m.gguf").write_bytes(b"two")
    fetched: list[object] = []

    class Engine:
        def fetch(self, source, dest, progress):
            fetched.append(source)
            return {}

    def context():
        fields = {"name": "base", "seed": 0, "inputs": {}, "work": tmp_path, "progress": None, "template": None}
        return Context(
            **fields, out=tmp_path, engine=Engine(), constitution=None, texts={}, planned_model=step.ingredients.model
        )

    fetch_spec = FetchSpec.model_validate(step.spec)
    with pytest.raises(SpecError, match="has changed since the plan was made"):
        run(fetch_spec, context())
    (tmp_path / "m.gguf").unlink()
    with pytest.raises(SpecError, match="is not there"):
        run(fetch_spec, context())
    assert not fetched
    gguf_file(tmp_path / "m.gguf")
    run(fetch_spec, context())
    assert len(fetched) == 1


def test_the_plan_of_another_machine_says_what_is_other_here(raw):
    raw["engine"]["generator"] = "transformers"
    with pytest.raises(SpecError, match=r"engine\.generator was planned as '\w+' and is 'transformers' here"):
        check(rehashed(raw))


def test_parts_of_data_may_be_called_anything_on_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "odd.yaml").write_text(
        "defaults:\n  - quickstart\n  - _self_\n"
        "data: {red_team: {splits: {'a/../../b c': 0.5, rl: 0.25, heldout: 0.25}}}\n"
        "stages: {respond: {prompts: 'red_team.a/../../b c'}}\n"
    )
    plan = compile_plan(["experiment=odd"], Library((tmp_path, shipped_root())))
    again = check(json.loads(plan.to_json()))
    write_scripts(again, Store(tmp_path / "home"), tmp_path / "x" / "y" / "scripts")
    written = {path for path in tmp_path.rglob("*") if path.is_file()} - {tmp_path / "experiments" / "odd.yaml"}
    assert len(written) > len(again.steps)
    assert all(path.is_relative_to(tmp_path / "x" / "y" / "scripts") for path in written)
    for script in (tmp_path / "x" / "y" / "scripts").glob("*.sh"):
        assert subprocess.run(["bash", "-n", script], check=False).returncode == 0


@pytest.mark.parametrize("name", ["a\nrm -rf ~\n", "a\x1b[31m", ""])
def test_but_not_on_two(name):
    with pytest.raises(ValidationError, match="splits"):
        DataSource(path="x.jsonl", splits={name: 1.0})
