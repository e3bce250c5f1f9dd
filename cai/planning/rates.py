"""How long a step will take: from what steps of its kind took here before, else estimated.

The embedded engine is estimated by rough rates of a small model, an engine that knows its GPUs by their peaks
(``EngineKind.times``). What was measured wins.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from statistics import median
from typing import Any

from cai.engines import ENGINES, gpu_times
from cai.engines.base import GpuTime
from cai.engines.methods import METHODS
from cai.launchers.settings import is_local
from cai.plan import Ingredients, Plan, Step, StepGpuTime
from cai.store.artifacts import Store, read_record

RECENT = 5
_PER_SECOND = {
    # kind: (tokens written, tokens read) per second, for 135M parameters on two processor cores
    "respond": (500.0, 4000.0),
    "revise": (500.0, 4000.0),
    "sample": (500.0, 4000.0),
    "evaluate": (500.0, 4000.0),
    "judge": (500.0, 4000.0),
    "grade": (500.0, 4000.0),
    **{method.stage: method.tokens_per_second for method in METHODS.values()},
}
_FIXED = {"fetch": 25.0, "read": 0.05, "mix": 1.0, "decontaminate": 1.0, "snapshot": 1.0}
_START = 2.0  # Seconds to load a model.


def with_times(plan: Plan, store: Store, times: Mapping[str, GpuTime] | None = None) -> Plan:
    """The plan with ``seconds`` in every estimate that can be told; for showing, never for running.

    Steps that need GPUs have ``gpu_hours`` (GPUs held x hours) too, and in ``gpu_time`` what that was taken from;
    ``engine.uses.gpu_time`` has the rates and the formula. ``times``, by key, are known already where steps of several
    plans are put together, whose names are not their own.
    """
    engine = plan.engine
    if times is None:
        estimates = gpu_times(plan)
        times = {step.key: estimates.steps[step.name] for step in plan.steps if step.name in estimates.steps}
        if estimates.assumptions:
            engine = {**engine, "uses": {**engine.get("uses", {}), "gpu_time": dict(estimates.assumptions)}}
    nodes = not is_local(plan.engine)
    records: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    timed: list[Step] = []
    for step in plan.steps:
        maker = str(plan.engine_of(step)["kind"])
        if (step.kind, maker) not in records:
            records[step.kind, maker] = _recent_records(store, step.kind, maker)
        guess = maker == "embedded"
        timed.append(_timed(step, records[step.kind, maker], guess=guess, gpus=times.get(step.key), nodes=nodes))
    return replace(plan, engine=engine, steps=tuple(timed))


def _timed(step: Step, records: list[Mapping[str, Any]], *, guess: bool, gpus: GpuTime | None, nodes: bool) -> Step:
    measured = _measured_seconds(step, records)
    expected = _guessed_seconds(step, guess) if gpus is None else gpus.seconds
    seconds = expected if measured is None else measured
    estimate = step.estimate if seconds is None else replace(step.estimate, seconds=round(seconds, 2))
    if gpus is None:
        return replace(step, estimate=estimate)
    hours = None if seconds is None else seconds / 3600
    gpu_time = StepGpuTime(
        basis="" if seconds is None else "estimate" if measured is None else "measured",
        gpus=gpus.gpus,
        nodes=gpus.nodes,
        node_hours=round(hours * gpus.nodes, 3) if hours is not None and nodes else None,
        unknown=gpus.unknown if seconds is None else "",
    )
    if gpu_time.basis == "estimate":
        parts = {name: round(part, 2) for name, part in gpus.parts.items()}
        gpu_time = replace(gpu_time, parts=parts, assumes=gpus.assumes)
    gpu_hours = None if hours is None else round(hours * gpus.gpus, 3)
    return replace(step, estimate=replace(estimate, gpu_hours=gpu_hours, gpu_time=gpu_time))


def _measured_seconds(step: Step, records: list[Mapping[str, Any]]) -> float | None:
    """From what steps of this kind took here, by row; None where there were none, or how many rows come is unknown."""
    if step.kind in _FIXED:
        return float(median(float(r["seconds"]) for r in records)) if records else None
    rows = step.estimate.rows
    counted = [(r["seconds"], r["outcome"].get("ledger", {}).get("rows_in")) for r in records]
    per_row = [seconds / rows_in for seconds, rows_in in counted if rows_in]
    return float(median(per_row)) * float(rows) if per_row and rows else None


def _guessed_seconds(step: Step, embedded: bool) -> float | None:
    """From rough rates of a small model; of other engines only what no model is needed for."""
    if step.kind == "fetch" and str(step.spec.get("source", "")).startswith("api:"):
        return _FIXED["read"]  # its address is written down
    if step.kind in _FIXED:
        return _FIXED[step.kind] if embedded or step.kind in ("read", "mix", "decontaminate") else None
    write_rate, read_rate = _PER_SECOND.get(step.kind, (0.0, 0.0))
    written, read = step.estimate.tokens, step.estimate.prompt_tokens
    if not embedded or step.estimate.rows is None or written is None or read is None or not write_rate:
        return None
    return _START + written / write_rate + read / read_rate


def _recent_records(store: Store, kind: str, engine: str) -> list[Mapping[str, Any]]:
    """Recent records of a kind of step; what another engine took tells nothing."""
    converts = engine in ENGINES and bool(ENGINES[engine].model_format)
    paths = sorted(store.root.glob(f"{kind}-*.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    records: list[Mapping[str, Any]] = []
    for path in paths[:RECENT]:
        try:
            record = read_record(path)
            ingredients = Ingredients.from_json(record.get("ingredients", {}))
            maker = (ingredients.engine or {}).get("kind", engine)
            if (
                "seconds" in record
                and maker == engine
                and (kind != "fetch" or (ingredients.format is not None) == converts)
            ):
                records.append(record)
        except (OSError, ValueError):
            continue  # A record that cannot be read tells no time; `store verify` reports it.
    return records
