"""The server, spoken to over a real socket: by httpx, by the ``openai`` client and by curl."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager

import httpx
import openai
import pytest
from rich.console import Console

from cai.chat import ChatTemplate
from cai.clients.base import Completion, Finish, Request
from cai.errors import PrerequisiteError
from cai.serving.server import api_key_from, make_app, make_server, serve
from tests.support.chat_models import SeededWords, words_model
from tests.support.paths import ROOT

pytestmark = pytest.mark.long  # servers, programs and many small waits

CALL = {"id": "c1", "type": "function", "function": {"name": "find", "arguments": '{"q": "x"}'}}
CALLING = {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning_content": "secret thought"}
TRIP = [{"role": "user", "content": "x"}, CALLING, {"role": "tool", "tool_call_id": "c1", "content": "found it"}]
HELLO = {"model": "tiny", "messages": [{"role": "user", "content": "Hello there"}]}


class PromptEcho(SeededWords):
    """Answers with the whole prompt."""

    def complete(self, request: Request) -> Completion:
        return Completion(request.id, request.prompt, 1, 1, Finish.STOP)


class StreamingWords(SeededWords):
    """The same, letter by letter."""

    def __init__(self, delay: float = 0.0) -> None:
        super().__init__()
        self.pause, self.sent, self.stopped = delay, 0, threading.Event()

    def stream(self, request: Request) -> Generator[str, None, Completion]:
        done = self.complete(request)
        try:
            for letter in done.text:
                time.sleep(self.pause)
                self.sent += 1
                yield letter
        finally:
            self.stopped.set()
        return done


@contextmanager
def served(client: SeededWords, **options: object) -> Iterator[str]:
    """A real server on a free port; yields its base URL."""
    fields = {k: options.pop(k) for k in ("context", "count", "template") if k in options}
    app = make_app(words_model(client, **fields), **options)  # type: ignore[arg-type]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = make_server(app)
        server.config.timeout_graceful_shutdown = 1
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            base = f"http://127.0.0.1:{listener.getsockname()[1]}"
            while not server.started:
                time.sleep(0.005)
            yield base
        finally:
            server.should_exit = True
            thread.join(10)
            assert not thread.is_alive()


@pytest.fixture(scope="module")
def base() -> Iterator[str]:
    with served(SeededWords()) as url:
        yield url


@pytest.fixture(scope="module")
def client(base: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{base}/v1", api_key="none", max_retries=0, timeout=10) as made:
        yield made


def post(base: str, body: object, path: str = "/v1/chat/completions", **more: object) -> httpx.Response:
    return httpx.post(base + path, json=body, timeout=10, **more)  # type: ignore[arg-type]


def test_the_openai_client_gets_an_answer_with_usage(client: openai.OpenAI) -> None:
    got = client.chat.completions.create(**HELLO, seed=7, temperature=0.5, top_p=0.9, user="me")  # type: ignore[arg-type]
    assert got.choices[0].message.content == "seed 7 answers  [user]Hello there[assistant] [b]ü\n"
    assert got.choices[0].finish_reason == "stop"
    assert (got.model, got.object) == ("tiny", "chat.completion")
    assert got.usage is not None
    assert got.usage.prompt_tokens == 2
    assert got.usage.total_tokens == 2 + got.usage.completion_tokens


@pytest.mark.parametrize("kind", [SeededWords, StreamingWords])
def test_streamed_pieces_join_to_the_whole_answer(kind: type[SeededWords]) -> None:
    with served(kind()) as base, openai.OpenAI(base_url=f"{base}/v1", api_key="x", max_retries=0) as client:
        whole = client.chat.completions.create(**HELLO, seed=3, n=2)  # type: ignore[arg-type]
        options = {"include_usage": True}
        chunks = list(client.chat.completions.create(**HELLO, seed=3, n=2, stream=True, stream_options=options))  # type: ignore[arg-type]
    assert whole.choices[0].message.content != whole.choices[1].message.content
    for choice in whole.choices:
        mine = [c.choices[0] for c in chunks if c.choices and c.choices[0].index == choice.index]
        assert mine[0].delta.role == "assistant"
        assert "".join(c.delta.content or "" for c in mine) == choice.message.content
        assert [c.finish_reason for c in mine if c.finish_reason] == [choice.finish_reason]
        assert len(mine) > 4
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert len({c.id for c in chunks}) == 1


def test_the_stream_is_server_sent_events_that_end_with_done(base: str) -> None:
    got = post(base, {**HELLO, "stream": True})
    assert got.headers["content-type"].startswith("text/event-stream")
    events = got.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    for event in events[:-2]:
        chunk = json.loads(event.removeprefix("data: "))
        assert chunk["object"] == "chat.completion.chunk"
        assert "usage" not in chunk


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_gets_an_answer_and_a_stream(base: str) -> None:
    def curl(body: object) -> str:
        command = ["curl", "-sN", f"{base}/v1/chat/completions", "-H", "Content-Type: application/json"]
        return subprocess.run([*command, "-d", json.dumps(body)], capture_output=True, text=True, check=True).stdout

    assert json.loads(curl(HELLO))["choices"][0]["message"]["content"].endswith("[b]ü\n")
    assert curl({**HELLO, "stream": True}).endswith("data: [DONE]\n\n")


def test_text_completions_take_raw_text_and_several_prompts(client: openai.OpenAI) -> None:
    got = client.completions.create(model="tiny", prompt=["one two", "three"], n=2, max_tokens=4, seed=1)
    assert [c.index for c in got.choices] == [0, 1, 2, 3]
    assert got.choices[0].text == "seed 1 answers "
    assert got.choices[0].finish_reason == "length"
    assert got.usage is not None
    assert got.usage.prompt_tokens == 3  # each prompt counts once, not once per choice
    text = "".join(c.choices[0].text for c in client.completions.create(model="tiny", prompt="x", seed=1, stream=True))
    assert text == "seed 1 answers  x [b]ü\n"


def test_stop_strings_and_token_limits_reach_the_model(client: openai.OpenAI) -> None:
    stopped = client.chat.completions.create(**HELLO, stop="there", seed=1)  # type: ignore[arg-type]
    assert stopped.choices[0].message.content == "seed 1 answers  [user]Hello "
    by_template = client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "a<end>b"}])
    assert (by_template.choices[0].message.content or "").endswith("[user]a")
    cut = client.chat.completions.create(**HELLO, max_tokens=30, max_completion_tokens=2, seed=1)  # type: ignore[arg-type]
    assert (cut.choices[0].message.content, cut.choices[0].finish_reason) == ("seed 1", "length")


def test_messages_may_be_text_parts_and_a_developer_speaks_as_system(base: str) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    turns = [{"role": "developer", "content": "kind"}, {"role": "user", "content": parts, "name": "me"}]
    text = post(base, {"model": "tiny", "messages": turns}).json()["choices"][0]["message"]["content"]
    assert "[system]kind[user]ab[assistant]" in text


def shipped_template(name: str) -> ChatTemplate:
    return ChatTemplate.from_file(ROOT / "prompt_templates" / f"{name}.jinja")


def test_tool_turns_reach_a_template_that_has_them_and_thoughts_reach_none() -> None:
    with served(PromptEcho(), template=shipped_template("chatml_tools")) as base:
        got = post(base, {"model": "tiny", "messages": TRIP})
    assert got.status_code == 200
    prompt = got.json()["choices"][0]["message"]["content"]
    assert '<tool_call>\n{"name": "find", "arguments": {"q": "x"}}\n</tool_call><|im_end|>' in prompt
    assert "<tool_response>\nfound it\n</tool_response>" in prompt
    assert "secret thought" not in prompt


def test_a_template_without_tool_turns_refuses_them() -> None:
    with served(PromptEcho(), template=shipped_template("chatml")) as base:
        got = post(base, {"model": "tiny", "messages": TRIP})
    assert (got.status_code, got.json()["error"]["param"]) == (400, "messages")
    assert "this template has no tool turns" in got.json()["error"]["message"]


def test_models_and_health(base: str, client: openai.OpenAI) -> None:
    assert [m.id for m in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "constitution-as-code"
    assert httpx.get(f"{base}/health").json() == {"status": "ok", "model": "tiny", "waiting": 0}


USER = [{"role": "user", "content": "x"}]


@pytest.mark.parametrize(
    ("change", "param", "says"),
    [
        ({"temperature": 3}, "temperature", "less than or equal to 2"),
        ({"temperature": "hot"}, "temperature", "valid number"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"max_tokens": 10**9}, "max_tokens", "at most 4096"),
        ({"n": 99}, "n", "less than or equal to 16"),
        ({"stop": [""]}, "stop", "none of them empty"),
        ({"temprature": 1}, "temprature", "did you mean 'temperature'?"),
        ({"logprobs": True}, "logprobs", "does not support 'logprobs'"),
        ({"tools": [{"type": "function"}]}, "tools", "does not support 'tools'"),
        ({"response_format": {"type": "json_object"}}, "response_format", "does not support"),
        ({"messages": []}, "messages", "at least 1 item"),
        ({"messages": "hi"}, "messages", "valid array"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role", "'user'"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content", "type 'text'"),
        ({"messages": USER + USER}, "messages", "turns must alternate"),
        ({"messages": [{"role": "assistant"}, *USER]}, "messages[0]", "content is missing"),
        ({"messages": [{**USER[0], "tool_calls": [CALL]}]}, "messages[0]", "'user' calls no tool"),
        ({"messages": [{**USER[0], "tool_call_id": "c1"}]}, "messages[0]", "'user' answers no tool call"),
        ({"messages": [{**CALLING, "function_call": {}}]}, "messages[0].function_call", "null"),
        ({"messages": [{**CALLING, "tool_calls": [{"type": "x"}]}]}, "messages[0].tool_calls[0].type", "'function'"),
        ({"model": None}, "model", "valid string"),
    ],
)
def test_wrong_input_is_400_with_the_field_named(base: str, change: dict[str, object], param: str, says: str) -> None:
    got = post(base, {**HELLO, **change})
    error = got.json()["error"]
    assert got.status_code == 400
    assert (error["param"], error["type"]) == (param, "invalid_request_error")
    assert says in error["message"]


def test_neutral_and_idle_settings_are_accepted(base: str) -> None:
    neutral = {"frequency_penalty": 0.0, "logit_bias": {}, "tools": [], "logprobs": False, "metadata": {"a": "b"}}
    neutral |= {"response_format": {"type": "text"}, "store": False, "seed": 2**63, "top_k": 5, "temperature": None}
    assert post(base, {**HELLO, **neutral}).status_code == 200


@pytest.mark.parametrize("raw", [b"{", b"[]", b'"x"', b"", b"\xff\xfe", b'{"a":' * 3000, b'{"model": "\\ud800"}'])
def test_a_body_that_is_no_request_is_400(base: str, raw: bytes) -> None:
    got = httpx.post(f"{base}/v1/chat/completions", content=raw, headers={"Content-Type": "application/json"})
    assert got.status_code == 400
    assert got.json()["error"]["message"]


def test_other_errors_have_openai_shape(base: str, client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(**{**HELLO, "model": "gpt-5"})  # type: ignore[arg-type]
    assert unknown.value.code == "model_not_found"
    plain_text = httpx.post(f"{base}/v1/chat/completions", content="{}", headers={"Content-Type": "text/plain"})
    assert plain_text.status_code == 415
    for got, status in ((httpx.get(f"{base}/v1/chat/completions"), 405), (httpx.get(f"{base}/v2"), 404)):
        assert got.status_code == status
        assert got.json()["error"]["type"] == "invalid_request_error"


def test_large_bodies_and_long_prompts_are_refused() -> None:
    with served(SeededWords(), max_body=1000, context=60, count=len) as base:
        large = post(base, {**HELLO, "user": "x" * 2000})
        long = post(base, HELLO)
        short = post(base, {**HELLO, "max_tokens": 5})
    assert (large.status_code, large.json()["error"]["code"]) == (413, "request_too_large")
    assert (long.status_code, long.json()["error"]["code"]) == (400, "context_length_exceeded")
    assert short.status_code == 200


def test_an_api_key_is_asked_for_when_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "s3cret")
    with served(SeededWords(), api_key=api_key_from("MY_KEY")) as base:
        refused = [post(base, HELLO), post(base, HELLO, headers={"Authorization": "Bearer s3cre"})]
        refused.append(httpx.get(f"{base}/v1/models"))
        with openai.OpenAI(base_url=f"{base}/v1", api_key="s3cret") as client:
            assert client.chat.completions.create(**HELLO).choices  # type: ignore[arg-type]
        assert httpx.get(f"{base}/health").status_code == 200
    assert [got.status_code for got in refused] == [401, 401, 401]
    assert refused[0].json()["error"]["code"] == "invalid_api_key"
    assert api_key_from(None) is None
    with pytest.raises(PrerequisiteError, match="NO_SUCH_KEY"):
        api_key_from("NO_SUCH_KEY")


def until(condition: Callable[[], bool]) -> None:
    """Wait until something has happened, at most 10 s."""
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@contextmanager
def busy(words: SeededWords, base: str, waiting: int) -> Iterator[list[httpx.Response]]:
    """The model is held at one request while ``waiting`` more queue up; all are answered at the end."""
    words.gate.clear()
    answers: list[httpx.Response] = []
    threads = [threading.Thread(target=lambda: answers.append(post(base, HELLO))) for _ in range(1 + waiting)]
    try:
        threads[0].start()
        until(lambda: words.batches == [1])
        for thread in threads[1:]:
            thread.start()
        until(lambda: httpx.get(f"{base}/health").json()["waiting"] == waiting)
        yield answers
    finally:
        words.gate.set()
        for thread in threads:
            thread.join(10)


def test_requests_that_wait_are_answered_as_one_batch() -> None:
    words = SeededWords()
    with served(words) as base:
        with busy(words, base, 5) as answers:
            assert answers == []
        assert [got.status_code for got in answers] == [200] * 6
    assert words.batches == [1, 5]


def test_a_full_queue_is_503() -> None:
    with served(SeededWords(), max_waiting=3) as base:
        got = post(base, {**HELLO, "n": 4})
    assert (got.status_code, got.json()["error"]["code"]) == (503, "server_busy")
    assert got.headers["retry-after"] == "1"


def test_a_model_that_fails_is_500_and_the_server_goes_on() -> None:
    words = SeededWords(fail=True)
    with served(words) as base:
        failed, streamed = post(base, HELLO), post(base, {**HELLO, "stream": True})
        words.fail = False
        again = post(base, HELLO)
    assert (failed.status_code, failed.json()["error"]["type"]) == (500, "server_error")
    assert "fire" not in failed.text  # what went wrong inside is for the log
    assert '"server_error"' in streamed.text
    assert "[DONE]" not in streamed.text
    assert again.status_code == 200


def test_a_stream_stops_when_the_caller_hangs_up() -> None:
    words = StreamingWords(delay=0.05)
    with served(words) as base:
        with httpx.stream("POST", f"{base}/v1/chat/completions", json={**HELLO, "stream": True}) as got:
            next(got.iter_lines())
        assert words.stopped.wait(5)
    assert words.sent < 20


def test_a_request_whose_caller_hung_up_is_never_run() -> None:
    words = SeededWords()
    with served(words) as base:
        with busy(words, base, 0):
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(f"{base}/v1/chat/completions", json=HELLO, timeout=httpx.Timeout(10, read=0.2))
            until(lambda: httpx.get(f"{base}/health").json()["waiting"] == 0)
        assert post(base, HELLO).status_code == 200
    assert words.batches == [1, 1]


def test_a_port_in_use_is_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PrerequisiteError, match=rf"127\.0\.0\.1:{port}: already in use; .*--port"):
            serve(make_app(words_model(SeededWords())), port=port, console=Console(file=None, quiet=True))


def test_serve_prints_its_address_and_a_curl_line_that_works() -> None:
    program = (
        "import sys; sys.path.insert(0, '.')\n"
        "from tests.support.chat_models import SeededWords, words_model\n"
        "from cai.serving.server import make_app, serve\n"
        "serve(make_app(words_model(SeededWords())), port=0)\n"
    )
    process = subprocess.Popen([sys.executable, "-uc", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        address, command = process.stdout.readline(), process.stdout.readline()
        assert "tiny is served at http://127.0.0.1:" in address
        if shutil.which("curl"):
            for _ in range(100):
                got = subprocess.run(["sh", "-c", command], capture_output=True, text=True)
                if got.returncode == 0:
                    break
                time.sleep(0.05)
            assert json.loads(got.stdout)["choices"][0]["message"]["content"]
    finally:
        process.send_signal(2)
        rest = process.communicate(timeout=10)[0]
    assert process.returncode == 0
    assert "stopped" in rest
