"""Calls and results as plain data: what identifies a call, and what a journal or a cache keeps of a result."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from hashlib import blake2b
from typing import Any

from cai.chat import Message
from cai.chat.messages import message_to_plain, tool_call_from_plain, tool_call_to_plain
from cai.clients.base import (
    Call,
    Completion,
    Finish,
    OptionScores,
    OptionsRequest,
    Request,
    Result,
    Score,
    ScoreRequest,
)

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_KINDS = {Request: "generate", ScoreRequest: "score", OptionsRequest: "options"}


def call_key(scope: str, call: Call) -> bytes:
    """16 bytes that are the same for two calls exactly when the model of ``scope`` would be asked the same.

    The call's id does not count, and of a greedy request neither does the seed. Where there are turns, the server
    renders them, so the rendered prompt does not count.
    """
    messages: Any = [_turn(message) for message in call.messages] if not isinstance(call, ScoreRequest) else None
    key_parts: list[Any] = [scope, _KINDS[type(call)], messages or call.prompt]
    if isinstance(call, Request):
        drawn = call.sampling
        seed = call.seed if drawn.temperature > 0 else 0
        key_parts += [
            drawn.max_tokens,
            drawn.temperature,
            drawn.top_p,
            drawn.top_k,
            drawn.repetition_penalty,
            drawn.min_tokens,
            drawn.stop,
            seed,
            call.choices,
        ]
    elif isinstance(call, ScoreRequest):
        key_parts.append(call.continuation)
    else:
        key_parts.append(call.options)
    return blake2b(_encode(key_parts).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _turn(message: Message) -> Any:
    plain = message_to_plain(message)
    return (message.role, message.content) if len(plain) == 2 else plain


def to_plain(result: Result) -> dict[str, Any]:
    """A result without its id."""
    if isinstance(result, Completion):
        plain: dict[str, Any] = {
            "text": result.text,
            "prompt_tokens": result.prompt_tokens,
            "tokens": result.tokens,
            "finish": result.finish.value,
        }
        if result.refused:
            plain["refused"] = result.refused
        if result.thinking:
            plain["thinking"] = result.thinking
        if result.thinking_tokens:
            plain["thinking_tokens"] = result.thinking_tokens
        if result.tool_calls:
            plain["tool_calls"] = [tool_call_to_plain(call) for call in result.tool_calls]
        return plain
    why = {"refused": result.refused} if result.refused else {}
    if isinstance(result, Score):
        return {"logprob": result.logprob, "tokens": result.tokens, **why}
    return {"logprobs": result.logprobs, "tokens": result.tokens, **why}


def from_plain(call: Call, plain: Mapping[str, Any]) -> Result:
    """The inverse of ``to_plain``, as the result of ``call``."""
    if isinstance(call, Request):
        tool_calls = tuple(tool_call_from_plain(raw) for raw in plain.get("tool_calls", ()))
        return Completion(call.id, **{**plain, "finish": Finish(plain["finish"]), "tool_calls": tool_calls})
    if isinstance(call, ScoreRequest):
        return Score(call.id, **plain)
    return OptionScores(call.id, tuple(plain["logprobs"]), plain["tokens"], plain.get("refused", ""))


def as_result_of(call: Call, result: Result) -> Result:
    """Another call's result, under this call's id."""
    return result if result.id == call.id else replace(result, id=call.id)
