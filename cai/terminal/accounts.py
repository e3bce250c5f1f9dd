"""What a finished run accounts for: every row of every stage, what it cost, and how its judges judged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from cai.figures.judge_report import JUDGE_REPORT, read_judge_report
from cai.figures.usage import FlowUsage
from cai.plan import Plan

Rows = tuple[tuple[str, ...], ...]

PLANNED = ("other_part", "over_limit", "not chosen")
"""Reasons that the experiment itself asks for: told with the others, but no cause for concern."""


class FinishedArtifact(Protocol):
    """The part of an artifact that is read here (``cai.stages.base.Artifact`` has it)."""

    @property
    def makes(self) -> str:
        """What kind it is."""
        ...

    @property
    def path(self) -> Path:
        """Its folder."""
        ...

    @property
    def record(self) -> Mapping[str, Any]:
        """Its record in the store."""
        ...


def ledger_rows(plan: Plan, artifacts: Mapping[str, FinishedArtifact]) -> Rows:
    """Rows in = rows out + dropped, a line for each stage and for each data part that lost rows; head first."""
    lines: list[tuple[str, ...]] = [("stage", "in", "out", "dropped", "why")]
    for step in plan.steps:
        ledger = artifacts[step.name].record.get("outcome", {}).get("ledger", {})
        rows_in, dropped = ledger.get("rows_in", 0), ledger.get("dropped", {})
        odd = {reason: count for reason, count in dropped.items() if reason not in PLANNED}
        if not rows_in or (step.kind == "read" and not odd):
            continue
        reasons = sorted(dropped.items(), key=lambda item: (-item[1], item[0]))
        why = ", ".join(f"{reason} {count:,}" for reason, count in reasons[:4])
        why += f", and {len(reasons) - 4} more" if len(reasons) > 4 else ""
        numbers = (rows_in, ledger.get("rows_out", 0), sum(dropped.values()))
        lines.append((step.name, *(f"{number:,}" for number in numbers), why or "-"))
    return tuple(lines)


def usage_rows(plan: Plan, artifacts: Mapping[str, FinishedArtifact]) -> Rows:
    """What was asked of models, a line for each stage that asked; head first. Of reused stages: when they were made."""
    lines: list[tuple[str, ...]] = [("stage", "asked", "from the cache", "tried again", "cost")]
    for step in plan.steps:
        usage = FlowUsage.from_metrics(artifacts[step.name].record.get("outcome", {}).get("metrics", {}))
        if usage != FlowUsage():
            again = sum(usage.tried_again.values())
            cost = "-" if usage.cost is None else f"{usage.cost:.4g}"
            cached = f"{usage.from_cache:,}"
            lines.append((step.name, f"{usage.calls:,}", cached, f"{again:,}" if again else "-", cost))
    return tuple(lines)


def judge_tables(plan: Plan, artifacts: Mapping[str, FinishedArtifact]) -> Iterator[tuple[str, Rows]]:
    """The figures of every judge's report: the step's name, and figure, value and meaning; head first.

    Raises:
        SpecError: when a report cannot be read.
    """
    from cai.stages.judge.report import summary_rows

    for step in plan.steps:
        path = artifacts[step.name].path / JUDGE_REPORT
        if step.kind == "judge" and path.is_file():
            yield step.name, (("figure", "value", "what it means"), *summary_rows(read_judge_report(path)))
