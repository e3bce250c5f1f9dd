"""Errors that reach a person: each says where, what, and what to do next.

The exit code belongs to the error: 1 the work failed, 2 the user's input is wrong, 3 incomplete but resumable.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: ``where`` (file, line, field), ``message``, and what to do ``next``."""

    where: str
    message: str
    next: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.message}" + (f"; {self.next}" if self.next else "")


class CaiError(Exception):
    """Base of every error this program raises on purpose. ``exit_code`` is the process's."""

    exit_code = 1


class SpecError(CaiError):
    """The user's input is wrong. Carries every problem found, not only the first."""

    exit_code = 2

    def __init__(self, problems: Problem | Iterable[Problem]) -> None:
        self.problems = (problems,) if isinstance(problems, Problem) else tuple(problems)
        super().__init__("\n".join(str(p) for p in self.problems))


class PlanError(SpecError):
    """The experiment is well-formed but cannot become a plan: wrong wiring, missing inputs."""


class PrerequisiteError(CaiError):
    """Something outside the experiment is missing: a package, a model file, a digest that differs."""

    exit_code = 2


class StepFailed(CaiError):
    """A step started and did not finish; the work done so far is kept."""

    exit_code = 1


class Incomplete(CaiError):
    """The run stopped before its end and can be resumed by running the same command again."""

    exit_code = 3


class OutOfTime(Incomplete):
    """Work that knows its time limit saved and ended shortly before it; a job goes back into the queue."""


def did_you_mean(word: str, candidates: Iterable[str]) -> str:
    """``did you mean 'reward'?`` for the known word nearest to ``word``; what is known where nothing is near."""
    candidates = sorted(set(candidates))
    close = get_close_matches(word, candidates, n=1, cutoff=0.55)
    if close:
        return f"did you mean '{close[0]}'?"
    listed = ", ".join(candidates[:12]) + (", ..." if len(candidates) > 12 else "")
    return f"known: {listed}" if candidates else ""
