"""A pilot: the first rows of a plan's steps that ask models behind an API, asked for real, and what all rows will cost.

It works in a folder that is thrown away. What it was answered stays in the request cache under the very calls that the
run makes, so that the run does not pay for these rows again; what it paid is in the accounts, as the plan's.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cai.clients.metering import FlowMeter, Meter, MeteredFlow
from cai.clients.settings import ApiLimits
from cai.figures.intervals import Interval, mean
from cai.plan import Plan, Step
from cai.planning.costs import NO_PRICES, cost_of, has_prices
from cai.planning.pilot import MIXING, PilotPlan, pilot_plan
from cai.run.building import Books, Site, artifact_of, build_step
from cai.run.checks import check_key_destinations, check_keys, checked_specs
from cai.run.engines import Engines, MakeEngine
from cai.run.stopping import sigterm_raises
from cai.run.watch import Watcher
from cai.stages import KINDS
from cai.stages.base import Artifact
from cai.stages.flow.base import JOURNAL
from cai.store.artifacts import Store
from cai.store.events import EventLog

CACHED = "its answers came from the request cache, which does not keep what they read"


@dataclass(frozen=True, slots=True)
class PilotFigures:
    """What one model of a step was asked in a pilot, and what all rows will cost.

    ``rows`` were tried of ``all_rows`` (None where that is not known). Tokens are those of a call, as means with 95 %
    intervals. ``cost`` is that of all rows in ``currency``, None where ``unknown`` says why.
    """

    step: str
    model: str
    rows: int
    all_rows: int | None
    calls: int
    prompt_tokens: Interval
    tokens: Interval
    cost: Interval | None = None
    currency: str = ""
    unknown: str = ""


@dataclass(frozen=True, slots=True)
class PilotResult:
    """The figures in the order of the plan, and the steps that could not be measured, with the reason."""

    figures: tuple[PilotFigures, ...]
    unmeasured: Mapping[str, str]

    def totals(self) -> dict[str, Interval]:
        """The cost of what was measured, by currency; errors of different figures are independent."""
        by_currency: dict[str, list[Interval]] = {}
        for figures in self.figures:
            if figures.cost is not None:
                by_currency.setdefault(figures.currency, []).append(figures.cost)
        return {currency: summed(costs) for currency, costs in by_currency.items()}


def run_pilot(plan: Plan, rows: int, *, store: Store, make_engine: MakeEngine, watch: Watcher) -> PilotResult:
    """Do the first ``rows`` rows of what can be done; writes nothing into ``store``, only beside it (``Books``).

    Raises:
        PrerequisiteError: when a key is missing or may not be sent where the plan sends it; nothing was asked.
        SpecError, StepFailed, Incomplete: as a run; what was answered is in the request cache.
    """
    checked_specs(plan, KINDS)
    stored = {step.name: there for step in plan.steps if (there := store.find(step.kind, step.key)) is not None}
    pilot = pilot_plan(plan, rows, stored)
    check_key_destinations(plan, pilot.measures)
    check_keys(plan, pilot.measures)
    meter = Meter()
    with tempfile.TemporaryDirectory(prefix="cai-pilot-", ignore_cleanup_errors=True) as folder:
        books = Books(store.home, {step.name: step.key for step in plan.steps}, meter)
        site = _site(pilot.plan, Path(folder), make_engine=make_engine, watch=watch, books=books)
        artifacts = {name: artifact_of(plan.step(name), there) for name, there in stored.items()}
        with closing(site.log), closing(site.engines), sigterm_raises():
            for name in pilot.builds:
                artifacts[name] = build_step(site, pilot.plan.step(name), artifacts).artifact
        figures = tuple(_figures(plan, pilot, meter, artifacts))
    return PilotResult(figures, pilot.unmeasured)


def _site(plan: Plan, folder: Path, *, make_engine: MakeEngine, watch: Watcher, books: Books) -> Site:
    specs = {step.name: KINDS[step.kind].spec.variant(step.spec).model_validate(step.spec) for step in plan.steps}
    store = Store(folder / "home")
    store.prepare()
    run_dir = folder / "run"
    run_dir.mkdir()
    log = EventLog(run_dir / "events.jsonl")
    return Site(plan, store, run_dir, KINDS, specs, watch, Engines(make_engine, plan), log, books=books)


# ---- from the first rows to all -----------------------------------------------------------------------------------


def _figures(plan: Plan, pilot: PilotPlan, meter: Meter, artifacts: Mapping[str, Artifact]) -> Iterator[PilotFigures]:
    """The flows of each step and model together."""
    sizes = _Sizes(plan, pilot, meter, artifacts)
    parts: dict[tuple[str, str], list[tuple[FlowMeter, int | None]]] = {}
    for metered, flow in meter.flows.items():
        parts.setdefault((metered.step, metered.role), []).append((flow, sizes.all_rows(metered)))
    for (name, role), flows in parts.items():
        yield _figures_of(plan.step(name), role, flows)


def _figures_of(step: Step, role: str, flows: list[tuple[FlowMeter, int | None]]) -> PilotFigures:
    limits = ApiLimits.model_validate(step.resources.get("servers", {}).get(role, {}).get("limits", {}))
    calls = [use for flow, _ in flows for use in flow.known_calls()]
    costs = [_extrapolated(flow, all_rows, limits) for flow, all_rows in flows]
    sizes = [all_rows for _, all_rows in flows]
    if not has_prices(limits):
        unknown = NO_PRICES
    elif None in sizes:
        unknown = "how many rows there will be is not known"
    else:
        unknown = CACHED if None in costs else ""
    model = next(entry.step for entry in step.inputs if entry.place == role)
    return PilotFigures(
        step.name,
        model,
        rows=sum(flow.rows for flow, _ in flows),
        all_rows=None if None in sizes else sum(size for size in sizes if size is not None),
        calls=len(calls),
        prompt_tokens=mean([use.prompt_tokens for use in calls]),
        tokens=mean([use.tokens for use in calls]),
        cost=None if unknown else summed([cost for cost in costs if cost is not None]),
        currency=limits.currency,
        unknown=unknown,
    )


def _extrapolated(flow: FlowMeter, all_rows: int | None, limits: ApiLimits) -> Interval | None:
    """What all rows of a flow cost: those that were tried, and the others as these were in the mean."""
    costs = [math.fsum(cost_of(use, limits) for use in uses) for uses in flow.known_rows()]
    if all_rows is None or (not costs and flow.rows):
        return None
    spent, others = math.fsum(costs), max(all_rows - len(costs), 0)
    each = mean(costs)
    if not others:
        return Interval(spent, spent, spent, len(costs))
    low, high = (None if bound is None else spent + others * bound for bound in (each.low, each.high))
    return Interval(spent + others * (each.value or 0.0), low, high, len(costs))


def summed(figures: list[Interval]) -> Interval:
    """The sum of independent figures; without an interval where one has none."""
    value = math.fsum(figure.value or 0.0 for figure in figures)
    n = sum(figure.n for figure in figures)
    below = [(figure.value or 0.0) - figure.low for figure in figures if figure.low is not None]
    above = [figure.high - (figure.value or 0.0) for figure in figures if figure.high is not None]
    if len(below) < len(figures) or len(above) < len(figures):
        return Interval(value, None, None, n)
    return Interval(value, value - math.hypot(*below), value + math.hypot(*above), n)


class _Sizes:
    """How many rows a run will have, where the pilot had some of them."""

    def __init__(self, plan: Plan, pilot: PilotPlan, meter: Meter, artifacts: Mapping[str, Artifact]) -> None:
        self._plan = plan
        self._limited = frozenset(pilot.measures)
        self._meter = meter
        self._steps = {artifact.path: name for name, artifact in artifacts.items()}
        self._mixed = frozenset(name for name in pilot.builds if plan.step(name).kind in MIXING)

    def all_rows(self, metered: MeteredFlow) -> int | None:
        """The rows of a flow in a run: those of its input, up to the limit that the plan has."""
        name = self._steps[metered.source.parent]
        if name in self._limited:
            rows = self._rows_made(name, _lines(metered.source))
        else:
            rows = self._plan.step(name).estimate.rows if name in self._mixed else _lines(metered.source)
        limit = _limit(self._plan.step(metered.step).spec, metered)
        return rows if rows is None or limit is None else min(rows, limit)

    def _rows_made(self, name: str, made: int) -> int | None:
        """What a step makes of all its rows, when it made so many of those that it was given."""
        own = next(((m, f) for m, f in self._meter.flows.items() if m.step == name and m.journal == JOURNAL), None)
        all_rows = self.all_rows(own[0]) if own is not None else None
        if own is None or all_rows is None:
            return None
        return round(made / own[1].rows * all_rows) if own[1].rows else 0


def _limit(spec: Mapping[str, Any], metered: MeteredFlow) -> int | None:
    if metered.role == "adherence":
        return min((n for n in (spec.get("limit"), spec.get("adherence_limit")) if n is not None), default=None)
    limit: int | None = spec.get("labelled_limit" if metered.journal == "labelled" else "limit")
    return limit


def _lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for _ in file)
