"""The examples of docs/evaluation.md compile, and evaluate what the text says."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from cai.commands.planning import compile_plan
from cai.figures.evaluation import ModelFigures
from cai.files.library import Library, shipped_root
from cai.plan import by_role

DOC = (shipped_root() / "docs" / "evaluation.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```yaml\n(.*?)```", DOC, re.DOTALL)
ON_QUICKSTART = "defaults:\n  - quickstart\n  - _self_\n"


def planned(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    (folder / "experiments").mkdir()
    (folder / "experiments" / "mine.yaml").write_text(text)
    (folder / "my_prompts.jsonl").write_text('{"prompt": "Is it safe?", "topic": "ours"}\n')
    monkeypatch.chdir(folder)
    plan = compile_plan(["experiment=mine"], Library((folder, shipped_root())))
    return {step.name: step for step in plan.steps}


def test_other_peoples_prompts_and_pairs_can_be_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = next(block for block in BLOCKS if "public:hh-rlhf" in block)
    steps = planned(tmp_path, text, monkeypatch)
    evaluate = steps["evaluate"]
    assert {"red_team", "hh_red_team", "ours"} <= set(by_role(evaluate.inputs)["prompts"])
    assert {"independent", "hh_harmless", "hh_helpful"} <= set(by_role(evaluate.inputs)["comparisons"])
    assert steps["hh_harmless"].estimate.rows == 500
    assert steps["hh_harmless"].makes == "comparisons"
    assert steps["hh_red_team"].notes[0].startswith("downloads red-team-attempts/")


def test_snapshots_are_compared_like_any_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = next(block for block in BLOCKS if "snapshots: [2, 4]" in block)
    steps = planned(tmp_path, ON_QUICKSTART + text, monkeypatch)
    assert by_role(steps["evaluate"].inputs)["models"]["rl-2"] == "rl_2"
    assert by_role(steps["rl_4"].inputs) == {"of": "rl"}


def test_everything_an_evaluation_can_be_asked_compiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    more = """
models:
  mixtral: {source: "api:big", url: "https://host/v1"}
data:
  pairs: {path: "shipped:quickstart/independent_test.jsonl", makes: comparisons, splits: {heldout: 0.5, train: 0.5}}
"""
    steps = planned(tmp_path, ON_QUICKSTART + more + BLOCKS[0], monkeypatch)
    evaluate = steps["evaluate"]
    assert evaluate.source("adherence") == "mixtral"
    assert evaluate.resources["texts"]["adherence_prompt"]
    assert [p["id"] for p in evaluate.resources["constitution"]["principles"]] == [
        "no-harm",
        "within-the-law",
        "respect",
        "say-why",
    ]


def test_every_figure_of_an_answer_is_in_the_table() -> None:
    told = set(re.findall(r"`([a-z_0-9]+)`", DOC))
    assert {figure.name for figure in fields(ModelFigures)} <= told | {"reward", "reward_by_topic"}
