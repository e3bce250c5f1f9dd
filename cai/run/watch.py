"""Who watches a run. The executor tells; the console, or nobody, listens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from cai.engines.base import Progress
from cai.plan import Plan, Step
from cai.run.results import RunResult
from cai.run.status import StepStatus
from cai.run.stopping import StopSign
from cai.store.events import EventLog


class Watcher(Protocol):
    """What a run tells whoever watches it, in the order in which it happens."""

    def run_started(self, plan: Plan, statuses: Sequence[StepStatus]) -> None:
        """The plan is about to be run; ``statuses`` says what will happen to each step."""
        ...

    def step_started(self, step: Step, resumed: bool) -> Progress:
        """A step's work begins; what it returns is told of the step's progress and notes."""
        ...

    def waiting(self, step: Step, holder: str) -> None:
        """Another process (``process 12 on host``) makes the same artifact; the run waits for it."""
        ...

    def step_done(self, step: Step, record: Mapping[str, Any], reused: bool) -> None:
        """A step's artifact is there; ``record`` is the store's."""
        ...

    def step_failed(self, step: Step, error: BaseException) -> None:
        """A step stopped before its end, by an error or because the run was stopped."""
        ...

    def run_done(self, result: RunResult) -> None:
        """Every step's artifact is there."""
        ...


class Silent:
    """A watcher, and a progress, that says nothing."""

    def run_started(self, plan: Plan, statuses: Sequence[StepStatus]) -> None:
        """Nothing."""

    def step_started(self, step: Step, resumed: bool) -> Progress:
        """Nothing to tell."""
        return _Quiet()

    def waiting(self, step: Step, holder: str) -> None:
        """Nothing."""

    def step_done(self, step: Step, record: Mapping[str, Any], reused: bool) -> None:
        """Nothing."""

    def step_failed(self, step: Step, error: BaseException) -> None:
        """Nothing."""

    def run_done(self, result: RunResult) -> None:
        """Nothing."""


class _Quiet:
    def expect(self, rows: int | None = None, tokens: int | None = None) -> None:
        """Nothing."""

    def advance(self, rows: int = 0, tokens: int = 0) -> None:
        """Nothing."""

    def note(self, event: str, **fields: Any) -> None:
        """Nothing."""


class Recorded:
    """A step's progress: passes everything on to the watcher's, and writes notes to the event log too.

    Each method raises ``Incomplete`` when the step is to stop.
    """

    def __init__(self, step: Step, inner: Progress, log: EventLog, stop: StopSign | None = None) -> None:
        self._step = step
        self._inner = inner
        self._log = log
        self._stop = stop or StopSign()

    def expect(self, rows: int | None = None, tokens: int | None = None) -> None:
        """How much there is to do in this step."""
        self._stop.check(self._step.name)
        self._inner.expect(rows, tokens)

    def advance(self, rows: int = 0, tokens: int = 0) -> None:
        """How much more is done."""
        self._stop.check(self._step.name)
        self._inner.advance(rows, tokens)

    def note(self, event: str, **fields: Any) -> None:
        """Write an event to the log and tell the watcher."""
        self._stop.check(self._step.name)
        self._log.write(event, self._step.name, data=fields)
        self._inner.note(event, **fields)
