"""Messages as Hugging Face's chat templates read them, and back: plain dicts that hold only what a turn has.

An assistant's thinking stands under both names in use (``reasoning_content``, ``thinking``). A tool call is
``{"type": "function", "id", "function": {"name", "arguments"}}``, its arguments an object where they are one. Every
text in them is a stranger's, the keys of the arguments included, so ``each`` reaches all of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from cai.chat.messages import Message, ToolCall
from cai.identity import parse_json

Turns = tuple[dict[str, Any], ...]

TOOL_PROBE = (
    Message("user", "ping"),
    Message("assistant", tool_calls=(ToolCall("probetool", '{"probekey": "probevalue"}', "call00001"),)),
    Message("tool", "proberesult", tool_call_id="call00001", name="probetool"),
    Message("assistant", "pong"),
)
TOOL_WORDS = ("probetool", "probekey", "probevalue", "proberesult", "pong")
"""What the text of ``TOOL_PROBE`` holds where a template knows tools. The id is one that Mistral's templates take."""

THINKING_PROBE = (Message("user", "ping"), Message("assistant", "pong", "probethought"))
THINKING_WORDS = ("probethought", "pong")


def turns_of(messages: Sequence[Message]) -> Turns:
    """The turns of a conversation; a tool's result has its tool's name where a call says it."""
    tool_names = {call.id: call.name for message in messages for call in message.tool_calls if call.id}
    return tuple(_turn(message, tool_names.get(message.tool_call_id, "")) for message in messages)


def _turn(message: Message, tool_name: str) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.thinking:
        turn |= {"reasoning_content": message.thinking, "thinking": message.thinking}
    if message.tool_calls:
        turn["tool_calls"] = [_call(call) for call in message.tool_calls]
    if message.tool_call_id:
        turn["tool_call_id"] = message.tool_call_id
    if message.name or tool_name:
        turn["name"] = message.name or tool_name
    return turn


def _call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": arguments_of(call)}
    return {"type": "function", **({"id": call.id} if call.id else {}), "function": function}


def arguments_of(call: ToolCall) -> Any:
    """A call's arguments as an object where they are a JSON object, else the text as it stands."""
    try:
        value = parse_json(call.arguments)
    except ValueError:
        return call.arguments
    return value if isinstance(value, dict) else call.arguments


def each(turns: Turns, change: Callable[[str], str]) -> Turns:
    """The turns with every text that a message brought changed."""
    return tuple(_each_field(turn, change) for turn in turns)


def _each_field(turn: dict[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    changed: dict[str, Any] = {}
    for name, value in turn.items():
        if name in ("role", "type"):  # what a template compares, and no stranger writes
            changed[name] = value
        elif name == "tool_calls":
            changed[name] = [_each_field(call, change) for call in value]
        elif name == "function":
            changed[name] = _each_field(value, change)
        else:
            changed[name] = _each_text(value, change)
    return changed


def _each_text(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [_each_text(item, change) for item in value]
    if not isinstance(value, dict):
        return value
    changed: dict[str, Any] = {}
    for key, item in value.items():
        name = change(key)
        while name in changed:  # two keys that become one would hide an argument
            name += change("_")
        changed[name] = _each_text(item, change)
    return changed


def messages_of(messages: Sequence[Message], turns: Turns) -> tuple[Message, ...]:
    """The messages with the texts of ``turns``, which were made of them by ``turns_of`` and ``each``."""
    return tuple(_message(message, turn) for message, turn in zip(messages, turns, strict=True))


def _message(message: Message, turn: dict[str, Any]) -> Message:
    if len(turn) == 2:
        return Message(message.role, turn["content"])
    calls = zip(message.tool_calls, turn.get("tool_calls", ()), strict=True)
    return replace(
        message,
        content=turn["content"],
        thinking=turn.get("thinking", ""),
        tool_calls=tuple(_changed_call(call, plain) for call, plain in calls),
        tool_call_id=turn.get("tool_call_id", ""),
        name=turn["name"] if message.name else "",
    )


def _changed_call(call: ToolCall, plain: dict[str, Any]) -> ToolCall:
    function = plain["function"]
    arguments = function["arguments"]
    if arguments == arguments_of(call):
        arguments = call.arguments
    elif not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    return ToolCall(function["name"], arguments, plain.get("id", ""))
