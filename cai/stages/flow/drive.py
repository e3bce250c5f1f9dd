"""Rows are driven through a model by whichever way suits its client: a pool of calls, or lists in cohorts."""

from __future__ import annotations

from itertools import chain
from typing import Any

from cai.clients.spending import BudgetSpent
from cai.stages.flow.base import Flow


def drive(flow: Flow[Any]) -> None:
    """Ask whatever is left until every row has an entry.

    Raises:
        ShardDone: when this process is a shard and its rows have theirs; not of rows beside the stage's own, which
            have a journal of another name.
        StepFailed: when too many rows are dropped already, or the model cannot be asked.
        Incomplete: when some rows got no answer, or the model's budget is used up; the next run goes on.
    """
    rows = flow.begin()
    first = next(rows, None)
    try:
        if first is not None:
            flow.check_drops()
            missing = chain([first], rows)
            if flow.ctx.flows(flow.role, flow.label):
                from cai.stages.flow.pool import run_pool

                run_pool(flow, missing)
            else:
                from cai.stages.flow.lists import run_lists

                run_lists(flow, missing)
    except BudgetSpent as error:
        left = flow.total - len(flow.journal)
        raise BudgetSpent(f"{flow.ctx.name}: {left} of {flow.total} rows are left; {error}") from error
    finally:
        flow.close_client()
    flow.end()
