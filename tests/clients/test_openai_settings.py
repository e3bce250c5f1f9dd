"""What an experiment says of a served model: its address, its key, its likelihoods, its replicas, wanted answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cai.clients.base import Request, Sampling, ScoreRequest
from cai.clients.openai_api import OpenAiClient, open_endpoint
from cai.clients.settings import ApiLimits
from cai.errors import PrerequisiteError, SpecError
from tests.support.fake_api import KEY, Reply, ask, chat_request, client_of, says


def test_choices_are_asked_for_as_a_schema_where_the_server_knows_them(serve: Any, caplog: Any) -> None:
    server = serve(lambda path, body: says('{"choice": "(A)"}'))
    wanted = Request("r", "Which?", Sampling(), 0, (), ("(A)", "(B)"))
    assert ask(client_of(server), wanted).text == '{"choice": "(A)"}', "the caller reads it"
    schema = server.asked[0][1]["response_format"]["json_schema"]["schema"]
    assert schema["properties"] == {"choice": {"type": "string", "enum": ["(A)", "(B)"]}}

    def refuse(path: str, body: dict[str, Any]) -> Reply:
        if "response_format" not in body:
            return says("(B)")
        return Reply({"error": {"message": "'response_format.type' must be 'text'"}}, 400)

    assert ask(client_of(serve(refuse)), wanted).text == "(B)"
    assert "does not take response_format; asked without" in caplog.text


@pytest.mark.parametrize("url", ["", "api.example.com/v1", "ftp://host/v1", "http://", "http://[::1/v1"])
def test_what_is_no_address_is_told_before_anything_is_asked(url: str) -> None:
    with pytest.raises(PrerequisiteError, match="is no address of a server"):
        OpenAiClient(url, "m", "")


def test_a_proxy_of_the_environment_is_used_for_what_is_outside(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = serve(lambda path, body: says("by proxy"))
    monkeypatch.setenv("HTTP_PROXY", proxy.url.removesuffix("/v1"))
    monkeypatch.setenv("http_proxy", proxy.url.removesuffix("/v1"))
    assert ask(OpenAiClient("http://far.invalid/v1", "m", ""), chat_request()).text == "by proxy"
    assert proxy.asked[0][0] == "http://far.invalid/v1/chat/completions"
    server = serve(lambda path, body: says("direct"))
    assert ask(OpenAiClient(server.url, "m", ""), chat_request()).text == "direct"


def endpoint(folder: Path, **more: str) -> Path:
    path = folder / "endpoint.json"
    path.write_text(json.dumps({"model": "m", "url": "http://127.0.0.1:9/v1", "api_key_env": "TEST_KEY", **more}))
    return path


def test_the_key_comes_from_the_variable_that_is_named(
    tmp_path: Path, serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(lambda path, body: says("x"))
    monkeypatch.setenv("TEST_KEY", "old")
    monkeypatch.setenv("OTHER_KEY", f"{KEY}\n")
    ask(open_endpoint(endpoint(tmp_path, url=server.url)), chat_request())
    ask(open_endpoint(endpoint(tmp_path, url=server.url), "OTHER_KEY"), chat_request())
    ask(open_endpoint(endpoint(tmp_path, url=server.url), ""), chat_request())
    assert [headers.get("Authorization") for headers in server.sent] == ["Bearer old", f"Bearer {KEY}", None]


@pytest.mark.parametrize("value", [None, "", "  "])
def test_a_variable_that_is_not_set_is_missed_before_anything_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    monkeypatch.delenv("TEST_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("TEST_KEY", value)
    with pytest.raises(PrerequisiteError, match="TEST_KEY is not set; export TEST_KEY"):
        open_endpoint(endpoint(tmp_path))


@pytest.mark.parametrize("value", ["two words", "line\nline", "clé", "“quoted”"])
def test_a_value_that_is_no_key_is_refused_and_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("TEST_KEY", value)
    with pytest.raises(PrerequisiteError, match="TEST_KEY has characters") as failed:
        open_endpoint(endpoint(tmp_path))
    assert value not in str(failed.value)


def test_an_endpoint_may_say_how_likelihoods_are_asked_for_and_have_replicas(
    tmp_path: Path, serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_KEY", KEY)
    first, second = (serve(lambda path, body: says("x", delay=0.05)) for _ in range(2))
    made = open_endpoint(endpoint(tmp_path, url=first.url, logprobs="top"), None, ApiLimits(), [second.url])
    with pytest.raises(SpecError, match="logprobs: top"):
        made.score([ScoreRequest("a", "b", "c")])
    list(made.generate([chat_request(f"r{i}") for i in range(8)]))
    made.close()
    assert first.asked
    assert second.asked
