"""The sweep's plan: which steps cells share, what is there already, and what sharing saves. Looks; starts nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cai.engines import gpu_times
from cai.engines.base import GpuTime
from cai.plan import Plan, Step
from cai.planning.rates import with_times
from cai.run.status import Action, statuses_since
from cai.store.artifacts import Store
from cai.sweep.cells import Cells
from cai.terminal.plan_view import Format, escape_markdown, short
from cai.text import count, duration, json_text, one_line

COSTS = ("calls", "prompt_tokens", "tokens", "seconds")
SHOWN = 40
"""Cells that the terminal and Markdown list; JSON has all."""


@dataclass(frozen=True, slots=True)
class StepLine:
    """The steps of one name over all cells.

    ``different`` are different keys among ``cells``; ``at_work`` those that would run. Costs are of those that would
    run, ``saved`` what the same steps would cost in addition if every cell ran by itself. None where it is not known.
    """

    name: str
    kind: str
    cells: int
    different: int
    stored: int
    at_work: int
    cost: Mapping[str, float | None]
    saved: Mapping[str, float | None]


@dataclass(frozen=True)
class SweepPlan:
    """What a sweep would do: a line for each step name, in the order of the first cell that has it."""

    cells: Cells
    lines: tuple[StepLine, ...]
    to_run: Mapping[int, int]

    @property
    def steps(self) -> int:
        """Steps of all cells, counted as if each ran by itself."""
        return sum(line.cells for line in self.lines)

    def total(self, field: str, of: str = "cost") -> float | None:
        """A cost over all steps; None where one of those at work is not known."""
        values = [getattr(line, of)[field] for line in self.lines if line.at_work or of == "saved"]
        return None if None in values else sum(values)


def sweep_plan(cells: Cells, store: Store) -> SweepPlan:
    """Look every different step up in the store, once.

    Raises:
        PrerequisiteError: when the store cannot be read.
    """
    timed: dict[str, Step] = {}
    at_work: dict[str, bool] = {}
    times = _gpu_times(cells)
    for plan in _merged(cells):
        plan = with_times(plan, store, times)
        timed |= {step.key: step for step in plan.steps}
        at_work |= {status.step.key: status.action is not Action.REUSE for status in statuses_since(None, plan, store)}
    by_name: dict[str, list[Step]] = {}
    for cell in cells.cells:
        for step in cell.plan.steps:
            by_name.setdefault(step.name, []).append(timed[step.key])
    to_run = {c.number: sum(at_work[key] for key in {step.key for step in c.plan.steps}) for c in cells.cells}
    return SweepPlan(cells, tuple(_line(name, steps, at_work) for name, steps in by_name.items()), to_run)


def _gpu_times(cells: Cells) -> dict[str, GpuTime]:
    """What every different step takes of GPUs, by key: estimated in a plan that has it, for its inputs' sake."""
    by_key: dict[str, GpuTime] = {}
    for cell in cells.cells:
        if any(step.key not in by_key for step in cell.plan.steps):
            times = gpu_times(cell.plan).steps
            by_key |= {step.key: times[step.name] for step in cell.plan.steps if step.name in times}
    return by_key


def _merged(cells: Cells) -> list[Plan]:
    """One plan for each kind of engine with every different step of its cells, so that each is looked at once."""
    merged: dict[str, tuple[Plan, dict[str, Step]]] = {}
    for cell in cells.cells:
        kinds = " ".join([str(cell.plan.engine["kind"]), *sorted(cell.plan.engines)])
        _, steps = merged.setdefault(kinds, (cell.plan, {}))
        for step in cell.plan.steps:
            steps.setdefault(step.key, step)
    return [replace(plan, steps=tuple(steps.values())) for plan, steps in merged.values()]


def _line(name: str, steps: Sequence[Step], at_work: Mapping[str, bool]) -> StepLine:
    different = {step.key: step for step in steps}
    running = [step for step in different.values() if at_work[step.key]]
    again = [step for step in steps if at_work[step.key]]
    cost = {field: _sum(running, field) for field in COSTS}
    alone = {field: _sum(again, field) for field in COSTS}
    saved = {f: None if (a := alone[f]) is None or (c := cost[f]) is None else a - c for f in COSTS}
    stored = len(different) - len(running)
    return StepLine(name, steps[0].kind, len(steps), len(different), stored, len(running), cost, saved)


def _sum(steps: Sequence[Step], field: str) -> float | None:
    return _add(step.estimate.costs()[field] for step in steps)


def sweep_data(plan: SweepPlan) -> dict[str, Any]:
    """The sweep's plan as plain data; its keys are stable."""
    return {
        "format": 1,
        "experiment": plan.cells.name,
        "overrides": list(plan.cells.command),
        "sweep": plan.cells.spec.model_dump(mode="json"),
        "cells": [
            {
                "number": cell.number,
                "label": cell.label,
                "overrides": list(cell.overrides),
                "values": dict(cell.values),
                "principles": list(cell.principles),
                "to_run": plan.to_run[cell.number],
                "steps": {step.name: step.key for step in cell.plan.steps},
            }
            for cell in plan.cells.cells
        ],
        "steps": [
            {
                "name": line.name,
                "kind": line.kind,
                "cells": line.cells,
                "different": line.different,
                "stored": line.stored,
                "to_run": line.at_work,
                "cost": dict(line.cost),
                "saved": dict(line.saved),
            }
            for line in plan.lines
        ],
        "totals": {
            "steps": plan.steps,
            "different": sum(line.different for line in plan.lines),
            "to_run": sum(line.at_work for line in plan.lines),
            "cost": {field: plan.total(field) for field in COSTS},
            "saved": {field: plan.total(field, "saved") for field in COSTS},
        },
    }


