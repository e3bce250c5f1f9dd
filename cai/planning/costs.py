"""What a plan costs by the prices of its models: a figure for each step, and a warning where a budget will not do.

An estimate, of tokens as every stage expects them and of answers as long as they may be; ``plan --pilot`` measures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from cai.clients.metering import ModelUse
from cai.clients.settings import ApiLimits
from cai.clients.spending import Spent
from cai.experiment.model import Experiment, ModelSpec
from cai.plan import Step, StepCost
from cai.planning.endpoints import ANSWERING
from cai.stages.base import Estimate
from cai.stages.fetch import API

NO_PRICES = "it has no `prices`"
NO_ROWS = "its rows are not known yet"


def with_costs(experiment: Experiment, steps: tuple[Step, ...], estimates: Mapping[str, Estimate]) -> tuple[Step, ...]:
    """The steps with their costs; as they are where no model has prices or a budget.

    ``estimates`` are the stages', by step. Notes tell where a model's budget is less than its steps may take.
    """
    served = {name: model for name, model in experiment.models.items() if model.source.startswith(API)}
    if not any(has_prices(model.limits) or model.limits.budget for model in served.values()):
        return steps
    budgets = _Budgets()
    return tuple(_with_cost(step, served, estimates, budgets) for step in steps)


def has_prices(limits: ApiLimits) -> bool:
    """Whether it is said what a model's tokens cost; that they are free is said too."""
    return "prices" in limits.model_fields_set


def cost_of(use: ModelUse, limits: ApiLimits) -> float:
    """What a model's use costs, in ``limits.currency``."""
    return (use.prompt_tokens * limits.prices.prompt + use.tokens * limits.prices.completion) / 1e6


def _with_cost(
    step: Step, served: Mapping[str, ModelSpec], estimates: Mapping[str, Estimate], budgets: _Budgets
) -> Step:
    models = [(entry.place, entry.step) for entry in step.inputs if entry.step in served]
    if step.kind not in ANSWERING or not models:
        return step
    amounts: dict[str, float] = {}
    unknown: dict[str, str] = {}
    notes: list[str] = []
    for role, name in models:
        limits, use = served[name].limits, estimates[step.name].use_of(role)
        if use is None or not has_prices(limits):
            unknown[name] = NO_ROWS if use is None else NO_PRICES
        elif cost := cost_of(use, limits):
            amounts[limits.currency] = amounts.get(limits.currency, 0.0) + cost
        if use is not None and (note := budgets.take(name, limits, use)):
            notes.append(note)
    rounded = {currency: float(f"{amount:.6g}") for currency, amount in amounts.items()}
    estimate = replace(step.estimate, cost=StepCost(rounded, unknown))
    return replace(step, estimate=estimate, notes=[*step.notes, *notes])


class _Budgets:
    """What the steps so far may take of each model's budget, in its unit."""

    def __init__(self) -> None:
        self._taken: dict[str, float] = {}

    def take(self, name: str, limits: ApiLimits, use: ModelUse) -> str:
        """Count one more use of a model; words where it is the one that passes the budget, else none."""
        budget = limits.budget_amount
        if budget is None:
            return ""
        before = self._taken.get(name, 0.0)
        taken = before + Spent(use.calls, use.prompt_tokens, use.tokens, cost_of(use, limits)).within(budget.unit)
        self._taken[name] = taken
        if not before <= budget.value < taken:
            return ""
        amount = f"{taken:.4g}" if budget.is_money else f"{taken:,.0f}"
        with_others = ", with the steps before it" if before else ""
        return f"may take {amount} {budget.unit} of '{name}'{with_others}: more than its budget of {budget}"
