"""Limits kept between runs: found again for the same server and model, and ignored when they are old or broken."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest

from cai.clients import limit_memory
from cai.clients.concurrency import START
from cai.clients.limit_memory import FRESH, remember_limit, remembered_limit
from cai.clients.openai_api import OpenAiClient
from cai.clients.settings import ApiLimits
from tests.support.api_server import ApiServer, Say, answer, asked_for

URL = "http://node1:8000/v1"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CAI_HOME", str(tmp_path))
    monkeypatch.delenv("CAI_LIMIT_MEMORY", raising=False)
    return tmp_path


def only_file(home: Path) -> Path:
    (path,) = (home / "limits").glob("*.json")
    return path


def test_a_limit_is_kept_for_its_server_and_its_model() -> None:
    remember_limit(URL, "m", 77)
    assert remembered_limit(URL, "m") == 77
    assert remembered_limit(URL, "other") is None
    assert remembered_limit("http://node2:8000/v1", "m") is None


def test_the_file_says_nothing_that_an_address_may_hide(home: Path) -> None:
    remember_limit("https://me:secret@node1:8000/v1?key=secret", "m", 77)
    assert "secret" not in only_file(home).read_text()
    assert "secret" not in only_file(home).name


def test_an_old_limit_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    remember_limit(URL, "m", 77)
    later = time.time() + FRESH + 10
    monkeypatch.setattr(limit_memory.time, "time", lambda: later)
    assert remembered_limit(URL, "m") is None


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "3", '{"limit": 5}', '{"limit": "5", "written": 1, "model": "m"}', "[" * 100_000]
    + [json.dumps({"model": "m", "limit": limit, "written": 9e9}) for limit in (0, -1, 1.5, 1 << 40)],
)
def test_a_file_that_makes_no_sense_is_ignored(home: Path, text: str) -> None:
    remember_limit(URL, "m", 77)
    only_file(home).write_text(text)
    assert remembered_limit(URL, "m") is None


def test_where_nothing_can_be_written_nothing_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CAI_HOME", str(tmp_path / "file"))
    remember_limit(URL, "m", 77)
    assert remembered_limit(URL, "m") is None


def test_it_can_be_done_without(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.setenv("CAI_LIMIT_MEMORY", "off")
    remember_limit(URL, "m", 77)
    assert not (home / "limits").exists()


def test_many_may_write_at_once() -> None:
    writers = [threading.Thread(target=remember_limit, args=(URL, "m", n)) for n in range(1, 21)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert remembered_limit(URL, "m") in range(1, 21)


def test_the_next_client_begins_where_the_last_one_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    def react(path: str, body: dict[str, object]) -> Say:
        said = answer(asked_for(body)) if server.in_flight <= 12 else Say({"error": "busy"}, 429)
        said.delay = 0.1 if said.status == 200 else 0.0
        return said

    server = ApiServer(react)
    try:
        run(OpenAiClient(server.url, "m", ""), 150)
        remembered = remembered_limit(server.url, "m")
        assert remembered is not None
        assert 8 <= remembered <= 20
        again = OpenAiClient(server.url, "m", "")
        assert again._traffic.endpoints[0].limit.value == remembered
        again.close()
        stated = OpenAiClient(server.url, "m", "", limits=ApiLimits(concurrency=30))
        assert stated._traffic.endpoints[0].limit.value == 30
        stated.close()
        assert OpenAiClient(server.url, "other", "")._traffic.endpoints[0].limit.value == START
    finally:
        server.close()


def run(client: OpenAiClient, calls: int) -> None:
    from cai.clients.base import Request

    assert len(list(client.generate([Request(f"r{i}", f"text {i}") for i in range(calls)]))) == calls
    client.close()
