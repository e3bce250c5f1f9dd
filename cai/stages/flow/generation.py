"""What the stages that ask a model share: the rows they read, what they make of an answer, and their end of a flow."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from cai.clients.base import Completion, Finish
from cai.data.rows import ROW_TYPES, Conversation, Prompt, Row, read_rows
from cai.stages.base import IS_A, Artifact, Context, Outcome
from cai.stages.flow.entries import ROWS, StoredEntry, write_entries
from cai.stages.flow.input_rows import RowSource

if TYPE_CHECKING:
    from cai.stages.flow.base import Work

PROMPT_TOKENS = 48
"""Tokens assumed for a prompt whose text is not known while planning."""

R = TypeVar("R", bound=Row)


class Unfinished(str, Enum):
    """What becomes of an answer that was cut at ``max_tokens``: kept, cut back to its last sentence, or dropped."""

    KEEP = "keep"
    TRIM = "trim"
    DROP = "drop"


def row_type(artifact: Artifact) -> type[Row]:
    """The type of the rows an artifact holds; ``responses`` and ``revisions`` are conversations."""
    for kind in (artifact.makes, *IS_A.get(artifact.makes, ())):
        if kind in ROW_TYPES:
            return ROW_TYPES[kind]
    raise TypeError(f"{artifact.path}: holds no rows, it is a {artifact.makes}")


def part(artifact: Artifact, name: str) -> Path | None:
    """The file of a part (``train``, ``val``); an artifact without parts has all its rows in ``train``."""
    path = artifact.path / f"{name}.jsonl"
    if path.exists():
        return path
    return artifact.path / ROWS if name == "train" else None


def rows_of(artifact: Artifact, name: str = "train") -> list[Row]:
    """The rows of one part of an artifact, in order."""
    path = part(artifact, name)
    return list(read_rows(path, row_type(artifact))) if path is not None else []


def as_prompt(row: Row) -> Prompt:
    """What was asked in any kind of row."""
    if isinstance(row, Prompt):
        return row
    messages = row.prompt if isinstance(row, Conversation) else row.messages
    return Prompt(row.id, messages, row.topic, row.meta)


def as_conversation(row: Row) -> Conversation | str:
    """The row itself, where it is one."""
    return row if isinstance(row, Conversation) else "no conversation"


def distinct(rows: Sequence[R]) -> tuple[list[R], int]:
    """The first row of every id, in order, and how many were left out."""
    first: dict[str, R] = {}
    for row in rows:
        first.setdefault(row.id, row)
    return list(first.values()), len(rows) - len(first)


def source_of(artifact: Artifact, convert: Callable[[Row], R | str], limit: int | None = None) -> RowSource[R]:
    """An artifact's rows, streamed, each as a stage works on it."""
    path = part(artifact, "train")
    assert path is not None
    return RowSource(path, row_type(artifact), convert, limit)


def through(
    ctx: Context,
    source: RowSource[R],
    work: Work[R],
    spec: Any,
    *,
    tokens: int = 0,
    on_entry: Callable[[StoredEntry], None] | None = None,
) -> Outcome:
    """Take all rows through the model of role ``model`` and write what they became to ``rows.jsonl``.

    ``tokens`` are expected in all. ``on_entry`` is given every entry, in the order of the input.
    """
    # Late: planning reads this module too, and moves no rows.
    from cai.stages.flow.base import Flow
    from cai.stages.flow.drive import drive

    rate = spec.max_drop_rate
    with Flow(ctx, "model", source, work, size=spec.chunk, max_drop_rate=rate, tokens=tokens) as flow:
        drive(flow)
        entries = _passed_on(flow.entries(), on_entry) if on_entry else flow.entries()
        outcome, counts = write_entries(ctx, entries)
    return replace(outcome, metrics={**counts, **flow.tally.usage().to_metrics()})


def _passed_on(entries: Iterable[StoredEntry], on_entry: Callable[[StoredEntry], None]) -> Iterable[StoredEntry]:
    for entry in entries:
        on_entry(entry)
        yield entry


SENTENCE_ENDS = (".", "!", "?", '."', '!"', '?"', ".)", "\n")


def writable(text: str) -> str:
    """The text with half characters, which a model can answer and no file can hold, replaced by U+FFFD."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def settled(completion: Completion, unfinished: Unfinished) -> tuple[str, str]:
    """An answer's text and, when it cannot be used, the reason (else an empty string). A thought is no answer."""
    if completion.finish is Finish.REFUSED:
        return "", f"refused by the server: {completion.refused}" if completion.refused else "refused by the server"
    if completion.finish is Finish.UNUSABLE:
        return "", completion.refused
    text = writable(completion.text).strip()
    if completion.finish is Finish.LENGTH and (text or completion.thinking):
        if unfinished is Unfinished.DROP:
            return "", "unfinished"
        if unfinished is Unfinished.TRIM:
            end = max(text.rfind(mark) + len(mark) if mark in text else 0 for mark in SENTENCE_ENDS)
            text = text[:end].rstrip()
        if not text:
            return "", "unfinished"
    if not text and completion.thinking:
        return "", "no answer after its thought"
    return (text, "") if text else ("", "empty")


class Thinking(str, Enum):
    """What becomes of a thought that came with an answer: kept beside it in the row, or left out of it."""

    KEEP = "keep"
    DROP = "drop"


def kept_thought(completion: Completion, thinking: Thinking) -> str:
    """The thought that a row keeps beside its answer."""
    return writable(completion.thinking).strip() if thinking is Thinking.KEEP else ""


def thought_counts(completions: Iterable[Completion]) -> dict[str, int]:
    """How many answers were thought about first, and the tokens of it; nothing where none was."""
    thoughtful = [each for each in completions if each.thinking or each.thinking_tokens]
    if not thoughtful:
        return {}
    return {"thoughts": len(thoughtful), "thinking tokens": sum(each.thinking_tokens for each in thoughtful)}


def write_json(path: Path, value: Any) -> None:
    """Write plain data as indented JSON."""
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
