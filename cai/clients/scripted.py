"""A client that needs no model: text from (prompt, seed) alone, or from replies that are set. For tests and dry trials.

It keeps the whole contract: deterministic, one result for each request, stop strings cut, lengths counted in words.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from cai.clients.base import Completion, Finish, Request, Score, ScoreRequest
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
    ``asked`` and ``scored`` record every request answered, in order.
    """

    replies: Replies = field(default_factory=dict)
    scores: Mapping[str, float] = field(default_factory=dict)
    fail_after: int | None = None
    latency: float = 0.0
    backwards: bool = False
    asked: list[Request] = field(default_factory=list)
    scored: list[ScoreRequest] = field(default_factory=list)
    closed: bool = False

    @property
    def name(self) -> str:
        """``scripted``."""
        return "scripted"

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """Complete every request; last first where ``backwards`` is set."""
        for request in reversed(requests) if self.backwards else requests:
            self._count()
            self.asked.append(request)
            yield self._complete(request)

    def score(self, requests: Sequence[ScoreRequest]) -> Iterator[Score]:
        """Score every request; last first where ``backwards`` is set."""
        for request in reversed(requests) if self.backwards else requests:
            self._count()
            self.scored.append(request)
            words = len(request.continuation.split())
            drawn = -0.05 - 3.0 * uniform(0, text_digest(request.prompt), request.continuation)
            yield Score(request.id, self.scores.get(request.continuation, drawn * max(words, 1)), words)

    def close(self) -> None:
        """Note that the client was closed."""
        self.closed = True

    def _count(self) -> None:
        if self.fail_after is not None and len(self.asked) + len(self.scored) >= self.fail_after:
            raise StepFailed(f"scripted: told to fail after {self.fail_after} requests")
        if self.latency:
            time.sleep(self.latency)

    def _complete(self, request: Request) -> Completion:
        text = self._reply(request)
        finish = Finish.STOP
        at = min((text.find(stop) for stop in request.sampling.stop if stop and stop in text), default=-1)
        if at >= 0:
            text = text[:at]
        words = text.split(" ")
        if len(words) > request.sampling.max_tokens:
            words, finish = words[: request.sampling.max_tokens], Finish.LENGTH
            text = " ".join(words)
        return Completion(request.id, text, len(request.prompt.split()), len(words), finish)

    def _reply(self, request: Request) -> str:
        found: str | None
        if callable(self.replies):
            found = self.replies(request)
        else:
            found = next((text for part, text in self.replies.items() if part in request.prompt), None)
        return made_up(request.prompt, request.seed) if found is None else found


def made_up(prompt: str, seed: int) -> str:
    """Four to fifteen words and a mark that tells apart any two (prompt, seed)."""
    row = hashlib.sha256(prompt.encode()).hexdigest()
    length = 4 + counted(seed, row, "length") % 12
    words = [_WORDS[counted(seed, row, f"word {i}") % len(_WORDS)] for i in range(length)]
    return f"{' '.join(words)} [{counted(seed, row, 'mark') & 0xFFFFFF:06x}]"
