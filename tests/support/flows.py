"""Rows that flow: chained calls to an engine whose answers come in a shuffled order, and that may crash on the way."""

from __future__ import annotations

import random
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cai.clients.base import Call, Client, Completion, Finish, Request, Result, Unanswered, Usage
from cai.clients.scripted import ScriptedClient, made_up
from cai.data.rows import Conversation, Prompt
from cai.identity import sampling_seed
from cai.stages.base import Context
from cai.stages.flow.base import Turn
from cai.stages.flow.entries import Entry
from cai.stages.flow.generation import as_prompt, source_of, through
from tests.support.stage_doubles import Memory, artifact, context, user

ROWS = [Prompt(f"row{i:04}", user(f"Question {i}?"), "", {}) for i in range(300)]


class Crash(RuntimeError):
    """The process dies here."""


@dataclass
class ShuffledServer:
    """A pool's other side: answers after so many looks, in an order of its own, some of them only later."""

    seed: int = 0
    room: int = 40
    crash_after: int = 10**9
    slow: frozenset[str] = frozenset()
    never: frozenset[str] = frozenset()
    asked: list[Call] = field(default_factory=list)
    order: list[str] = field(default_factory=list)
    opened: int = 0
    looks: int = 0


class ServedPool:
    """A client's pool in front of a ``ShuffledServer``."""

    def __init__(self, server: ShuffledServer) -> None:
        self.server = server
        self.waiting: list[tuple[Hashable, Call]] = []
        self.draw = random.Random(server.seed)
        server.opened += 1

    def room(self) -> int:
        return self.server.room - len(self.waiting)

    def submit(self, tag: Hashable, call: Call) -> None:
        self.server.asked.append(call)
        self.waiting.append((tag, call))

    def take(self, timeout: float | None = None) -> list[tuple[Hashable, Result | Unanswered]]:
        assert self.waiting, "nothing is on its way: this would wait for ever"
        self.server.looks += 1
        self.draw.shuffle(self.waiting)
        quick = [w for w in self.waiting if w[1].id not in self.server.slow] or self.waiting
        ready = quick[: self.draw.randint(1, 7)]
        self.waiting = [w for w in self.waiting if w not in ready]
        if len(self.server.order) + len(ready) > self.server.crash_after:
            raise Crash
        self.server.order += [call.id for _, call in ready]
        return [(tag, self._answer(call)) for tag, call in ready]

    def _answer(self, call: Call) -> Result | Unanswered:
        assert isinstance(call, Request)
        if call.id in self.server.never:
            return Unanswered(call.id, "answers 500")
        return Completion(call.id, made_up(call.prompt, call.seed), 1, 2, Finish.STOP)

    @property
    def usage(self) -> Usage:
        return Usage(len(self.server.order), len(self.server.order), concurrency=self.server.room)

    def close(self) -> None:
        self.waiting = []


class Flowing(Memory):
    """An engine whose client takes calls one by one."""

    flows = True

    def __init__(self, server: ShuffledServer | None = None) -> None:
        super().__init__()
        self.server = server or ShuffledServer()

    def client(self, model: Path) -> Client:
        engine = self

        class _Client(ScriptedClient):
            def open_pool(self) -> Any:
                return ServedPool(engine.server)

        return _Client()


def chained(row: Prompt) -> Turn:
    """Three turns, the middle one of two calls; each asks about what the one before said."""
    answers: list[str] = []
    for turn, width in enumerate((1, 2, 1)):
        calls = [
            Request(
                f"{row.id}/{turn}/{i}",
                f"{row.messages[0].content} {answers}",
                seed=sampling_seed(1, row.id, f"{turn}/{i}"),
            )
            for i in range(width)
        ]
        completions = yield calls
        answers += [completion.text for completion in completions]
    conversation = Conversation(row.id, (*row.messages, *user(" | ".join(answers))))
    return Entry(row.id, (conversation,), calls=4, tokens=sum(len(text) for text in answers))


def flow_context(folder: Path, engine: Memory, rows: Sequence[Prompt] = ROWS, **more: Any) -> Context:
    """The context of a stage that asks a model about these rows; ``more`` replaces fields of it."""
    inputs = {"model": artifact(folder / "m", "model"), "prompts": artifact(folder / "p", "prompts", list(rows))}
    return replace(context(folder, engine, inputs), **{"key": "k" * 64, **more})


@dataclass
class FlowSpec:
    """What every stage of flowing rows is told."""

    chunk: int = 16
    max_drop_rate: float = 0.5


def run_flow(folder: Path, engine: Memory, work: Any = chained, rows: Sequence[Prompt] = ROWS, **more: Any) -> bytes:
    """Send the rows through; what was written of them."""
    ctx = flow_context(folder, engine, rows, **more)
    through(ctx, source_of(ctx.input("prompts"), as_prompt), work, FlowSpec())
    return (folder / "out" / "rows.jsonl").read_bytes()
