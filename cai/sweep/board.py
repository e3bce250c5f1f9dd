"""The leaderboard of a sweep: its cells ranked, seeds taken together, and what each principle does.

Nothing is compared that cannot be: where cells have reward models of their own, their rewards are on different scales,
and the board says so and ranks by what they share.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cai.figures import intervals
from cai.figures.intervals import Interval
from cai.run.finished import Finished, read_finished
from cai.run.judged import judge_remarks
from cai.store.artifacts import Store
from cai.sweep.folders import CellState, read_sweep
from cai.sweep.measures import RunFigure, by_prompt, run_figures
from cai.sweep.run_cells import ended_cells

_RANKS = ("gain of", "reward of", "reward on", "Elo", "accuracy on", "wins on", "refuses")
"""Which measure ranks by default: the first of these that all cells share."""


@dataclass(frozen=True, slots=True)
class Measure:
    """A column. ``comparable``: every cell was measured alike, with the same reward model if with one."""

    name: str
    share: bool
    higher: bool
    comparable: bool


@dataclass(frozen=True, slots=True)
class Line:
    """One cell, or several that differ in their seed alone (``seeds`` of them; their ``numbers``)."""

    label: str
    numbers: tuple[int, ...]
    state: CellState
    values: Mapping[str, str]
    variation: str  # a VariationKind; empty where the principles do not vary
    principle: str
    size: int
    figures: Mapping[str, Interval]

    @property
    def seeds(self) -> int:
        """How many cells are taken together."""
        return len(self.numbers)


@dataclass(frozen=True, slots=True)
class PrincipleEffect:
    """What changes from one set of principles to another: ``change`` is ``label`` minus ``against``.

    ``paired``: on the same prompts, row by row; else from the two intervals alone.
    """

    measure: str
    principle: str
    label: str
    against: str
    change: Interval
    paired: bool


@dataclass(frozen=True)
class Board:
    """A sweep's results. ``lines`` and ``pooled`` are ranked, the best first; cells without a figure come last."""

    name: str
    preset: str
    measures: tuple[Measure, ...]
    lines: tuple[Line, ...]
    pooled: tuple[Line, ...]
    effects: tuple[PrincipleEffect, ...]
    sizes: tuple[Line, ...]
    ranked_by: str
    notes: tuple[str, ...]

    def measure(self, name: str) -> Measure:
        """The measure of that name.

        Raises:
            KeyError: when no cell has it.
        """
        for measure in self.measures:
            if measure.name == name:
                return measure
        raise KeyError(name)


def read_board(folder: Path, store: Store) -> Board:
    """The leaderboard of a sweep's folder, from what the store has of its cells; cells may be unfinished.

    Raises:
        SpecError: when the folder is no sweep's, or an evaluation cannot be read.
    """
    sweep = read_sweep(folder)
    ended = {cell.number: cell for cell in ended_cells(folder)}
    runs = {cell["number"]: read_finished(folder / str(cell["number"]), store) for cell in sweep["cells"]}
    figures_by_cell = {number: list(run_figures(run)) for number, run in runs.items()}
    measures = _measures(figures_by_cell)
    lines = [
        Line(
            cell["label"],
            (cell["number"],),
            ended[cell["number"]].state,
            cell["values"],
            cell["what"],
            cell["principle"],
            len(cell["principles"]),
            {f.name: f.figure for f in figures_by_cell[cell["number"]]},
        )
        for cell in sweep["cells"]
    ]
    ranked_by, notes = _ranking(measures, sweep["sweep"]["metric"])
    notes += (*_unreached(runs), *label_notes(runs))
    pooled = [_pooled(group) for group in _groups(lines, _settings)]
    several = any(line.seeds > 1 for line in pooled)
    effects = _effects(lines, runs, measures) if any(line.variation == "whole" for line in lines) else ()
    by_size = (
        [_pooled(group) for group in _groups(lines, _size)] if sweep["sweep"]["preset"] == "nested_subsets" else []
    )
    return Board(
        name=sweep["experiment"],
        preset=sweep["sweep"]["preset"],
        measures=measures,
        lines=_ranked(lines, ranked_by, measures),
        pooled=_ranked(pooled, ranked_by, measures) if several else (),
        effects=tuple(effects),
        sizes=tuple(sorted(by_size, key=lambda line: line.size)),
        ranked_by=ranked_by,
        notes=notes,
    )


