"""Who asks the same servers at the same time shares a client: they keep to one limit, and each gets its part."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cai.clients.base import Request
from cai.clients.settings import ApiLimits
from cai.clients.sharing import SharedClient, share_endpoint
from tests.support.api_server import ApiServer, Say, answer, asked_for


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    def react(path: str, body: dict[str, Any]) -> Say:
        said = answer(asked_for(body))
        said.delay = 0.02
        return said

    made = ApiServer(react)
    yield made
    made.close()


def opened(folder: Path, server: ApiServer, **limits: Any) -> SharedClient:
    path = folder / "endpoint.json"
    path.write_text(json.dumps({"model": "m", "url": server.url, "api_key_env": ""}))
    return share_endpoint(path, None, ApiLimits(**limits))


def ask(client: SharedClient, name: str, calls: int) -> None:
    pool = client.open_pool()
    sent = done = 0
    while done < calls:
        for _ in range(max(0, min(pool.room(), calls - sent))):
            pool.submit(sent, Request(f"{name}{sent}", f"{name} {sent}"))
            sent += 1
        done += len(pool.take(1.0))


def test_two_that_ask_at_once_keep_to_one_limit(server: ApiServer, tmp_path: Path) -> None:
    clients = [opened(tmp_path, server, concurrency=6) for _ in range(2)]
    threads = [threading.Thread(target=ask, args=(client, f"c{i}", 120)) for i, client in enumerate(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for client in clients:
        client.close()
    assert server.most == 6
    assert len(server.asked) == 240


def test_who_comes_second_gets_a_part_while_the_first_has_endless_rows(server: ApiServer, tmp_path: Path) -> None:
    first = opened(tmp_path, server, concurrency=8)
    long = threading.Thread(target=ask, args=(first, "long", 1200))
    long.start()
    while len(server.asked) < 50:
        pass
    before = len(server.asked)
    second = opened(tmp_path, server, concurrency=8)
    ask(second, "short", 60)
    between = [asked_for(body) for _, body in server.asked[before:]]
    assert sum(text.startswith("long") for text in between) < 200
    second.close()
    long.join()
    first.close()
    assert len(server.asked) == 1260


def test_one_that_closes_leaves_the_other_its_client(server: ApiServer, tmp_path: Path) -> None:
    first, second = opened(tmp_path, server), opened(tmp_path, server)
    first.close()
    first.close()
    ask(second, "c", 5)
    second.close()
    third = opened(tmp_path, server)
    ask(third, "d", 5)
    third.close()


def test_other_limits_are_another_client(server: ApiServer, tmp_path: Path) -> None:
    first, second = opened(tmp_path, server, concurrency=2), opened(tmp_path, server, concurrency=3)
    assert first._client is not second._client
    first.close()
    second.close()
