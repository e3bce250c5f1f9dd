"""What differs between two plans, as records that say it in a reviewer's words. Pure: it reads plans and nothing else.

Whether a change can change a result is not guessed: it can when it reaches the ingredients of a step's key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cai.plan import Ingredients, Plan, Step
from cai.review.words import Pieces, line_diff, word_diff

SECTIONS = {
    "principles": "Principles",
    "hyperparameters": "Hyper-parameters",
    "models": "Models",
    "template": "Chat template",
    "prompts": "Prompt texts",
    "data": "Data",
    "engine": "Engine",
    "seed": "Seed",
    "stages": "Stages",
    "description": "Name and description",
    "runtime": "How it runs",
}
"""Where a change belongs, in the order in which it is shown."""


@dataclass(frozen=True, slots=True)
class TextChange:
    """One text that was rewritten: ``how`` is ``words`` or ``lines``; ``pieces`` are empty where a side is unknown."""

    field: str
    how: str
    pieces: Pieces


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that is different.

    ``where`` is the field, ``before`` and ``after`` plain values (None where there is none), ``words`` one line for a
    person. ``counts``: some step's key depends on it. ``steps`` are those whose own ingredients it changes.
    """

    section: str
    kind: str
    where: str
    before: Any
    after: Any
    words: str
    counts: bool = True
    steps: tuple[str, ...] = ()
    texts: tuple[TextChange, ...] = ()


@dataclass(frozen=True, slots=True)
class Paired:
    """Two plans with their steps matched: by name, else by key, else by what they do (a renamed stage)."""

    old: Plan
    new: Plan
    both: tuple[tuple[Step, Step], ...]
    gone: tuple[Step, ...]
    came: tuple[Step, ...]

    @property
    def renamed(self) -> dict[str, str]:
        """Old name -> new name of every step that is on both sides."""
        return {before.name: after.name for before, after in self.both}


def paired(old: Plan, new: Plan) -> Paired:
    """Match the steps of two plans."""
    theirs = {step.name: step for step in old.steps}
    matched: dict[str, Step] = {}
    for same in (_same_name, _same_key, _same_work):
        for step in new.steps:
            if step.name not in matched:
                old_step = next((o for o in theirs.values() if same(o, step)), None)
                if old_step is not None:
                    matched[step.name] = theirs.pop(old_step.name)
    both = tuple((matched[step.name], step) for step in new.steps if step.name in matched)
    came = tuple(step for step in new.steps if step.name not in matched)
    return Paired(old, new, both, tuple(theirs.values()), came)


def same_key(old_key: str, new_key: str) -> bool:
    """Whether two keys agree as far as both are known: a lock has their first 16 digits."""
    length = min(len(old_key), len(new_key))
    return length >= 16 and old_key[:length] == new_key[:length]


def _same_name(old: Step, new: Step) -> bool:
    return old.name == new.name and old.kind == new.kind


def _same_key(old: Step, new: Step) -> bool:
    return old.kind == new.kind and same_key(old.key, new.key)


def _same_work(old: Step, new: Step) -> bool:
    made_here = old.kind not in ("fetch", "read")
    return made_here and old.kind == new.kind and own_ingredients(old) == own_ingredients(new)


def own_ingredients(step: Step) -> Ingredients:
    """What decides a step's result beside its inputs."""
    return replace(step.ingredients, inputs=None)


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """The leaves of nested mappings and of lists of mappings, by path: ``training.epochs``, ``sources[1].ratio``."""
    if isinstance(value, Mapping) and value:
        nested: list[tuple[str, Any]] = [(f"{path}.{name}" if path else str(name), v) for name, v in value.items()]
    elif isinstance(value, Sequence) and not isinstance(value, str) and value and isinstance(value[0], Mapping):
        nested = [(f"{path}[{place}]", v) for place, v in enumerate(value)]
    else:
        return {path: value}
    return {leaf_path: leaf for name, inner in nested for leaf_path, leaf in flat(inner, name).items()}