def _measures(figures_by_cell: Mapping[int, Sequence[RunFigure]]) -> tuple[Measure, ...]:
    scales: dict[str, set[str]] = {}
    first: dict[str, RunFigure] = {}
    for figures in figures_by_cell.values():
        for figure in figures:
            first.setdefault(figure.name, figure)
            scales.setdefault(figure.name, set()).add(figure.scale)
    return tuple(Measure(name, f.share, f.higher, len(scales[name]) == 1) for name, f in first.items())


def _ranking(measures: Sequence[Measure], metric: str) -> tuple[str, tuple[str, ...]]:
    """By what to rank, and what has to be said about it."""
    notes = []
    apart = [m.name for m in measures if not m.comparable]
    if apart:
        notes.append(
            "Each cell has a reward model of its own, so these are on different scales and cannot be set side by side: "
            f"{', '.join(apart)}. A reward model that is the same in every cell is a yardstick (docs/sweeps.md)."
        )
    names = {m.name for m in measures}
    if metric and metric not in names:
        notes.append(f"No cell has '{metric}', by which to rank; there are: {', '.join(sorted(names)) or 'none'}.")
    if metric in names:
        return metric, tuple(notes)
    for only in (True, False):
        for start in _RANKS:
            for measure in measures:
                preferred = measure.name.rpartition(": ")[2].startswith(start)
                if preferred and (measure.comparable or not only):
                    return measure.name, tuple(notes)
    return "", tuple(notes)


def _unreached(runs: Mapping[int, Finished]) -> tuple[str, ...]:
    """Evaluations that are one and the same step in every cell: what varies does not reach them."""
    if len(runs) < 2:
        return ()
    keys: dict[str, set[str]] = {}
    for run in runs.values():
        for step in run.plan.steps:
            if step.kind == "evaluate":
                keys.setdefault(step.name, set()).add(step.key)
    same = [f"'{name}'" for name, step_keys in keys.items() if len(step_keys) == 1]
    return (f"Nothing that varies reaches {', '.join(same)}: it is the same step in every cell.",) if same else ()


def label_notes(runs: Mapping[int, Finished]) -> Iterator[str]:
    """What the labels of the cells rest on, where that must be said."""
    numbers_by_remark: dict[str, list[int]] = {}
    for number, run in runs.items():
        for remark in judge_remarks(run.plan, run.artifacts):
            numbers_by_remark.setdefault(remark, []).append(number)
    for remark, numbers in numbers_by_remark.items():
        cells = f"cell{'s' * (len(numbers) != 1)} {', '.join(map(str, numbers))}: "
        yield remark if len(numbers) == len(runs) else f"{cells}{remark}"


def _settings(line: Line) -> tuple[Any, ...]:
    """What a cell is beside its seed."""
    return (tuple((k, v) for k, v in line.values.items() if k != "seed"), line.variation, line.principle, _plain(line))


def _plain(line: Line) -> str:
    """A cell's label without its seed."""
    return ", ".join(part for part in line.label.split(", ") if not part.startswith("seed=")) or line.label


def _size(line: Line) -> tuple[Any, ...]:
    return (tuple((k, v) for k, v in line.values.items() if k != "seed"), line.size)


def _groups(lines: Sequence[Line], by: Any) -> Iterator[list[Line]]:
    groups: dict[Any, list[Line]] = {}
    for line in lines:
        groups.setdefault(by(line), []).append(line)
    yield from groups.values()


def _pooled(lines: Sequence[Line]) -> Line:
    """Cells taken together: the mean of their figures, with an interval over cells from three on."""
    first = lines[0]
    if len(lines) == 1:
        return first
    figures = {}
    for name in dict.fromkeys(name for line in lines for name in line.figures):
        values = [line.figures.get(name, Interval()).value for line in lines]
        figures[name] = over_cells([value for value in values if value is not None])
    states = [line.state for line in lines]
    state = CellState.DONE if set(states) == {CellState.DONE} else next(s for s in states if s is not CellState.DONE)
    numbers = tuple(n for line in lines for n in line.numbers)
    settings = {k: v for k, v in first.values.items() if k != "seed"}
    label = _plain(first) if len({_plain(line) for line in lines}) == 1 else f"{first.size} principles"
    return Line(label, numbers, state, settings, first.variation, first.principle, first.size, figures)


