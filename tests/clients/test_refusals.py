"""What one row meets stops nothing; what every row meets ends the run before it costs a row."""

from __future__ import annotations

import re
import time
import traceback
from typing import Any

import pytest

from cai.clients.base import Finish, Request, Unanswered
from cai.clients.http_pool import ClientFault
from cai.clients.openai_api import OpenAiClient
from cai.clients.refusals import DECIDE
from cai.clients.settings import GaveUp
from cai.errors import CaiError, PrerequisiteError, StepFailed
from tests.support.api_server import Reaction, Say, Start, answer, asked_for, started_servers
from tests.support.api_server import client_of as client

NO_CREDIT = Say({"error": {"message": "This request requires more credits", "code": 402}}, 402)


serve = pytest.fixture(started_servers)


def ask(
    made: OpenAiClient, n: int, seconds: float = 60.0, before: bool = False
) -> tuple[dict[int, Any], CaiError | None]:
    """What came of ``n`` calls, and the error that ended the pool, as a stage takes them."""
    pool = made.open_pool()
    pool.answered_before = before
    results: dict[int, Any] = {}
    sent, end = 0, time.monotonic() + seconds
    try:
        while len(results) < n:
            assert time.monotonic() < end, f"{len(results)} of {n} after {seconds} seconds"
            for _ in range(min(pool.room(), n - sent)):
                pool.submit(sent, Request(f"r{sent}", f"text {sent}"))
                sent += 1
            for tag, result in pool.take(1.0):
                assert tag not in results
                results[tag] = result
        return results, None
    except CaiError as error:
        return results, error
    finally:
        made.close()


def number(body: dict[str, Any]) -> int:
    return int(asked_for(body).split()[1])


def refusing(rows: set[int], refusal: Say, delay: float = 0.0) -> Reaction:
    def react(path: str, body: dict[str, Any]) -> Say:
        if number(body) in rows:
            return refusal
        said = answer(asked_for(body))
        said.delay = delay
        return said

    return react


@pytest.mark.parametrize(
    ("status", "words", "reason"),
    [
        (
            400,
            {"error": {"message": "invalid prompt 17", "code": "invalid_prompt"}},
            "400 invalid_prompt: invalid prompt *",
        ),
        (402, {"error": "needs 12 more credits"}, "402 needs * more credits"),
        (403, {"error": {"message": "your input was flagged by moderation"}}, "moderated"),
        (403, b"<html>blocked</html>", "403 <html>blocked</html>"),
        (413, {"error": "too big"}, "prompt too long"),
        (422, {"detail": "no such language"}, "422 no such language"),
        (418, {}, "418 {}"),
    ],
)
def test_a_row_that_is_refused_stops_nothing(serve: Start, status: int, words: Any, reason: str) -> None:
    server = serve(refusing({77}, Say(words, status), 0.001))
    results, error = ask(client(server), 400)
    assert error is None
    odd = results.pop(77)
    assert (odd.text, odd.finish, odd.refused) == ("", Finish.REFUSED, reason)
    assert all(result.text == f"text {i}" for i, result in results.items())
    assert len(server.asked) == 400


def test_two_thousand_rows_are_made_in_one_run_but_one(serve: Start) -> None:
    results, error = ask(client(serve(refusing({1234}, Say({"error": "no"}, 400), 0.001))), 2000)
    assert error is None
    assert sum(result.finish is Finish.STOP for result in results.values()) == 1999


@pytest.mark.parametrize("status", [400, 402, 403, 413, 422, 418])
@pytest.mark.parametrize("rows", [1, 5, 500])
def test_when_every_row_is_refused_the_first_dozen_decide(serve: Start, status: int, rows: int) -> None:
    server = serve(lambda path, body: Say({"error": "not today"}, status))
    results, error = ask(client(server, concurrency=4), rows)
    assert isinstance(error, PrerequisiteError | StepFailed)
    assert "not today" in str(error)
    assert not results, "no row has lost anything"
    assert min(rows, DECIDE) <= len(server.asked) <= min(rows, DECIDE + 4)


def test_credit_that_ends_in_the_middle_costs_no_row(serve: Start) -> None:
    def react(path: str, body: dict[str, Any]) -> Say:
        if len(server.asked) > 150:
            return NO_CREDIT
        said = answer(asked_for(body))
        said.delay = 0.05
        return said

    server = serve(react)
    results, error = ask(client(server, concurrency=32), 400)
    assert isinstance(error, PrerequisiteError)
    assert "no credit left" in str(error)
    assert all(result.finish is Finish.STOP for result in results.values())
    assert len(results) == 150


