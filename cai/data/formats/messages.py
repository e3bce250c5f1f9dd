"""Formats of messages, which a trainer renders by the template of its model: OpenAI's, and those of NeMo-RL."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from cai.chat import ChatTemplate, Message
from cai.data.formats.base import (
    Count,
    Dropped,
    Lines,
    Written,
    distinct_prompts,
    hard_labels,
    json_line,
    write_lines,
)
from cai.data.rows import Comparison, Conversation, Row

Record = dict[str, Any]


def conversations(rows: Iterable[Conversation], template: ChatTemplate, tally: Counter[str]) -> Iterator[Record]:
    """``{"messages": [...]}``, with tools and thinking."""
    return ({"messages": [openai_message(message) for message in row.messages]} for row in rows)


def preferences(rows: Iterable[Comparison], template: ChatTemplate, tally: Counter[str]) -> Iterator[Record]:
    """``{"context": [...], "completions": [...]}``, rank 0 the better one."""
    for row in hard_labels(rows, tally):
        ranked = [
            {"rank": rank, "completion": _said((Message("assistant", answer),))}
            for rank, answer in enumerate((row.chosen, row.rejected))
        ]
        yield {"context": _said(row.messages), "completions": ranked}


def prompts(rows: Iterable[Row], template: ChatTemplate, tally: Counter[str]) -> Iterator[tuple[Message, ...]]:
    """The prompts of any rows, each once."""
    return distinct_prompts(rows, tally)


def write_records(
    path: Path, items: Iterable[Record], count: Count, /, *, max_length: int, at_least: int = 1
) -> Written:
    """One JSON object a line; nothing is counted, since the text is another's to make."""
    return _write(path, items, lambda record: ([json_line(record)], [0]), at_least)


def write_inputs(
    path: Path, items: Iterable[tuple[Message, ...]], count: Count, /, *, max_length: int, at_least: int = 1
) -> Written:
    """``{"input", "output": ""}``: NeMo-RL's ResponseDataset makes one user turn of the text, so more are left out."""

    def lines(messages: tuple[Message, ...]) -> Lines:
        if len(messages) > 1:
            raise Dropped("more than one turn")
        return [json_line({"input": messages[0].content, "output": ""})], [0]

    return _write(path, items, lines, at_least)


def _write(path: Path, items: Iterable[Any], lines: Any, at_least: int) -> Written:
    return write_lines(path, ((item, True) for item in items), lines, at_least=at_least, noun="rows")


def openai_message(message: Message) -> Record:
    """A turn as OpenAI's protocol writes it, with the name that most servers give to thinking.

    Arguments are the text that the model wrote, as there: objects of differing keys become one type in an Arrow table,
    and every call would then hold the keys of all.
    """
    record: Record = {"role": message.role, "content": message.content}
    if message.thinking:
        record["reasoning_content"] = message.thinking
    if message.tool_calls:
        record["tool_calls"] = [
            {
                **({"id": call.id} if call.id else {}),
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in message.tool_calls
        ]
    if message.tool_call_id:
        record["tool_call_id"] = message.tool_call_id
    if message.name:
        record["name"] = message.name
    return record


def _said(messages: Iterable[Message]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]
