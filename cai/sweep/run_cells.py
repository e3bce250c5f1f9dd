"""Running a sweep's cells: each is a run of its own in a folder of its own, and none that fails loses the others.

A step that several cells share is made by the first that comes to it; others wait for it (the store's lock) or find
it. Where it fails, cells that need it are not tried again in this sweep: they would fail alike. Running the sweep again
goes on from everything that was made.
"""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cai.engines.base import Progress
from cai.errors import CaiError, Incomplete, StepFailed
from cai.plan import Plan, Step, plan_from_json
from cai.run.job_files import now, read_json, write_json
from cai.run.results import RunResult
from cai.run.status import StepStatus
from cai.run.stopping import Interrupted
from cai.store.artifacts import default_store
from cai.sweep.folders import CELL, SWEEP, CellState, read_cell, read_sweep
from cai.sweep.plan import SweepPlan, sweep_data
from cai.terminal.console import ConsoleWatcher

STOP = "stop"


@dataclass(frozen=True, slots=True)
class CellEnd:
    """How a cell ended: why not well, and how many of its steps were made by it."""

    number: int
    label: str
    state: CellState
    error: str = ""
    steps_made: tuple[str, ...] = ()
    seconds: float = 0.0


class Blocked(StepFailed):
    """A step failed in another cell of the sweep already."""


def write_sweep(plan: SweepPlan, folder: Path, detach: bool = False) -> None:
    """Freeze a sweep in its folder: ``sweep.json`` and a plan for each cell, from which every cell is run."""
    for cell in plan.cells.cells:
        cell_dir = folder / str(cell.number)
        cell_dir.mkdir(parents=True, exist_ok=True)
        (cell_dir / "plan.json").write_text(cell.plan.to_json(), encoding="utf-8")
    data = sweep_data(plan) | {"started": now(), "detach": detach}
    for cell_data, cell in zip(data["cells"], plan.cells.cells, strict=True):
        cell_data["what"] = cell.variation.kind if cell.variation else ""
        cell_data["principle"] = cell.variation.principle if cell.variation else ""
        cell_data["draw"] = cell.variation.draw if cell.variation else 0
    write_json(folder / SWEEP, data)


def run_cell(folder: Path, alone: bool, number: int) -> None:
    """Run one cell of a sweep's folder from its own plan, and write there how it ended; never raises for a failure.

    ``alone`` says that no other cell writes to this terminal meanwhile.
    """
    sweep = read_sweep(folder)
    cell = sweep["cells"][number]
    cell_dir, began = folder / str(number), time.monotonic()
    plan = plan_from_json((cell_dir / "plan.json").read_text(encoding="utf-8"), str(cell_dir / "plan.json"))
    watch = _CellWatcher(folder, number, _console(cell["label"], number, len(sweep["cells"]), alone))
    state, error = CellState.DONE, ""
    try:
        if (folder / STOP).exists():
            state = CellState.NOT_RUN
        elif failure := _failed_before(folder, plan):
            state, error = CellState.BLOCKED, failure
        elif _runs_elsewhere(plan):
            state = _submitted(plan, cell_dir, detach=sweep.get("detach", False), say=watch.say, group=folder.name)
        else:
            _run(plan, cell_dir, watch, folder.name)
    except Blocked as blocked:
        state, error = CellState.BLOCKED, str(blocked)
    except Incomplete as stopped:
        state, error = CellState.INCOMPLETE, str(stopped)
        _stop(folder, stopped)
    except CaiError as failed:
        state, error = CellState.FAILED, str(failed)
        watch.remember(error)
        if sweep["sweep"].get("on_error") == "stop":
            _stop(folder, failed)
    except Exception as failed:
        # Whatever it is, it is this cell's: the next one may not meet it.
        state, error = CellState.FAILED, f"{type(failed).__name__}: {failed}"
        if os.environ.get("CAI_TRACE"):
            traceback.print_exc()
    finally:
        watch.close()
    if state in (CellState.BLOCKED, CellState.NOT_RUN) or (state is CellState.FAILED and not watch.failure_shown):
        watch.say(f"{state.value}{': ' if error else ''}{error}")
    ended = {
        "state": state.value,
        "error": error,
        "made": watch.steps_made,
        "seconds": round(time.monotonic() - began, 3),
    }
    write_json(cell_dir / CELL, ended)


def ended_cells(folder: Path) -> list[CellEnd]:
    """How the cells of a sweep's folder ended, so far."""
    cell_ends = []
    for cell in read_sweep(folder)["cells"]:
        data = read_cell(folder, cell["number"])
        cell_ends.append(
            CellEnd(
                cell["number"],
                cell["label"],
                data["state"],
                data.get("error", ""),
                tuple(data.get("made", ())),
                data.get("seconds", 0.0),
            )
        )
    return cell_ends


