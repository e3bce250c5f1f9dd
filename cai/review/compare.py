"""Every difference between two plans, section by section. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from cai.plan import Plan, Step, by_role
from cai.planning.reasons import diff_ingredients
from cai.review.changes import (
    MISSING,
    SECTIONS,
    Change,
    Paired,
    blocks,
    differing,
    field_change,
    flat,
    listed,
    none_if_missing,
    own_ingredients,
    paired,
    text_change,
)
from cai.review.inputs import source_changes
from cai.review.principles import principle_changes

_MADE_HERE = ("fetch", "read")


def compare(old: Plan, new: Plan) -> tuple[Change, ...]:
    """All changes from one plan to the other, in the order of ``SECTIONS``."""
    match = paired(old, new)
    changes = [
        *principle_changes(match),
        *_stages(match),
        *_templates(match),
        *_prompts(match),
        *source_changes(match),
        *_engine(match),
        *_seed(match),
        *_about(match),
    ]
    changes += _unexplained(match, changes)
    order = list(SECTIONS)
    return tuple(sorted(changes, key=lambda change: order.index(change.section)))


def _stages(match: Paired) -> Iterator[Change]:
    for before, after in match.both:
        if after.kind in _MADE_HERE:
            continue
        if before.name != after.name:
            words = f"stage {before.name} is now called {after.name}"
            yield Change("stages", "renamed", f"stages.{after.name}", before.name, after.name, words, False)
        yield from _fields(match, before, after)
    for kind, steps in (("added", match.came), ("removed", match.gone)):
        for step in steps:
            if step.kind in _MADE_HERE:
                continue
            reads = ", ".join(step.needs())
            words = f"stage {step.name}{f' ({step.kind})' if step.kind != step.name else ''} {kind}"
            words += f"; it reads {reads}" if reads and kind == "added" else ""
            old, new = (None, step.spec) if kind == "added" else (step.spec, None)
            yield Change("stages", kind, f"stages.{step.name}", old, new, words, True, (step.name,))


def _fields(match: Paired, before: Step, after: Step) -> Iterator[Change]:
    where, only = f"stages.{after.name}", (after.name,)
    versions = (before.ingredients.version, after.ingredients.version)
    if versions[0] != versions[1]:
        words = f"{where}: this program makes it in another way (version {versions[0]} -> {versions[1]})"
        yield Change("stages", "version", where, *versions, words, True, only)
    reported_paths: set[str] = set()
    inputs_before, inputs_after = by_role(before.inputs), by_role(after.inputs)
    for role in dict.fromkeys((*inputs_after, *inputs_before)):
        was, now = inputs_before.get(role, MISSING), inputs_after.get(role, MISSING)
        reported_paths |= {
            role,
            *(path for path in flat(after.spec) if path.endswith(".from") and path.startswith(f"{role}[")),
        }
        # Of labelled inputs the order counts: it decides what is compared with what.
        if repr(_renamed(was, match.renamed)) != repr(now):
            words = f"{where}.{role}: {_wiring(_renamed(was, match.renamed), now)}"
            yield Change(
                "stages", "rewired", f"{where}.{role}", none_if_missing(was), none_if_missing(now), words, True, only
            )
    pairs = blocks(before.ingredients.spec or {}, after.ingredients.spec or {})
    for path, pair in pairs.items():
        yield field_change("hyperparameters", f"{where}.{path}", pair, steps=only)
    texts = {*(before.ingredients.texts or {}), *(after.ingredients.texts or {})}
    counted = {*flat(before.ingredients.spec or {}), *flat(after.ingredients.spec or {})}
    for path, pair in differing(before.spec, after.spec).items():
        if path in counted or path in texts or _covered(path, reported_paths) or path == "kind" or MISSING in pair:
            continue
        yield field_change("runtime", f"{where}.{path}", pair, counts=False)
    for name in ("api_keys", "servers"):
        for path, pair in differing(before.resources.get(name, {}), after.resources.get(name, {})).items():
            if path:
                yield field_change("runtime", f"{where}: {name}.{path}", pair, counts=False)


def _covered(path: str, reported_paths: set[str]) -> bool:
    return any(path == name or path.startswith((f"{name}.", f"{name}[")) for name in reported_paths)


def _renamed(names: Any, new: Mapping[str, str]) -> Any:
    if isinstance(names, str):
        return new.get(names, names)
    if isinstance(names, Mapping):
        return {label: new.get(name, name) for label, name in names.items()}
    return [new.get(name, name) for name in names] if isinstance(names, list) else names


def _wiring(was: Any, now: Any) -> str:
    """What is read now in place of what; of several inputs only those that came and went."""
    if MISSING not in (was, now) and not isinstance(was, str) and not isinstance(now, str):
        old, new = (_names(side).split(", ") for side in (was, now))
        came, gone = [n for n in new if n not in old], [n for n in old if n not in new]
        parts = [f"{listed(names)} {kind}" for names, kind in ((came, "added"), (gone, "removed")) if names]
        if parts:
            return " and ".join(parts)
    return f"{_names(was)} -> {_names(now)}"


def _names(value: Any) -> str:
    if value is MISSING:
        return "nothing"
    if isinstance(value, Mapping):
        return ", ".join(name if label == name else f"{label}={name}" for label, name in value.items())
    return value if isinstance(value, str) else ", ".join(value)


def _templates(match: Paired) -> Iterator[Change]:
    """Chat templates by digest: one change however many stages render with it."""
    groups: dict[tuple[Any, Any], list[tuple[str, Any, Any]]] = {}
    names: dict[tuple[str, str], None] = {}
    for before, after in match.both:
        was, now = before.ingredients.template, after.ingredients.template
        sides = (before.resources.get("template", {}), after.resources.get("template", {}))
        if was != now:
            groups.setdefault((was, now), []).append((after.name, *sides))
        elif was and sides[0].get("name") != sides[1].get("name"):
            names[str(sides[0].get("name")), str(sides[1].get("name"))] = None
        own = (before.ingredients.templates or {}, after.ingredients.templates or {})
        for label in dict.fromkeys((*own[1], *own[0])):
            if own[0].get(label) != own[1].get(label):
                old_template, new_template = (s.resources.get("templates", {}).get(label, {}) for s in (before, after))
                groups.setdefault((own[0].get(label), own[1].get(label)), []).append(
                    (after.name, old_template, new_template)
                )
    for readers in groups.values():
        _, old, new = readers[0]
        steps = tuple(dict.fromkeys(name for name, _, _ in readers))
        old_name, new_name = old.get("name"), new.get("name")
        description = (
            f"{old_name} rewritten" if old_name == new_name else f"{old_name or 'none'} -> {new_name or 'none'}"
        )
        text = (text_change("text", old.get("text"), new.get("text"), "lines"),)
        words = f"chat template {description} (read by {listed(steps)})"
        yield Change(
            "template",
            "changed",
            f"prompt_templates/{new_name or old_name}",
            old_name,
            new_name,
            words,
            True,
            steps,
            text,
        )
    for old_name, new_name in names:
        words = f"chat template {old_name} -> {new_name}, the same text"
        yield Change("template", "renamed", "template.name", old_name, new_name, words, counts=False)


def _prompts(match: Paired) -> Iterator[Change]:
    groups: dict[tuple[Any, Any, Any, Any], list[tuple[str, str, Step, Step]]] = {}
    for before, after in match.both:
        was, now = before.ingredients.texts or {}, after.ingredients.texts or {}
        for field in dict.fromkeys((*now, *was)):
            files = (before.spec.get(field), after.spec.get(field))
            if was.get(field) != now.get(field) or files[0] != files[1]:
                group_key = (was.get(field), now.get(field), *files)
                groups.setdefault(group_key, []).append((after.name, field, before, after))
    for (was, now, old_file, new_file), readers in groups.items():
        name, field, before, after = readers[0]
        steps = tuple(dict.fromkeys(step for step, *_ in readers))
        if was == now:
            words = f"stages.{name}.{field}: {old_file} -> {new_file}, the same text"
            yield Change("prompts", "renamed", f"stages.{name}.{field}", old_file, new_file, words, counts=False)
            continue
        old = "" if was is None else before.resources.get("texts", {}).get(field)
        new = "" if now is None else after.resources.get("texts", {}).get(field)
        description = (
            f"{new_file} rewritten" if old_file == new_file else f"{old_file or 'none'} -> {new_file or 'none'}"
        )
        words = f"{description} (read by {listed(steps)} as {field})"
        shown_text = (text_change(field, old, new, "lines"),)
        where = f"prompt_templates/{new_file or old_file}"
        yield Change("prompts", "changed", where, old_file or None, new_file or None, words, True, steps, shown_text)


def _engine(match: Paired) -> Iterator[Change]:
    kinds = (match.old.engine.get("kind"), match.new.engine.get("kind"))
    if kinds[0] != kinds[1]:
        steps = tuple(after.name for _, after in match.both if after.ingredients.engine is not None)
        yield field_change("engine", "engine.kind", kinds, steps=steps)
        return
    old, new = ({k: v for k, v in plan.engine.items() if k != "uses"} for plan in (match.old, match.new))
    setting_changes, leaves = blocks(old, new), differing(old, new)
    groups: dict[tuple[str, str, str], tuple[tuple[Any, Any], bool, dict[str, None]]] = {}
    for before, after in match.both:
        pairs = blocks(before.ingredients.engine or {}, after.ingredients.engine or {})
        for path, pair in pairs.items():
            where = _as_asked(path, leaves)
            # What the experiment says is the same: then the machine has decided otherwise.
            by_machine = where not in leaves and path in new
            group_key = (where, repr(pair[0]), repr(pair[1]))
            groups.setdefault(group_key, (pair, by_machine, {}))[2][after.name] = None
    counted_paths = {where for where, *_ in groups}
    for (where, *_), (pair, by_machine, names) in groups.items():
        change = field_change("engine", f"engine.{where}", pair, steps=tuple(names))
        yield replace(change, words=change.words + (" (decided by the machine)" if by_machine else ""))
    for path, pair in setting_changes.items():
        if path not in counted_paths and none_if_missing(pair[0]) != none_if_missing(pair[1]):
            yield field_change("runtime", f"engine.{path}", pair, counts=False)
    uses = tuple(plan.engine.get("uses", {}) for plan in (match.old, match.new))
    if all(uses):
        reported_names = {path.rpartition(".")[2] for path in (*setting_changes, *counted_paths)}
        for path, pair in differing(*uses).items():
            # What the engine decided is told above where it counts; this is what it is made of.
            if path not in reported_names and path not in ("device", "precision"):
                yield field_change("runtime", f"engine uses {path}", pair, counts=False)


def _as_asked(path: str, leaves: Mapping[str, Any]) -> str:
    """Where the experiment says what counts under ``path``: layouts are by step or server, what counts by role."""
    key = path
    if path.startswith("overrides."):
        key = f"overrides.{path.removeprefix('overrides.').partition('.')[2]}"
    elif path.startswith("servers["):
        key = path.partition(".")[2]
    return next((leaf for leaf in leaves if leaf == key or leaf.endswith(f".{key}")), path)


def _seed(match: Paired) -> Iterator[Change]:
    pair = (match.old.seed, match.new.seed)
    if pair[0] != pair[1]:
        steps = tuple(after.name for _, after in match.both if after.ingredients.seed is not None)
        yield field_change("seed", "seed", pair, steps=steps)


def _about(match: Paired) -> Iterator[Change]:
    pair: tuple[Any, Any] = (match.old.experiment, match.new.experiment)
    if pair[0] != pair[1]:
        yield field_change("description", "name", pair, counts=False)
    pair = tuple(str(plan.source.get("description", "")) for plan in (match.old, match.new))  # type: ignore[assignment]
    if pair[0] != pair[1]:
        yield field_change("description", "description", pair, counts=False)


def _unexplained(match: Paired, changes: list[Change]) -> Iterator[Change]:
    """Whatever else makes a step's ingredients differ; so that no rerun is without a reason."""
    explained_steps = {step for change in changes for step in change.steps}
    for before, after in match.both:
        if after.name in explained_steps:
            continue
        reasons = diff_ingredients(own_ingredients(before), own_ingredients(after))
        if reasons:
            words = f"{after.name}: {'; '.join(reasons)}"
            yield Change("stages", "changed", f"stages.{after.name}", None, None, words, True, (after.name,))
