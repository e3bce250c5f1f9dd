from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest

from cai.errors import SpecError
from cai.experiment.model import parse
from cai.files.library import Library, shipped_root
from cai.plan import plan_from_json
from cai.planning.reasons import plan_changes
from cai.planning.resolver import resolve
from tests.support.small_experiment import raw_experiment


@pytest.fixture
def raw(tmp_path, monkeypatch):
    return raw_experiment(tmp_path, monkeypatch)


def plan(raw):
    return resolve(parse(raw), Library((Path.cwd(), shipped_root())))


def keys(raw):
    return {step.name: step.key for step in plan(raw).steps}


def changed(before, after):
    return {name for name in before.keys() & after.keys() if before[name] != after[name]}


def edited(raw, path, value):
    """A copy with one field changed."""
    new = copy.deepcopy(raw)
    node = new
    *way, last = path
    for part in way:
        node = node[part]
    node[last] = value
    return new


DOWNSTREAM = ["respond", "revise", "sl_mix", "sft", "sample", "judge", "reward", "rl", "evaluate"]


def test_steps_stand_in_an_order_in_which_they_can_run(raw):
    backwards = raw | {"stages": dict(reversed(raw["stages"].items()))}
    done = set()
    for step in plan(backwards).steps:
        assert set(step.needs()) <= done
        done.add(step.name)
    assert keys(backwards) == keys(raw)


def test_renaming_a_stage_keeps_its_key(raw):
    renamed = json.loads(json.dumps(raw).replace('"respond"', '"first"'))
    renamed["stages"]["first"]["kind"] = "respond"
    assert keys(renamed)["first"] == keys(raw)["respond"]
    assert keys(renamed)["revise"] == keys(raw)["revise"]


def test_moving_a_data_file_keeps_every_key(raw):
    before = keys(raw)
    Path("elsewhere").mkdir()
    Path("prompts.jsonl").rename("elsewhere/asked.jsonl")
    assert keys(edited(raw, ("data", "asked", "path"), "elsewhere/asked.jsonl")) == before


def test_changing_a_data_file_changes_what_reads_it(raw):
    before = keys(raw)
    with Path("prompts.jsonl").open("a") as file:
        file.write('{"prompt": "one more", "topic": "t0"}\n')
    assert changed(before, keys(raw)) == {"asked.sl", "asked.rl", *DOWNSTREAM}


def test_runtime_fields_do_not_count(raw):
    faster = edited(raw, ("engine", "threads"), 2)
    faster["stages"]["sft"]["training"] = {"checkpoint_every": 3}
    assert keys(faster) == keys(raw)


@pytest.mark.parametrize(
    ("path", "value", "reruns"),
    [
        (("stages", "sft", "training"), {"epochs": 2}, ["sft", "sample", "judge", "reward", "rl", "evaluate"]),
        (("stages", "rl", "training"), {"gamma": 0.9}, ["rl", "evaluate"]),
        (("seed",), 1, DOWNSTREAM),
        (("template", "name"), "llama3", DOWNSTREAM),
        (("models", "base", "sha256"), "1" * 64, ["base", *DOWNSTREAM]),
        (("constitution", "principles", 0, "critique"), "other", DOWNSTREAM[1:]),
        (("constitution", "principles", 0, "comparison"), "other", ["judge", "reward", "rl", "evaluate"]),
        (("constitution", "principles", 0, "rationale"), "other", []),
        (("constitution", "description"), "other", []),
        (("description",), "other", []),
    ],
)
def test_a_change_reruns_just_what_it_decides(raw, path, value, reruns):
    assert changed(keys(raw), keys(edited(raw, path, value))) == set(reruns)


def test_editing_a_prompt_template_reruns_what_reads_it(raw):
    before = keys(raw)
    Path("prompt_templates").mkdir()
    shipped = (shipped_root() / "prompt_templates" / "critique.jinja").read_text()
    Path("prompt_templates/critique.jinja").write_text(shipped + "\n")
    assert changed(before, keys(raw)) == set(DOWNSTREAM[1:])


def test_why_a_step_runs_is_told_in_words(raw):
    after = edited(raw, ("constitution", "principles", 1, "critique"), "other words")
    reasons = plan_changes(plan(raw), plan(after))
    assert any("constitution.principles[1] (b).critique" in reason for reason in reasons["revise"])
    assert "respond" not in reasons


def test_a_plan_is_the_same_bytes_each_time_and_reads_back(raw):
    text = plan(raw).to_json()
    assert plan(copy.deepcopy(raw)).to_json() == text
    assert plan_from_json(text) == plan(raw)


