"""How long a step will take: from what steps of its kind took here before, else from rough rates of a small model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from statistics import median
from typing import Any

from cai.plan import Plan, Step
from cai.store import Store, read_record

RECENT = 5
_PER_SECOND = {
    # kind: (tokens written, tokens read) per second, for 135M parameters on two processor cores
    "respond": (500.0, 4000.0),
    "revise": (500.0, 4000.0),
    "sample": (500.0, 4000.0),
    "evaluate": (500.0, 4000.0),
    "judge": (500.0, 4000.0),
    "sft": (800.0, 4000.0),
    "reward": (1200.0, 4000.0),
    "rl": (130.0, 4000.0),
}
_FIXED = {"fetch": 25.0, "read": 0.05, "mix": 1.0, "snapshot": 1.0}
_START = 2.0  # Seconds to load a model.


def with_times(plan: Plan, store: Store) -> Plan:
    """The plan with ``seconds`` in every estimate that can be told; for showing, never for running."""
    measured = _measured(store, {step.kind for step in plan.steps}, str(plan.engine["kind"]))
    guess = plan.engine["kind"] == "embedded"
    return replace(plan, steps=tuple(_timed(step, measured.get(step.kind, []), guess) for step in plan.steps))


def _timed(step: Step, records: list[Mapping[str, Any]], guess: bool) -> Step:
    seconds = _seconds(step, records) if guess or records or step.kind in ("read", "mix") else None
    return step if seconds is None else replace(step, estimate={**step.estimate, "seconds": round(seconds, 2)})


def _seconds(step: Step, records: list[Mapping[str, Any]]) -> float | None:
    rows = step.estimate.get("rows")
    if step.kind in _FIXED:
        return float(median(float(r["seconds"]) for r in records)) if records else _FIXED[step.kind]
    per_row = [r["seconds"] / r["outcome"]["ledger"]["rows_in"] for r in records if r["outcome"]["ledger"]["rows_in"]]
    if per_row and rows:
        return float(median(per_row)) * float(rows)
    written, read = _PER_SECOND.get(step.kind, (0.0, 0.0))
    if rows is None or not written:
        return None
    return float(_START + step.estimate["tokens"] / written + step.estimate["prompt_tokens"] / read)


def _measured(store: Store, kinds: set[str], engine: str) -> dict[str, list[Mapping[str, Any]]]:
    """Recent records by kind of step; what another engine took tells nothing."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for kind in kinds:
        records = sorted(store.root.glob(f"{kind}-*.json"), key=lambda p: p.stat().st_mtime, reverse=True)
        kept: list[Mapping[str, Any]] = []
        for path in records[:RECENT]:
            try:
                record = read_record(path)
                made_by = record["ingredients"].get("engine", {}).get("kind", engine)
                if made_by == engine and (
                    kind != "fetch" or ("format" in record["ingredients"]) == (engine != "embedded")
                ):
                    kept.append(record)
            except (OSError, ValueError):
                continue  # A record that cannot be read tells no time; `store verify` reports it.
        found[kind] = kept
    return found
