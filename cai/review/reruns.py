"""What a change makes run again, and what that costs. Reads the store for times; starts nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cai.engines import step_commands
from cai.engines.base import Places
from cai.launchers.base import Command
from cai.plan import Plan, Step
from cai.planning.rates import with_times
from cai.review.changes import Change, listed, paired, same_key
from cai.store.artifacts import Store

_MORE = re.compile(r"(?: \((?:read by|weight|digest)|; ).*")
"""What a change's words say beyond what it is."""

COSTS = ("rows", "calls", "prompt_tokens", "tokens", "seconds", "gpu_hours")
"""What a rerun is counted in. Rows, calls and tokens are the plan's estimates."""


@dataclass(frozen=True, slots=True)
class Effect:
    """What becomes of one step: ``same``, ``rerun``, ``new`` or ``removed``; ``cause`` is the first step upstream that
    differs by itself (its own name where it does). ``stored``: the artifact of the new side is in this store."""

    name: str
    kind: str
    action: str
    why: str
    cause: str
    key: tuple[str, str]
    stored: bool
    estimate: Mapping[str, float | None]


def effects(old: Plan, new: Plan, changes: Sequence[Change], store: Store) -> tuple[Effect, ...]:
    """Every step of the new plan in its order, then those that are made no longer."""
    match = paired(old, new)
    before = {after.name: was for was, after in match.both}
    own = _own(changes)
    timed = {step.name: step for step in with_times(new, store).steps}
    gpus = _gpus(new)
    effects_by_step: dict[str, Effect] = {}
    for step in new.steps:
        was = before.get(step.name)
        same = next((s for s in old.steps if same_key(s.key, step.key)), None)
        cause, why = ("", "") if same else _why(step, new, effects_by_step, own)
        action = "same" if same else "rerun" if was else "new"
        keys_in_store = [key for key in (step.key, step.former) if len(key) == 64]
        stored = any(store.find(step.kind, key) is not None for key in keys_in_store)
        cost = _cost(timed[step.name], gpus.get(step.name, 0))
        keys = (was.key if was else same.key if same else "", step.key)
        effects_by_step[step.name] = Effect(step.name, step.kind, action, why, cause, keys, stored, cost)
    gone = (Effect(s.name, s.kind, "removed", "", "", (s.key, ""), False, dict.fromkeys(COSTS)) for s in match.gone)
    return (*effects_by_step.values(), *gone)


def _own(changes: Sequence[Change]) -> dict[str, list[str]]:
    words_by_step: dict[str, list[str]] = {}
    for change in changes:
        for step in change.steps if change.counts else ():
            words_by_step.setdefault(step, []).append(_MORE.sub("", change.words))
    return words_by_step


def _why(
    step: Step, plan: Plan, effects_by_step: Mapping[str, Effect], own: Mapping[str, list[str]]
) -> tuple[str, str]:
    if step.name in own:
        first, *more = own[step.name]
        return step.name, first + (f"; and {len(more)} more" if more else "")
    # The step's own cause is its input's cause, so the first of the plan is the first of the chain.
    order = {s.name: place for place, s in enumerate(plan.steps)}
    causes = {
        effects_by_step[name].cause for name in step.needs() if name in effects_by_step and effects_by_step[name].cause
    }
    if not causes:
        return step.name, "its ingredients are written differently"
    first_cause = min(causes, key=lambda name: order[name])
    names = sorted(causes, key=lambda name: order[name])
    return first_cause, f"{listed(names)} {'is' if len(names) == 1 else 'are'} made anew"


def _cost(step: Step, gpus: int) -> dict[str, float | None]:
    cost = step.estimate.costs()
    seconds = cost["seconds"]
    cost["gpu_hours"] = None if seconds is None and gpus else round((seconds or 0.0) * gpus / 3600, 3)
    return cost


def _gpus(plan: Plan) -> dict[str, int]:
    """GPUs that each step holds at once, where the plan's engine says so."""
    try:
        commands = step_commands(plan, Places(Path("store")))
    except (ValidationError, KeyError, TypeError, ValueError):
        return {}  # A plan of another version of the engine, or a lock: it can be compared, and not be run.
    return {name: _at_once(commands_of_step) for name, commands_of_step in commands.items()}


def _at_once(commands: Sequence[Command]) -> int:
    turns: dict[int, int] = {}
    for command in commands:
        needs = command.resources
        turns[command.turn] = turns.get(command.turn, 0) + needs.nodes * needs.gpus_per_node
    return max(turns.values(), default=0)


def totals(effects: Sequence[Effect]) -> dict[str, Any]:
    """Steps by what becomes of them, and the cost of all that runs again; ``unknown`` has the costs that some of those
    steps do not tell, of which the sum is the least."""
    run = [effect for effect in effects if effect.action in ("rerun", "new")]
    steps = {name: sum(e.action == name for e in effects) for name in ("same", "rerun", "new", "removed")}
    cost: dict[str, float] = {}
    unknown = []
    for name in COSTS:
        values = [effect.estimate[name] for effect in run]
        cost[name] = round(sum(v for v in values if v is not None), 3)
        # Of fetched models no rows are known, and nobody misses them.
        if any(v is None for e, v in zip(run, values, strict=True) if not (e.kind == "fetch" and name == "rows")):
            unknown.append(name)
    return {**steps, "stored": sum(e.stored for e in run), "cost": cost, "unknown": unknown}
