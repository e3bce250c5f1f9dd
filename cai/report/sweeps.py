"""A sweep in the report: its leaderboard, seeds together, what each principle does, and the number of principles."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cai.report.model import (
    Block,
    Figure,
    Heading,
    Panel,
    Section,
    Series,
    Table,
    Text,
    interval,
    number,
    numbers_table,
    point,
)
from cai.sweep.board import Board, Line, Measure, PrincipleEffect
from cai.sweep.folders import CellState
from cai.sweep.run_cells import CellEnd
from cai.sweep.view import columns, verdict

COMPARED = 8
"""Cells whose runs are compared in full, the best ranked; the leaderboard has all."""
MEASURES = 8
"""Columns of the leaderboard; the files have all."""
SHOWN = 40
"""Rows of a table that stays open, and changes in one figure."""


def compared(board: Board) -> list[int]:
    """Numbers of the cells that the rest of the report shows: the whole constitution, then the best of the others."""
    finished = [line for line in board.lines if line.state is CellState.DONE]
    first = [line for line in finished if line.variation == "whole"]
    ordered = [*first, *(line for line in finished if line not in first)]
    return [line.numbers[0] for line in ordered[:COMPARED]]


def sweep_section(board: Board, ended: Sequence[CellEnd]) -> Section:
    """All that a sweep shows beside the runs of its cells."""
    return Section("sweep", "The sweep", tuple(_blocks(board, ended)), "Sweep")


def _blocks(board: Board, ended: Sequence[CellEnd]) -> Iterator[Block]:
    counts = [f"{n} {state.value}" for state in CellState if (n := sum(cell.state is state for cell in ended))]
    step_count = len({key for cell in ended for key in cell.steps_made})
    yield Text(
        (f"{len(ended)} cells: {', '.join(counts)}. {step_count} steps were made by it, the others were there.",)
    )
    if board.notes:
        yield Text(board.notes, "note")
    failed = [f"Cell {c.number} ({c.label}) {c.state.value}: {c.error}" for c in ended if c.error]
    if failed:
        yield Text(tuple(failed), "missing")
    measures = columns(board, MEASURES)
    if not measures:
        yield Text(("No cell has an evaluation, so there is nothing to rank.",), "missing")
        return
    yield Heading("Leaderboard", "leaderboard")
    yield _table(f"Cells by {board.ranked_by}, the best first, with 95% intervals", board.lines, measures)
    if board.pooled:
        yield _table(
            "Seeds taken together: means over seeds, intervals over seeds from three on", board.pooled, measures
        )
    if board.sizes:
        yield _sizes(board)
    yield from _principles(board)


def _table(caption: str, lines: Sequence[Line], measures: Sequence[Measure]) -> Table:
    rows = []
    for rank, line in enumerate(lines, 1):
        label = line.label + (f" ({line.seeds} seeds)" if line.seeds > 1 else "")
        label += "" if line.state is CellState.DONE else f" ({line.state.value})"
        figures = (interval(line.figures.get(m.name), m.share) for m in measures)
        rows.append((label, str(rank), str(line.size or "-"), *figures))
    heads = (m.name + ("" if m.comparable else " *") for m in measures)
    return Table(caption, ("cell", "rank", "principles", *heads), tuple(rows), folded=len(rows) > SHOWN)


def _sizes(board: Board) -> Figure:
    measure = board.measure(board.ranked_by)
    by_settings: dict[str, list[Line]] = {}
    for line in board.sizes:
        by_settings.setdefault(", ".join(f"{k}={v}" for k, v in line.values.items()), []).append(line)
    series = tuple(
        Series(name, tuple(p for line in lines for p in point(float(line.size), line.figures.get(measure.name))), style)
        for style, (name, lines) in enumerate(by_settings.items())
    )
    rows = [
        (*([name] if len(series) > 1 else []), str(line.size), interval(line.figures.get(measure.name), measure.share))
        for name, lines in by_settings.items()
        for line in lines
    ]
    head = (*(["cells"] if len(series) > 1 else []), "principles", measure.name)
    panel = Panel("lines", series, "number of principles", measure.name, percent=measure.share, whole_x=True)
    description = (
        f"{measure.name} for nested sets of principles, each inside the next, with 95% intervals. "
        + "; ".join(f"{row[-2]} principles: {row[-1]}" for row in rows[:12])
    )
    note = "" if measure.comparable else "Each cell has a reward model of its own: the points are on different scales."
    return Figure("by-size", "By number of principles", description, (panel,), numbers_table(head, rows), note)


def _principles(board: Board) -> Iterator[Block]:
    names = dict.fromkeys(effect.measure for effect in board.effects)
    ordered = sorted(names, key=lambda name: name != board.ranked_by)
    if ordered:
        yield Heading("What the principles do", "principles-effect")
        yield Text(
            (
                "Each set of principles against the whole constitution. Where an interval contains zero the difference "
                "may be chance; of many differences some will look real by chance.",
            ),
            "note",
        )
    for place, name in enumerate(ordered):
        effects = sorted((e for e in board.effects if e.measure == name), key=lambda e: -(e.change.value or 0.0))
        yield _effects(board.measure(name), effects, place)


def _effects(measure: Measure, effects: Sequence[PrincipleEffect], place: int) -> Figure:
    rows = [
        (
            e.label,
            interval(e.change, places=3),
            verdict(e),
            "prompt by prompt" if e.paired else "of means",
        )
        for e in effects
    ]
    drawn_effects = [e for e in effects if e.change.value is not None][:SHOWN]
    points = tuple(p for e in drawn_effects for p in point(e.label, e.change))
    panel = Panel("dots", (Series("change", points, place),), f"change of {measure.name}", level=0.0)
    words = f"Change of {measure.name} against the whole constitution, with 95% intervals. " + "; ".join(
        f"{e.label}: {number(e.change.value)}, {verdict(e)}" for e in drawn_effects[:12]
    )
    note = (
        ""
        if len(drawn_effects) == len(effects)
        else f"The {len(drawn_effects)} highest of {len(effects)}; the table has all."
    )
    head = ("principles", "change", "says", "compared")
    return Figure(
        f"effect-{place}", f"{measure.name}, against the whole", words, (panel,), numbers_table(head, rows), note
    )
