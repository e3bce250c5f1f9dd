"""What a person sees while a plan runs: a live line on a terminal, plain lines in a pipe or in CI.

``ConsoleWatcher`` is the executor's ``Watcher`` (cai/execution/watch.py) and hands each step a ``StepProgress``.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text
from typing_extensions import Self

from cai.errors import Incomplete
from cai.plan import Plan, Step
from cai.terminal.output import make_console
from cai.terminal.plan_view import print_plan, render_plan
from cai.text import count, duration, one_line, plain

__all__ = [
    "ConsoleWatcher",
    "StepProgress",
    "event_line",
    "make_console",
    "plain",
    "print_plan",
    "record_line",
    "render_plan",
]

# Reasons in the ledger that are no fault of the row's.
NOT_ASKED_FOR = {"other_part": "in other parts", "over_limit": "over the limit", "not chosen": "not chosen"}
EVERY = 10.0  # Seconds between two lines of progress where there is no terminal.
WINDOW = 60.0  # Seconds over which a rate is taken.


def event_line(event: str, fields: Mapping[str, Any], limit: int = 100) -> str:
    """An event of the work in a few words: ``iteration 3: reward 0.42, KL 1.3``."""
    rest = dict(fields)
    if event == "limit.moved":
        before = "" if rest.get("from") is None else f"{rest['from']} -> "
        return one_line(f"calls at once: {before}{rest.get('to')} ({rest.get('reason')})", limit)
    head = f"iteration {rest.pop('iteration')}" if "iteration" in rest else event
    first = [name for name in ("reward", "kl") if name in rest]
    readings = []
    for name in [*first, *(n for n in rest if n not in first)]:
        value = rest[name]
        if isinstance(value, float):
            value = f"{value:.3g}"
        if isinstance(value, str | int):
            readings.append(f"{'KL' if name == 'kl' else name.replace('_', ' ')} {value}")
    return one_line(f"{head}: {', '.join(readings)}" if readings else head, limit)


class StepProgress:
    """What one running step has told; implements the engines' ``Progress``. Safe to call from any thread."""

    def __init__(self, label: str, changed: Callable[[StepProgress], None], clock: Callable[[], float]) -> None:
        self.label = label
        self.note_text = ""
        self.rows = 0
        self.tokens = 0
        self.rows_expected: int | None = None
        self.tokens_expected: int | None = None
        self.began = self.printed = clock()
        self._changed = changed
        self._clock = clock
        self._lock = threading.Lock()
        self._samples: deque[tuple[float, int, int]] = deque()

    def expect(self, rows: int | None = None, tokens: int | None = None) -> None:
        """How much there is to do."""
        with self._lock:
            self.rows_expected = self.rows_expected if rows is None else rows
            self.tokens_expected = self.tokens_expected if tokens is None else tokens
        self._changed(self)

    def advance(self, rows: int = 0, tokens: int = 0) -> None:
        """How much more is done."""
        with self._lock:
            self.rows += rows
            self.tokens += tokens
            now = self._clock()
            self._samples.append((now, self.rows, self.tokens))
            while len(self._samples) > 2 and self._samples[0][0] < now - WINDOW:
                self._samples.popleft()
        self._changed(self)

    def note(self, event: str, **fields: Any) -> None:
        """Show the event until the next one comes."""
        self.note_text = event_line(event, fields)
        self._changed(self)

    def rates(self) -> tuple[float | None, float | None]:
        """(rows, tokens) per second over the last minute; None until they are known.

        Time counts from the first advance: loading a model, and rows that an earlier attempt had done, do not.
        """
        with self._lock:
            if len(self._samples) < 2:
                return None, None
            (t0, rows0, tokens0), (t1, rows1, tokens1) = self._samples[0], self._samples[-1]
        if t1 <= t0:
            return None, None
        return (rows1 - rows0) / (t1 - t0) or None, (tokens1 - tokens0) / (t1 - t0) or None

    def seconds_left(self) -> float | None:
        """Seconds until the step's end; None when they cannot be told."""
        by_rows, by_tokens = self.rates()
        if self.rows_expected and by_rows:
            return max(self.rows_expected - self.rows, 0) / by_rows
        if self.tokens_expected and by_tokens:
            return max(self.tokens_expected - self.tokens, 0) / by_tokens
        return None

    def done_of(self) -> tuple[float, float | None]:
        """(done, expected) in rows, or in tokens where no row count is expected."""
        if self.rows_expected is None and self.tokens_expected is not None:
            return self.tokens, self.tokens_expected
        return self.rows, self.rows_expected

    def numbers(self) -> str:
        """Counts, rate and time left on one line."""
        completed, expected = self.done_of()
        unit = "tokens" if self.rows_expected is None and self.tokens_expected is not None else "rows"
        parts = []
        if completed or expected:
            parts.append(f"{count(completed)}/{count(expected)} {unit}" if expected else f"{count(completed)} {unit}")
        if rate := self.rates()[1]:
            parts.append(f"{count(rate)} tok/s")
        if (seconds_left := self.seconds_left()) is not None:
            parts.append(f"{duration(seconds_left)} left")
        return ", ".join(parts)


