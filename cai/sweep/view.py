"""A sweep's end as a person reads it: how its cells ended, the leaderboard, and what the principles do."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from cai.figures.intervals import Interval
from cai.sweep.board import Board, Line, Measure, PrincipleEffect
from cai.sweep.folders import CellState
from cai.sweep.run_cells import CellEnd
from cai.terminal.shell_text import shell_word
from cai.terminal.summary import interval
from cai.text import duration, one_line, plain

COLUMNS = 3
"""Measures that the terminal shows; the files have all."""

_STYLES = {
    CellState.DONE: "",
    CellState.FAILED: "red",
    CellState.BLOCKED: "red",
    CellState.NOT_RUN: "dim",
    CellState.INCOMPLETE: "yellow",
}


def print_board(board: Board, ended: Sequence[CellEnd], folder: Path, console: Console) -> None:
    """Print everything; the table's numbers have 95 % intervals."""
    for block in render_board(board, ended, folder):
        console.print(block, crop=False)  # the last line is a command


def render_board(board: Board, ended: Sequence[CellEnd], folder: Path) -> Iterator[RenderableType]:
    """The blocks that ``print_board`` prints."""
    yield Text(f"\nSweep of {plain(board.name)}: {_states(ended)}", style="bold")
    for cell in ended:
        if cell.error:
            yield Text(
                f"  cell {cell.number} ({one_line(cell.label, 80)}): {cell.state.value}: {one_line(cell.error, 500)}"
            )
    visible_columns = columns(board)
    if visible_columns:
        yield Text(f"\nLeaderboard, by {_name(board, board.ranked_by)} (95% intervals)", style="bold")
        yield _table(board.lines, visible_columns)
    else:
        yield Text("\nNo cell has an evaluation, so there is nothing to rank.")
    if board.pooled:
        yield Text("\nSeeds taken together (mean over seeds; intervals over seeds, from three on)", style="bold")
        yield _table(board.pooled, visible_columns)
    if board.sizes and visible_columns:
        yield Text("\nBy number of principles", style="bold")
        yield _table(board.sizes, visible_columns)
    yield from _principles(board)
    for note in board.notes:
        yield Padding(Text(f"\n{plain(note)}"), (0, 0, 0, 0))
    where = os.path.relpath(folder)
    yield Text(f"\nAll figures: {where}/leaderboard.csv and .parquet; cells: {where}/0, 1, ...", style="dim")
    yield Text(f"  python -m cai report {shell_word(where)}", style="dim", no_wrap=True, overflow="ignore")


def columns(board: Board, most: int = COLUMNS) -> list[Measure]:
    """The measures that are shown, at most so many: what ranks, then others that can be compared."""
    if not board.ranked_by:
        return []
    first = board.measure(board.ranked_by)
    others = sorted((m for m in board.measures if m != first), key=lambda m: not m.comparable)
    return [first, *others][:most]


def _states(ended: Sequence[CellEnd]) -> str:
    counts = {state: sum(cell.state is state for cell in ended) for state in CellState}
    steps_made = len({key for cell in ended for key in cell.steps_made})
    took = sum(cell.seconds for cell in ended)
    states = ", ".join(f"{n} {state.value}" for state, n in counts.items() if n)
    return f"{states}; {steps_made} steps made in {duration(took)} of work"


def _name(board: Board, name: str) -> str:
    measure = board.measure(name)
    return (
        name + ("" if measure.higher else ", least first") + ("" if measure.comparable else ", each on its own scale")
    )


def _table(lines: Sequence[Line], measures: Sequence[Measure]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("", justify="right")
    table.add_column("cell", overflow="fold")
    for measure in measures:
        table.add_column(one_line(measure.name, 40) + ("" if measure.comparable else " *"), justify="right")
    for rank, line in enumerate(lines, 1):
        label = one_line(line.label, 100) + (f" ({line.seeds} seeds)" if line.seeds > 1 else "")
        label += "" if line.state is CellState.DONE else f" ({line.state.value})"
        figures = [interval(line.figures.get(m.name), m.share) for m in measures]
        table.add_row(str(rank), Text(label), *map(Text, figures), style=_STYLES.get(line.state, ""))
    return table


def _principles(board: Board) -> Iterator[RenderableType]:
    effects = [e for e in board.effects if e.measure == board.ranked_by] or list(board.effects)
    if not effects:
        return
    name = effects[0].measure
    effects = [e for e in effects if e.measure == name]
    share = board.measure(name).share
    yield Text(f"\nWhat the principles do: {plain(name)}, against the whole constitution", style="bold")
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for head, justify in (("principles", "left"), ("change", "right"), ("", "left")):
        table.add_column(head, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for effect in sorted(effects, key=lambda e: -(e.change.value or 0.0)):
        table.add_row(Text(one_line(effect.label, 100)), change(effect.change, share), verdict(effect))
    yield table
    if any(not effect.paired for effect in effects):
        yield Text("Changes are of means, not prompt by prompt: their intervals are wide.", style="dim")


def change(figure: Interval, share: bool) -> str:
    """A difference with its sign: ``+0.12 [-0.03, +0.27]``."""
    if figure.value is None:
        return "-"
    scale, form = (100, "{:+.0f}%") if share else (1, "{:+.2f}")
    text = form.format(figure.value * scale)
    if figure.low is not None and figure.high is not None:
        text += f" [{form.format(figure.low * scale)}, {form.format(figure.high * scale)}]"
    return text


def verdict(effect: PrincipleEffect) -> str:
    """What an interval allows to say."""
    low, high = effect.change.low, effect.change.high
    if low is None or high is None:
        return "too few to tell"
    if low == high == 0:
        return "the same"
    return "higher" if low > 0 else "lower" if high < 0 else "may be chance"
