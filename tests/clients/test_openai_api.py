"""The client of OpenAI-compatible servers against a small real one: retries, limits, refusals, a key nobody sees."""

from __future__ import annotations

import copy
import json
import logging
import os
import pickle
import signal
import socket
import threading
import time
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from typing import Any

import pytest

from cai.clients import openai_bodies
from cai.clients.base import Finish, Request, Sampling, ScoreRequest
from cai.clients.openai_api import OpenAiClient
from cai.clients.settings import ApiLimits
from cai.errors import PrerequisiteError, SpecError, StepFailed
from tests.support.fake_api import KEY, Answer, Reply, ask, chat_request, client_of, says


def in_turn(*replies: Reply) -> Answer:
    """One reply after the other; the last one is for all that follow."""
    left = list(replies)
    return lambda path, body: left.pop(0) if len(left) > 1 else left[0]


def test_turns_go_to_the_chat_endpoint_and_raw_prompts_to_completions(serve: Any) -> None:
    server = serve(lambda path, body: says(f"from {path}"))
    drawn: dict[str, Any] = {"max_tokens": 9, "temperature": 0.5, "top_p": 0.9, "stop": ("END",)}
    raw = Request("raw", "Once upon", Sampling(**drawn), 8)
    found = ask(client_of(server), chat_request("turns", "hi", **drawn), raw)
    assert found["turns"].text == "from /v1/chat/completions"
    assert found["raw"].text == "from /v1/completions"
    assert (found["raw"].prompt_tokens, found["raw"].tokens, found["raw"].finish) == (7, 3, Finish.STOP)
    sent = dict(server.asked)
    same = {"model": "test/judge", "max_tokens": 9, "temperature": 0.5, "top_p": 0.9, "stop": ["END"]}
    turns = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "hi"}]
    assert sent["/v1/chat/completions"] == {**same, "seed": 5, "messages": turns}
    assert sent["/v1/completions"] == {**same, "seed": 8, "prompt": "Once upon"}
    assert all(headers["Authorization"] == f"Bearer {KEY}" for headers in server.sent)


def test_without_a_key_none_is_sent(serve: Any) -> None:
    server = serve(lambda path, body: says("hi"))
    ask(OpenAiClient(server.url, "m", ""), chat_request())
    assert "Authorization" not in server.sent[0]


def test_every_answer_belongs_to_its_request_and_connections_are_used_again(serve: Any) -> None:
    together = threading.Barrier(4)

    def answer(path: str, body: dict[str, Any]) -> Reply:
        together.wait(5)  # passes only when four requests are in flight at once
        text = body["messages"][-1]["content"]
        return says(text, delay=0.001 * (hash(text) % 7))

    server = serve(answer)
    found = ask(client_of(server, concurrency=4), *(chat_request(f"r{i}", f"text {i}") for i in range(40)))
    assert {id: completion.text for id, completion in found.items()} == {f"r{i}": f"text {i}" for i in range(40)}
    assert len(server.asked) == 40
    assert server.most == 4
    assert len(server.peers) <= 4, "connections are used again"


def test_answers_come_as_soon_as_they_are_there(serve: Any) -> None:
    slow = threading.Event()

    def answer(path: str, body: dict[str, Any]) -> Reply:
        if body["messages"][-1]["content"] == "slow":
            slow.wait(5)
        return says("x")

    made = client_of(serve(answer), concurrency=2)
    answers = made.generate([chat_request("slow", "slow"), chat_request("quick", "quick")])
    assert next(answers).id == "quick"
    slow.set()
    assert next(answers).id == "slow"
    made.close()


