"""Money as a plan shows it: a cell for each step, a total by currency, and what is not known of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def total_cost(steps: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The sum over steps as ``plan_data`` has them: ``{amounts: {currency: amount}, unknown: [step]}``."""
    amounts: dict[str, float] = {}
    unknown: list[str] = []
    for step in steps:
        cost = step.get("cost") or {"amounts": {}, "unknown": {}}
        for currency, amount in cost["amounts"].items():
            amounts[currency] = amounts.get(currency, 0.0) + amount
        unknown += [step["name"]] * bool(cost["unknown"])
    return {"amounts": {currency: float(f"{amount:.6g}") for currency, amount in amounts.items()}, "unknown": unknown}


def money(amounts: Mapping[str, float]) -> str:
    """``12.3 USD``, ``0.021 USD + 4 EUR``; ``0`` where nothing is paid."""
    return " + ".join(f"{amount_text(amount)} {currency}" for currency, amount in amounts.items()) or "0"


def amount_text(amount: float) -> str:
    """An amount with three digits, or to the cent: ``1,234.50``, ``12.30``, ``0.0213``."""
    return f"{amount:,.2f}" if amount >= 1 else f"{amount:.3g}"


def cost_cell(step: Mapping[str, Any]) -> str:
    """A step's cost in a table; ``?`` is what is not known, nothing stands where no model behind an API is asked."""
    cost = step.get("cost")
    if cost is None:
        return ""
    if not cost["unknown"]:
        return money(cost["amounts"])
    return f"{money(cost['amounts'])} + ?" if cost["amounts"] else "?"


def cost_notes(step: Mapping[str, Any]) -> list[str]:
    """Why a step's cost is not known."""
    if step["action"] == "reuse" or not step.get("cost"):
        return []
    return [f"cost of '{model}' not known: {reason}" for model, reason in step["cost"]["unknown"].items()]


def cost_words(totals: Mapping[str, Any]) -> str:
    """The total as the end of a line that begins otherwise: ``, about 3 USD if nothing is cached``."""
    cost = totals.get("cost")
    if cost is None:
        return ""
    lacking = cost["unknown"]
    if lacking and not cost["amounts"]:
        return ", cost ?"
    more = f" and {len(lacking) - 4} more" if len(lacking) > 4 else ""
    without = f" (not known of {', '.join(lacking[:4])}{more})" if lacking else ""
    return f", {'at least' if lacking else 'about'} {money(cost['amounts'])} if nothing is cached{without}"
