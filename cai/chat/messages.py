"""What goes into a chat template and what comes out: turns in, pieces of text out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool that the assistant calls: ``arguments`` is the JSON text as the model wrote it."""

    name: str
    arguments: str = "{}"
    id: str = ""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn: ``role`` is ``system``, ``user``, ``assistant`` or ``tool``.

    ``thinking`` (what an assistant thought before it spoke) is no part of what it said. A ``tool`` turn is the result
    of the call ``tool_call_id`` of the tool ``name``.
    """

    role: str
    content: str = ""
    thinking: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    name: str = ""


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of rendered text; ``loss`` says whether training learns to produce it."""

    text: str
    loss: bool


def message_to_plain(message: Message) -> dict[str, Any]:
    """A message as rows keep it: what is not there is left out, so that a plain turn is its role and its content."""
    plain: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.thinking:
        plain["thinking"] = message.thinking
    if message.tool_calls:
        plain["tool_calls"] = [tool_call_to_plain(call) for call in message.tool_calls]
    if message.tool_call_id:
        plain["tool_call_id"] = message.tool_call_id
    if message.name:
        plain["name"] = message.name
    return plain


def message_from_plain(plain: Mapping[str, Any]) -> Message:
    """The inverse of ``message_to_plain``."""
    if len(plain) == 2:
        return Message(plain["role"], plain["content"])
    return Message(
        plain["role"],
        plain["content"],
        plain.get("thinking", ""),
        tuple(tool_call_from_plain(call) for call in plain.get("tool_calls", ())),
        plain.get("tool_call_id", ""),
        plain.get("name", ""),
    )


def tool_call_to_plain(call: ToolCall) -> dict[str, str]:
    """A tool call as rows, journals and the cache keep it."""
    plain = {"name": call.name, "arguments": call.arguments}
    return plain | {"id": call.id} if call.id else plain


def tool_call_from_plain(plain: Mapping[str, str]) -> ToolCall:
    """The inverse of ``tool_call_to_plain``."""
    return ToolCall(plain["name"], plain["arguments"], plain.get("id", ""))


def transcript(messages: Sequence[Message]) -> list[dict[str, str]]:
    """Messages as the prompt templates read them: what was said, never what was thought."""
    return [{"role": message.role, "content": message.content} for message in messages]
