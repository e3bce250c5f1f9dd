"""A small experiment of every kind of wiring, as plain data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest


def raw_experiment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A small experiment of every kind of wiring, with files in a folder of its own."""
    monkeypatch.chdir(folder)
    (folder / "prompts.jsonl").write_text(
        "".join(json.dumps({"prompt": f"question {i}", "topic": f"t{i % 4}"}) + "\n" for i in range(40))
    )
    law = {"critique": "Is it legal?", "revision": "Make it legal.", "comparison": "Which one is legal?"}
    kind = {"critique": "Name what is rude.", "revision": "Use warm words.", "comparison": "Who sounds friendlier?"}
    return {
        "name": "small",
        "seed": 0,
        "engine": {"kind": "embedded", "generator": "transformers", "device": "cpu", "generation_precision": "float32"},
        "constitution": {"name": "own", "principles": [{"id": "a", **law}, {"id": "b", **kind}]},
        "template": {"name": "chatml"},
        "models": {"base": {"source": "pypi:package==1.0/model.gguf", "sha256": "0" * 64}},
        "data": {"asked": {"path": "prompts.jsonl", "makes": "prompts", "splits": {"sl": 0.5, "rl": 0.5}}},
        "stages": {
            "respond": {"model": "base", "prompts": "asked.sl"},
            "revise": {"model": "base", "responses": "respond"},
            "sl_mix": {"kind": "mix", "sources": [{"from": "revise"}]},
            "sft": {"model": "base", "data": "sl_mix"},
            "sample": {"model": "sft", "prompts": "asked.rl"},
            "judge": {"model": "base", "candidates": "sample", "scoring": "contrast"},
            "reward": {"model": "sft", "data": "judge"},
            "rl": {"model": "sft", "reward": "reward", "prompts": "asked.rl"},
            "evaluate": {
                "models": {"base": "base", "rl": "rl"},
                "reward": "reward",
                "prompts": {"all": "asked.rl"},
                "seen": ["all"],
            },
        },
    }
