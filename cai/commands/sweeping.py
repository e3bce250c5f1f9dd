"""``-m``: every cell of a sweep compiled, shown, run through the chosen launcher, and put on a leaderboard."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from cai.commands.common import RUNS
from cai.errors import Problem, SpecError
from cai.terminal.plan_view import Format

SEVERAL = "several"
"""The folder of sweeps over several experiments."""


def plan_sweep(overrides: Sequence[str], format: Format, out: Path | None, script: Path | None) -> int:
    """Print what a sweep's cells share and what is left to run; starts nothing.

    Raises:
        SpecError: with every problem of every cell, or when one plan's own options are given.
    """
    if out is not None or script is not None:
        option = "--out" if out is not None else "--script"
        raise SpecError(
            Problem(option, "is of one plan, not of a sweep", "plan a cell by itself, or use --format json")
        )
    from cai.store.artifacts import default_store
    from cai.sweep.cells import compile_cells
    from cai.sweep.plan import render_sweep_plan, sweep_plan
    from cai.terminal.output import make_console

    rendered = render_sweep_plan(sweep_plan(compile_cells(overrides), default_store()), format)
    console = make_console()
    if isinstance(rendered, str):
        console.out(rendered, end="", highlight=False)
    else:
        console.print(rendered)
    return 0


def run_sweep(overrides: Sequence[str], detach: bool = False, runs: Path = RUNS) -> int:
    """Run a sweep: 0 when every cell is done, 1 when one failed, 3 (130) when it was stopped and can go on.

    Raises:
        SpecError: with every problem of every cell; nothing has been started.
    """
    from cai.files.library import Library
    from cai.store.artifacts import default_store
    from cai.store.events import new_run_folder, point_latest
    from cai.sweep.cells import compile_cells
    from cai.sweep.multirun import check_launch, launch_numbers
    from cai.sweep.plan import render_sweep_plan, sweep_plan
    from cai.sweep.run_cells import run_cell, stopped_by, write_sweep
    from cai.terminal.output import make_console
    from cai.trackers.watching import check_trackers

    cells = compile_cells(overrides)
    check_launch(cells.launch, Library.here())
    for cell in cells.cells:
        check_trackers(cell.plan)
    store = default_store()
    plan = sweep_plan(cells, store)
    console = make_console()
    console.print(render_sweep_plan(plan))
    name = SEVERAL if "+" in cells.name else cells.name
    folder = new_run_folder(runs / name, "sweeps").absolute()
    write_sweep(plan, folder, detach)
    point_latest(folder)
    gc.enable()
    alone = not any(word.lstrip("+").startswith("hydra/launcher=") for word in cells.launch)
    interrupted = False
    task = partial(run_cell, folder, alone)
    try:
        if cells.launch:
            launch_numbers(len(cells.cells), cells.launch, folder, task)
        else:
            # What Hydra's basic launcher would do, without composing a config for every cell twice.
            for cell in cells.cells:
                task(cell.number)
    except KeyboardInterrupt:
        interrupted = True
    code = finish(folder)
    return 130 if interrupted else stopped_by(folder) or code


def finish(folder: Path) -> int:
    """Show how a sweep's cells ended and its leaderboard, and write both beside the cells; returns the exit code."""
    from cai.store.artifacts import default_store
    from cai.sweep.board import read_board
    from cai.sweep.folders import CellState
    from cai.sweep.run_cells import ended_cells
    from cai.sweep.tables import write_tables
    from cai.sweep.view import print_board
    from cai.terminal.output import make_console

    # Every cell's run pointed it to itself; among cells there is no newest one.
    (folder / "latest").unlink(missing_ok=True)
    ended = ended_cells(folder)
    board = read_board(folder, default_store())
    write_tables(board, folder)
    print_board(board, ended, folder, make_console())
    states = {cell.state for cell in ended}
    if states <= {CellState.DONE, CellState.SUBMITTED}:
        return 0
    return 1 if states & {CellState.FAILED, CellState.BLOCKED} else 3
