"""Calls on their way to real small servers: every tag once, whatever the servers do, and the servers kept busy."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections import Counter
from email.utils import formatdate
from typing import Any

import pytest

from cai.clients.base import Finish, Flowing, Pool, Request, Unanswered
from cai.clients.concurrency import START
from cai.clients.openai_api import OpenAiClient
from cai.clients.settings import GaveUp, Prices
from cai.errors import PrerequisiteError, StepFailed
from tests.support.api_server import Reaction, Say, Start, answer, asked_for, started_servers
from tests.support.api_server import client_of as client

serve = pytest.fixture(started_servers)


def call(i: int) -> Request:
    return Request(f"r{i}", f"text {i}")


def echo(path: str, body: dict[str, Any]) -> Say:
    return answer(asked_for(body))


def feed(pool: Pool, n: int, seconds: float = 60.0) -> dict[Any, Any]:
    """Send ``n`` calls as the pool wants them; checks that each tag comes out once."""
    found: dict[Any, Any] = {}
    sent, end = 0, time.monotonic() + seconds
    while len(found) < n:
        assert time.monotonic() < end, f"{len(found)} of {n} after {seconds} seconds"
        for _ in range(min(pool.room(), n - sent)):
            pool.submit(sent, call(sent))
            sent += 1
        for tag, result in pool.take(1.0):
            assert tag not in found
            found[tag] = result
    assert pool.take(0.0) == []
    return found


def ask(made: OpenAiClient, n: int, seconds: float = 60.0) -> dict[Any, Any]:
    try:
        return feed(made.open_pool(), n, seconds)
    finally:
        made.close()


def take_all(pool: Pool, found: list[Any]) -> None:
    """Take until the pool raises."""
    while True:
        found += pool.take(10.0)


def whole(found: dict[Any, Any]) -> bool:
    return all(result.text == f"text {i}" for i, result in found.items())


def test_every_call_comes_out_under_its_tag(serve: Start) -> None:
    server = serve(echo)
    made = client(server)
    assert isinstance(made, Flowing)
    assert whole(ask(made, 300))
    assert len(server.asked) == 300


def test_a_pool_with_nothing_on_its_way_does_not_wait(serve: Start) -> None:
    made = client(serve(echo))
    pool = made.open_pool()
    assert pool.take() == []
    assert pool.room() > 0
    made.close()


def test_take_waits_no_longer_than_it_is_told(serve: Start) -> None:
    made = client(serve(lambda path, body: Say(how="hang")))
    pool = made.open_pool()
    pool.submit("a", call(0))
    began = time.monotonic()
    assert pool.take(0.1) == []
    assert time.monotonic() - began < 5
    made.close()


def test_room_is_what_is_missing_and_closes_when_enough_is_on_its_way(serve: Start) -> None:
    made = client(serve(lambda path, body: Say(how="hang")), concurrency=8)
    pool = made.open_pool()
    first = pool.room()
    assert first >= 8
    for i in range(first):
        pool.submit(i, call(i))
    assert pool.room() <= 0
    made.close()


def test_two_pools_of_a_client_do_not_mix(serve: Start) -> None:
    made = client(serve(echo))
    pools = [made.open_pool() for _ in range(2)]
    for i in range(40):
        pools[i % 2].submit(i, call(i))
    for k, pool in enumerate(pools):
        tags: set[Any] = set()
        while len(tags) < 20:
            tags |= {tag for tag, _ in pool.take(10.0)}
        assert tags == set(range(k, 40, 2))
    made.close()


def test_what_is_used_is_counted(serve: Start) -> None:
    left = [Say({}, 500), Say(how="reset")]
    server = serve(lambda path, body: left.pop() if left else answer("x"))
    made = client(server, concurrency=4, prices=Prices(prompt=2.0, completion=10.0))
    pool = made.open_pool()
    feed(pool, 50)
    used = pool.usage
    made.close()
    assert (used.calls, used.attempts) == (50, 52)
    assert (used.prompt_tokens, used.tokens) == (350, 150)
    assert used.cost == pytest.approx((350 * 2 + 150 * 10) / 1e6)
    assert used.faults == {"answers 500": 1, "the connection failed": 1}
    assert 1 <= used.concurrency <= 4
    assert server.most <= 4


def slowly(seconds: float) -> Reaction:
    def react(path: str, body: dict[str, Any]) -> Say:
        said = answer(asked_for(body))
        said.delay = seconds
        return said

    return react


def test_a_stated_limit_is_used_from_the_first_moment(serve: Start) -> None:
    server = serve(slowly(0.3))
    made = client(server, concurrency=48)
    feed(made.open_pool(), 48)
    made.close()
    assert server.most == 48


@pytest.mark.long
def test_a_limit_that_nobody_states_rises_by_answers(serve: Start) -> None:
    server = serve(slowly(0.3))
    made = client(server)
    feed(made.open_pool(), 1200)
    made.close()
    assert START < server.most <= 256


@pytest.mark.long
def test_a_server_that_refuses_beyond_its_places_is_kept_at_them(serve: Start) -> None:
    def react(path: str, body: dict[str, Any]) -> Say:
        if server.in_flight > 16:
            return Say({"error": "busy"}, 429)
        said = answer(asked_for(body))
        said.delay = 0.05
        return said

    server = serve(react)
    made = client(server, retries=0)
    assert whole(ask(made, 900))
    assert len(server.asked) < 900 * 1.3, "refusals are few"
    assert 10 <= made._traffic.endpoints[0].limit.value <= 24


@pytest.mark.parametrize("how", ["reset", "half", "noise", "drip", "hang"])
def test_a_fault_of_the_connection_is_tried_again(serve: Start, how: str) -> None:
    tries = Counter[str]()

    def react(path: str, body: dict[str, Any]) -> Say:
        text = asked_for(body)
        tries[text] += 1
        if tries[text] == 1 and int(text.split()[1]) % 3 == 0:
            return Say({"filler": "x" * 400}, how=how)
        return answer(text)

    assert whole(ask(client(serve(react), timeout=0.5), 30))
    assert set(tries.values()) == {1, 2}


@pytest.mark.long
@pytest.mark.parametrize("header", [None, "1", "date"])
def test_a_storm_of_refusals_costs_no_call(serve: Start, header: str | None) -> None:
    began = time.monotonic()

    def react(path: str, body: dict[str, Any]) -> Say:
        if time.monotonic() - began > 1.0:
            return answer(asked_for(body))
        value = formatdate(time.time() + 1, usegmt=True) if header == "date" else header
        return Say({"error": "slow down"}, 429, {} if value is None else {"Retry-After": value})

    server = serve(react)
    assert whole(ask(client(server, retries=0), 100))
    assert len(server.asked) < 500, "a server that refuses is not hammered"


def test_a_server_that_sends_something_else_is_told(serve: Start) -> None:
    page = Say(b"<html>Welcome to the portal</html>", headers={"Content-Type": "text/html"})
    with pytest.raises(StepFailed, match=r"no completion \(<html>Welcome to the portal"):
        ask(client(serve(lambda path, body: page), retries=2), 20)


def test_a_call_that_never_works_is_one_row_and_not_the_run(serve: Start) -> None:
    def react(path: str, body: dict[str, Any]) -> Say:
        return Say({"error": "cannot"}, 500) if asked_for(body) == "text 7" else answer(asked_for(body))

    server = serve(react)
    found = ask(client(server, retries=2), 200)
    assert found.pop(7) == Unanswered("r7", "answers 500")
    assert whole(found)
    dropped = ask(client(server, retries=2, unanswered=GaveUp.DROP), 200).pop(7)
    assert (dropped.text, dropped.finish, dropped.refused) == ("", Finish.REFUSED, "gave up: answers 500")


def test_the_last_rows_may_be_those_that_never_work(serve: Start) -> None:
    def react(path: str, body: dict[str, Any]) -> Say:
        return Say(how="hang") if asked_for(body) == "text 19" else answer(asked_for(body))

    made = client(serve(react), retries=1, timeout=0.2)
    assert ask(made, 20)[19] == Unanswered("r19", "timed out")


def test_a_list_with_a_call_that_never_works_fails_with_its_name(serve: Start) -> None:
    def react(path: str, body: dict[str, Any]) -> Say:
        return Say({}, 500) if asked_for(body) == "text 3" else answer("x")

    made = client(serve(react), retries=1)
    with pytest.raises(StepFailed, match=r"no answer to 'r3' \(answers 500\)"):
        list(made.generate([call(i) for i in range(9)]))
    made.close()


def test_what_cannot_pass_ends_the_pool_after_what_was_answered(serve: Start) -> None:
    def react(path: str, body: dict[str, Any]) -> Say:
        return answer("x") if len(server.asked) <= 20 else Say({"error": "who are you?"}, 401)

    server = serve(react)
    made = client(server, concurrency=1)
    pool = made.open_pool()
    for i in range(40):
        pool.submit(i, call(i))
    found: list[Any] = []
    with pytest.raises(PrerequisiteError, match="who are you"):
        take_all(pool, found)
    assert len(found) == 20
    with pytest.raises(PrerequisiteError):
        pool.take(0.0)
    made.close()


def test_answers_on_their_way_are_kept_when_another_call_ends_the_pool(serve: Start) -> None:
    def react(path: str, body: dict[str, Any]) -> Say:
        if asked_for(body) == "text 3":
            return Say({"error": "who are you?"}, 401)
        said = answer(asked_for(body))
        said.delay = 0.2
        return said

    made = client(serve(react), concurrency=8)
    pool = made.open_pool()
    for i in range(40):
        pool.submit(i, call(i))
    found: list[Any] = []
    with pytest.raises(PrerequisiteError, match="who are you"):
        take_all(pool, found)
    made.close()
    assert sorted(tag for tag, _ in found) == [0, 1, 2, 4, 5, 6, 7]


def test_calls_are_shared_between_servers(serve: Start) -> None:
    def slow(path: str, body: dict[str, Any]) -> Say:
        said = answer(asked_for(body))
        said.delay = 0.02
        return said

    servers = [serve(slow) for _ in range(3)]
    assert whole(ask(client(*servers), 300))
    assert all(len(server.asked) >= 30 for server in servers)


@pytest.mark.long
def test_a_server_that_dies_is_left_alone_and_used_again_when_it_is_back(serve: Start) -> None:
    def slow(path: str, body: dict[str, Any]) -> Say:
        said = answer(asked_for(body))
        said.delay = 0.01
        return said

    stays, dies = serve(slow), serve(slow)
    made = client(stays, dies, retries=4)
    pool = made.open_pool()
    assert whole(feed(pool, 200))
    assert len(dies.asked) > 20
    dies.close()
    assert whole(feed(pool, 400)), "no call is lost"
    used = pool.usage
    assert used.attempts - used.calls < 200, "a dead server is not asked all the time"
    back = serve(slow, None, dies.port)
    end = time.monotonic() + 20
    while len(back.asked) < 20 and time.monotonic() < end:
        assert whole(feed(pool, 50))
    made.close()
    assert len(back.asked) >= 20


def test_a_server_that_only_fails_is_left_to_the_other(serve: Start) -> None:
    good, bad = serve(echo), serve(lambda path, body: Say({"error": "broken"}, 500))
    made = client(good, bad, retries=3)
    assert whole(ask(made, 1000))
    # Half of what is sent at the beginning, and a call now and then to see whether it is back.
    assert len(bad.asked) < 200


def test_a_call_that_failed_waits_for_another_server_that_is_busy(serve: Start) -> None:
    def busy(path: str, body: dict[str, Any]) -> Say:
        said = answer(asked_for(body))
        said.delay = 0.5
        return said

    good, bad = serve(busy), serve(lambda path, body: Say({"error": "broken"}, 500))
    # One more attempt: it must not go to the server that has room because it fails at once.
    assert whole(ask(client(good, bad, retries=1), 40))
    assert len(bad.asked) > 0


def test_when_all_servers_are_gone_each_is_named_with_what_it_said(serve: Start) -> None:
    silent = serve(lambda path, body: Say({"error": "out of memory"}, 500))
    gone = serve(echo)
    gone.close()
    with pytest.raises(StepFailed, match="no server answers any more") as failed:
        ask(client(silent, gone, retries=2), 60)
    assert silent.url in str(failed.value)
    assert gone.url in str(failed.value)
    assert "out of memory" in str(failed.value)


def test_a_server_that_stops_in_the_middle_fails_and_keeps_what_was_answered(serve: Start) -> None:
    server = serve(lambda path, body: answer("x") if len(server.asked) <= 100 else Say({}, 500))
    made = client(server, retries=3)
    pool = made.open_pool()
    for i in range(300):
        pool.submit(i, call(i))
    found: list[Any] = []
    with pytest.raises(StepFailed, match="answers 500"):
        take_all(pool, found)
    assert len([result for _, result in found if not isinstance(result, Unanswered)]) == 100
    assert len(found) <= 103, "what a dead server leaves is not counted as rows without an answer"
    made.close()


def test_a_prompt_of_megabytes_is_sent(serve: Start) -> None:
    server = serve(lambda path, body: answer(str(len(asked_for(body)))))
    made = client(server)
    (found,) = made.generate([Request("r", "x" * (3 << 20))])
    made.close()
    assert found.text == str(3 << 20)


def test_a_deadline_ends_the_waiting_for_a_limit(serve: Start) -> None:
    server = serve(lambda path, body: Say({"error": "limit"}, 429, {"Retry-After": "60"}))
    began = time.monotonic()
    with pytest.raises(StepFailed, match="answers 429"):
        ask(client(server, deadline=0.5), 10)
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("jump", [-1e8, 1e8])
def test_a_clock_that_jumps_changes_nothing(serve: Start, monkeypatch: pytest.MonkeyPatch, jump: float) -> None:
    real = time.time
    server = serve(lambda path, body: answer(asked_for(body)) if len(server.asked) > 9 else Say({}, 500))
    made = client(server, deadline=30.0)
    pool = made.open_pool()
    for i in range(30):
        pool.submit(i, call(i))
    monkeypatch.setattr(time, "time", lambda: real() + jump)
    found: dict[Any, Any] = {}
    while len(found) < 30:
        found.update(pool.take(10.0))
    assert whole(found)
    made.close()


@pytest.mark.parametrize("how", ["hang", "drip"])
def test_closing_while_calls_are_on_their_way_comes_back_soon(serve: Start, how: str) -> None:
    server = serve(lambda path, body: Say({"x": "y" * 9999}, how=how))
    made = client(server)
    pool = made.open_pool()
    for i in range(50):
        pool.submit(i, call(i))
    while not server.asked:
        time.sleep(0.01)
    began = time.monotonic()
    pool.close()
    made.close()
    assert time.monotonic() - began < 1.5
    assert pool.take() == []
    with pytest.raises(StepFailed, match="closed"):
        made.open_pool()


def test_closing_wakes_who_waits(serve: Start) -> None:
    made = client(serve(lambda path, body: Say(how="hang")))
    pool = made.open_pool()
    pool.submit("a", call(0))
    taken: list[Any] = []
    waiting = threading.Thread(target=lambda: taken.append(pool.take()))
    waiting.start()
    time.sleep(0.1)
    made.close()
    waiting.join(5.0)
    assert taken == [[]]


@pytest.mark.long
def test_ten_thousand_calls_with_every_kind_of_fault_come_out_once(serve: Start) -> None:
    tries = Counter[str]()
    faults = [
        Say({"error": "x"}, 500),
        Say({"error": "x"}, 503),
        Say({"error": "slow"}, 429),
        Say({"error": "slow"}, 429, {"Retry-After": "0"}),
        Say(how="reset"),
        Say({"filler": "x" * 99}, how="half"),
        Say(how="noise"),
        Say(b"no JSON"),
        Say({"choices": []}),
    ]

    def react(path: str, body: dict[str, Any]) -> Say:
        text = asked_for(body)
        tries[text] += 1
        i = int(text.split()[1])
        if i % 2500 == 7:
            return Say({"error": "cannot"}, 500)
        if tries[text] == 1 and i % 10 == 3:
            return faults[i // 10 % len(faults)]
        return answer(text)

    servers = [serve(react) for _ in range(2)]
    made = client(*servers, retries=4)
    pool = made.open_pool()
    found = feed(pool, 10_000, 240)
    used = pool.usage
    made.close()
    lost = {i: found.pop(i) for i in range(7, 10_000, 2500)}
    assert set(lost.values()) == {Unanswered(f"r{i}", "answers 500") for i in lost}
    assert whole(found)
    assert used.calls == len(found) == 9996
    assert {"answers 500", "answers 503", "answers 429", "the connection failed"} <= set(used.faults)


LEAVES = """
import sys, time
from cai.clients.base import Request
from cai.clients.openai_api import OpenAiClient
pool = OpenAiClient(sys.argv[1], "m", "").open_pool()
for i in range(20):
    pool.submit(i, Request(str(i), "x"))
pool.take(1.0)
print("leaves")
"""


@pytest.mark.long
def test_a_program_ends_whatever_its_servers_do(serve: Start) -> None:
    server = serve(lambda path, body: Say(how="hang"))
    done = subprocess.run([sys.executable, "-c", LEAVES, server.url], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (0, "leaves\n", "")
