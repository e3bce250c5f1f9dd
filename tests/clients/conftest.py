"""What the tests of clients share: small servers of the OpenAI API, and an experiment that has a model behind one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cai.clients import endpoints
from tests.support.api_experiment import raw_api_experiment, verdict
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
    return raw_api_experiment(tmp_path, monkeypatch)
