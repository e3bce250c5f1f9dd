"""Answers of servers with an odd value in any place: read, or refused by name, and never a fault of the program."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from cai.clients.base import Call, OptionsRequest, ScoreRequest
from cai.clients.openai_answers import read_answer
from tests.fuzz.values import VALUES, chosen
from tests.support.fake_api import chat_request

TEXTS = ("stop", "<think>", "</think>", "<|channel|>final<|message|>a", "analysisA")
PARTS = ([{"type": "text", "text": "a"}], [{"type": "thinking", "thinking": [{"type": "text"}]}], [{"type": "refusal"}])
ODD = (*VALUES, *TEXTS, *PARTS)

CHAT: dict[str, Any] = {
    "choices": [
        {
            "message": {
                "content": "hello",
                "reasoning_content": "thought",
                "refusal": None,
                "tool_calls": [{"id": "1", "type": "function", "function": {"name": "n", "arguments": "{}"}}],
            },
            "finish_reason": "stop",
            "native_finish_reason": "stop",
            "error": None,
        }
    ],
    "usage": {"prompt_tokens": 1, "completion_tokens": 2, "completion_tokens_details": {"reasoning_tokens": 1}},
    "error": None,
    "prompt_filter_results": None,
}
PROMPT: dict[str, Any] = {
    "choices": [
        {
            "text": "The one odd",
            "logprobs": {
                "tokens": ["The", " one", " odd", "!"],
                "token_logprobs": [None, -1.0, -2.0, -0.5],
                "text_offset": [0, 3, 7, 11],
            },
            "prompt_logprobs": [None, {"5": {"logprob": -1.0, "decoded_token": " one"}}],
        }
    ],
    "usage": {"prompt_tokens": 3, "completion_tokens": 1},
}
TOP: dict[str, Any] = {
    "choices": [
        {
            "message": {"content": "A"},
            "logprobs": {"content": [{"token": "A", "logprob": -0.1, "top_logprobs": [{"token": "B", "logprob": -3}]}]},
        }
    ]
}
CALLS: dict[str, tuple[Call, dict[str, Any]]] = {
    "chat": (chat_request(stop=("zz",)), CHAT),
    "prompt": (ScoreRequest("s", "The one", " odd"), PROMPT),
    "top": (OptionsRequest("o", "p", ("A", "B"), chat_request().messages), TOP),
}


def places(value: Any, here: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where a value could stand in an answer."""
    yield here
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from places(inner, (*here, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from places(inner, (*here, index))


def with_value(answer: Any, place: tuple[Any, ...], value: Any) -> Any:
    """The answer with another value in one place."""
    if not place:
        return value
    changed = json.loads(json.dumps(answer))
    inner = changed
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return changed


@pytest.mark.parametrize("kind", CALLS)
def test_an_odd_value_in_an_answer_is_read_or_named(kind: str) -> None:
    call, answer = CALLS[kind]
    cases = [(place, value) for place in places(answer) for value in ODD]
    for place, value in chosen(cases, 400):
        payload = json.dumps(with_value(answer, place, value)).encode()
        try:
            read = read_answer(call, payload, kind == "chat", lambda text: text)
        except ValueError:
            continue  # no completion, which is tried again
        assert read.result is None or read.result.id == call.id


def test_two_odd_values_at_once() -> None:
    call, answer = CALLS["chat"]
    cases = [(first, second, a, b) for first in places(answer) for second in places(answer) for a in ODD for b in ODD]
    for first, second, a, b in chosen(cases, 1000, most=20_000):
        try:
            changed = with_value(with_value(answer, first, a), second, b)
        except (LookupError, TypeError):
            continue  # the first value left no such place
        try:
            read_answer(call, json.dumps(changed).encode(), True, lambda text: text)
        except ValueError:
            continue