@pytest.mark.parametrize(
    "bad",
    [
        Reply({"error": {"message": "try later"}}, 500),
        Reply(b"<html>Bad gateway</html>", 502),
        Reply({"detail": "overloaded"}, 503),
        Reply(b"", 504),
        Reply(reset=True),
        Reply(b"this is no JSON"),
        Reply(b'{"choices": [{"message": {"content": "ha'),
        Reply({"choices": [{"message": {"content": "hello"}, "text": "hello"}]}, half=True),
        Reply({"choices": []}),
        Reply({"choices": [{"message": {"content": ["no", "text"]}}]}),
        Reply([1, 2]),
        Reply(b"\xff\xfe\x00"),
        Reply(b"not gzip", headers={"Content-Encoding": "gzip"}),
    ],
    ids=lambda bad: f"{bad.status}-{'reset' if bad.reset else 'half' if bad.half else bad.payload()[:24]}",
)
def test_what_may_pass_is_tried_again_and_named_when_it_does_not(serve: Any, bad: Reply) -> None:
    assert ask(client_of(serve(in_turn(bad, bad, says("at last"))), retries=2), chat_request()).text == "at last"
    server = serve(lambda path, body: bad)
    with pytest.raises(StepFailed, match="3 times in a row") as failed:
        ask(client_of(server, retries=2), chat_request())
    assert len(server.asked) == 3
    assert f"test/judge at {server.url}" in str(failed.value)


def test_a_server_that_is_silent_or_gone_is_tried_again(serve: Any) -> None:
    server = serve(in_turn(says("late", delay=0.6), says("in time")))
    assert ask(client_of(server, timeout=0.2), chat_request()).text == "in time"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(StepFailed, match="the connection failed"):
        ask(OpenAiClient(url, "m", KEY, limits=ApiLimits(retries=1)), chat_request())


def test_retry_after_is_kept_to_by_all_calls(serve: Any) -> None:
    times: list[float] = []

    def answer(path: str, body: dict[str, Any]) -> Reply:
        times.append(time.monotonic())
        return Reply({"error": "limit"}, 429, {"Retry-After": "1"}) if len(times) == 1 else says("x", delay=0.05)

    found = ask(client_of(serve(answer), concurrency=2), *(chat_request(f"r{i}") for i in range(6)))
    assert {completion.text for completion in found.values()} == {"x"}
    waited = [at - times[0] for at in times[1:]]
    assert not [seconds for seconds in waited if 0.5 < seconds < 0.99], "nobody asks while the door is closed"
    assert len([seconds for seconds in waited if seconds >= 0.99]) >= 4


def test_retry_after_in_seconds_and_as_a_date() -> None:
    read = openai_bodies.retry_after
    assert read("7") == 7
    assert read("-3") == 0
    assert read("86400") == openai_bodies.LONGEST_RETRY_AFTER
    assert read("inf") == openai_bodies.LONGEST_RETRY_AFTER
    soon = format_datetime(datetime.now(timezone.utc) + timedelta(seconds=20), usegmt=True)
    assert read(soon) == pytest.approx(20, abs=2)
    assert read(format_datetime(datetime.now(timezone.utc) - timedelta(hours=1), usegmt=True)) == 0
    for nonsense in ("", "soon", "nan", "Wed, 99 Foo"):
        assert read(nonsense) is None


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_fails_at_once_and_names_the_variable(serve: Any, status: int) -> None:
    server = serve(lambda path, body: Reply({"error": {"message": f"Incorrect API key: {KEY}"}}, status))
    with pytest.raises(PrerequisiteError, match="TEST_KEY") as failed:
        ask(client_of(server, concurrency=1), chat_request("a"), chat_request("b"))
    # A 403 may be about a row, so that the others are asked before it is about the key.
    assert len(server.asked) == (1 if status == 401 else 2)
    assert "Incorrect API key: ***" in str(failed.value)


def test_a_missing_model_says_what_to_check(serve: Any) -> None:
    server = serve(lambda path, body: Reply({"detail": "model not found"}, 404))
    with pytest.raises(PrerequisiteError, match=r"model not found.*`url`") as failed:
        ask(client_of(server), chat_request())
    assert "format: chat" not in str(failed.value)
    with pytest.raises(PrerequisiteError, match="format: chat"):
        ask(client_of(server), Request("raw", "text"))
    assert len(server.asked) == 2


