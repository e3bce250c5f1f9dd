"""What the tests of clients share: small servers of the OpenAI API, and an experiment that has a model behind one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cai.clients import endpoints
from tests.support.api_experiment import API_MODEL, verdict
from tests.support.fake_api import KEY, Answer, FakeServer


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Answer], FakeServer]]:
    """Start servers; all are stopped at the end. Waiting is made short."""
    monkeypatch.setattr(endpoints, "BACKOFF", 0.01)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    servers: list[FakeServer] = []

    def start(answer: Answer) -> FakeServer:
        servers.append(FakeServer(answer))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    """A server that judges, and the variable with its key."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("TEST_KEY", KEY)
    server = FakeServer(verdict)
    yield server
    server.close()


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """An experiment with a model here and one served elsewhere."""
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
