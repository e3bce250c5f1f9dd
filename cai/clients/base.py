"""One interface to whoever answers prompts: in-process models, servers, a script.

A client takes *rendered* text: the chat template has been applied, message contents have been made harmless.
It may yield results in any order; the request's id says which row a result belongs to.

There are two kinds of client. In-process models and NeMo's servers answer *lists*: what is asked together shares a
batch, and may share its last digits. Servers that answer each call by itself also open a ``Pool``: calls go in one by
one and come out as they are done, so that nothing waits for the slowest of a batch.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol, runtime_checkable

from cai.chat import Message, ToolCall


class Finish(str, Enum):
    """Why a completion ended."""

    STOP = "stop"
    LENGTH = "length"
    REFUSED = "refused"
    """The server read the request and will not answer it (prompt too long, filtered), however often it is asked."""
    UNUSABLE = "unusable"
    """There is an answer that is none: a tool call, the model's own refusal, an end that nobody knows."""


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
    where the prompt is raw text. ``choices`` are the only answers wanted: servers that can are told to keep to them
    (structured output), from the others anything may come.
    """

    id: str
    prompt: str
    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 0
    messages: tuple[Message, ...] = ()
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Completion:
    """The answer to a request: text without prompt and stop string, tokens generated, and why it ended.

    ``refused`` says in a few words, the same for all rows, why there is no answer; else it is empty.
    ``thinking`` (with its tokens, among ``tokens``) and ``tool_calls`` are kept apart from the text.
    """

    id: str
    text: str
    prompt_tokens: int
    tokens: int
    finish: Finish
    refused: str = ""
    thinking: str = ""
    thinking_tokens: int = 0
    tool_calls: tuple[ToolCall, ...] = ()

    @property
    def answered(self) -> bool:
        """Whether there is an answer, whole or cut at the token limit."""
        return self.finish in (Finish.STOP, Finish.LENGTH)


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """Ask for log p(continuation | prompt)."""

    id: str
    prompt: str
    continuation: str


@dataclass(frozen=True, slots=True)
class Score:
    """Sum over the continuation's tokens of their natural log-probabilities, and how many there are.

    ``logprob`` is NaN where there is none (the text is too long for the server), and ``refused`` then says why.
    """

    id: str
    logprob: float
    tokens: int
    refused: str = ""


@dataclass(frozen=True, slots=True)
class OptionsRequest:
    """Ask which of a few short ``options`` the model would write next.

    In-process models and servers that score prompts give log p(option | prompt); servers that only list the likeliest
    next tokens are asked for those. ``messages`` as in ``Request``.
    """

    id: str
    prompt: str
    options: tuple[str, ...]
    messages: tuple[Message, ...] = ()


@dataclass(frozen=True, slots=True)
class OptionScores:
    """Natural log-probabilities of the options, in their order; None for one that the server did not list.

    ``tokens``: generated or scored on the way. ``refused`` says why there are none, where that is known.
    """

    id: str
    logprobs: tuple[float | None, ...]
    tokens: int
    refused: str = ""


@dataclass(frozen=True, slots=True)
class Unanswered:
    """No answer came, however often the call was tried, while other calls were answered. ``why`` is the same for all
    calls that failed alike. Nothing is known about the call, so it is asked again when the step is run again."""

    id: str
    why: str


Call = Request | ScoreRequest | OptionsRequest
Result = Completion | Score | OptionScores


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


@dataclass(frozen=True, slots=True)
class Usage:
    """What a client has used so far. ``calls`` were answered; ``attempts`` were sent, those tried again included.

    ``cost`` is in the currency of the model's prices, 0 where none is given. ``faults`` counts what went wrong and was
    tried again, by kind. ``concurrency`` is the most calls that were in flight at once.
    """

    calls: int = 0
    attempts: int = 0
    prompt_tokens: int = 0
    tokens: int = 0
    cost: float = 0.0
    concurrency: int = 0
    faults: dict[str, int] = field(default_factory=dict)


class Pool(Protocol):
    """Calls on their way. One thread submits and takes; a pool is closed by whoever opened it.

    ``answered_before`` is set by a caller that has answers of this model from elsewhere, so that a refusal is its row's
    own also where nothing else is asked.
    """

    answered_before: bool

    def room(self) -> int:
        """How many more calls it wants now, so that no server waits for the next one; 0 or less: none."""
        ...

    def submit(self, tag: Hashable, call: Call) -> None:
        """Take a call, at once and whatever ``room`` says; its result comes out of ``take`` under ``tag``."""
        ...

    def take(self, timeout: float | None = None) -> list[tuple[Hashable, Result | Unanswered]]:
        """Everything that has been answered since; waits for the first, up to ``timeout`` seconds (None: as needed).
        May come back with nothing where more calls may be submitted.

        Raises:
            CaiError: what cannot be mended by trying again, or no server answers any more; nothing more comes out then.
        """
        ...

    @property
    def usage(self) -> Usage:
        """What has been used through this pool."""
        ...

    def close(self) -> None:
        """Give up what is on its way. Comes back soon, whatever the servers do."""
        ...


@runtime_checkable
class Flowing(Protocol):
    """A client whose answer to a call depends on that call alone, so that calls can be on their way in any number."""

    def open_pool(self) -> Pool:
        """A way to send calls and to take results as they come."""
        ...
