"""What a finished step has to tell: the accounts of its record, its curves, an evaluation's figures with intervals.

Names begin with the step's: ``rl/reward`` is a curve, ``rl/end/seconds`` a fact of its end,
``evaluate/reward/red_team/rl-cai`` a figure, with ``..._low`` and ``..._high`` for its 95 % interval.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any

from cai.errors import SpecError
from cai.figures.evaluation import EVALUATION, Evaluation, ModelFigures, RewardModelFigures, read_evaluation
from cai.figures.intervals import Interval
from cai.figures.usage import FlowUsage
from cai.identity import parse_json
from cai.trackers.base import CurvePoint, apart, clean, number, numbers_in

AXES = ("iteration", "step")
"""What counts along a curve. A note with one of these, and with numbers beside it, is a point."""


def point_of(prefix: str, data: Mapping[str, Any], t: float) -> CurvePoint | None:
    """A note of a stage, or a line of metrics.jsonl, as a point; None where it is none."""
    axis = next((name for name in AXES if type(data.get(name)) is int), None)
    if axis is None:
        return None
    rest = {key: value for key, value in data.items() if key not in (axis, f"{axis}s")}
    values = numbers_in(rest)
    return CurvePoint(clean(prefix), axis, int(data[axis]), values, t) if values else None


def curve(step: str, folder: Path, t: float) -> list[CurvePoint]:
    """The points of an artifact's ``metrics.jsonl``; none where it has no such file, or one that is not read."""
    try:
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [parse_json(line) for line in lines if line.strip()]
    except (OSError, ValueError):
        return []
    parsed_points = [point_of(step, row, t) for row in rows if isinstance(row, dict)]
    points = [point for point in parsed_points if point is not None]
    return points if all(a.position < b.position for a, b in pairwise(points)) else []


def accounts(record: Mapping[str, Any]) -> dict[str, float]:
    """Time, rows, calls, tokens, cost, and every number that the step's work told."""
    outcome = record.get("outcome") or {}
    ledger, metrics = outcome.get("ledger") or {}, outcome.get("metrics") or {}
    dropped = numbers_in(ledger.get("dropped") or {})
    figures = numbers_in(metrics) | {f"dropped/{reason}": count for reason, count in dropped.items()}
    accounting = {
        "seconds": record.get("seconds"),
        "rows_in": ledger.get("rows_in"),
        "rows_out": ledger.get("rows_out"),
        "rows_dropped": sum(dropped.values()),
        "calls": outcome.get("calls") or None,
        "tokens": outcome.get("tokens") or None,
        "cost": FlowUsage.from_metrics(metrics).cost,
    }
    return figures | {name: figure for name, value in accounting.items() if (figure := number(value)) is not None}


def step_end(
    step: str, kind: str, *, folder: Path, record: Mapping[str, Any], t: float
) -> tuple[dict[str, float], list[CurvePoint]]:
    """Everything that a step's artifact tells: figures by whole name, and curves."""
    figures = {clean(f"{step}/end/{name}"): value for name, value in accounts(record).items()}
    points = curve(step, folder, t)
    if kind == "evaluate":
        evaluation = _evaluation(folder)
        measured = evaluation_figures(evaluation) if evaluation is not None else {}
        if measured:
            own = [clean(f"{step}/end/{name}") for name in numbers_in(record["outcome"].get("metrics") or {})]
            figures = {name: value for name, value in figures.items() if name not in own}  # the same, without intervals
        figures |= {clean(f"{step}/{name}"): value for name, value in measured.items()}
        points += revision_points(step, evaluation, t) if evaluation is not None else []
    return apart(figures), points


def _evaluation(folder: Path) -> Evaluation | None:
    """None where it cannot be read: that is said where a person asks for it, and stops no tracker."""
    try:
        return read_evaluation(folder / EVALUATION)
    except SpecError:
        return None


def evaluation_figures(evaluation: Evaluation) -> dict[str, float]:
    """The figures of an evaluation, with their intervals; parts that an older one lacks are left out."""
    figures: dict[str, float] = {}
    for name, prompt_set in evaluation.sets.items():
        for model, measured in prompt_set.models.items():
            for metric, value in _headlines(measured):
                figures |= _figure(f"{metric}/{name}/{model}", value)
        for win in (*prompt_set.wins, *prompt_set.pairs):
            figures |= _figure(f"wins/{name}/{win.model}_vs_{win.against}", win.share)
    for axis, rated in evaluation.elo.items():
        for model, rating in rated.models.items():
            figures |= _figure(f"elo/{axis}/{model}", rating)
    for name, by_model in evaluation.adherence.sets.items() if evaluation.adherence else ():
        for model, by_principle in by_model.items():
            for principle, violated in by_principle.items():
                figures |= _figure(f"violated/{name}/{model}/{principle}", violated)
    for name, pairs in evaluation.reward_model.items():
        for metric, value in _headlines(pairs):
            figures |= _figure(f"reward_model/{name}/{metric}", value)
    for model, refused in evaluation.over_refusal.items():
        figures |= _figure(f"over_refusal/{model}", refused)
    return figures


def revision_points(step: str, evaluation: Evaluation, t: float) -> list[CurvePoint]:
    """Reward and share of wins by round of revision, a curve for each label."""
    points: list[CurvePoint] = []
    for label, revised in evaluation.revisions.items():
        for turn in sorted(revised.rounds, key=lambda turn: turn.round):
            values = _figure("reward", turn.reward) | _figure("change", turn.change)
            values |= _figure("wins", turn.share_won)
            points.append(CurvePoint(clean(f"{step}/revisions/{label}"), "round", turn.round, values, t))
    return points


def _headlines(figures: ModelFigures | RewardModelFigures) -> Iterator[tuple[str, Interval | float | None]]:
    """Every figure by its name in the file; by topic or by kind is no headline."""
    for figure in fields(figures):
        value = getattr(figures, figure.name)
        if not isinstance(value, Mapping):
            yield figure.name, value


def _figure(name: str, value: Interval | float | None) -> dict[str, float]:
    """A figure with its interval, or a plain number; nothing where it has no value."""
    if not isinstance(value, Interval):
        return {clean(name): figure} if (figure := number(value)) is not None else {}
    ends = {"": value.value, "_low": value.low, "_high": value.high}
    figures = {
        clean(f"{name}{end}"): figure for end, end_value in ends.items() if (figure := number(end_value)) is not None
    }
    return figures if clean(name) in figures else {}
