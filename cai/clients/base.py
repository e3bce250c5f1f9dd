"""One interface to whoever answers prompts: in-process models, servers, a script.

A client takes *rendered* text: the chat template has been applied, message contents have been made harmless.
It may yield results in any order; the request's id says which row a result belongs to.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from cai.chat import Message


class Finish(str, Enum):
    """Why a completion ended."""

    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to draw tokens. ``temperature`` 0 is greedy; ``top_k`` 0 and ``top_p`` 1 keep every token."""

    max_tokens: int = 64
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    min_tokens: int = 0
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt to complete. ``seed`` makes the draw a function of this request alone.

    ``messages`` are the turns that ``prompt`` renders, for servers that apply a chat template of their own; empty
    where the prompt is raw text.
    """

    id: str
    prompt: str
    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 0
    messages: tuple[Message, ...] = ()


@dataclass(frozen=True, slots=True)
class Completion:
    """The answer to a request: text without prompt and stop string, tokens generated, and why it ended."""

    id: str
    text: str
    prompt_tokens: int
    tokens: int
    finish: Finish


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """Ask for log p(continuation | prompt)."""

    id: str
    prompt: str
    continuation: str


@dataclass(frozen=True, slots=True)
class Score:
    """Sum over the continuation's tokens of their natural log-probabilities, and how many there are."""

    id: str
    logprob: float
    tokens: int


class Client(Protocol):
    """Whoever answers prompts."""

    @property
    def name(self) -> str:
        """What a person calls this client in the plan and the log, e.g. ``openvino-genai f16``."""
        ...

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """Complete every request; results may come in any order, exactly one for each."""
        ...

    def score(self, requests: Sequence[ScoreRequest]) -> Iterator[Score]:
        """Log-likelihoods of continuations; results may come in any order, exactly one for each."""
        ...

    def close(self) -> None:
        """Release the model's memory or the connection."""
        ...