def test_the_plan_freezes_the_texts_it_was_made_from(raw):
    steps = {step.name: step for step in plan(raw).steps}
    assert "<|im_start|>" in steps["respond"].resources["template"]["text"]
    assert steps["revise"].resources["constitution"]["principles"][0]["critique"] == "Is it legal?"
    assert set(steps["revise"].resources["texts"]) == {"critique", "revision", "few_shots"}


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("stages", "sft", "data"), "base", ["stages.sft.data", "wants conversations", "makes a model"]),
        (("stages", "rl", "reward"), "sft", ["stages.rl.reward", "reward"]),
        (("stages", "revise", "responses"), "respnd", ["did you mean 'respond'"]),
        (("stages", "respond", "prompts"), "asked", ["no part", "asked.sl"]),
        (("stages", "judge", "candidates"), "reward", ["reads its own result"]),
        (("stages", "sl_mix", "sources"), [{"from": "revise"}, {"from": "judge"}], ["own result"]),
        (("data", "asked", "path"), "missing.jsonl", ["data.asked", "missing.jsonl"]),
        (("models", "base", "source"), "hf:some/name", ["models.base.revision", "pinned"]),
        (("models", "base", "source"), "pypi:name/file", ["not pinned"]),
        (("models", "base", "source"), "ftp:x", ["no model source"]),
        (("models", "base", "source"), "gguf:/no/such.gguf", ["no file"]),
        (("constitution",), None, ["stages.revise", "constitution"]),
        (("constitution", "principles", 0, "comparison"), "", ["stages.judge", "comparison"]),
        (("template", "name"), "nothing", ["prompt_templates", "nothing"]),
        (("stages", "revise", "critique"), "nothing", ["prompt_templates", "nothing"]),
    ],
)
def test_wrong_wiring_is_found_while_planning(raw, path, value, words):
    with pytest.raises(SpecError) as error:
        plan(edited(raw, path, value))
    for word in words:
        assert word in str(error.value)


def test_problems_of_every_stage_are_told_at_once(raw):
    wrong = edited(raw, ("stages", "sft", "data"), "base")
    wrong["stages"]["rl"]["reward"] = "nowhere"
    wrong["template"] = {"name": "missing"}
    with pytest.raises(SpecError) as error:
        plan(wrong)
    told = str(error.value)
    assert "stages.sft.data" in told
    assert "stages.rl.reward" in told
    assert "missing" in told


def test_mixing_rows_of_two_kinds_is_refused(raw):
    raw["data"]["pairs"] = {"path": "prompts.jsonl", "makes": "comparisons"}
    raw["stages"]["sl_mix"]["sources"].append({"from": "pairs"})
    with pytest.raises(SpecError, match="mixes conversations with comparisons"):
        plan(raw)


def test_row_counts_and_calls_are_known_before_anything_runs(raw):
    steps = {step.name: step for step in plan(raw).steps}
    asked = steps["asked.sl"].estimate.rows
    assert asked + steps["asked.rl"].estimate.rows == 40
    assert steps["respond"].estimate.calls == asked
    assert steps["revise"].estimate.calls == 2 * asked


def test_a_branch_of_the_hub_is_taken_when_asked_with_a_warning_and_expected_rows_are_estimates(raw):
    raw["data"]["far"] = {
        "path": "hf:a/b@main:x.jsonl",
        "makes": "prompts",
        "moving": True,
        "expect": 100,
        "splits": {"a": 0.25, "b": 0.75},
    }
    raw["stages"]["respond"]["prompts"] = "far.b"
    step = plan(raw).step("far.b")
    assert step.estimate.rows == 75
    assert step.notes[0] == "downloads x.jsonl of a/b at main"
    assert "'main' can move" in step.notes[1]
    unsaid = copy.deepcopy(raw)
    del unsaid["data"]["far"]["moving"]
    with pytest.raises(SpecError, match="'main' can move"):
        plan(unsaid)
    without = copy.deepcopy(raw)
    del without["data"]["far"]["expect"]
    assert plan(without).step("far.b").key == step.key
    assert plan(without).step("far.b").estimate.rows is None


def test_thinking_to_learn_needs_a_template_that_writes_it(raw):
    silent = edited(raw, ["stages", "sft", "thinking"], "train")
    with pytest.raises(SpecError, match=r"stages\.sft\.thinking: the template 'chatml' writes no thinking"):
        plan(silent)
    heard = edited(silent, ["template", "name"], "chatml_tools")
    assert keys(heard)["sft"] != keys(edited(raw, ["template", "name"], "chatml_tools"))["sft"]
    assert keys(edited(raw, ["stages", "sft", "thinking"], "drop")) == keys(raw)