def differing(old: Any, new: Any) -> dict[str, tuple[Any, Any]]:
    """Paths whose leaves differ, with both values; MISSING where a side has none. 1 and 1.0 are the same."""
    before, after = flat(old), flat(new)
    names = dict.fromkeys((*after, *before))
    pairs = {name: (before.get(name, MISSING), after.get(name, MISSING)) for name in names}
    return {name: (a, b) for name, (a, b) in pairs.items() if _differ(a, b)}


def _numbers(old: Any, new: Any) -> bool:
    return all(isinstance(v, int | float) and not isinstance(v, bool) for v in (old, new))


def blocks(old: Any, new: Any, path: str = "") -> dict[str, tuple[Any, Any]]:
    """As ``differing``, but what only one side has is one entry, however much is in it."""
    pairs: dict[str, tuple[Any, Any]] = {}
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        pairs = {
            f"{path}.{name}" if path else str(name): (old.get(name, MISSING), new.get(name, MISSING))
            for name in dict.fromkeys((*new, *old))
        }
    elif _of_mappings(old) and _of_mappings(new):
        sides = [dict(enumerate(side)) for side in (old, new)]
        places = range(max(map(len, sides)))
        pairs = {f"{path}[{i}]": (sides[0].get(i, MISSING), sides[1].get(i, MISSING)) for i in places}
    elif old is MISSING or new is MISSING or _differ(old, new):
        return {path: (old, new)}
    return {block_path: pair for name, (a, b) in pairs.items() for block_path, pair in blocks(a, b, name).items()}


def _of_mappings(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(v, Mapping) for v in value)


def _differ(old: Any, new: Any) -> bool:
    return bool(old != new) or (type(old) is not type(new) and not _numbers(old, new))


class _Missing:
    def __repr__(self) -> str:
        return "missing"


MISSING = _Missing()
"""In place of a value that a side does not have."""


def none_if_missing(value: Any) -> Any:
    """A value as plain data: None for what is missing."""
    return None if value is MISSING else value


def value_text(value: Any) -> str:
    """A value in a line: text as it is, ``none``, ``yes``/``no`` as YAML has them, lists in brackets."""
    if value is None or value is MISSING:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        text = " ".join(value.split())
        return repr(value) if text != value or not value else text if len(text) <= 100 else f"{text[:97]}..."
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    if isinstance(value, Sequence):
        text = f"[{', '.join(value_text(v) for v in value)}]"
        return text if len(text) <= 160 else f"{text[:157]}..."
    if isinstance(value, Mapping):
        text = f"{{{', '.join(f'{k}: {value_text(v)}' for k, v in value.items())}}}"
        return text if len(text) <= 160 else f"{text[:157]}..."
    return str(value)


def listed(names: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``, ``a, b, c and 8 more``."""
    shown_names = list(names) if len(names) <= 4 else [*names[:3], f"{len(names) - 3} more"]
    return " and ".join(part for part in (", ".join(shown_names[:-1]), shown_names[-1]) if part)


def field_change(
    section: str, where: str, pair: tuple[Any, Any], *, counts: bool = True, steps: tuple[str, ...] = ()
) -> Change:
    """``where: 2 -> 3``, or with a word diff where the values are long texts."""
    before, after = pair
    if before is MISSING:
        kind, words = "added", f"{where} added: {value_text(after)}"
    elif after is MISSING:
        kind, words = "removed", f"{where} removed (was {value_text(before)})"
    elif isinstance(before, str) and isinstance(after, str) and max(len(before), len(after)) > 60:
        kind, words = "reworded", f"{where} reworded"
        text = (TextChange("", "words", word_diff(before, after)),)
        return Change(section, kind, where, before, after, words, counts, steps, text)
    else:
        kind, words = "changed", f"{where}: {value_text(before)} -> {value_text(after)}"
    return Change(section, kind, where, none_if_missing(before), none_if_missing(after), words, counts, steps)


def text_change(field: str, before: str | None, after: str | None, how: str = "words") -> TextChange:
    """A rewritten text; where one side is known by its digest alone, there is nothing to show."""
    if before is None or after is None:
        return TextChange(field, how, ())
    return TextChange(field, how, (word_diff if how == "words" else line_diff)(before, after))
