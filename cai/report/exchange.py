"""An exchange as the browser of samples shows it: the question, what went before it, and each thing done after it.

What was thought stands apart from what was said and is marked as thought; tool calls and their results are parts of
their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cai.chat import Message
from cai.chat.messages import message_from_plain, readable

THOUGHT, CALL, RESULT = "thought", "call", "result"


@dataclass(frozen=True, slots=True)
class SamplePart:
    """One text of a row. ``against`` is the place of the part that it is compared with, word by word; -1 for none.

    ``kind`` is ``thought`` (folded: no part of an answer), ``call`` or ``result`` of a tool, or empty for what is said.
    """

    label: str
    text: str
    note: str = ""
    principle: str = ""
    against: int = -1
    share: float | None = None
    kind: str = ""


@dataclass(frozen=True, slots=True)
class Exchange:
    """The last question, the turns before it as a transcript, and what followed it."""

    prompt: str
    earlier: str
    parts: tuple[SamplePart, ...] = ()


def exchange(messages: Sequence[Mapping[str, Any]]) -> Exchange:
    """An exchange of plain messages. Without a question in it, the last turn stands for one."""
    turns = [message_from_plain(plain) for plain in messages]
    questions = [i for i, turn in enumerate(turns) if turn.role == "user"]
    at = questions[-1] if questions else len(turns) - 1
    tool_names = {call.id: call.name for turn in turns for call in turn.tool_calls if call.id}
    earlier = "\n\n".join(line for turn in turns[: max(at, 0)] for line in _lines(turn, tool_names))
    parts = tuple(part for turn in turns[at + 1 :] for part in _parts(turn, tool_names))
    return Exchange(str(turns[at].content) if turns else "", earlier, parts)


def _lines(turn: Message, tool_names: Mapping[str, str]) -> list[str]:
    thought = [f"{turn.role} (thought, not said): {turn.thinking}"] if turn.thinking else []
    return [*thought, f"{turn.role}: {readable(turn, turn.name or tool_names.get(turn.tool_call_id, ''))}"]


def _parts(turn: Message, tool_names: Mapping[str, str]) -> list[SamplePart]:
    if turn.role == "tool":
        name = turn.name or tool_names.get(turn.tool_call_id, "")
        return [SamplePart("tool result", str(turn.content), name, kind=RESULT)]
    parts = thought_parts({"thinking": turn.thinking}, "the tool call" if turn.tool_calls else "the answer")
    if turn.content or not turn.tool_calls:
        label = "said beside the tool call" if turn.tool_calls else "answer" if turn.role == "assistant" else turn.role
        parts.append(SamplePart(label, str(turn.content)))
    parts += [SamplePart("tool call", call.arguments, call.name, kind=CALL) for call in turn.tool_calls]
    return parts


def thought_parts(entry: Mapping[str, Any], before: str) -> list[SamplePart]:
    """What was thought before something was said, where ``entry`` tells it under ``thinking``."""
    thinking = entry.get("thinking")
    if not isinstance(thinking, str) or not thinking:
        return []
    return [SamplePart(f"thought before {before}", thinking, "no part of the answer", kind=THOUGHT)]
