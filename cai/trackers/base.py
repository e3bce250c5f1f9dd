"""What every tracker is told, and how: the run, points of curves, figures at a step's end, and the run's end."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

Scalar = str | int | float | bool


@dataclass(frozen=True, slots=True)
class RunFacts:
    """A run as trackers know it. ``config`` is flat; ``group`` is the sweep that it is a cell of, or empty."""

    experiment: str
    folder: Path
    config: Mapping[str, Scalar]
    group: str = ""

    @property
    def name(self) -> str:
        """``experiment/stamp``, as the run's folder is called."""
        return f"{self.experiment}/{self.folder.name}"


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """A point of the curves below ``prefix``: at ``position`` on ``axis`` (``iteration``, ``step``, ``round``).

    ``t`` is seconds since the epoch. On one prefix ``position`` only rises.
    """

    prefix: str
    axis: str
    position: int
    values: Mapping[str, float]
    t: float = 0.0


@dataclass(frozen=True, slots=True)
class Figures:
    """What a step's end tells, under whole names; ``reused`` where the step was made by an earlier run."""

    step: str
    values: Mapping[str, float]
    reused: bool = False
    t: float = 0.0


Telling = CurvePoint | Figures


@dataclass(frozen=True, slots=True)
class Ending:
    """How the run ended: ``done``, ``failed``, ``incomplete``, ``killed``; ``running`` where only watching ended.

    ``reused`` names the steps that an earlier run had made.
    """

    status: str
    values: Mapping[str, float] = field(default_factory=dict)
    t: float = 0.0
    reused: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RunAddress:
    """A run inside a tracker: its id there, and in words where a person finds it."""

    id: str
    description: str


class Tracker(Protocol):
    """One tracker, used by one thread. Any method may raise; it is then made anew and told the same again later."""

    def start(self, run: RunFacts, resume_id: str) -> RunAddress:
        """Begin to tell of a run, or go on with the one whose id is ``resume_id``."""
        ...

    def log(self, entries: Sequence[Telling]) -> None:
        """Tell points and figures, in their order."""
        ...

    def finish(self, ending: Ending) -> None:
        """The last word; returns when everything is where it belongs."""
        ...


_NO_NAME = re.compile(r"[^\w./-]+", re.ASCII)


def clean(name: str) -> str:
    """A name that all trackers take: letters, digits, ``_``, ``-``, ``.`` and ``/``, at most 240 characters."""
    parts = [part.strip("_") or "_" for part in _NO_NAME.sub("_", name).split("/") if part]
    return "/".join("_" * len(part) if set(part) == {"."} else part for part in parts)[:240].rstrip("/") or "_"


def apart(figures: Mapping[str, float]) -> dict[str, float]:
    """The same, without a name that lies below another: ``seconds/update`` beside ``seconds`` is ``seconds_update``.

    Stores that keep a file for each name cannot hold both.
    """
    separated: dict[str, float] = {}
    for name, value in figures.items():
        parts = name.split("/")
        above = next((n for n in range(1, len(parts)) if "/".join(parts[:n]) in figures), None)
        separated[name if above is None else "/".join([*parts[: above - 1], "_".join(parts[above - 1 :])])] = value
    return separated


def number(value: object) -> float | None:
    """A finite number; None for whatever is none, truth values included."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def numbers_in(data: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Every number of nested data, under its path."""
    figures: dict[str, float] = {}
    for key, value in data.items():
        name = f"{prefix}/{key}" if prefix else str(key)
        if isinstance(value, Mapping):
            figures |= numbers_in(value, name)
        elif (figure := number(value)) is not None:
            figures[clean(name)] = figure
    return figures
