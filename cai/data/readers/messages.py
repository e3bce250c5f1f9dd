"""Messages as files hold them: OpenAI's, ShareGPT's and their relatives, with tools, thinking and parts of text.

A tool call is ``{"id", "type": "function", "function": {"name", "arguments"}}`` or the inner object alone, its
arguments a JSON text or an object; a turn ``function_call`` is one such call as JSON. Thinking stands under a key of
its own or in the text, in any form that models write it (``cai.chat.thinking``): it is no part of what was said.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cai.chat import Message, ToolCall
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
    return tuple(message_of(turn, role_of(turn, role_key), text_key) for turn in raw)


def role_of(turn: Any, role_key: str) -> str:
    """The role of a turn: one of ours, or ``CALL``."""
    if not isinstance(turn, Mapping):
        raise Odd("wrong_type")
    name = turn.get(role_key)
    role = ROLE_NAMES.get(name.strip().lower()) if isinstance(name, str) else None
    if role is None:
        raise Odd("unknown_role")
    return role


def message_of(turn: Mapping[str, Any], role: str, text_key: str = "content") -> Message:
    """One turn, whose role is known."""
    return _TURNS[role](turn, text_key)


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
    return Message("system", _text(turn, text_key))


def _user(turn: Mapping[str, Any], text_key: str) -> Message:
    return Message("user", _text(turn, text_key))


def _assistant(turn: Mapping[str, Any], text_key: str) -> Message:
    calls = _calls(turn)
    said = answer(_text(turn, text_key)) if turn.get(text_key) is not None or not calls else Message("assistant")
    return Message("assistant", said.content, _own_thinking(turn) or said.thinking, calls or said.tool_calls)


def _tool(turn: Mapping[str, Any], text_key: str) -> Message:
    value = turn.get(text_key)
    content = _json_text(value) if isinstance(value, Mapping) else _text(turn, text_key)
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


def _text(turn: Mapping[str, Any], key: str) -> str:
    """A text, or the texts of a list of parts; other parts (pictures, sound) have no place in a row."""
    value = turn.get(key)
    if not isinstance(value, list):
        return text_of(turn, key)
    return clean("".join(map(_part, value)))


def _part(part: Any) -> str:
    if isinstance(part, str):
        return part
    text = part.get("text") if isinstance(part, Mapping) else None
    if not isinstance(text, str) or part.get("type", "text") not in ("text", "input_text", "output_text"):
        raise Odd("not_text")
    return text


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
