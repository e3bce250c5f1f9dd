"""Every row accounted for, and what was asked of models: the tables of the run's summary, for any number of runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from cai.report.model import Block, Section, Table, Text
from cai.report.runs import Run, of
from cai.terminal.accounts import ledger_rows, usage_rows


def ledgers(runs: Sequence[Run]) -> Section:
    """A ledger for each run, of the steps that are there."""
    blocks: list[Block] = []
    for run in runs:
        plan = replace(run.plan, steps=tuple(s for s in run.plan.steps if s.name in run.artifacts))
        head, *rows = ledger_rows(plan, run.artifacts)
        if rows:
            caption = of(run, runs, "rows in = rows out + rows dropped")
            blocks.append(Table(caption, head, tuple(rows), "lrrrl"))
        head, *rows = usage_rows(plan, run.artifacts)
        if rows:
            caption = of(run, runs, "what was asked of models (of a reused stage: when it was made)")
            blocks.append(Table(caption, head, tuple(rows)))
    if not blocks:
        blocks.append(Text(("No stage of these runs has a ledger yet.",), "missing"))
    return Section("ledger", "Every row accounted for", tuple(blocks), "Ledger")
