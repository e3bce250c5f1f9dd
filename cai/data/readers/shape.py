"""From raw values to rows: every reader ends here, so that all rows are clean in the same way.

A value that cannot become a row raises ``Odd`` with a short reason; the reader counts it and goes on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from cai.chat import Message
from cai.chat.messages import has_tools, turns_text
from cai.data.rows import Comparison, Conversation, Prompt, Row
from cai.identity import row_id

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


def checked(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """The messages, when they alternate from a user turn on (a system text may come first) and none is empty.

    An assistant's tool calls are answered by as many tool turns, after which the assistant goes on. Where the last
    turn calls a tool, nothing has answered it yet.

    Raises:
        Odd: for the first rule that is broken.
    """
    if messages and messages[0].role == "system" and not messages[0].content:
        messages = messages[1:]
    turns = messages[1:] if messages and messages[0].role == "system" else messages
    if not turns:
        raise Odd("no_turns")
    roles = [turn.role for turn in turns]
    if has_tools(turns):
        _check_tools(turns)
    elif {*roles[::2]} != {"user"} or not {*roles[1::2]} <= {"assistant"}:
        raise Odd("not_alternating")
    if not all(map(_says_something, turns[:-1])):
        raise Odd("empty_turn")
    if not _says_something(turns[-1]):
        raise Odd("empty_answer" if turns[-1].role == "assistant" else "empty_prompt")
    return messages


def _says_something(turn: Message) -> bool:
    # A tool may have nothing to tell: what it did is done.
    return bool(turn.content or turn.tool_calls or turn.role == "tool")


def _check_tools(turns: tuple[Message, ...]) -> None:
    following: tuple[str, ...] = ("user",)
    open_calls: list[str] = []
    for turn in turns:
        if turn.role == "tool":
            _answer_call(open_calls, turn.tool_call_id)
            following = ("assistant",)
            continue
        if open_calls:
            raise Odd("call_without_result")
        if turn.role not in following:
            raise Odd("not_alternating")
        following = ("assistant",) if turn.role == "user" else ("user",)
        open_calls = [call.id for call in turn.tool_calls]
    if open_calls and turns[-1].role == "tool":
        raise Odd("call_without_result")


def _answer_call(open_calls: list[str], id: str) -> None:
    """Take the call that a result answers off the list; without ids, results come in the order of the calls."""
    if id in open_calls:
        open_calls.remove(id)
    elif open_calls and not (id and open_calls[0]):
        open_calls.pop(0)
    else:
        raise Odd("result_without_call")


def prompt(messages: tuple[Message, ...], topic: str = "", meta: Mapping[str, Any] | None = None) -> Prompt:
    """A prompt row; an answer at the end is taken off."""
    messages = checked(messages[:-1] if messages and messages[-1].role == "assistant" else messages)
    if messages[-1].role == "assistant":
        raise Odd("not_alternating")  # two answers at the end: what is left ends with one
    return Prompt(row_id(*parts(messages)), messages, topic, scalars(meta))


def conversation(messages: tuple[Message, ...], topic: str = "", meta: Mapping[str, Any] | None = None) -> Conversation:
    """A conversation row; it must end with an answer, which may be a tool call. Its id is made from the whole of it."""
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
    if messages[-1].role == "assistant":
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
    """A comparison of two whole exchanges that may differ in their last answer only.

    What is compared is what was said: what was thought before the last answers is left out, and an answer that is a
    tool call has no place in a comparison.
    """
    if not chosen or not rejected:
        raise Odd("no_turns")
    if chosen[-1].role != "assistant" or rejected[-1].role != "assistant":
        raise Odd("no_answer")
    if chosen[-1].tool_calls or rejected[-1].tool_calls:
        raise Odd("answer_is_tool_call")
    if chosen[:-1] != rejected[:-1]:
        raise Odd("prompts_differ")
    return comparison(chosen[:-1], chosen[-1].content, rejected[-1].content, **more)


def prompt_or_conversation(
    makes: str, messages: tuple[Message, ...], topic: str = "", meta: Mapping[str, Any] | None = None
) -> Row:
    """A prompt or a conversation, whichever is wanted."""
    return (prompt if makes == "prompts" else conversation)(messages, topic, meta)


def parts(messages: tuple[Message, ...]) -> list[str]:
    """What a row's id is made from: role and content of each message, in order, and what else it has."""
    return list(turns_text(messages))


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
