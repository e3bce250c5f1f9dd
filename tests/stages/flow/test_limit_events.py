"""What a pool notes of its servers is told to the step, and a pool is filled before anything has answered."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cai.stages.base import Context
from cai.stages.respond import RespondSpec
from cai.stages.respond import run as respond
from tests.support.api_server import ApiServer, Say, answer, asked_for
from tests.support.flows import ROWS
from tests.support.stage_doubles import Memory, artifact, context


class Heard:
    """A step's progress that keeps its notes."""

    def __init__(self) -> None:
        self.notes: list[tuple[str, dict[str, Any]]] = []

    def expect(self, rows: int | None = None, tokens: int | None = None) -> None: ...

    def advance(self, rows: int = 0, tokens: int = 0) -> None: ...

    def note(self, event: str, **fields: Any) -> None:
        self.notes.append((event, fields))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    def react(path: str, body: dict[str, Any]) -> Say:
        said = answer(asked_for(body))
        said.delay = 0.3
        return said

    made = ApiServer(react)
    yield made
    made.close()


def asking(tmp_path: Path, server: ApiServer, limits: dict[str, int], heard: Heard) -> Context:
    served = artifact(tmp_path / "model", "model")
    (served.path / "endpoint.json").write_text(json.dumps({"model": "m", "url": server.url, "api_key_env": ""}))
    ctx = context(tmp_path, Memory(), {"model": served, "prompts": artifact(tmp_path / "p", "prompts", ROWS)})
    return replace(ctx, key="k" * 64, progress=heard, servers={"model": {"limits": limits}})


def test_the_moves_of_the_limit_are_events_of_the_step(tmp_path: Path, server: ApiServer) -> None:
    heard = Heard()
    respond(RespondSpec(model="m", prompts="p"), asking(tmp_path, server, {}, heard))
    moves = [fields for event, fields in heard.notes if event == "limit.moved"]
    assert moves[0] == {"endpoint": server.url, "from": None, "to": 128, "reason": "start"}
    assert moves[1]["reason"] == "rise"
    assert len(moves) <= 6


def test_a_stated_limit_is_filled_before_the_first_answer(tmp_path: Path, server: ApiServer) -> None:
    heard = Heard()
    respond(RespondSpec(model="m", prompts="p"), asking(tmp_path, server, {"concurrency": 150}, heard))
    assert server.most == 150
    assert heard.notes == [
        ("limit.moved", {"endpoint": server.url, "from": None, "to": 150, "reason": "stated"}),
    ]