class ConsoleWatcher:
    """Shows a run to a person; the executor calls it. Use it as a context manager, so that the terminal is restored.

    ``live`` None: a live display when the console is a terminal that a person sits at, else plain lines. ``prefix``
    stands before every line, where several runs share a terminal; ``show_reused`` tells of steps that were there.
    """

    def __init__(
        self,
        console: Console | None = None,
        *,
        live: bool | None = None,
        show_plan: bool = True,
        clock: Callable[[], float] = time.monotonic,
        prefix: str = "",
        show_reused: bool = True,
    ) -> None:
        self.console = console or make_console()
        self._prefix = prefix
        self._show_reused = show_reused
        if live is None:
            live = self.console.is_interactive and self.console.file.isatty() and not os.environ.get("CI")
        self._live: Live | None = None
        self._wants_live = live
        self._show_plan = show_plan
        self._clock = clock
        self._names: dict[str, int] = {}
        self._running: dict[str, StepProgress] = {}
        self._lock = threading.RLock()
        self._began = clock()
        self._ended = {"done": 0, "reused": 0}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the terminal back; harmless when there is nothing to give back."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def run_started(self, plan: Plan, statuses: Sequence[Any]) -> None:
        """The run begins: show the plan, unless everything is there already."""
        self._names = {step.name: i for i, step in enumerate(plan.steps, 1)}
        self._began = self._clock()
        if self._show_plan and any(status.action != "reuse" for status in statuses):
            print_plan(plan, statuses, console=self.console)
            self.console.print()
        if self._wants_live:
            self._live = Live(
                get_renderable=self._picture, console=self.console, refresh_per_second=4, transient=True, screen=False
            )
            self._live.start()

    def step_started(self, step: Step, resumed: bool = False) -> StepProgress:
        """A step begins, or goes on where an earlier attempt was; its work reports to what this returns."""
        progress = StepProgress(self._label(step.name), self._changed, self._clock)
        with self._lock:
            self._running[step.name] = progress
        if self._live is None:
            self.say(f"{progress.label}: {'goes on where it was' if resumed else 'started'}")
        return progress

    def waiting(self, step: Step, holder: str) -> None:
        """Another process makes the same artifact."""
        self.say(f"{self._padded(step.name)}  waits for {holder}, which is making it", "yellow")

    def note(self, step: Step, event: str, fields: Mapping[str, Any]) -> None:
        """A step noted something."""
        with self._lock:
            progress = self._running.get(step.name)
        if progress is not None:
            progress.note(event, **fields)

    def step_done(self, step: Step, record: Mapping[str, Any], reused: bool = False) -> None:
        """A step is done, or its artifact was there already."""
        with self._lock:
            self._running.pop(step.name, None)
            self._ended["reused" if reused else "done"] += 1
        facts = "" if reused else f"  {record_line(record)}"
        if reused and not self._show_reused:
            return
        style = "dim" if reused else "green"
        self.say(f"{self._padded(step.name)}  {'reused' if reused else 'done'}{facts}".rstrip(), style)

    def step_failed(self, step: Step, error: BaseException) -> None:
        """A step ended without an artifact; the command line shows the whole error."""
        with self._lock:
            self._running.pop(step.name, None)
        stopped = isinstance(error, KeyboardInterrupt | Incomplete)
        outcome = "stopped" if stopped else f"failed  {one_line(str(error) or type(error).__name__)}"
        self.say(f"{self._padded(step.name)}  {outcome}", "yellow" if stopped else "red")
        self.close()

    def run_done(self, result: Any = None) -> None:
        """The run is over."""
        self.close()
        counts = ", ".join(f"{n} {word}" for word, n in self._ended.items() if n)
        took = duration(self._clock() - self._began)
        self.say(f"{len(self._names)} steps: {counts or 'none begun'} in {took}", "bold")

    def _label(self, step: str) -> str:
        total = len(self._names)
        return f"[{self._names.get(step, 0):>{len(str(total))}}/{total}] {one_line(step, 60)}"

    def _padded(self, step: str) -> str:
        widest = max((len(name) for name in self._names), default=0)
        return self._label(step) + " " * max(min(widest, 24) - len(step), 0)

    def say(self, text: str, style: str = "") -> None:
        """Print one line above whatever is shown live."""
        # Without a terminal, a line is a line: whoever reads the log can search it.
        self.console.print(Text(self._prefix + plain(text), style=style), soft_wrap=self._live is None)

    def _changed(self, progress: StepProgress) -> None:
        if self._live is not None:
            return  # The display looks for itself four times a second.
        with self._lock:
            now = self._clock()
            if now - progress.printed < EVERY:
                return
            progress.printed = now
        facts = ", ".join(part for part in (progress.numbers(), progress.note_text) if part)
        if facts:
            self.say(f"{progress.label}: {facts}")

    def _picture(self) -> RenderableType:
        with self._lock:
            running = list(self._running.values())
        narrow = self.console.width < 72
        lines: list[RenderableType] = []
        for progress in running:
            numbers = progress.numbers() or duration(self._clock() - progress.began)
            if narrow:
                lines.append(Text(f"{progress.label} {numbers}", no_wrap=True, overflow="ellipsis"))
            else:
                completed, expected = progress.done_of()
                grid = Table.grid(padding=(0, 1), expand=True)
                grid.add_column(no_wrap=True, overflow="ellipsis")
                grid.add_column(ratio=1)
                grid.add_column(no_wrap=True, overflow="ellipsis")
                bar = ProgressBar(total=expected, completed=min(completed, expected or 0), pulse=not expected)
                grid.add_row(Text(progress.label, style="bold"), bar, Text(numbers))
                lines.append(grid)
            if progress.note_text:
                lines.append(Text(f"  {progress.note_text}", style="dim", no_wrap=True, overflow="ellipsis"))
        return Group(*lines)


