"""What waits in a slow server's queue at the end is sent to another server too, once, and the first answer counts."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from cai.clients.base import Request
from cai.clients.concurrency import Limit
from cai.clients.endpoints import Endpoint
from cai.clients.http_pool import CallPart
from cai.clients.openai_api import OpenAiClient
from cai.clients.pool_notes import TAKEN_OVER
from cai.clients.settings import ApiLimits
from cai.clients.takeover import Flight, takeovers
from tests.support.api_server import ApiServer, Reaction, Say, answer, asked_for


def part() -> CallPart:
    return CallPart(None, Request("r", "text"), 0)  # type: ignore[arg-type]


def endpoint(latency: float, places: int = 8) -> Endpoint:
    made = Endpoint("http://x", Limit(places))
    made.limit.round_trip = latency
    return made


def test_a_call_is_taken_over_when_another_server_would_have_answered_three_times() -> None:
    slow, quick = endpoint(60.0), endpoint(1.0)
    waiting = Flight(part(), slow, 10.0)
    early = takeovers([waiting], [slow, quick], 12.0)
    assert (early.now, early.look_at) == ((), 13.0) or (list(early.now), early.look_at) == ([], 13.0)
    assert list(takeovers([waiting], [slow, quick], 13.0).now) == [(waiting, quick)]


def test_no_call_is_taken_over_twice_or_by_its_own_server() -> None:
    slow, quick = endpoint(60.0), endpoint(1.0)
    waiting = Flight(part(), slow, 0.0)
    assert not takeovers([waiting], [slow], 500.0).now
    waiting.part.taken_over = True
    assert not takeovers([waiting], [slow, quick], 500.0).now
    assert not takeovers([Flight(part(), quick, 0.0)], [slow, quick], 100.0).now


def test_no_more_are_taken_over_than_there_are_places() -> None:
    slow, quick = endpoint(60.0), endpoint(1.0, places=2)
    waiting = [Flight(part(), slow, float(n)) for n in range(5)]
    assert [flight for flight, _ in takeovers(waiting, [slow, quick], 100.0).now] == waiting[:2]


def test_a_server_that_rests_or_has_not_answered_yet_takes_nothing_over() -> None:
    slow, quick = endpoint(60.0), endpoint(1.0)
    quick.rests = 1
    assert not takeovers([Flight(part(), slow, 0.0)], [slow, quick], 100.0).now
    assert not takeovers([Flight(part(), slow, 0.0)], [slow, endpoint(0.0)], 100.0).now


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[ApiServer]]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    def react(delay: float) -> Reaction:
        def reaction(path: str, body: dict[str, Any]) -> Say:
            said = answer(asked_for(body))
            said.delay = delay
            return said

        return reaction

    made = [ApiServer(react(0.05)), ApiServer(react(30.0))]
    yield made
    for server in made:
        server.close()


def test_the_end_of_the_work_does_not_wait_for_a_slow_server(servers: list[ApiServer]) -> None:
    client = OpenAiClient(
        servers[0].url, "m", "", replicas=[servers[1].url], limits=ApiLimits(concurrency=16, timeout=60)
    )
    pool = client.open_pool()
    began = time.monotonic()
    for n in range(60):
        pool.submit(n, Request(f"r{n}", f"text {n}"))
    found = dict[Any, Any]()
    while len(found) < 60:
        for tag, result in pool.take():
            assert tag not in found
            found[tag] = result
    assert time.monotonic() - began < 10
    assert all(result.text == f"text {n}" for n, result in found.items())
    asked = Counter(asked_for(body) for server in servers for _, body in server.asked)
    notes = [note for note in pool.notes() if note.event == TAKEN_OVER]  # type: ignore[attr-defined]
    assert max(asked.values()) == 2
    assert len(notes) == sum(count == 2 for count in asked.values()) > 0
    assert pool.usage.attempts == sum(asked.values())
    assert pool.room() > 0, "what was taken over counts once"
    client.close()