def render_sweep_plan(plan: SweepPlan, format: Format = "text") -> str | RenderableType:
    """The sweep's plan for the terminal, as Markdown or as JSON."""
    if format == "json":
        return json_text(sweep_data(plan), indent=1) + "\n"
    if format == "md":
        return "\n".join(_markdown(plan)) + "\n"
    return Group(*_terminal(plan))


_HEAD = ("step", "different", "in store", "to run", "calls", "saved", "time")


def _rows(plan: SweepPlan) -> Iterator[tuple[str, ...]]:
    """Steps that only read what is there are told together: they cost next to nothing and are many."""
    reads = [line for line in plan.lines if line.kind in ("read", "fetch")]
    if reads:
        cells, cost = sum(line.cells for line in reads), {f: _add(line.cost[f] for line in reads) for f in COSTS}
        different, stored = sum(line.different for line in reads), sum(line.stored for line in reads)
        nothing = dict.fromkeys(COSTS, 0.0)
        yield _row(StepLine("data and models", "", cells, different, stored, different - stored, cost, nothing))
    for line in plan.lines:
        if line.kind not in ("read", "fetch"):
            yield _row(line)


def _row(line: StepLine) -> tuple[str, ...]:
    calls, saved = line.cost["calls"], line.saved["calls"]
    return (
        one_line(line.name if line.kind in ("", line.name) else f"{line.name} ({line.kind})", 40),
        f"{count(line.different)} of {count(line.cells)}",
        count(line.stored) if line.stored else "-",
        count(line.at_work) if line.at_work else "-",
        count(calls) if calls or calls is None else "-",
        count(saved) if saved or saved is None else "-",
        _time(line.cost["seconds"]) if line.at_work else "-",
    )


def _add(values: Iterable[float | None]) -> float | None:
    terms = list(values)
    return None if None in terms else sum(v for v in terms if v is not None)


def _time(seconds: float | None) -> str:
    return "?" if seconds is None else duration(seconds)


def _totals(plan: SweepPlan) -> list[str]:
    different, running = sum(line.different for line in plan.lines), sum(line.at_work for line in plan.lines)
    lines = [
        f"{len(plan.cells.cells)} cells, {count(plan.steps)} steps, {count(different)} of them different; "
        + (f"{count(running)} to run" if running else "all in the store, nothing to do")
    ]
    if running:
        cost = {field: plan.total(field) for field in COSTS}
        saved = {field: plan.total(field, "saved") for field in COSTS}
        lines.append(
            f"about {count(cost['calls'])} calls, {_short(cost['tokens'])} tokens written, "
            f"time {_time(cost['seconds'])}"
        )
        lines.append(
            f"sharing saves about {count(saved['calls'])} calls, {_short(saved['tokens'])} tokens written, "
            f"time {_time(saved['seconds'])}"
        )
        lines.append("answers that cells have in common are asked once on top of that (the request cache)")
    return lines


def _short(number: float | None) -> str:
    return short(None if number is None else round(number))


def _title(plan: SweepPlan) -> str:
    spec = plan.cells.spec
    how = f" ({spec.preset.replace('_', ' ')})" if spec.preset else " (sets of principles)" if spec.sets else ""
    return f"Sweep of {plan.cells.name}{how}: {len(plan.cells.cells)} cells"


def _terminal(plan: SweepPlan) -> Iterator[RenderableType]:
    yield Text(one_line(_title(plan)), style="bold")
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for number, head in enumerate(_HEAD):
        table.add_column(head, justify="left" if number < 1 else "right", no_wrap=True)
    for row in _rows(plan):
        table.add_row(*map(Text, row))
    yield table
    yield Text()
    for cell in plan.cells.cells[:SHOWN]:
        to_run = plan.to_run[cell.number]
        progress = f"{to_run} of {len(cell.plan.steps)} steps to run" if to_run else "all in the store"
        yield Text(f"cell {cell.number:>3}  {one_line(cell.label, 200)}: {progress}", overflow="fold")
    if len(plan.cells.cells) > SHOWN:
        yield Text(f"... and {len(plan.cells.cells) - SHOWN} more")
    yield Text()
    for line in _totals(plan):
        yield Text(line, style="bold")


def _markdown(plan: SweepPlan) -> Iterator[str]:
    yield f"### {escape_markdown(_title(plan))}"
    yield ""
    yield f"| {' | '.join(_HEAD)} |"
    yield "|---|---:|---:|---:|---:|---:|---:|"
    for row in _rows(plan):
        yield f"| {' | '.join(map(escape_markdown, row))} |"
    yield ""
    yield from (f"{line}.  " for line in _totals(plan))
    yield ""
    yield f"<details><summary>{len(plan.cells.cells)} cells</summary>"
    yield ""
    for cell in plan.cells.cells[:500]:
        to_run = plan.to_run[cell.number]
        yield f"{cell.number}. {escape_markdown(cell.label)}: {to_run} of {len(cell.plan.steps)} steps to run"
    yield ""
    yield "</details>"
