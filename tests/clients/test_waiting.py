"""A server that answers nothing: a line says what is waited for, and the waiting has an end."""

from __future__ import annotations

import gzip
import json
import time
from typing import Any

import pytest

from cai.clients import http_exchange, waiting
from cai.clients.base import Pool, Request
from cai.clients.openai_api import OpenAiClient
from cai.clients.settings import ApiLimits
from cai.clients.waiting import Waiting
from cai.errors import Incomplete
from tests.support.api_server import ApiServer, Say, answer, asked_for, started_servers

LIMIT = Say({"error": "daily limit reached"}, 429)


serve = pytest.fixture(started_servers)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks at what is waited for come soon."""
    monkeypatch.setattr(waiting, "LOOK", 0.02)


def take_all(pool: Pool, results: dict[Any, Any]) -> None:
    while True:
        results.update(pool.take(10.0))


def ask(server: ApiServer, n: int, **limits: Any) -> tuple[dict[Any, Any], float]:
    """What was answered before the run ended as incomplete, and the seconds that it took."""
    made = OpenAiClient(server.url, "m", "", limits=ApiLimits(**limits))
    pool, results, began = made.open_pool(), {}, time.monotonic()
    for i in range(n):
        pool.submit(i, Request(f"r{i}", f"text {i}"))
    try:
        with pytest.raises(Incomplete, match=r"daily limit reached.*`limits.patience`.*the same command goes on"):
            take_all(pool, results)
    finally:
        made.close()
    return results, time.monotonic() - began


def test_a_limit_for_ever_ends_the_run_resumably(serve: Any) -> None:
    results, seconds = ask(serve(lambda path, body: LIMIT), 5, patience=0.5)
    assert not results
    assert seconds < 10


def test_the_last_row_does_not_keep_the_finished_ones_waiting(serve: Any) -> None:
    results, seconds = ask(
        serve(lambda path, body: LIMIT if asked_for(body) == "text 7" else answer("x")), 40, patience=0.5
    )
    assert len(results) == 39
    assert seconds < 20, "not the hour of its deadline"


def test_a_slow_answer_is_waited_for_beside_refusals(serve: Any) -> None:
    def react(path: str, body: dict[str, Any]) -> Say:
        if asked_for(body) != "text 0":
            return LIMIT
        said = answer("slow")
        said.delay = 1.5
        return said

    results, _ = ask(serve(react), 2, patience=0.3)
    assert results[0].text == "slow"


def test_what_is_waited_for_is_said_every_half_minute(serve: Any, monkeypatch: Any, caplog: Any) -> None:
    monkeypatch.setattr(waiting, "SAY_EVERY", 0.1)
    ask(serve(lambda path, body: LIMIT), 5, patience=1.0)
    lines = [record.getMessage() for record in caplog.records if "calls wait" in record.getMessage()]
    assert 3 <= len(lines) <= 11
    assert "5 calls wait" in lines[0]
    assert "answers 429 (daily limit reached)" in lines[0]


def test_silence_is_counted_from_the_last_answer() -> None:
    watch = Waiting(patience=300)
    watch.sent(0.0)
    assert not watch.line(29.0, 3, 3)
    assert "nothing was answered for 31 s: 3 calls wait, 2 on the way" in watch.line(31.0, 3, 2)
    assert not watch.line(60.0, 3, 2)
    assert watch.line(61.0, 3, 2)
    watch.answered(70.0)
    assert not watch.line(99.0, 3, 2)
    watch.went_wrong(100.0, "answers 429 (no)", True)
    assert "answers 429 (no); waits 299 s more at most" in watch.line(101.0, 3, 2)
    assert not watch.over(399.0)
    assert "answers 429 (no), and nothing else for 300 s" in watch.over(400.0)
    watch.answered(401.0)
    assert not watch.over(9999.0)


def test_an_answer_is_bounded_by_what_it_unpacks_to(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_exchange, "LARGEST", 1 << 20)
    bomb = json.dumps({"choices": [{"message": {"content": "x"}}], "more": "0" * (64 << 20)}).encode()
    packed = Say(gzip.compress(bomb), headers={"Content-Encoding": "gzip"})
    assert len(packed.body) < 1 << 20

    def react(path: str, body: dict[str, Any]) -> Say:
        return packed if asked_for(body) == "text 1" else answer("x")

    made = OpenAiClient(serve(react).url, "m", "", limits=ApiLimits(retries=0))
    pool = made.open_pool()
    for i in range(4):
        pool.submit(i, Request(f"r{i}", f"text {i}"))
    results: dict[Any, Any] = {}
    while len(results) < 4:
        results.update(pool.take(10.0))
    made.close()
    assert results[1].why == "the connection failed"


def test_calls_in_a_queue_of_our_own_making_do_not_time_out(serve: Any) -> None:
    def react(path: str, body: dict[str, Any]) -> Say:
        said = answer(asked_for(body))
        said.delay = 0.02
        return said

    server = ApiServer(react, 1)
    made = OpenAiClient(server.url, "m", "", limits=ApiLimits(timeout=1.0))
    pool = made.open_pool()
    for i in range(150):
        pool.submit(i, Request(f"r{i}", f"text {i}"))
    results: dict[Any, Any] = {}
    while len(results) < 150:
        results.update(pool.take(10.0))
    made.close()
    server.close()
    assert {result.text for result in results.values()} == {f"text {i}" for i in range(150)}
    assert len(server.asked) == 150, "128 calls on one place take two and a half seconds, and none is asked twice"
