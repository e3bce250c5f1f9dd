"""The rows that flow between stages, and nothing else: frozen, plain, one JSON object a line on disk."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

from cai.chat import Message
from cai.chat.messages import message_from_plain, message_to_plain
from cai.identity import parse_json

# Made once: json.dumps would make it anew for every row.
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def _messages(raw: list[dict[str, Any]]) -> tuple[Message, ...]:
    return tuple(map(message_from_plain, raw))


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a model is asked: messages that end with a user turn."""

    MAKES: ClassVar[str] = "prompts"
    id: str
    messages: tuple[Message, ...]
    topic: str = ""
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Conversation:
    """A whole exchange that ends with an assistant turn; what SFT trains on."""

    MAKES: ClassVar[str] = "conversations"
    id: str
    messages: tuple[Message, ...]
    topic: str = ""
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def prompt(self) -> tuple[Message, ...]:
        """The messages before the last answer."""
        return self.messages[:-1]

    @property
    def answer(self) -> str:
        """The last answer."""
        return self.messages[-1].content


@dataclass(frozen=True, slots=True)
class Candidates:
    """Several answers to one prompt."""

    MAKES: ClassVar[str] = "candidates"
    id: str
    messages: tuple[Message, ...]
    answers: tuple[str, ...]
    topic: str = ""
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two answers to one prompt; ``p_chosen`` is the probability in [0, 1] that ``chosen`` is the better one.

    A hard label has 1.0, a tie 0.5.
    """

    MAKES: ClassVar[str] = "comparisons"
    id: str
    messages: tuple[Message, ...]
    chosen: str
    rejected: str
    p_chosen: float = 1.0
    topic: str = ""
    meta: dict[str, Any] = field(default_factory=dict)


Row = Prompt | Conversation | Candidates | Comparison
ROW_TYPES: dict[str, type[Row]] = {t.MAKES: t for t in (Prompt, Conversation, Candidates, Comparison)}
_FIELDS = {kind: tuple(f.name for f in fields(kind)) for kind in ROW_TYPES.values()}


def to_json(row: Row) -> dict[str, Any]:
    """A row as plain data, its fields in their order. ``meta`` is the row's own: not to be changed."""
    # Not ``asdict``, which copies every value: this is done for each row of every stage.
    plain = {name: getattr(row, name) for name in _FIELDS[type(row)]}
    plain["messages"] = [message_to_plain(m) for m in row.messages]
    return plain


def from_json(kind: type[Row], raw: dict[str, Any]) -> Row:
    """The inverse of ``to_json``."""
    data = dict(raw)
    data["messages"] = _messages(data["messages"])
    if "answers" in data:
        data["answers"] = tuple(data["answers"])
    return kind(**data)


def dump_line(row: Row) -> str:
    """One row as one line of JSON, with its line end."""
    return _encode(to_json(row)) + "\n"


def read_rows(path: Path, kind: type[Row]) -> Iterator[Row]:
    """Rows of a JSONL file, streamed."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            if line.strip():
                yield from_json(kind, parse_json(line))


def write_rows(path: Path, rows: Iterator[Row] | list[Row]) -> int:
    """Write rows to a JSONL file; returns how many."""
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(dump_line(row))
            count += 1
    return count
