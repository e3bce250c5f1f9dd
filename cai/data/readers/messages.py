"""Messages as files hold them: OpenAI's, ShareGPT's and their relatives, with tools, thinking and parts of text.

A tool call is ``{"id", "type": "function", "function": {"name", "arguments"}}`` or the inner object alone, its
arguments a JSON text or an object; a turn ``function_call`` is one such call as JSON. Thinking stands under a key of
its own or in the text, in any form that models write it (``cai.chat.thinking``): it is no part of what was said.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from cai.chat import Message, ToolCall
from cai.chat.content import Content
from cai.chat.thinking import THINKING_KEYS, spoken
from cai.data.readers.shape import MAX_TURNS, Odd, clean, text_of
from cai.identity import parse_json

CALL = "call"
"""A turn that is nothing but a tool call, written as JSON."""

ROLE_NAMES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "tool": "tool",
    "function": "tool",
    "ipython": "tool",
    "observation": "tool",
    "tool_response": "tool",
    "tool_result": "tool",
    "function_response": "tool",
    "function_call": CALL,
    "tool_call": CALL,
}


def messages_of(raw: Any, role_key: str = "role", text_key: str = "content") -> tuple[Message, ...]:
    """Messages of a list of objects, with the usual spellings of the roles.

    Raises:
        Odd: for what is no list of turns, or a turn that cannot be read.
    """
    if not isinstance(raw, Sequence) or isinstance(raw, str):
        raise Odd("wrong_type")
    if len(raw) > MAX_TURNS:
        raise Odd("too_many_turns")
    return tuple(message for turn in raw for message in turns_of(turn, role_of(turn, role_key), text_key))


def role_of(turn: Any, role_key: str) -> str:
    """The role of a turn: one of ours, or ``CALL``."""
    if not isinstance(turn, Mapping):
        raise Odd("wrong_type")
    name = turn.get(role_key)
    role = ROLE_NAMES.get(name.strip().lower()) if isinstance(name, str) else None
    if role is None:
        raise Odd("unknown_role")
    return role


def turns_of(turn: Mapping[str, Any], role: str, text_key: str = "content") -> tuple[Message, ...]:
    """What a turn, whose role is known, says: a message, or more where results of tools are among its parts.

    Raises:
        Odd: when it cannot be read.
    """
    value = turn.get(text_key)
    if not isinstance(value, list) or role == CALL:
        return (_TURNS[role](turn, text_key),)
    content = _parts(value)
    said = {**turn, text_key: content.text}
    if content.results and role in ("user", "tool"):
        return (*content.results, *([_TURNS[role](said, text_key)] if content.text.strip() else []))
    if content.results or (role != "assistant" and (content.thinking or content.tool_calls)):
        raise Odd("not_alternating")  # what one speaker does stands in the turn of the other
    message = _TURNS[role](said, text_key)
    thinking, calls = message.thinking or clean(content.thinking), message.tool_calls or content.tool_calls
    return (replace(message, thinking=thinking, tool_calls=calls),)


def answer(text: str) -> Message:
    """An assistant turn of a text, what was thought apart.

    Raises:
        Odd: a thought that does not end, so that nothing was said.
    """
    parts = spoken(text, leading=True)
    if parts.open:
        raise Odd("unclosed_thinking")
    return Message("assistant", parts.text.strip(), parts.thinking, parts.tool_calls)


def _system(turn: Mapping[str, Any], text_key: str) -> Message:
    return Message("system", text_of(turn, text_key))


def _user(turn: Mapping[str, Any], text_key: str) -> Message:
    return Message("user", text_of(turn, text_key))


def _assistant(turn: Mapping[str, Any], text_key: str) -> Message:
    calls = _calls(turn)
    said = answer(text_of(turn, text_key)) if turn.get(text_key) is not None or not calls else Message("assistant")
    return Message("assistant", said.content, _own_thinking(turn) or said.thinking, calls or said.tool_calls)


def _tool(turn: Mapping[str, Any], text_key: str) -> Message:
    value = turn.get(text_key)
    content = _json_text(value) if isinstance(value, Mapping) else text_of(turn, text_key)
    return Message("tool", content, tool_call_id=_label(turn.get("tool_call_id")), name=_label(turn.get("name")))


def _call_turn(turn: Mapping[str, Any], text_key: str) -> Message:
    value = turn.get(text_key)
    if isinstance(value, str):
        value = _parsed(value)
    calls = value if isinstance(value, list) else [value]
    return Message("assistant", tool_calls=tuple(map(_call, calls)))


_TURNS: dict[str, Callable[[Mapping[str, Any], str], Message]] = {
    "system": _system,
    "user": _user,
    "assistant": _assistant,
    "tool": _tool,
    CALL: _call_turn,
}


def _parts(value: list[Any]) -> Content:
    """A list of parts; pictures, sound and the like have no place in a row."""
    try:
        content = Content.of(value)
    except (TypeError, ValueError) as error:  # a result that is no text; a date, or a number that JSON has not
        raise Odd("wrong_type") from error
    if content.others or content.refusal:
        raise Odd("not_text")
    return replace(content, results=tuple(replace(each, content=clean(each.content)) for each in content.results))


def _own_thinking(turn: Mapping[str, Any]) -> str:
    for key in THINKING_KEYS:
        value = turn.get(key)
        # A switch or a number under such a name is a setting, and no thought.
        if value is not None and not isinstance(value, bool | int | float) and (thinking := clean(value)):
            return thinking
    return ""


def _calls(turn: Mapping[str, Any]) -> tuple[ToolCall, ...]:
    raw = turn.get("tool_calls")
    if isinstance(raw, str):
        raw = _parsed(raw)
    if not raw:
        alone = turn.get("function_call")  # as OpenAI wrote it before there could be several
        return (_call(alone),) if alone else ()
    if not isinstance(raw, list):
        raise Odd("wrong_tool_call")
    return tuple(map(_call, raw))


def _call(raw: Any) -> ToolCall:
    if not isinstance(raw, Mapping) or raw.get("type") not in (None, "function"):
        raise Odd("wrong_tool_call")
    function = raw["function"] if isinstance(raw.get("function"), Mapping) else raw
    name = function.get("name")
    if not isinstance(name, str) or not name.strip():
        raise Odd("wrong_tool_call")
    arguments = function.get("arguments", function.get("parameters"))
    return ToolCall(clean(name), _arguments(arguments), _label(raw.get("id")))


def _arguments(value: Any) -> str:
    if isinstance(value, str):
        return clean(value) or "{}"
    if value is None:
        return "{}"
    if not isinstance(value, Mapping):
        raise Odd("wrong_tool_call")
    return _json_text(value)


def _json_text(value: Mapping[str, Any]) -> str:
    try:
        return clean(json.dumps(value, ensure_ascii=False, allow_nan=False))
    except (TypeError, ValueError) as error:  # a date of a parquet file; a number that JSON has not
        raise Odd("wrong_tool_call") from error


def _parsed(text: str) -> Any:
    try:
        return parse_json(text)
    except ValueError as error:
        raise Odd("wrong_tool_call") from error


def _label(value: Any) -> str:
    """An id or a name; absent where it is none."""
    return clean(value) if isinstance(value, str) else ""
