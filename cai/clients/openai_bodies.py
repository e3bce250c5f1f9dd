"""What is said to an OpenAI-compatible server; nothing here touches the network.

Requests with messages go to ``/chat/completions``, where the server applies its own chat template; raw prompts go to
``/completions``. Likelihoods of given texts come from ``/completions`` with the prompt repeated (``prompt``), those of
short options from the likeliest tokens of a short answer (``top``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import Any

from cai.chat import Message
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
from cai.clients.openai_answers import error_words, unscored
from cai.identity import parse_json

LONGEST_RETRY_AFTER = 120.0
"""Seconds that are waited at most where a server says how long."""

STOPS = 4
"""Stop strings that the protocol allows; the rest is cut here."""

LIKELY, LIKELY_RAW, LOOKED_AT = 20, 5, 4
"""Tokens listed at each place by the chat endpoint and by the other, and places that are looked at."""

EXTENSIONS = {
    "top_k": r"top_k",
    "repetition_penalty": r"repetition_penalty",
    "min_tokens": r"min_tokens",
    "seed": r"seed",
    "response_format": r"response_format|json_schema",
}
"""Fields that some servers do not know, and how a refusal names them; they are left out then, with one note."""

CORE = {
    "max_tokens": r"max_tokens",
    "temperature": r"temperature",
    "top_p": r"top_p",
    "stop": r"stop",
}
"""Fields of the protocol that reasoning models do not take: left out where a refusal says that they are not supported,
not where it says that their value is wrong. ``max_tokens`` is then ``max_completion_tokens``; stops are cut here."""

_UNSUPPORTED = re.compile(
    r"unsupported|not supported|n[o']t support|unknown|unrecognized|not permitted|not allowed|unexpected|deprecated"
    r"|only the default|\buse\W+max_completion_tokens",
    re.I,
)


def address(call: Call) -> str:
    """Where a call goes, below the server's ``url``."""
    return "/completions" if isinstance(call, ScoreRequest) or not call.messages else "/chat/completions"


def body(call: Call, model: str, left_out: frozenset[str] = frozenset()) -> dict[str, Any]:
    """The JSON of a call, without the fields in ``left_out``."""
    if isinstance(call, ScoreRequest):
        text = call.prompt + call.continuation
        payload = {"model": model, "prompt": text, "max_tokens": 1, "temperature": 0, "echo": True, "logprobs": 1}
    elif isinstance(call, OptionsRequest):
        payload = {"model": model, "max_tokens": LOOKED_AT, "temperature": 0}
        payload |= {"logprobs": True, "top_logprobs": LIKELY} if call.messages else {"logprobs": LIKELY_RAW}
    else:
        payload = _drawn(call, model)
    for name in left_out & payload.keys():
        value = payload.pop(name)
        if name == "max_tokens":
            payload["max_completion_tokens"] = value
    if isinstance(call, ScoreRequest):
        return payload
    return {**payload, "messages": _turns(call.messages)} if call.messages else {**payload, "prompt": call.prompt}


def _turns(messages: Sequence[Message]) -> list[dict[str, Any]]:
    return [_turn(message) for message in messages]


def _turn(message: Message) -> dict[str, Any]:
    """A turn as the protocol writes it; what was thought is not sent back."""
    turn: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        turn["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    if message.tool_call_id:
        turn["tool_call_id"] = message.tool_call_id
    return turn


def _drawn(call: Request, model: str) -> dict[str, Any]:
    drawn = call.sampling
    payload: dict[str, Any] = {
        "model": model,
        "max_tokens": drawn.max_tokens,
        "temperature": drawn.temperature,
        "top_p": drawn.top_p,
        "seed": call.seed,
    }
    if stops := [stop for stop in drawn.stop if stop]:
        payload["stop"] = stops[:STOPS]
    if drawn.top_k:
        payload["top_k"] = drawn.top_k
    if drawn.repetition_penalty != 1.0:
        payload["repetition_penalty"] = drawn.repetition_penalty
    if drawn.min_tokens:
        payload["min_tokens"] = drawn.min_tokens
    if call.choices:
        choice = {"type": "object", "properties": {"choice": {"type": "string", "enum": list(call.choices)}}}
        schema = {**choice, "required": ["choice"], "additionalProperties": False}
        payload["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": "choice", "strict": True, "schema": schema},
        }
    return payload


def parts(call: Call, logprobs: str) -> tuple[Call, ...]:
    """The calls that the server is asked for one call: options whose prompt is scored are asked one by one."""
    if isinstance(call, OptionsRequest) and logprobs == "prompt":
        return tuple(ScoreRequest(call.id, call.prompt, option) for option in call.options)
    return (call,)


def joined(call: Call, results: Sequence[Result]) -> Result:
    """The result of a call from the results of its parts."""
    if isinstance(call, OptionsRequest) and not isinstance(results[0], OptionScores):
        scores = [score for score in results if isinstance(score, Score)]
        logprobs = tuple(None if score.logprob != score.logprob else score.logprob for score in scores)
        why = next((score.refused for score in scores if score.refused), "")
        return OptionScores(call.id, logprobs, sum(score.tokens for score in scores), why)
    return results[0]


def unread(call: Call, why: str, finish: Finish = Finish.REFUSED) -> Result:
    """The result of a call that is not answered for a reason that counts as the answer."""
    if isinstance(call, Request):
        return Completion(call.id, "", len(call.prompt.split()), 0, finish, why)
    return unscored(call, why)


def refused_fields(request_body: Mapping[str, Any], text: str) -> set[str]:
    """The fields in ``request_body`` that a refusal says the server does not take."""
    # The message and the place of the error, not what the server repeats of the request: that names every field.
    try:
        raw = parse_json(text)
        details = raw.get("detail")
        if isinstance(details, list):
            error_text = " ".join(f"{d.get('loc', '')} {d.get('msg', '')}" for d in details if isinstance(d, Mapping))
        else:
            error_text = error_words(text) + " " + str((raw.get("error") or {}).get("param", ""))
    except (ValueError, AttributeError):
        error_text = text
    offered = {name: pattern for name, pattern in EXTENSIONS.items() if name in request_body}
    if _UNSUPPORTED.search(error_text):
        offered |= {name: pattern for name, pattern in CORE.items() if name in request_body}
    return {name for name, pattern in offered.items() if re.search(rf"\b({pattern})\b", error_text)}


def retry_after(value: str) -> float | None:
    """Seconds to wait as a ``Retry-After`` header says it, in seconds or as a date (RFC 9110, 10.2.3), capped."""
    try:
        seconds = float(value)
    except ValueError:
        try:
            retry_date = parsedate_to_datetime(value)
        except (ValueError, TypeError):
            return None
        if not retry_date.tzinfo:
            retry_date = retry_date.replace(tzinfo=timezone.utc)
        seconds = (retry_date - datetime.now(timezone.utc)).total_seconds()
    return min(max(seconds, 0.0), LONGEST_RETRY_AFTER) if seconds == seconds else None