def test_a_redirect_is_told_and_the_key_does_not_follow_it(serve: Any) -> None:
    other = serve(lambda path, body: says("x"))
    server = serve(lambda path, body: Reply(b"", 307, {"Location": f"{other.url}/chat/completions"}))
    with pytest.raises(PrerequisiteError, match=f"redirects to {other.url}"):
        ask(client_of(server), chat_request())
    assert not other.asked


@pytest.mark.parametrize(
    "echo",
    [
        KEY,
        json.dumps({"error": {"message": f"bad header 'Bearer {KEY}'"}}),
        json.dumps({"error": f"x{KEY}y"}).replace("/", "\\/"),
        "bad key " + KEY[:30],
        "a" * 280 + KEY,
        "key%20" + KEY.replace("/", "%2F"),
    ],
)
@pytest.mark.parametrize("status", [200, 400, 401, 404, 500])
def test_no_error_repeats_the_key(serve: Any, echo: str, status: int, caplog: Any) -> None:
    caplog.set_level(logging.DEBUG)
    made = client_of(serve(lambda path, body: Reply(echo.encode(), status)), retries=0)
    with pytest.raises((StepFailed, PrerequisiteError)) as failed:
        ask(made, chat_request())
    error: BaseException | None = failed.value
    assert error is not None
    assert error.__cause__ is None
    told = str(error) + repr(error) + caplog.text
    assert KEY not in told
    assert KEY[6:20] not in told


def test_the_client_shows_its_key_to_nobody(serve: Any, caplog: Any) -> None:
    caplog.set_level(logging.DEBUG)
    server = serve(lambda path, body: says(f"your key is {KEY}, and {KEY[:25]}"))
    made = client_of(server)
    answer = ask(made, chat_request())
    shown = [repr(made), str(made), made.name, repr(vars(made)), f"{made._key}", answer.text, caplog.text]
    assert not [text for text in shown if KEY in text or KEY[6:20] in text]
    for write in (pickle.dumps, copy.copy, copy.deepcopy):
        for thing in (made, made._key):
            with pytest.raises(TypeError, match="not written anywhere"):
                write(thing)


def test_fields_outside_the_protocol_are_dropped_with_one_note(serve: Any, caplog: Any) -> None:
    def answer(path: str, body: dict[str, Any]) -> Reply:
        if "top_k" in body:
            wrong = {"loc": ["body", "top_k"], "msg": "Extra inputs are not permitted", "input": body}
            return Reply({"detail": [wrong]}, 422)
        if "repetition_penalty" in body:
            return Reply({"error": {"message": "Unrecognized request argument: repetition_penalty"}}, 400)
        return says("x")

    server = serve(answer)
    made = client_of(server)
    list(made.generate([chat_request(f"r{i}", top_k=50, repetition_penalty=1.2) for i in range(12)]))
    before = len(server.asked)
    list(made.generate([chat_request("later", top_k=50, repetition_penalty=1.2)]))
    made.close()
    assert len(server.asked) == before + 1, "what the server does not take is not offered again"
    assert "seed" in server.asked[-1][1], "what it did not name is still sent"
    noted = [record.getMessage() for record in caplog.records if record.name == "cai.clients.openai_api"]
    assert sorted(text.rpartition(": ")[2] for text in noted) == [
        "does not take repetition_penalty; asked without",
        "does not take top_k; asked without",
    ]


def test_a_refusal_that_names_no_field_fails_with_the_servers_words(serve: Any) -> None:
    server = serve(lambda path, body: Reply({"error": {"message": "temperature must be above 0"}}, 400))
    with pytest.raises(StepFailed, match=r"'r' \(400: temperature must be above 0"):
        ask(client_of(server), chat_request(top_k=5))
    assert len(server.asked) == 1


