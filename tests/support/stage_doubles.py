"""Doubles for the stages: an engine in memory that does simple, deterministic work, and a context around it."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cai.chat import ChatTemplate, Message
from cai.clients.base import Client, Completion, Finish, Request, Score, ScoreRequest
from cai.constitution import Constitution
from cai.data.rows import ROW_TYPES, Row, write_rows
from cai.engines.base import ModelSource, Trained
from cai.engines.methods.base import Method
from cai.engines.methods.ppo import PpoData
from cai.engines.methods.sft import SFT
from cai.stages.base import IS_A, Artifact, Context
from tests.support.paths import ROOT

CHATML = """{#---
description: ChatML
kind: chat
eos_token: "<|im_end|>"
control: ["<|im_start|>"]
answer_end: "<|im_end|>"
---#}
{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
TEMPLATE = ChatTemplate.from_text("chatml", CHATML)
PROMPTS = ROOT / "prompt_templates"


class Stopped(RuntimeError):
    """The process was stopped in the middle of the work."""


def len_of_answer(prompt: str, answer: str) -> float:
    return float(len(answer))


class Words:
    """A client whose draws depend on the model, the request and, like a real batch, on the whole list."""

    name = "words"

    def __init__(self, model: str, engine: Memory) -> None:
        self._model, self._engine = model, engine

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        self._engine.calls += 1
        if self._engine.stop_at is not None and self._engine.calls >= self._engine.stop_at:
            raise Stopped
        batch = hashlib.sha256(repr(list(requests)).encode()).hexdigest()
        # Reversed: results may come in any order.
        for request in reversed(requests):
            yield self._engine.complete(self._model, batch, request)

    def score(self, requests: Sequence[ScoreRequest]) -> Iterator[Score]:
        self._engine.calls += 1
        if self._engine.stop_at is not None and self._engine.calls >= self._engine.stop_at:
            raise Stopped
        for request in reversed(requests):
            yield self._engine.likelihood(request)

    def close(self) -> None:
        self._engine.open -= 1


@dataclass
class Memory:
    """An engine in memory that stops at call ``stop_at``.

    ``texts`` answers requests whose prompt holds a key, or every part of a key joined by `` & ``.
    """

    texts: Mapping[str, str] = field(default_factory=dict)
    stop_at: int | None = None
    finish: Finish = Finish.STOP
    calls: int = 0
    open: int = 0
    served: list[str] = field(default_factory=list)
    seen: dict[str, Any] = field(default_factory=dict)
    rewards: Callable[[str, str], float] = len_of_answer

    def complete(self, model: str, batch: str, request: Request) -> Completion:
        text = next((t for keys, t in self.texts.items() if all(k in request.prompt for k in keys.split(" & "))), None)
        if text is None:
            drawn = hashlib.sha256(f"{model}{batch}{request.id}{request.seed}".encode()).hexdigest()
            text = f"{model} says {drawn[:8]}."
        return Completion(request.id, text, len(request.prompt.split()), len(text.split()), self.finish)

    def likelihood(self, request: ScoreRequest) -> Score:
        """A unigram model of the prompt's words with add-one smoothing."""
        words = request.prompt.lower().split()
        asked = request.continuation.lower().split()
        size = len(set(words)) + 1
        total = sum(math.log((words.count(w) + 1) / (len(words) + size)) for w in asked)
        return Score(request.id, total, len(asked))

    def client(self, model: Path) -> Client:
        self.open += 1
        self.served.append(model.name)
        return Words(model.name, self)

    def fetch(self, source: ModelSource, dest: Path, progress: Any) -> dict[str, Any]:
        (dest / "config.json").write_text(json.dumps({"source": source.source}))
        return {"source": source.source, "sha256": source.sha256}

    def train(self, method: Method[Any, Any], data: Any, settings: Any, attempt: Any) -> Trained:
        if isinstance(data, PpoData):
            models = {"policy": data.policy.name, "reward": data.reward.path.name}
            self.seen |= {"prompts": list(data.prompts), "stop": data.stops, **models}
            return Trained({"reward": 0.5}, {})
        self.seen |= {"train": list(data.train), "val": list(data.val), "data": data}
        return Trained({"loss": 1.0}, {"too long": 1, "none": 0} if method is SFT else {})

    @property
    def flows(self) -> bool:
        return False

    def session(self, step: Any) -> Any:
        return self

    def close(self) -> None: ...

    def reward_scorer(self, model: Path) -> Any:
        return _Scorer(self.rewards)


@dataclass
class _Scorer:
    rule: Any

    def score(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        return [self.rule(prompt, answer) for prompt, answer in pairs]

    def close(self) -> None: ...


class Quiet:
    """Progress that only counts."""

    def __init__(self) -> None:
        self.expected, self.rows, self.tokens = 0, 0, 0

    def expect(self, rows: int | None = None, tokens: int | None = None) -> None:
        self.expected = rows or 0

    def advance(self, rows: int = 0, tokens: int = 0) -> None:
        self.rows, self.tokens = self.rows + rows, self.tokens + tokens

    def note(self, event: str, **fields: Any) -> None: ...


def user(text: str) -> tuple[Message, ...]:
    return (Message("user", text),)


def artifact(folder: Path, makes: str, rows: Sequence[Row] = (), **parts: Sequence[Row]) -> Artifact:
    """A finished input on the disk."""
    folder.mkdir(parents=True, exist_ok=True)
    if any(kind in ROW_TYPES for kind in (makes, *IS_A.get(makes, ()))):
        if parts:
            for name, found in parts.items():
                write_rows(folder / f"{name}.jsonl", list(found))
        else:
            write_rows(folder / "rows.jsonl", list(rows))
    return Artifact(folder.name, makes, folder)


CONSTITUTION = Constitution.from_json(
    {
        "name": "test",
        "principles": [
            {"id": f"p{i}", "critique": f"Critique {i}?", "revision": f"Revise {i}!", "comparison": f"Which is {i}?"}
            for i in range(4)
        ],
    }
)


def context(folder: Path, engine: Memory, inputs: Mapping[str, Any], texts: Mapping[str, str] | None = None) -> Context:
    """All that a stage may touch; running it twice in one ``folder`` resumes."""
    (folder / "out").mkdir(parents=True, exist_ok=True)
    return Context(
        name="stage",
        seed=7,
        inputs=inputs,
        out=folder / "out",
        work=folder / "work",
        engine=engine,
        progress=Quiet(),
        template=TEMPLATE,
        constitution=CONSTITUTION,
        texts=texts or {},
        stops=TEMPLATE.stops,
    )


def shipped(name: str) -> str:
    """The text of a shipped prompt file."""
    return (PROMPTS / name).read_text(encoding="utf-8")
