"""Why a step runs again: what differs between two sets of ingredients, in words. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from cai.identity import canonical
from cai.plan import Ingredients, Plan, Step

_DIGEST = re.compile(r"[0-9a-f]{16,}")
_SHOWN = 32


def diff_ingredients(old: Ingredients, new: Ingredients) -> list[str]:
    """What changed, each with its path: ``spec.epochs: 1 -> 2``, ``principles[3] (privacy).critique changed``.

    List items that have an ``id`` are matched by it; the number is the item's place in the new list (in the old one
    where it was removed). Long texts and digests are said to have changed, short values are shown.
    """
    return list(_mapping("", old.to_json(), new.to_json()))


def step_changes(old: Step, new: Step) -> list[str]:
    """Why ``new`` is not ``old``: ``input data (mix) changes`` for inputs, else as ``diff_ingredients``."""
    before, after = old.ingredients.inputs or {}, new.ingredients.inputs or {}
    changes = diff_ingredients(replace(old.ingredients, inputs=None), replace(new.ingredients, inputs=None))
    for role in dict.fromkeys((*after, *before)):
        if role not in before:
            changes.append(f"input {role} added")
        elif role not in after:
            changes.append(f"input {role} removed")
        elif canonical(before[role]) != canonical(after[role]):
            changes.append(
                f"input {role} ({', '.join(_changed_sources(new, role, before[role], after[role]))}) changes"
            )
    return changes


def plan_changes(old: Plan, new: Plan) -> dict[str, list[str]]:
    """For each step of either plan, in the new plan's order, what changed; unchanged steps are left out."""
    before, after = {s.name: s for s in old.steps}, {s.name: s for s in new.steps}
    changes_by_step: dict[str, list[str]] = {}
    for name, step in after.items():
        if name not in before:
            changes_by_step[name] = ["new step"]
        elif before[name].key != step.key:
            changes_by_step[name] = step_changes(before[name], step) or ["its ingredients are written differently"]
    return changes_by_step | {name: ["removed"] for name in before if name not in after}


def _changed_sources(step: Step, role: str, before: Any, after: Any) -> list[str]:
    """Names of the steps whose artifacts in this role are others now; all of the role's where that cannot be told."""
    sources = list(step.sources(role)) or [role]
    if step.source(role) is not None:
        return sources
    if isinstance(before, list) and isinstance(after, list) and len(after) == len(sources):
        return [name for name, key in zip(sources, after, strict=True) if key not in before] or sources
    return sources


def _changes(path: str, old: Any, new: Any) -> Iterator[str]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        yield from _mapping(path, old, new)
    elif isinstance(old, list | tuple) and isinstance(new, list | tuple):
        yield from _sequence(path, list(old), list(new))
    elif canonical(old) != canonical(new):
        if _short(old) and _short(new):
            yield f"{path}{':' if '.' in path else ''} {_text(old)} -> {_text(new)}"
        else:
            yield f"{path} changed"


def _mapping(path: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    for key in dict.fromkeys((*new, *old)):
        field_path = f"{path}.{key}" if path else key
        if key not in old:
            yield f"{field_path} added" + (f": {_text(new[key])}" if _short(new[key]) else "")
        elif key not in new:
            yield f"{field_path} removed"
        else:
            yield from _changes(field_path, old[key], new[key])


def _sequence(path: str, old: list[Any], new: list[Any]) -> Iterator[str]:
    before, after = _by_id(old), _by_id(new)
    if before is None or after is None:
        yield from _by_place(path, old, new)
        return
    for name, (place, item) in after.items():
        item_path = f"{path}[{place}]" + (f" ({name})" if name else "")
        if name not in before:
            yield f"{item_path} added"
        else:
            yield from _changes(item_path, before[name][1], item)
    for name, (place, _) in before.items():
        if name not in after:
            yield f"{path}[{place}] ({name}) removed"
    if [n for n in before if n in after] != [n for n in after if n in before]:
        yield f"{path} reordered"


def _by_place(path: str, old: list[Any], new: list[Any]) -> Iterator[str]:
    if len(old) != len(new):
        yield f"{path}: {len(old)} -> {len(new)} items"
        return
    for place, (old_item, new_item) in enumerate(zip(old, new, strict=True)):
        yield from _changes(f"{path}[{place}]", old_item, new_item)


def _by_id(items: list[Any]) -> dict[str, tuple[int, Any]] | None:
    """Items with their places by id; None when two share one or more than one has none."""
    items_by_id: dict[str, tuple[int, Any]] = {}
    for place, item in enumerate(items):
        if not isinstance(item, Mapping) or str(item.get("id", "")) in items_by_id:
            return None
        items_by_id[str(item.get("id", ""))] = (place, item)
    return items_by_id


def _short(value: Any) -> bool:
    if isinstance(value, str):
        return len(value) <= _SHOWN and "\n" not in value and not _DIGEST.fullmatch(value)
    return value is None or isinstance(value, bool | int | float)


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value if value and value == value.strip() else repr(value)
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else f"{value}"
