"""What each row's calls read and write, for whoever wants to know what the rest will: a pilot.

A call that the request cache answers counts as though it had been asked, where the answer says what it took.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cai.clients.base import Completion, Result


@dataclass(frozen=True, slots=True)
class ModelUse:
    """What one model is asked: calls, tokens that it reads and tokens that it writes."""

    calls: int = 0
    prompt_tokens: int = 0
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class MeteredFlow:
    """Rows of ``source`` on their way through the model of one role (``models.LABEL``) of a step."""

    step: str
    role: str
    journal: str
    source: Path


@dataclass
class FlowMeter:
    """The calls of one flow by row; None is a call of which nobody knows what it took."""

    rows: int = 0
    calls: dict[int, list[ModelUse | None]] = field(default_factory=dict)

    def add(self, row: int, use: ModelUse | None) -> None:
        """One call of a row."""
        self.calls.setdefault(row, []).append(use)

    def known_calls(self) -> list[ModelUse]:
        """Every call of which it is known what it took."""
        return [use for calls in self.calls.values() for use in calls if use is not None]

    def known_rows(self) -> Iterator[list[ModelUse]]:
        """The calls of every row of which all are known; a row that needed none has none."""
        for row in range(self.rows):
            calls = self.calls.get(row, [])
            uses = [use for use in calls if use is not None]
            if len(uses) == len(calls):
                yield uses


class Meter:
    """The flows of a run, in the order in which they began."""

    def __init__(self) -> None:
        self.flows: dict[MeteredFlow, FlowMeter] = {}

    def flow(self, metered: MeteredFlow, rows: int) -> FlowMeter:
        """A flow of so many rows."""
        return self.flows.setdefault(metered, FlowMeter(rows))


def use_of_result(result: Result, call_tokens: tuple[int, int] | None) -> ModelUse | None:
    """What a call took: as its server counted it, else as its answer says; None where neither does."""
    if call_tokens is not None:
        return ModelUse(1, *call_tokens)
    return ModelUse(1, result.prompt_tokens, result.tokens) if isinstance(result, Completion) else None
