"""What goes into a chat template and what comes out: turns in, pieces of text out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from cai.identity import canonical

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

    def __repr__(self) -> str:
        # Without what is not there: checkpoints know their data by it, those of before there was more included.
        shown = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        kept = [f"{name}={value!r}" for name, value in shown.items() if value or name in ("role", "content")]
        return f"Message({', '.join(kept)})"


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
    """Messages as the prompt templates read them: what was said and done, never what was thought.

    A tool's call and its result are lines of text here, both on the assistant's side: whoever judges a turn must see
    what was done in it, and templates know a person and an assistant.
    """
    tool_names = {call.id: call.name for message in messages for call in message.tool_calls if call.id}
    return [
        {
            "role": "assistant" if message.role == "tool" else message.role,
            "content": readable(message, message.name or tool_names.get(message.tool_call_id, "")),
        }
        for message in messages
    ]


def readable(message: Message, tool_name: str = "") -> str:
    """What was said in a turn as text, its tool calls and results in lines of their own; thinking is left out."""
    if message.role == "tool":
        name = tool_name or message.name
        return f"[result of {f'the tool {name}' if name else 'a tool'}]\n{message.content}"
    calls = [f"[calls the tool {call.name}: {call.arguments}]" for call in message.tool_calls]
    return "\n".join([message.content] * bool(message.content) + calls) if calls else message.content


def question(messages: Sequence[Message]) -> str:
    """What a prompt asks: its last user turn, also where a tool has answered since; else its last turn."""
    last = next((message for message in reversed(messages) if message.role == "user"), messages[-1])
    return last.content


def has_tools(messages: Sequence[Message]) -> bool:
    """Whether a tool is called, or answers, in one of the turns."""
    return any(message.tool_calls or message.role == "tool" for message in messages)


def without_thinking(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The messages as everybody but their author knows them."""
    return tuple(replace(message, thinking="") if message.thinking else message for message in messages)


def turns_text(messages: Sequence[Message]) -> Iterator[str]:
    """The texts that tell one exchange from another: role and content of each turn, and what else it has.

    For turns of role and content, only these two: what was made from them before there was more stays.
    """
    for message in messages:
        yield message.role
        yield message.content
        more = {k: v for k, v in message_to_plain(message).items() if k not in ("role", "content")}
        if more:
            yield canonical(more)