def record_line(record: Mapping[str, Any]) -> str:
    """A finished step's facts on one line: rows in and out, what was dropped and why, time, tokens per second."""
    outcome = record.get("outcome", record)
    ledger, seconds = outcome.get("ledger") or {}, record.get("seconds")
    parts = []
    rows_in, rows_out, dropped = ledger.get("rows_in", 0), ledger.get("rows_out", 0), ledger.get("dropped") or {}
    if rows_in or rows_out:
        line = f"{count(rows_in)} -> {count(rows_out)} rows"
        elsewhere = {reason: n for reason, n in dropped.items() if reason in NOT_ASKED_FOR}
        lost = {reason: n for reason, n in dropped.items() if reason not in NOT_ASKED_FOR}
        notes = [f"{count(n)} {NOT_ASKED_FOR[reason]}" for reason, n in elsewhere.items()]
        if lost:
            why = ", ".join(f"{reason} {count(n)}" for reason, n in lost.items())
            notes.append(f"{count(sum(lost.values()))} dropped: {why}")
        line += f" ({'; '.join(notes)})" if notes else ""
        parts.append(line)
    if seconds is not None:
        parts.append(duration(seconds))
        if seconds > 0 and outcome.get("tokens"):
            parts.append(f"{count(outcome['tokens'] / seconds)} tok/s")
    return one_line(", ".join(parts), 400)
