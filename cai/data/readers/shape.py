"""From raw values to rows: every reader ends here, so that all rows are clean in the same way.

A value that cannot become a row raises ``Odd`` with a short reason; the reader counts it and goes on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from cai.chat import Message
from cai.data.rows import Comparison, Conversation, Prompt, Row
from cai.identity import row_id

ROLE_NAMES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
}


FILTERED = "filtered"
"""Why a record makes no row that the experiment's options leave out."""

MAX_TURNS = 10_000
"""Turns of a conversation; no model reads so many."""


class Odd(Exception):
    """This record makes no row; ``reason`` is what the ledger counts."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def text_of(raw: Mapping[str, Any], key: str) -> str:
    """The text under a key, without spaces around it.

    Raises:
        Odd: when it is missing, no text, or not writable as UTF-8.
    """
    value = raw.get(key)
    if value is None:
        raise Odd(f"missing_{key}")
    return clean(value)


def clean(value: Any) -> str:
    """A text without spaces around it; see ``text_of``."""
    if not isinstance(value, str):
        raise Odd("wrong_type")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise Odd("not_utf8") from error
    return value.strip()


def messages_of(raw: Any, role_key: str = "role", text_key: str = "content") -> tuple[Message, ...]:
    """Messages of a list of objects, with the usual spellings of the roles."""
    if not isinstance(raw, Sequence) or isinstance(raw, str):
        raise Odd("wrong_type")
    if len(raw) > MAX_TURNS:
        raise Odd("too_many_turns")
    turns = []
    for turn in raw:
        if not isinstance(turn, Mapping):
            raise Odd("wrong_type")
        name = turn.get(role_key)
        role = ROLE_NAMES.get(name.strip().lower()) if isinstance(name, str) else None
        if role is None:
            raise Odd("unknown_role")
        turns.append(Message(role, text_of(turn, text_key)))
    return tuple(turns)


def checked(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """The messages, when they alternate from a user turn on (a system text may come first) and none is empty."""
    if messages and messages[0].role == "system" and not messages[0].content:
        messages = messages[1:]
    turns = messages[1:] if messages and messages[0].role == "system" else messages
    if not turns:
        raise Odd("no_turns")
    roles = [turn.role for turn in turns]
    if {*roles[::2]} != {"user"} or not {*roles[1::2]} <= {"assistant"}:
        raise Odd("not_alternating")
    if not all(turn.content for turn in turns[:-1]):
        raise Odd("empty_turn")
    if not turns[-1].content:
        raise Odd("empty_answer" if turns[-1].role == "assistant" else "empty_prompt")
    return messages


def prompt(messages: tuple[Message, ...], topic: str = "", meta: Mapping[str, Any] | None = None) -> Prompt:
    """A prompt row; an answer at the end is taken off."""
    messages = checked(messages[:-1] if messages and messages[-1].role == "assistant" else messages)
    if messages[-1].role != "user":
        raise Odd("not_alternating")  # two answers at the end: what is left ends with one
    return Prompt(row_id(*parts(messages)), messages, topic, scalars(meta))


def conversation(messages: tuple[Message, ...], topic: str = "", meta: Mapping[str, Any] | None = None) -> Conversation:
    """A conversation row; it must end with an answer. Its id is made from the whole of it."""
    messages = checked(messages)
    if messages[-1].role != "assistant":
        raise Odd("no_answer")
    return Conversation(row_id(*parts(messages)), messages, topic, scalars(meta))


def comparison(
    messages: tuple[Message, ...],
    chosen: str,
    rejected: str,
    *,
    p_chosen: Any = 1.0,
    topic: str = "",
    meta: Mapping[str, Any] | None = None,
) -> Comparison:
    """A comparison row; the two answers must differ and neither may be empty."""
    messages = checked(messages)
    if messages[-1].role != "user":
        raise Odd("not_alternating")
    if not chosen or not rejected:
        raise Odd("empty_answer")
    if chosen == rejected:
        raise Odd("identical_answers")
    if isinstance(p_chosen, bool) or not isinstance(p_chosen, int | float) or not 0 <= p_chosen <= 1:
        raise Odd("wrong_p_chosen")
    name = row_id(*parts(messages), chosen, rejected)
    return Comparison(name, messages, chosen, rejected, float(p_chosen), topic, scalars(meta))


def pair(chosen: tuple[Message, ...], rejected: tuple[Message, ...], **more: Any) -> Comparison:
    """A comparison of two whole exchanges that may differ in their last answer only."""
    if not chosen or not rejected:
        raise Odd("no_turns")
    if chosen[-1].role != "assistant" or rejected[-1].role != "assistant":
        raise Odd("no_answer")
    if chosen[:-1] != rejected[:-1]:
        raise Odd("prompts_differ")
    return comparison(chosen[:-1], chosen[-1].content, rejected[-1].content, **more)


def prompt_or_conversation(
    makes: str, messages: tuple[Message, ...], topic: str = "", meta: Mapping[str, Any] | None = None
) -> Row:
    """A prompt or a conversation, whichever is wanted."""
    return (prompt if makes == "prompts" else conversation)(messages, topic, meta)


def parts(messages: tuple[Message, ...]) -> list[str]:
    """What a row's id is made from: role and content of each message, in order."""
    return [text for m in messages for text in (m.role, m.content)]


def scalars(meta: Mapping[str, Any] | None) -> dict[str, Any]:
    """The plain values of ``meta``: writable texts, whole and finite numbers, truth values."""
    plain_values: dict[str, Any] = {}
    for name, value in (meta or {}).items():
        key = clean(name)
        if isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
            plain_values[key] = value
        elif isinstance(value, str):
            plain_values[key] = clean(value)
    return plain_values