def over_cells(values: Sequence[float]) -> Interval:
    """The mean of several cells' values with Student's 95 % interval over cells; no interval below three."""
    n = len(values)
    if not n:
        return Interval()
    mean = math.fsum(values) / n
    if n < 3:
        return Interval(mean, n=n)
    from scipy import stats

    spread = float(stats.sem(values))
    low, high = stats.t.interval(0.95, n - 1, loc=mean, scale=spread) if spread > 0 else (mean, mean)
    return Interval(mean, float(low), float(high), n)


def _ranked(lines: Sequence[Line], by: str, measures: Sequence[Measure]) -> tuple[Line, ...]:
    higher = next((m.higher for m in measures if m.name == by), True)

    def place(line: Line) -> tuple[bool, float, int]:
        value = line.figures[by].value if by in line.figures else None
        return value is None, 0.0 if value is None else -value if higher else value, line.numbers[0]

    return tuple(sorted(lines, key=place))


def _effects(lines: Sequence[Line], runs: Mapping[int, Finished], measures: Sequence[Measure]) -> list[PrincipleEffect]:
    """Every set of principles against the whole, cells of the same seed and settings beside each other."""
    rows: dict[int, dict[str, dict[str, float]]] = {}

    def values(number: int, name: str) -> dict[str, float]:
        if number not in rows:
            rows[number] = by_prompt(runs[number])
        return rows[number].get(name, {})

    whole = {tuple(line.values.items()): line for line in lines if line.variation == "whole"}
    pairs: dict[tuple[Any, ...], list[tuple[Line, Line]]] = {}
    for line in lines:
        against = whole.get(tuple(line.values.items()))
        if line.variation not in ("", "whole") and against is not None:
            pairs.setdefault(_settings(line), []).append((line, against))
    effects = []
    for group in pairs.values():
        label, whole_label = _plain(group[0][0]), _plain(group[0][1])
        for measure in measures:
            if not measure.comparable:
                continue
            measured_pairs = [(a, b) for a, b in group if a.figures.get(measure.name) and b.figures.get(measure.name)]
            if not measured_pairs:
                continue
            differences = _by_row(
                [(values(a.numbers[0], measure.name), values(b.numbers[0], measure.name)) for a, b in measured_pairs]
            )
            if differences:
                change = intervals.mean(differences)
            else:
                change = _unpaired([(a.figures[measure.name], b.figures[measure.name]) for a, b in measured_pairs])
            effects.append(
                PrincipleEffect(measure.name, group[0][0].principle, label, whole_label, change, bool(differences))
            )
    return effects


def _by_row(pairs: Sequence[tuple[Mapping[str, float], Mapping[str, float]]]) -> list[float]:
    """Differences on the same prompts; of several seeds each prompt counts once, with the mean of its differences."""
    by_row: dict[str, list[float]] = {}
    for ours, theirs in pairs:
        for row in ours.keys() & theirs.keys():
            by_row.setdefault(row, []).append(ours[row] - theirs[row])
    return [math.fsum(values) / len(values) for _, values in sorted(by_row.items())]


def _unpaired(pairs: Sequence[tuple[Interval, Interval]]) -> Interval:
    """A difference from two intervals (the method of variance estimates recovery: Zou and Donner 2008).

    Of several pairs: their mean with an interval over pairs.
    """
    changes = [change for a, b in pairs if (change := _difference(a, b)) is not None]
    if len(changes) == 1:
        return changes[0]
    return over_cells([change.value for change in changes if change.value is not None])


def _difference(a: Interval, b: Interval) -> Interval | None:
    """Of two cells; None where one of them has no value."""
    if a.value is None or b.value is None:
        return None
    change = a.value - b.value
    if a.low is None or a.high is None or b.low is None or b.high is None:
        return Interval(change, n=1)
    low = change - math.hypot(a.value - a.low, b.high - b.value)
    high = change + math.hypot(a.high - a.value, b.value - b.low)
    return Interval(change, low, high, 1)
