"""Row by row work that survives being stopped: fixed chunks, each appended to the journal when it is whole.

A client's draw is a function of the model and of the list of requests it is given, so the chunks are fixed by the
spec and never by where an earlier attempt stopped: whole chunks are taken from the journal, a torn one is done again
from its start. The output is written from the journal in the order of the input, so the bytes of a resumed run equal
those of an uninterrupted one.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

from cai.chat import Message
from cai.clients.base import Client, Completion, Finish, Request
from cai.data.journal import Journal
from cai.data.rows import ROW_TYPES, Conversation, Prompt, Row, dump_line, from_json, read_rows, to_json
from cai.stages.base import IS_A, Artifact, Context, Ledger, Outcome, chunks

ROWS = "rows.jsonl"
PROMPT_TOKENS = 48
"""Tokens assumed for a prompt whose text is not known while planning."""

R = TypeVar("R", bound=Row)


class Unfinished(str, Enum):
    """What becomes of an answer that was cut at ``max_tokens``: kept, cut back to its last sentence, or dropped."""

    KEEP = "keep"
    TRIM = "trim"
    DROP = "drop"


@dataclass(frozen=True, slots=True)
class Entry:
    """What became of one row: the rows it turned into, what was dropped by reason, and other counts to add up."""

    id: str
    rows: tuple[Row, ...] = ()
    dropped: Mapping[str, int] = field(default_factory=dict)
    counts: Mapping[str, float] = field(default_factory=dict)
    calls: int = 0
    tokens: int = 0

    def plain(self) -> dict[str, Any]:
        """As the journal keeps it."""
        return {
            "id": self.id,
            "rows": [{"makes": row.MAKES, "row": to_json(row)} for row in self.rows],
            "dropped": dict(self.dropped),
            "counts": dict(self.counts),
            "calls": self.calls,
            "tokens": self.tokens,
        }


def entry_of(raw: Mapping[str, Any]) -> Entry:
    """The inverse of ``Entry.plain``."""
    rows = tuple(from_json(ROW_TYPES[kept["makes"]], kept["row"]) for kept in raw["rows"])
    return Entry(raw["id"], rows, raw["dropped"], raw["counts"], raw["calls"], raw["tokens"])


Work = Callable[[Client, list[R]], Sequence[Entry]]


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


def prompts_of(artifact: Artifact, limit: int | None = None) -> tuple[list[Prompt], int]:
    """Prompts with distinct ids, at most ``limit``, and how many repeated an id."""
    return distinct([as_prompt(row) for row in rows_of(artifact)][:limit])


def distinct(rows: Sequence[R]) -> tuple[list[R], int]:
    """The first row of every id, in order, and how many were left out."""
    first: dict[str, R] = {}
    for row in rows:
        first.setdefault(row.id, row)
    return list(first.values()), len(rows) - len(first)


def in_chunks(ctx: Context, role: str, rows: Sequence[R], size: int, work: Work[R], tokens: int = 0) -> Iterator[Entry]:
    """Do every chunk that the journal does not hold whole, then yield all entries in the order of the rows.

    The model of ``role`` is served only when something is left to do. ``tokens`` is the expected total.
    """
    ctx.work.mkdir(parents=True, exist_ok=True)
    journal = Journal(ctx.work / "journal.jsonl")
    ctx.progress.expect(rows=len(rows), tokens=tokens or None)
    with ExitStack() as stack:
        client: Client | None = None
        for chunk in chunks(list(rows), size):
            if all(row.id in journal for row in chunk):
                ctx.progress.advance(rows=len(chunk))
                continue
            if client is None:
                client = stack.enter_context(ctx.client(role))
            entries = work(client, chunk)
            if [entry.id for entry in entries] != [row.id for row in chunk]:
                raise RuntimeError(f"{ctx.name}: the entries of a chunk are not those of its rows")
            journal.append([entry.plain() for entry in entries])
            ctx.progress.advance(rows=len(chunk), tokens=sum(entry.tokens for entry in entries))
    for row in rows:
        yield entry_of(journal[row.id])


def write_entries(ctx: Context, entries: Iterator[Entry], repeated: int = 0) -> tuple[Outcome, Counter[str]]:
    """Write the rows of all entries to ``rows.jsonl``; the outcome, and the sums of their other counts.

    A row in is what was written or dropped, so that rows in = rows out + rows dropped whatever one input row makes.
    """
    dropped: Counter[str] = Counter({"repeated id": repeated} if repeated else {})
    counts: Counter[str] = Counter()
    written = calls = tokens = 0
    with (ctx.out / ROWS).open("w", encoding="utf-8") as file:
        for entry in entries:
            for row in entry.rows:
                file.write(dump_line(row))
            written += len(entry.rows)
            dropped.update(entry.dropped)
            counts.update(entry.counts)
            calls, tokens = calls + entry.calls, tokens + entry.tokens
    ledger = Ledger(written + sum(dropped.values()), written, dict(sorted(dropped.items())))
    return Outcome(ledger, {}, calls, tokens), counts


def complete(client: Client, requests: Sequence[Request]) -> dict[str, Completion]:
    """Completions by request id.

    Raises:
        RuntimeError: when the client leaves a request without an answer.
    """
    found = {completion.id: completion for completion in client.generate(requests)} if requests else {}
    missing = [request.id for request in requests if request.id not in found]
    if missing:
        raise RuntimeError(f"{client.name}: no completion for {len(missing)} requests, the first is {missing[0]!r}")
    return found


SENTENCE_ENDS = (".", "!", "?", '."', '!"', '?"', ".)", "\n")


def settled(completion: Completion, unfinished: Unfinished) -> tuple[str, str]:
    """An answer's text and, when it cannot be used, the reason (else an empty string)."""
    text = completion.text.strip()
    if text and completion.finish is Finish.LENGTH:
        if unfinished is Unfinished.DROP:
            return "", "unfinished"
        if unfinished is Unfinished.TRIM:
            end = max(text.rfind(mark) + len(mark) if mark in text else 0 for mark in SENTENCE_ENDS)
            text = text[:end].rstrip()
            if not text:
                return "", "unfinished"
    return (text, "") if text else ("", "empty")


def transcript(messages: Sequence[Message]) -> list[dict[str, str]]:
    """Messages as the prompt templates read them."""
    return [{"role": message.role, "content": message.content} for message in messages]


def write_json(path: Path, value: Any) -> None:
    """Write plain data as indented JSON."""
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
