"""From a command line to cells: every combination of the swept values and sets of principles, each compiled.

Nothing starts before every cell is known to be valid. Swept values are Hydra's own (``a,b``, ``range(3)``,
``glob(*)``); the launcher is Hydra's own too, and none of its settings reach an experiment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cai.errors import Problem, SpecError
from cai.experiment.compose import Composed, compose_cells
from cai.files.library import Library
from cai.plan import Plan
from cai.planning.compilation import Looked
from cai.planning.resolver import resolve_data
from cai.planning.texts import load_texts
from cai.sweep.multirun import split_sweep
from cai.sweep.settings import SweepSpec, sweep_spec
from cai.sweep.variations import Variation, variations, varied

MAX_CELLS = 10_000
"""More are surely a slip: a range of a million seeds would take hours to compile."""

SHOWN = 20
"""Cells whose problems are told one by one."""


@dataclass(frozen=True)
class Cell:
    """One experiment of a sweep. ``overrides`` make it by itself, ``values`` are what differs from other cells."""

    number: int
    label: str
    overrides: tuple[str, ...]
    values: Mapping[str, str]
    variation: Variation | None
    plan: Plan

    @property
    def principles(self) -> tuple[str, ...]:
        """Ids of the principles that can be drawn; none where the experiment has no constitution."""
        if self.variation is not None:
            return self.variation.ids
        for step in self.plan.steps:
            constitution = step.resources.get("constitution")
            if constitution:
                return tuple(p["id"] for p in constitution["principles"] if p.get("weight", 1) > 0)
        return ()


@dataclass(frozen=True)
class Cells:
    """A whole sweep, compiled. ``launch`` are the overrides for Hydra itself (its launcher and so on)."""

    cells: tuple[Cell, ...]
    spec: SweepSpec
    command: tuple[str, ...]
    launch: tuple[str, ...]

    @property
    def name(self) -> str:
        """The experiment's name; joined where the sweep is over several."""
        return "+".join(dict.fromkeys(cell.plan.experiment for cell in self.cells))


def compile_cells(overrides: Sequence[str], library: Library | None = None) -> Cells:
    """Every cell of a sweep, in the order in which Hydra would run them.

    Raises:
        SpecError: with every problem of every cell; of many cells with the same problem it is told once.
    """
    library = library or Library.here()
    request = split_sweep(overrides, library)
    if len(request.cells) > MAX_CELLS:
        message = f"{len(request.cells):,} cells are more than {MAX_CELLS:,}"
        raise SpecError(Problem("command line", message, "sweep over fewer values"))
    looked: Looked = {}
    cells: list[Cell] = []
    failed = _Failed(len(request.cells))
    spec: SweepSpec | None = None
    for values, composed in zip(request.values, compose_cells(request.cells, library), strict=True):
        if isinstance(composed, SpecError):
            failed.add(values, composed)
            continue
        own = composed.data.pop("sweep", None)
        spec = spec or sweep_spec(request.preset, request.settings, library, own)
        try:
            for variation, each in _variations(spec, composed, library):
                plan = resolve_data(each.data, library, each.where, looked)
                cells.append(_cell(len(cells), values, variation, composed=each, plan=plan))
        except SpecError as error:
            failed.add(values, error)
    failed.tell()
    return Cells(tuple(cells), spec or SweepSpec(), tuple(overrides), request.launch)


def _variations(spec: SweepSpec, composed: Composed, library: Library) -> list[tuple[Variation | None, Composed]]:
    if not spec.varies:
        return [(None, composed)]
    raw = composed.data.get("constitution")
    if not isinstance(raw, Mapping):
        raise SpecError(Problem("sweep", "varies the principles of an experiment without a constitution", "name one"))
    texts = load_texts(raw, "", library, composed.where)
    if texts.constitution is None:
        raise SpecError(texts.problems)
    ids = [p.id for p in texts.constitution.active]
    seed = composed.data.get("seed", 0)
    varied_cells: list[tuple[Variation | None, Composed]] = []
    for variation in variations(spec, texts.constitution, seed if isinstance(seed, int) else 0):
        constitution, override = varied(raw, variation, ids)
        data = {**composed.data, "constitution": constitution}
        more = (override,) if override else ()
        varied_cells.append((variation, Composed(data, (*composed.overrides, *more), composed.files)))
    return varied_cells


def _cell(
    number: int, values: Mapping[str, str], variation: Variation | None, *, composed: Composed, plan: Plan
) -> Cell:
    label_parts = [f"{name}={value}" for name, value in values.items()]
    label_parts += [variation.name] if variation else []
    return Cell(number, ", ".join(label_parts) or plan.experiment, composed.overrides, values, variation, plan)


class _Failed:
    """Problems of cells, each told once with the cells that have it."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.labels_by_problem: dict[Problem, list[str]] = {}

    def add(self, values: Mapping[str, str], error: SpecError) -> None:
        label = ", ".join(f"{name}={value}" for name, value in values.items())
        for problem in error.problems:
            labels = self.labels_by_problem.setdefault(problem, [])
            if label not in labels:
                labels.append(label)

    def tell(self) -> None:
        """Raises what was found, if anything."""
        if not self.labels_by_problem:
            return
        problems = []
        for problem, labels in list(self.labels_by_problem.items())[:SHOWN]:
            where = "" if len(labels) == self.total else f" (in {labels[0]}"
            where += f" and {len(labels) - 1} more)" if where and len(labels) > 1 else ")" if where else ""
            problems.append(Problem(problem.where, f"{problem.message}{where}", problem.next))
        if len(self.labels_by_problem) > SHOWN:
            problems.append(
                Problem("sweep", f"{len(self.labels_by_problem) - SHOWN} more problems", "mend these first")
            )
        raise SpecError(problems)