def stopped_by(folder: Path) -> int:
    """The exit code of what stopped the whole sweep (130 for Ctrl-C); 0 when nothing did."""
    try:
        return int((folder / STOP).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return 0
    except ValueError:  # torn
        return 1


def _run(plan: Plan, cell_dir: Path, watch: _CellWatcher, group: str) -> None:
    from cai.engines import make_engine
    from cai.run.executor import run
    from cai.terminal.summary import summarize, write_markdown
    from cai.trackers.watching import tracked

    engine = partial(make_engine, plan=plan, run_dir=cell_dir)
    store = default_store()
    with tracked(plan, cell_dir, store.home, watch.say, group=group):
        result = run(plan, store=store, run_dir=cell_dir, make_engine=engine, watch=watch)
    artifacts = {step.step.name: step.artifact for step in result.steps}
    summary = summarize(plan, cell_dir, artifacts, seconds=result.seconds)
    write_markdown(summary, f"Summary of {plan.experiment}, seed {plan.seed}")


def _runs_elsewhere(plan: Plan) -> bool:
    from cai.run.submitted import launcher_of

    return launcher_of(plan) is not None


def _submitted(plan: Plan, cell_dir: Path, *, detach: bool, say: Callable[[str], None], group: str) -> CellState:
    from cai.run.submission import shown_run, submit, watch
    from cai.terminal.output import make_console
    from cai.trackers.watching import tracked

    submit(plan, default_store(), cell_dir)
    if detach:
        say(f"its jobs are submitted; come back to them with: python -m cai resume {shown_run(cell_dir)}")
        return CellState.SUBMITTED
    with tracked(plan, cell_dir, default_store().home, say, group=group, unfinished="running"):
        watch(cell_dir, make_console())
    return CellState.DONE


def _console(label: str, number: int, total: int, alone: bool) -> ConsoleWatcher:
    from cai.text import one_line

    name = one_line(label, 60)
    watcher = ConsoleWatcher(
        live=None if alone else False,
        show_plan=False,
        prefix="  " if alone else f"cell {number} ({name})  ",
        show_reused=False,
    )
    if alone:
        watcher.console.print(f"\ncell {number}: {name} ({number + 1} of {total})", style="bold")
    return watcher


def _stop(folder: Path, why: CaiError) -> None:
    code = why.exit_code if isinstance(why, Interrupted | Incomplete) else 1
    (folder / STOP).write_text(f"{code}\n", encoding="utf-8")


def _failed_at(folder: Path, key: str) -> Path:
    return folder / "failed" / f"{key[:16]}.json"


def _failed_before(folder: Path, plan: Plan) -> str:
    for step in plan.steps:
        if failure := _earlier_failure(folder, step):
            return failure
    return ""


def _earlier_failure(folder: Path, step: Step) -> str:
    try:
        failure = read_json(_failed_at(folder, step.key))
    except FileNotFoundError:
        return ""
    return f"{step.name} failed in cell {failure['cell']} already: {failure['error']}"


class _CellWatcher:
    """Passes on what the console is told, notes which steps this cell makes, and stops at one that failed elsewhere."""

    def __init__(self, folder: Path, number: int, inner: ConsoleWatcher) -> None:
        self.folder = folder
        self.number = number
        self.inner = inner
        self.steps_made: list[str] = []
        """Keys."""
        self._failed: Step | None = None

    def run_started(self, plan: Plan, statuses: Sequence[StepStatus]) -> None:
        self.inner.run_started(plan, statuses)

    def step_started(self, step: Step, resumed: bool) -> Progress:
        # Asked when this cell's turn has come: whoever held the step before may have failed just now.
        if failure := _earlier_failure(self.folder, step):
            raise Blocked(failure)
        return self.inner.step_started(step, resumed)

    def waiting(self, step: Step, holder: str) -> None:
        self.inner.waiting(step, holder)

    def step_done(self, step: Step, record: Mapping[str, Any], reused: bool) -> None:
        if not reused:
            self.steps_made.append(step.key)
        self.inner.step_done(step, record, reused)

    def step_failed(self, step: Step, error: BaseException) -> None:
        self._failed = step
        self.inner.step_failed(step, error)

    def run_done(self, result: RunResult) -> None:
        self.inner.run_done(result)

    @property
    def failure_shown(self) -> bool:
        """Whether the step that failed was shown already."""
        return self._failed is not None

    def remember(self, error: str) -> None:
        """Tell the other cells which step failed."""
        if self._failed is None:
            return
        path = _failed_at(self.folder, self._failed.key)
        path.parent.mkdir(exist_ok=True)
        write_json(path, {"cell": self.number, "step": self._failed.name, "error": error, "process": os.getpid()})

    def say(self, text: str) -> None:
        """One line of this cell's own."""
        from cai.text import one_line

        self.inner.say(one_line(text, 400), "yellow")

    def close(self) -> None:
        """Give the terminal back."""
        self.inner.close()