def test_credit_that_ends_with_the_last_rows_leaves_them_to_the_next_run(serve: Start) -> None:
    def react(path: str, body: dict[str, Any]) -> Say:
        return NO_CREDIT if number(body) >= 196 else answer(asked_for(body))

    results, error = ask(client(serve(react), concurrency=1), 200)
    assert error is None
    assert [results[i] for i in range(196, 200)] == [
        Unanswered(f"r{i}", "402 This request requires more credits") for i in range(196, 200)
    ]
    results, error = ask(client(serve(react), concurrency=1, unanswered=GaveUp.DROP), 200)
    assert {results[i].finish for i in range(196, 200)} == {Finish.REFUSED}


def test_quick_refusals_beside_slow_answers_are_rows_of_their_own(serve: Start) -> None:
    odd = {i for i in range(300) if i % 10 < 6}
    results, error = ask(client(serve(refusing(odd, Say({"error": "no"}, 400), 0.2)), concurrency=32), 300)
    assert error is None
    assert {i for i, result in results.items() if result.finish is Finish.REFUSED} == odd


def test_the_last_rows_may_all_be_refused(serve: Start) -> None:
    odd = set(range(95, 100))
    results, error = ask(client(serve(refusing(odd, Say({"error": "no"}, 400)))), 100)
    assert error is None
    assert {i for i, result in results.items() if result.finish is Finish.REFUSED} == odd


def test_answers_of_an_earlier_process_count(serve: Start) -> None:
    results, error = ask(client(serve(refusing({0, 1}, Say({"error": "no"}, 400)))), 2, before=True)
    assert error is None
    assert {result.refused for result in results.values()} == {"400 no"}


def test_a_row_that_one_server_refuses_is_asked_of_the_other(serve: Start) -> None:
    strict = serve(lambda path, body: Say({"error": "no"}, 400))
    plain = serve(refusing({3}, Say({"error": "no"}, 400), 0.01))
    results, error = ask(client(strict, plain), 100)
    assert error is None
    assert {i for i, result in results.items() if result.finish is Finish.REFUSED} == {3}


def test_a_list_of_requests_gets_its_refusals_too(serve: Start) -> None:
    made = client(serve(refusing({2}, Say({"error": "no"}, 400))))
    results = {each.id: each for each in made.generate([Request(f"r{i}", f"text {i}") for i in range(9)])}
    made.close()
    assert [results[f"r{i}"].finish is Finish.REFUSED for i in range(9)] == [i == 2 for i in range(9)]
    made = client(serve(lambda path, body: Say({"error": "no"}, 400)))
    with pytest.raises(StepFailed, match="none was answered"):
        list(made.generate([Request(f"r{i}", f"text {i}") for i in range(9)]))
    made.close()


def test_two_pools_share_what_is_known_of_a_server(serve: Start) -> None:
    made = client(serve(refusing({5}, Say({"error": "no"}, 400))))
    first, second = made.open_pool(), made.open_pool()
    for i in range(3):
        first.submit(i, Request(f"r{i}", f"text {i}"))
    taken: list[Any] = []
    while len(taken) < 3:
        taken += first.take(10)
    second.submit("odd", Request("r5", "text 5"))
    rest: list[Any] = []
    while not rest:
        rest += second.take(10)
    made.close()
    assert rest[0][1].refused == "400 no"


def test_a_fault_of_the_program_comes_out_with_its_traceback(serve: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> None:
        raise ZeroDivisionError("in the reader of answers")

    monkeypatch.setattr("cai.clients.openai_api.read_answer", broken)
    made = client(serve(refusing(set(), Say(""))))
    pool = made.open_pool()
    pool.submit(0, Request("r0", "text 0"))
    with pytest.raises(ClientFault, match="ZeroDivisionError") as caught:
        pool.take(10.0)
    made.close()
    assert "in broken" in "".join(traceback.format_exception(caught.value)), "where it came up, for traceback.txt"


def test_a_wrong_replica_is_named(serve: Start) -> None:
    good, bad = serve(refusing(set(), Say(""))), serve(lambda path, body: Say({"error": "no such model"}, 404))
    _, error = ask(client(good, bad), 40)
    assert isinstance(error, PrerequisiteError)
    assert re.search(rf"no such model.*\({bad.url}\)", str(error))