def test_a_prompt_that_the_server_will_not_read_is_refused(serve: Any, caplog: Any) -> None:
    def answer(path: str, body: dict[str, Any]) -> Reply:
        if body["messages"][-1]["content"] == "long":
            return Reply({"message": "This model's maximum context length is 8 tokens", "code": 400}, 400)
        if body["messages"][-1]["content"] == "bad":
            return Reply({"error": {"message": "filtered", "code": "content_filter"}}, 400)
        return says("fine")

    found = ask(
        client_of(serve(answer)),
        chat_request("a", "long"),
        chat_request("b", "bad"),
        chat_request("c", "good"),
        chat_request("d", "long"),
    )
    assert {id: completion.text for id, completion in found.items()} == {"a": "", "b": "", "c": "fine", "d": ""}
    assert {id: (completion.finish, completion.refused) for id, completion in found.items()} == {
        "a": (Finish.REFUSED, "prompt too long"),
        "b": (Finish.REFUSED, "filtered"),
        "c": (Finish.STOP, ""),
        "d": (Finish.REFUSED, "prompt too long"),
    }
    assert len([r for r in caplog.records if "refuses a prompt" in r.getMessage()]) == 1


def test_four_stop_strings_are_sent_and_all_are_cut(serve: Any) -> None:
    stops = ("one", "two", "three", "four", "five")
    server = serve(lambda path, body: says("before five after", "length"))
    found = ask(client_of(server), chat_request(stop=stops))
    assert server.asked[0][1]["stop"] == list(stops[:4])
    assert (found.text, found.finish) == ("before ", Finish.STOP)


def test_length_silence_and_missing_counts(serve: Any) -> None:
    server = serve(in_turn(says("a b c", "length", {"total_tokens": 4}), says(None), says("half", "content_filter")))
    made = client_of(server)
    (cut,) = made.generate([chat_request(text="two words")])
    assert (cut.text, cut.finish, cut.tokens, cut.prompt_tokens) == ("a b c", Finish.LENGTH, 3, 2)
    (silent,) = made.generate([chat_request()])
    assert (silent.text, silent.finish) == ("", Finish.STOP)
    (filtered,) = made.generate([chat_request()])
    assert (filtered.text, filtered.finish, filtered.refused) == ("", Finish.REFUSED, "filtered")
    made.close()


def test_odd_characters_travel_both_ways(serve: Any) -> None:
    server = serve(lambda path, body: says(body["messages"][-1]["content"]))
    text = "naïve 🙂 \u2028 \x00 \ud800"
    assert ask(client_of(server), chat_request(text=text)).text == text


def test_scores_are_refused_with_what_to_do() -> None:
    with pytest.raises(SpecError, match="scoring: choice"):
        OpenAiClient("http://127.0.0.1:9/v1", "m", "").score([ScoreRequest("a", "b", "c")])


def test_ctrl_c_does_not_wait_for_the_server(serve: Any) -> None:
    server = serve(lambda path, body: says("x", delay=5))
    made = client_of(server, concurrency=2)
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    began = time.monotonic()
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        list(made.generate([chat_request(f"r{i}") for i in range(9)]))
    made.close()
    assert time.monotonic() - began < 3
    server.close()
    time.sleep(0.1)
    assert len(server.asked) == 2, "what was not under way is not asked any more"


def test_ctrl_c_ends_the_waiting_for_a_retry(serve: Any) -> None:
    server = serve(lambda path, body: Reply({"error": "limit"}, 429, {"Retry-After": "60"}))
    made = client_of(server)
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        list(made.generate([chat_request()]))
    made.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "http_pool"], "closing ends the thread"


def test_a_limit_uses_up_no_retries_but_the_deadline(serve: Any) -> None:
    limit = Reply({"error": "slow down"}, 429)
    assert ask(client_of(serve(in_turn(*[limit] * 6, says("at last"))), retries=0), chat_request()).text == "at last"
    server = serve(lambda path, body: limit)
    with pytest.raises(StepFailed, match=r"answers 429 \(slow down\), \d+ times in a row"):
        ask(client_of(server, retries=0, deadline=0.5), chat_request())
    assert len(server.asked) > 1


def test_an_account_without_credit_fails_at_once(serve: Any) -> None:
    spent = Reply({"error": {"message": "You exceeded your quota", "code": "insufficient_quota"}}, 429)
    server = serve(lambda path, body: spent)
    with pytest.raises(PrerequisiteError, match="no credit left"):
        ask(client_of(server), chat_request())
    assert len(server.asked) == 1
