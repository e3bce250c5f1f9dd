"""Training that has gone wrong for good: how its numbers show it, and what is kept of the model.

A model that says nothing any more gives every token of its vocabulary the same probability, so its loss a token is
log(vocabulary). That alone is no fault, as training from random weights begins there; to come back to it is one. All
here are functions of numbers; ``keep_last_good`` alone writes.
"""

from __future__ import annotations

import math
import shutil
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cai.errors import StepFailed

UNIFORM = 0.97
"""Share of log(vocabulary) from which on a loss is that of a model that says nothing."""
SPOKE = 0.9
"""Share of log(vocabulary) that a loss must have been at or below for its model to have said anything before."""
WINDOW_SHARE = 0.05
LEAST_WINDOW = 3
"""Losses that are averaged: a share of all steps, and no fewer than these. One odd batch is no divergence."""
LEAST_DEVIATION = 1e-6
"""Rewards that differ by less say the same of every answer."""
LAST_GOOD = "last_good"
"""The folder of the model that is kept, in the step's work."""


class Diverged(StepFailed):
    """Training has gone wrong for good: going on from its last state would not mend it."""


@dataclass(frozen=True, slots=True)
class Health:
    """What numbers say of a model: the ``fault`` in words where it is lost, and whether it is ``sound`` enough to keep.

    A model can be neither: one bad step is no fault yet, and no model to keep either.
    """

    fault: str = ""
    sound: bool = True


def not_finite(numbers: Mapping[str, float]) -> str:
    """Which of a step's numbers are NaN or infinite, in words; empty where all are finite."""
    odd = [f"{name} is {value}" for name, value in numbers.items() if not math.isfinite(value)]
    return " and ".join(odd)


def says_nothing(loss: float, best: float, vocabulary: int) -> bool:
    """Whether a loss (nats a token) is that of a model that says nothing, where it has been ``best`` before."""
    uniform = math.log(vocabulary)
    return loss >= UNIFORM * uniform and best <= SPOKE * uniform


def is_sound(loss: float, best: float, vocabulary: int) -> bool:
    """Whether a model of a loss (nats a token) is one to keep, where it has been ``best`` before: nearer to that than
    to one that says nothing. Of a model that has said nothing yet every state is."""
    uniform = math.log(vocabulary)
    return best > SPOKE * uniform or loss < (best + uniform) / 2


class TokenLosses:
    """The losses (nats a token) of a training of ``steps`` steps, as they come."""

    def __init__(self, vocabulary: int, steps: int) -> None:
        self._vocabulary = vocabulary
        self._recent: deque[float] = deque(maxlen=max(LEAST_WINDOW, math.ceil(WINDOW_SHARE * steps)))
        self._best = math.inf  # the first loss, or the lowest mean of a window

    def see(self, loss: float) -> Health:
        """The next step's loss, which must be finite: that of the model before the step."""
        if not self._recent:
            self._best = loss
        self._recent.append(loss)
        sound = is_sound(loss, self._best, self._vocabulary)
        if len(self._recent) < (self._recent.maxlen or 0):
            return Health(sound=sound)
        mean = math.fsum(self._recent) / len(self._recent)
        if says_nothing(mean, self._best, self._vocabulary):
            fault = uniform_loss(mean, self._best, self._vocabulary)
            return Health(f"over {len(self._recent)} steps {fault}", sound=False)
        self._best = min(self._best, mean)
        return Health(sound=sound)


def uniform_loss(loss: float, best: float, vocabulary: int) -> str:
    """The fault of a model that says nothing any more, in words."""
    return (
        f"the model says nothing any more: the loss is {loss:.2f} nats a token, and was {best:.2f} "
        f"(all {vocabulary:,} tokens alike would have {math.log(vocabulary):.2f})"
    )


def deviation(values: Sequence[float]) -> float:
    """Standard deviation of values, of which there is at least one."""
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))


def without_deviation(rewards: Sequence[float]) -> str:
    """The fault of a reward model that gives every answer the same reward, in words; empty where they differ."""
    if not all(map(math.isfinite, rewards)):
        return "its rewards are not finite"
    if not rewards or (spread := deviation(rewards)) >= LEAST_DEVIATION:
        return ""
    return f"the reward model says the same of every answer: {len(rewards)} rewards deviate by {spread:.1e}"


def keep_last_good(work: Path, save: Callable[[Path], object]) -> Path:
    """Save a model as the folder ``last_good`` in a step's work; ``save`` writes it. What was kept before is replaced.

    Renamed last, so that a folder in place is whole.
    """
    folder = work / LAST_GOOD
    partial = work / f"{LAST_GOOD}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    save(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return folder


def diverged(where: str, fault: str, kept: tuple[int, Path] | None, advice: str, *, unit: str = "step") -> Diverged:
    """The error of a training that diverged: ``where`` (``sft, step 12 of 40``), what is wrong, what is left, and what
    to do. ``kept`` is the last good model: after how many steps, and its folder."""
    if kept is None:
        left = f"no {unit} was checkpointed before, so the last good model is the one that training began from"
    else:
        left = f"the last good model, of {unit} {kept[0]}, is kept in {kept[1]}"
    return Diverged(f"{where}: {fault}; {left}; {advice}")
