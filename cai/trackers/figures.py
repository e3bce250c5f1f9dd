"""What a finished step has to tell: the accounts of its record, its curves, an evaluation's figures with intervals.

Names begin with the step's: ``rl/reward`` is a curve, ``rl/end/seconds`` a fact of its end,
``evaluate/reward/red_team/rl-cai`` a figure, with ``..._low`` and ``..._high`` for its 95 % interval.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from cai.trackers.base import CurvePoint, apart, clean, number, numbers_in

AXES = ("iteration", "step")
"""What counts along a curve. A note with one of these, and with numbers beside it, is a point."""

_DETAIL = ("reward_by_topic", "by_topic", "by_kind")
"""Parts of an evaluation that are no headline."""


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
        rows = [json.loads(line) for line in lines if line.strip()]
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
        "cost": (metrics.get("usage") or {}).get("cost"),
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
        measured = evaluation_figures(evaluation)
        if measured:
            own = [clean(f"{step}/end/{name}") for name in numbers_in(record["outcome"].get("metrics") or {})]
            figures = {name: value for name, value in figures.items() if name not in own}  # the same, without intervals
        figures |= {clean(f"{step}/{name}"): value for name, value in measured.items()}
        points += revision_points(step, evaluation, t)
    return apart(figures), points


def _evaluation(folder: Path) -> dict[str, Any]:
    try:
        evaluation = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return evaluation if isinstance(evaluation, dict) else {}


def evaluation_figures(evaluation: Mapping[str, Any]) -> dict[str, float]:
    """The figures of an ``evaluation.json``, with their intervals; parts that an older one lacks are left out."""
    figures: dict[str, float] = {}
    for name, data in _mappings(evaluation.get("sets")):
        for model, about in _mappings(data.get("models")):
            for metric, value in about.items():
                if metric not in _DETAIL:
                    figures |= _figure(f"{metric}/{name}/{model}", value)
        for pair in [*(data.get("wins") or ()), *(data.get("pairs") or ())]:
            figures |= _figure(f"wins/{name}/{pair['model']}_vs_{pair['against']}", pair)
    for axis, data in _mappings(evaluation.get("elo")):
        for model, value in (data.get("models") or {}).items():
            figures |= _figure(f"elo/{axis}/{model}", value)
    for name, models in _mappings((evaluation.get("adherence") or {}).get("sets")):
        for model, about in _mappings(models):
            for principle, value in about.items():
                figures |= _figure(f"violated/{name}/{model}/{principle}", value)
    for name, about in _mappings(evaluation.get("reward_model")):
        for metric, value in about.items():
            if metric not in _DETAIL:
                figures |= _figure(f"reward_model/{name}/{metric}", value)
    for model, value in (evaluation.get("over_refusal") or {}).items():
        figures |= _figure(f"over_refusal/{model}", value)
    return figures


def revision_points(step: str, evaluation: Mapping[str, Any], t: float) -> list[CurvePoint]:
    """Reward and share of wins by round of revision, a curve for each label."""
    points: list[CurvePoint] = []
    for label, about in _mappings(evaluation.get("revisions")):
        rounds: Sequence[Mapping[str, Any]] = about.get("rounds") or ()
        for row in sorted(rounds, key=lambda row: int(row["round"])):
            values: dict[str, float] = {}
            for metric, value in row.items():
                if metric != "round":
                    values |= _figure(metric, value)
            points.append(CurvePoint(clean(f"{step}/revisions/{label}"), "round", int(row["round"]), values, t))
    return points


def _figure(name: str, value: Any) -> dict[str, float]:
    """A figure with its interval, or a plain number; nothing where it has no value."""
    if not isinstance(value, Mapping):
        return {clean(name): figure} if (figure := number(value)) is not None else {}
    ends = {"": value.get("value"), "_low": value.get("low"), "_high": value.get("high")}
    figures = {
        clean(f"{name}{end}"): figure for end, end_value in ends.items() if (figure := number(end_value)) is not None
    }
    return figures if clean(name) in figures else {}


def _mappings(data: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The items of a mapping that are mappings themselves."""
    for name, value in (data or {}).items():
        if isinstance(value, Mapping):
            yield str(name), value
