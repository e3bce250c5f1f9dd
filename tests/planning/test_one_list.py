"""Whatever is wrong with an experiment is told in one list: fields, names, texts and data."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest

from cai.errors import SpecError
from cai.files.library import Library, shipped_root
from cai.planning.resolver import resolve_data
from tests.support.small_experiment import raw_experiment


@pytest.fixture
def raw(tmp_path, monkeypatch):
    return raw_experiment(tmp_path, monkeypatch)


def problems(raw):
    with pytest.raises(SpecError) as error:
        resolve_data(raw, Library((Path.cwd(), shipped_root())))
    places = {problem.where: problem for problem in error.value.problems}
    assert len(places) == len(error.value.problems), "one problem a place"
    return places


def test_fields_names_texts_and_data_are_told_together(raw):
    raw["stages"]["sft"] = {"model": "base", "data": "sl_mixx", "lr": 1e-4}
    raw["stages"]["judge"]["candidates"] = "smaple"
    raw["stages"]["judge"]["prompt"] = "nothing"
    raw["data"]["asked"]["path"] = "missing.jsonl"
    raw["template"] = {"name": "chatnl"}
    places = problems(raw)
    assert set(places) == {
        "stages.sft.lr",
        "stages.sft.data",
        "stages.judge.candidates",
        "stages.judge.prompt",
        "data.asked",
        "template",
    }
    assert places["stages.sft.lr"].next == "did you mean 'training.learning_rate'?"
    assert "did you mean 'sl_mix'?" in places["stages.sft.data"].next


def test_a_stage_with_a_wrong_value_is_still_looked_at(raw):
    raw["stages"]["respond"] = {"model": "bsae", "prompts": "asked.ls", "limit": "many"}
    raw["stages"]["sl_mix"] = {"kind": "mix", "sources": [{"from": "reviese"}], "val": 3}
    raw["stages"]["revise"]["critique"] = "nothing"
    raw["stages"]["revise"]["rounds"] = -1
    assert set(problems(raw)) == {
        "stages.respond.model",
        "stages.respond.prompts",
        "stages.respond.limit",
        "stages.sl_mix.sources.0",
        "stages.sl_mix.val",
        "stages.revise.critique",
        "stages.revise.rounds",
    }


def test_what_a_block_that_cannot_be_read_would_have_made_is_missed_by_nobody(raw):
    raw["models"]["base"] = {"sorce": "x"}
    raw["data"]["asked"] = {"path": "prompts.jsonl", "makes": "poems", "splits": {"sl": 0.5, "rl": 0.5}}
    raw["stages"]["revise"]["kind"] = "revize"
    raw["engine"] = {"kind": "embeded"}
    assert set(problems(raw)) == {
        "models.base.sorce",
        "models.base.source",
        "data.asked.makes",
        "stages.revise.kind",
        "engine.kind",
    }


def test_an_engine_that_cannot_be_read_is_blamed_for_nothing_else(raw):
    raw["engines"] = {"cluster": {"kind": "nemo_aligner", "cluster": {"nodes": -1}}}
    raw["stages"]["sft"]["engine"] = "cluster"
    assert set(problems(raw)) == {"engines.cluster.cluster.nodes"}


def test_a_wrong_constitution_or_template_is_told_once(raw):
    assert set(problems({**raw, "constitution": "own"})) == {"constitution"}
    assert set(problems({**raw, "template": {"name": 3}})) == {"template"}


def test_rules_between_fields_are_told_beside_unknown_fields(raw):
    raw["stages"]["sl_mix"]["max_tokens"] = 8
    raw["stages"]["sl_mix"]["speed"] = 1
    assert set(problems(raw)) == {"stages.sl_mix.speed", "stages.sl_mix"}


@pytest.mark.parametrize(
    ("block", "field", "meant"),
    [
        (("stages", "sft"), "lr", "training.learning_rate"),
        (("stages", "sft"), "epochs", "training.epochs"),
        (("stages", "sft", "training"), "lr", "learning_rate"),
        (("stages", "sft", "training"), "bs", "batch_size"),
        (("stages", "sft", "training"), "batch", "batch_size"),
        (("stages", "sft", "training"), "num_epochs", "epochs"),
        (("stages", "sft", "training"), "max_seq_len", "max_length"),
        (("stages", "sft", "training"), "learningRate", "learning_rate"),
        (("stages", "sft", "training"), "loss", "stages.sft.loss"),
        (("stages", "sft", "training"), "schedul", "schedule"),
        (("stages", "rl", "training"), "kl_coef", "kl_coefficient"),
        (("stages", "respond"), "max_new_tokens", "sampling.max_tokens"),
        (("stages", "respond"), "temperature", "sampling.temperature"),
        (("stages", "respond"), "dataset", "prompts"),
        (("stages", "respond"), "batch_size", "chunk"),
        (("stages", "sample"), "num_samples", "n"),
        (("models", "base"), "commit", "revision"),
        (("data", "asked"), "format", "reader"),
        (("data", "asked"), "columns", "options.columns"),
        (("stages", "sl_mix", "sources", 0), "name", "from"),
    ],
)
def test_an_unknown_field_is_known_by_what_others_call_it(raw, block, field, meant):
    edited = copy.deepcopy(raw)
    node = edited
    for part in block:
        if isinstance(node, dict) and part == "training":
            node.setdefault("training", {})
        node = node[part]
    node[field] = 1
    (problem,) = problems(edited).values()
    assert problem.message == "unknown field"
    assert problem.next == f"did you mean '{meant}'?"


def test_what_an_engine_says_of_the_plan_is_told_beside_fields_and_data(raw):
    raw["stages"]["early"] = {"kind": "snapshot", "of": "rl", "iteration": 3}
    raw["stages"]["sft"]["lr"] = 1e-4
    raw["data"]["asked"]["path"] = "missing.jsonl"
    assert set(problems(raw)) == {"stages.sft.lr", "data.asked", "stages.early.iteration"}
