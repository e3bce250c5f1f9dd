"""What every engine can do. An engine reads rendered text and knows no chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from cai.clients.base import Client
from cai.engines.methods.base import Method
from cai.errors import Problem
from cai.plan import Step
from cai.settings import Settings
from cai.store.artifacts import artifact_name

D = TypeVar("D")
S = TypeVar("S", bound=Settings)


@dataclass(frozen=True, slots=True)
class PlanCheck:
    """What an engine says of a plan before anything runs; ``notes`` are by step."""

    problems: tuple[Problem, ...] = ()
    notes: Mapping[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where a model is: ``hf:NAME_OR_FOLDER``, ``gguf:FILE`` or ``pypi:PACKAGE==VERSION/PATH/IN/WHEEL.gguf``."""

    source: str
    revision: str = ""
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class Places:
    """Where a step's files lie: ``store`` is the root of the artifacts, ``plan`` the plan file that ``step`` reads."""

    store: Path
    plan: str = "plan.json"

    def artifact(self, step: Step) -> Path:
        """The folder of the finished artifact."""
        return self.store / artifact_name(step.kind, step.key)

    def out(self, step: Step) -> Path:
        """Where the files of the artifact are written before it is finished (``dest`` of the engine)."""
        return self.store / f"{artifact_name(step.kind, step.key)}.partial" / "out"

    def work(self, step: Step) -> Path:
        """What is kept from attempt to attempt (``work`` of the engine)."""
        return self.store / f"{artifact_name(step.kind, step.key)}.partial" / "work"


@dataclass(frozen=True, slots=True)
class GpuTime:
    """How long a step holds how many GPUs, before it was ever measured; ``seconds`` None where that is not known.

    ``gpus`` and ``nodes`` are those that its commands hold at once. ``parts`` are seconds by what they go to, in order;
    ``assumes`` says in words which lengths were taken, ``unknown`` why there are no seconds.
    """

    gpus: int
    nodes: int
    seconds: float | None = None
    parts: Mapping[str, float] = field(default_factory=dict)
    assumes: str = ""
    unknown: str = ""


@dataclass(frozen=True, slots=True)
class GpuTimes:
    """Times of the steps that need GPUs, by step name; ``assumptions`` are the rates and the formula, as plain data."""

    steps: Mapping[str, GpuTime] = field(default_factory=dict)
    assumptions: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Trained:
    """What training tells: numbers for the record, and the examples it had to drop, by reason."""

    metrics: dict[str, Any]
    dropped: dict[str, int]


class Progress(Protocol):
    """What long work tells whoever watches."""

    def expect(self, rows: int | None = None, tokens: int | None = None) -> None:
        """How much there is to do in this step."""
        ...

    def advance(self, rows: int = 0, tokens: int = 0) -> None:
        """How much more is done."""
        ...

    def note(self, event: str, **fields: Any) -> None:
        """Write an event to the run's log, e.g. ``note("rl.iteration", reward=0.3, kl=1.2)``."""
        ...


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt at a training step. The result goes to ``dest``; ``work`` is kept when the attempt is interrupted.

    Checkpoints go to ``work``, and the next attempt goes on from them.
    """

    seed: int
    dest: Path
    work: Path
    progress: Progress


class RewardScorer(Protocol):
    """A finished reward model."""

    def score(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """Rewards (unitless) of (rendered prompt, rendered answer) pairs, in order."""
        ...

    def close(self) -> None:
        """Release the model's memory."""
        ...


class Session(Protocol):
    """An engine at work on one step, or serving one finished model. Paths are model folders in the store.

    Several sessions of an engine may be open at once; each is closed by whoever opened it.
    """

    @property
    def flows(self) -> bool:
        """Whether its clients take calls one by one, as many at once as keep them busy; known without opening one."""
        ...

    def fetch(self, source: ModelSource, dest: Path, progress: Progress) -> dict[str, Any]:
        """Bring a model into ``dest`` as this engine reads it; returns what it is (parameters, digest, licence)."""
        ...

    def client(self, model: Path) -> Client:
        """Serve a model."""
        ...

    def train(self, method: Method[D, S], data: D, settings: S, attempt: Attempt) -> Trained:
        """Train by one of the methods that the engine has, and write the result to ``attempt.dest``."""
        ...

    def reward_scorer(self, model: Path) -> RewardScorer:
        """Open a finished reward model."""
        ...

    def close(self) -> None:
        """The step has ended."""
        ...


class Engine(Protocol):
    """Who trains and serves."""

    def session(self, step: Step | None) -> Session:
        """Begin a step; None where only finished models are served."""
        ...

    def close(self) -> None:
        """Take everything down."""
        ...
