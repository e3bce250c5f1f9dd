"""What a message holds, whatever its form: a text, or a list of typed parts as servers answer and files keep them.

Parts of text are joined; those that think, refuse, call a tool or bring its result are told apart. The types are
OpenAI's, Mistral's (``thinking``, whose own content may be a list of parts) and Anthropic's (``thinking``,
``tool_use``, ``tool_result``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cai.chat.messages import Message, ToolCall

_TEXTS = (None, "text", "input_text", "output_text")
_THOUGHTS = ("thinking", "reasoning", "reasoning_text")


@dataclass(frozen=True, slots=True)
class Content:
    """What is said, what is thought, what the model says instead of an answer, the tools it calls, and the results of
    such calls; ``others`` counts the parts that are none of these: pictures, sound, references."""

    text: str = ""
    thinking: str = ""
    refusal: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    results: tuple[Message, ...] = ()
    others: int = 0

    @classmethod
    def of(cls, value: object) -> Content:
        """A content of a text, of a list of parts, or of None, which says nothing.

        Raises:
            ValueError: for anything else.
        """
        if value is None:
            return cls()
        if isinstance(value, str):
            return cls(value)
        if not isinstance(value, Sequence) or isinstance(value, bytes):
            raise ValueError("neither a text nor a list of parts")
        parts = [_part({"text": part} if isinstance(part, str) else part) for part in value]
        return cls(
            "".join(part.text for part in parts),
            "".join(part.thinking for part in parts),
            "".join(part.refusal for part in parts),
            tuple(call for part in parts for call in part.tool_calls),
            tuple(result for part in parts for result in part.results),
            sum(part.others for part in parts),
        )


def _part(part: object) -> Content:
    if not isinstance(part, Mapping):
        return Content(others=1)
    kind, text, name = part.get("type"), part.get("text"), part.get("name")
    if kind in _THOUGHTS:
        return Content(thinking=_thought(part))
    if kind == "refusal":
        return Content(refusal=str(part.get("refusal") or text or ""))
    if kind == "tool_use" and isinstance(name, str) and name.strip():
        return Content(tool_calls=(ToolCall(name.strip(), _json(part.get("input") or {}), _label(part.get("id"))),))
    if kind == "tool_result":
        own = part.get("content")
        inner = Content(_json(own)) if isinstance(own, Mapping) else Content.of(own)
        result = Message("tool", inner.text.strip(), tool_call_id=_label(part.get("tool_use_id")))
        return Content(results=(result,), others=inner.others)
    return Content(text) if kind in _TEXTS and isinstance(text, str) else Content(others=1)


def _thought(part: Mapping[str, Any]) -> str:
    own = part.get("thinking") or part.get("reasoning") or part.get("text") or part.get("content")
    return own if isinstance(own, str) else Content.of(own).text if isinstance(own, list) else ""


def _json(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, allow_nan=False)


def _label(value: object) -> str:
    return value.strip() if isinstance(value, str) else ""
