"""A client that needs no model: text from (prompt, seed) alone, or from replies that are set. For tests and dry trials.

It keeps the whole contract: deterministic, one result for each request, stop strings cut, lengths counted in words.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from cai.clients.base import (
    Call,
    Completion,
    OptionScores,
    OptionsRequest,
    Request,
    Result,
    Score,
    ScoreRequest,
    Unanswered,
    Usage,
)
from cai.clients.outcomes import FinishReason, ModelAnswer, completed
from cai.errors import StepFailed
from cai.identity import counted, text_digest, uniform

_TEXT = (
    "that is a fair question and the careful answer depends on who may be harmed so first consider what you need "
    "then ask someone you trust because there are safer ways to reach the same end without hurting anyone"
)
_WORDS = _TEXT.split()

Replies = Mapping[str, str] | Callable[[Request], str | None]


@dataclass
class ScriptedClient:
    """Answers from a script.

    ``replies``: a function of the request, or texts by a part of the prompt (the first that occurs in it wins); where
    it says nothing, words are drawn from (prompt, seed). ``scores``: log-probabilities of continuations by text.
    ``fail_after``: raise ``StepFailed`` once this many requests have been answered. ``latency``: seconds a request.
    ``completed`` and ``scored`` record every request answered, in order, unless ``record`` is off.
    """

    replies: Replies = field(default_factory=dict)
    scores: Mapping[str, float] = field(default_factory=dict)
    fail_after: int | None = None
    latency: float = 0.0
    backwards: bool = False
    completed: list[Request] = field(default_factory=list)
    scored: list[ScoreRequest] = field(default_factory=list)
    closed: bool = False
    record: bool = True
    answered: int = 0

    @property
    def name(self) -> str:
        """``scripted``."""
        return "scripted"

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """Complete every request; last first where ``backwards`` is set."""
        for request in reversed(requests) if self.backwards else requests:
            self._count()
            if self.record:
                self.completed.append(request)
            yield self._complete(request)

    def score(self, requests: Sequence[ScoreRequest]) -> Iterator[Score]:
        """Score every request; last first where ``backwards`` is set."""
        for request in reversed(requests) if self.backwards else requests:
            self._count()
            if self.record:
                self.scored.append(request)
            words = len(request.continuation.split())
            drawn = -0.05 - 3.0 * uniform(0, text_digest(request.prompt), request.continuation)
            yield Score(request.id, self.scores.get(request.continuation, drawn * max(words, 1)), words)

    def options(self, requests: Sequence[OptionsRequest]) -> Iterator[OptionScores]:
        """Score every option as a continuation of its prompt."""
        for request in requests:
            parts = [ScoreRequest(f"{request.id}/{i}", request.prompt, o) for i, o in enumerate(request.options)]
            scores_by_id = {score.id: score for score in self.score(parts)}
            scores = [scores_by_id[part.id] for part in parts]
            yield OptionScores(request.id, tuple(s.logprob for s in scores), sum(s.tokens for s in scores))

    def open_pool(self) -> ScriptedPool:
        """Calls one by one, answered in an order that has nothing to do with that of asking."""
        return ScriptedPool(self)

    def close(self) -> None:
        """Note that the client was closed."""
        self.closed = True

    def _count(self) -> None:
        if self.fail_after is not None and self.answered >= self.fail_after:
            raise StepFailed(f"scripted: told to fail after {self.fail_after} requests")
        self.answered += 1
        if self.latency:
            time.sleep(self.latency)

    def _complete(self, request: Request) -> Completion:
        text = self._reply(request)
        reason = FinishReason.STOP
        cut = min((text.find(stop) for stop in request.sampling.stop if stop and stop in text), default=-1)
        if cut >= 0:
            text = text[:cut]
        words = text.split(" ")
        if len(words) > request.sampling.max_tokens:
            words, reason = words[: request.sampling.max_tokens], FinishReason.LENGTH
            text = " ".join(words)
        return completed(request, ModelAnswer(text, reason, len(request.prompt.split()), len(words)))[1]

    def _reply(self, request: Request) -> str:
        reply: str | None
        if callable(self.replies):
            reply = self.replies(request)
        else:
            reply = next((text for part, text in self.replies.items() if part in request.prompt), None)
        return made_up(request.prompt, request.seed) if reply is None else reply


class ScriptedPool:
    """A pool (``cai.clients.base.Pool``) that answers in this thread, up to ``width`` calls at a time."""

    def __init__(self, client: ScriptedClient, width: int = 256) -> None:
        self.answered_before = False
        self._client = client
        self._width = width
        self._waiting: list[tuple[Hashable, Call]] = []
        self._calls = 0
        self._most = 0

    def room(self) -> int:
        """How many more calls there is room for."""
        return self._width - len(self._waiting)

    def submit(self, tag: Hashable, call: Call) -> None:
        """Take a call."""
        self._waiting.append((tag, call))
        self._most = max(self._most, len(self._waiting))

    def take(self, timeout: float | None = None) -> list[tuple[Hashable, Result | Unanswered]]:
        """Answer a part of what waits: every other call, the last first."""
        if not self._waiting:
            if timeout:
                time.sleep(timeout)
            return []
        ready = self._waiting[::-2]
        self._waiting = self._waiting[-2::-2][::-1]
        self._calls += len(ready)
        return [(tag, self._answer(call)) for tag, call in ready]

    @property
    def usage(self) -> Usage:
        """Calls answered."""
        return Usage(self._calls, self._calls, concurrency=self._most)

    def close(self) -> None:
        """Forget what waits."""
        self._waiting = []

    def _answer(self, call: Call) -> Result:
        if isinstance(call, Request):
            return next(self._client.generate([call]))
        if isinstance(call, ScoreRequest):
            return next(self._client.score([call]))
        return next(self._client.options([call]))


def made_up(prompt: str, seed: int) -> str:
    """Four to fifteen words and a mark that tells apart any two (prompt, seed)."""
    row = hashlib.sha256(prompt.encode()).hexdigest()
    length = 4 + counted(seed, row, "length") % 12
    words = [_WORDS[counted(seed, row, f"word {i}") % len(_WORDS)] for i in range(length)]
    return f"{' '.join(words)} [{counted(seed, row, 'mark') & 0xFFFFFF:06x}]"
