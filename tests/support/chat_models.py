"""Models to talk to that need no weights, in a module that programs of their own can import."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from itertools import pairwise

from cai.chat import Message
from cai.clients.base import Completion, Finish, Request, Sampling, Score, ScoreRequest
from cai.errors import Problem, SpecError
from cai.terminal.chat import ChatModel


class BracketTemplate:
    """Roles and contents in brackets."""

    stops = ("<end>",)

    def prompt(self, messages: Sequence[Message]) -> str:
        return "".join(f"[{m.role}]{m.content}" for m in messages) + "[assistant]"


class Echo:
    """Repeats the prompt it read; keeps the requests."""

    name = "echo"

    def __init__(self, say: str = "") -> None:
        self.say = say
        self.requests: list[Request] = []

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        for request in requests:
            self.requests.append(request)
            text = self.say or f"heard {request.prompt.count('[user]')}"
            yield Completion(request.id, text, 1, 2, Finish.STOP)

    def score(self, requests: Sequence[ScoreRequest]) -> Iterator[Score]:
        raise NotImplementedError

    def close(self) -> None:
        pass


def echo_model(client: Echo, **fields: object) -> ChatModel:
    return ChatModel(client, BracketTemplate(), **{"name": "tuned", "sampling": Sampling(max_tokens=10), **fields})  # type: ignore[arg-type]


class AlternatingTemplate:
    """Roles and contents in brackets; two user turns in a row are refused."""

    stops = ("<end>",)

    def prompt(self, messages: Sequence[Message]) -> str:
        for a, b in pairwise(messages):
            if a.role == b.role:
                raise SpecError(Problem("parrot", "turns must alternate"))
        return "".join(f"[{m.role}]{m.content}" for m in messages) + "[assistant]"


class SeededWords:
    """A client whose answer is words drawn from the prompt by the seed, cut at ``max_tokens`` words and at stops."""

    name = "words"

    def __init__(self, fail: bool = False) -> None:
        self.fail = fail
        self.closed = False
        self.batches: list[int] = []
        self.gate = threading.Event()
        self.gate.set()

    def complete(self, request: Request) -> Completion:
        words = f"seed {request.seed} answers  {request.prompt} [b]ü\n".split(" ")
        kept = " ".join(words[: request.sampling.max_tokens])
        finish = Finish.LENGTH if len(words) > request.sampling.max_tokens else Finish.STOP
        for stop in request.sampling.stop:
            if stop in kept:
                kept, finish = kept[: kept.index(stop)], Finish.STOP
        return Completion(request.id, kept, len(request.prompt.split()), len(kept.split(" ")), finish)

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        self.batches.append(len(requests))
        assert self.gate.wait(10)
        if self.fail:
            raise RuntimeError("the processor is on fire")
        for request in reversed(requests):
            yield self.complete(request)

    def score(self, requests: Sequence[ScoreRequest]) -> Iterator[Score]:
        raise NotImplementedError

    def close(self) -> None:
        self.closed = True


def words_model(client: SeededWords, **fields: object) -> ChatModel:
    shape = {"template": AlternatingTemplate(), "name": "tiny", "sampling": Sampling(max_tokens=50)}
    return ChatModel(client, **{**shape, **fields})  # type: ignore[arg-type]
