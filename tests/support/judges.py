"""Judges for the tests of sets: each names the best and the worst of the answers that a prompt shows."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence

from cai.clients.base import Completion, Finish, Request
from cai.data.rows import Candidates
from cai.judging.reading import both_ends, letters
from tests.support.stage_doubles import Memory, shipped, user

SET = shipped("comparison_set.jinja")
SHOWN = re.compile(r'<answer option="(\([A-Z]+\))">\n(.*?)\n</answer>', re.DOTALL)
Say = Callable[[Request, list[str]], str]


def shown(prompt: str) -> list[str]:
    """The answers in the order in which a prompt shows them."""
    return [text for _, text in SHOWN.findall(prompt)]


def ends(answers: Sequence[str], best: str, worst: str) -> str:
    """What a judge writes that names these two."""
    options = letters(len(answers))
    return both_ends(options[answers.index(best)], options[answers.index(worst)])


def by_quality(request: Request, answers: list[str]) -> str:
    """A judge without faults: answers begin with how good they are."""
    return ends(answers, max(answers, key=quality), min(answers, key=quality))


def quality(answer: str) -> float:
    return float(answer.split()[0])


class Naming(Memory):
    """A judge that says what ``say`` makes of a request and of the answers as they are shown."""

    def __init__(self, say: Say = by_quality, stop_at: int | None = None) -> None:
        super().__init__(stop_at=stop_at)
        self.say = say
        self.asked: list[Request] = []

    def complete(self, model: str, batch: str, request: Request) -> Completion:
        self.asked.append(request)
        text = self.say(request, shown(request.prompt))
        if text == "refuse":
            return Completion(request.id, "", 1, 0, Finish.REFUSED, "prompt too long")
        return Completion(request.id, text, 1, 2, Finish.STOP)


def rows(n: int, size: int = 4, seed: int = 0, name: str = "row", spread: float = 1.0) -> list[Candidates]:
    """Rows of answers of drawn quality and length."""
    draw = random.Random(seed)
    made = []
    for i in range(n):
        texts = tuple(f"{draw.gauss(0, spread):.4f} " + "x" * draw.randrange(5, 80) for _ in range(size))
        made.append(Candidates(f"{name}{i}", user("q"), texts))
    return made


def liking(place: int | None, strength: float, noise: float = 0.0) -> Say:
    """A judge that sees quality with some noise and likes an answer better when it is shown at ``place``."""

    def say(request: Request, answers: list[str]) -> str:
        draw = random.Random(request.id)
        seen = [quality(answer) + draw.gauss(0, noise) + strength * (at == place) for at, answer in enumerate(answers)]
        return ends(answers, answers[seen.index(max(seen))], answers[seen.index(min(seen))])

    return say
