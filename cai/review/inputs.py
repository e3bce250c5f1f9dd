"""What became of the models and of the data: revisions, digests, rows, and settings of their reading. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from cai.plan import Step
from cai.review.changes import MISSING, Change, Paired, differing, field_change, flat

_DIGITS = 12


def source_changes(match: Paired) -> Iterator[Change]:
    """Changes of every model and of every data source that some stage reads."""
    for before, after in match.both:
        if after.kind == "fetch":
            yield from _model(before, after)
    for kind, steps in (("added", match.came), ("removed", match.gone)):
        for step in steps:
            if step.kind == "fetch":
                old, new = (None, step.spec) if kind == "added" else (step.spec, None)
                words = f"model {step.name} {kind}: {step.spec.get('source', '')}"
                yield Change("models", kind, f"models.{step.name}", old, new, words, True, (step.name,))
    yield from _data(match)
    yield from _not_read(match)


def _model(before: Step, after: Step) -> Iterator[Change]:
    where = f"models.{after.name}"
    if before.name != after.name:
        words = f"model {before.name} is now called {after.name}"
        yield Change("models", "renamed", where, before.name, after.name, words, False)
    same = before.ingredients.model == after.ingredients.model
    reported = False
    counted = {*(before.ingredients.model or {}), *(after.ingredients.model or {})} | {"source"}
    for path, pair in differing(before.spec, after.spec).items():
        if MISSING in pair:
            continue
        # An address of weights whose digest is the same is where they lie, not what they are.
        counts = not same and path in counted
        reported |= counts
        section = "models" if path in ("source", "revision", "sha256", "url", "logprobs") else "runtime"
        change = field_change(section, f"{where}.{path}", pair, counts=counts, steps=(after.name,) if counts else ())
        if path == "sha256":
            words = f"{where}: other weights ({_digest(pair[0])} -> {_digest(pair[1])})"
            change = Change("models", "digest", change.where, *pair, words, counts, change.steps)
        yield change
    if not same and not reported:
        old, new = ((s.ingredients.model or {}).get("sha256", "") for s in (before, after))
        words = f"{where}: other weights ({_digest(old)} -> {_digest(new)})"
        yield Change("models", "digest", f"{where}.sha256", old, new, words, True, (after.name,))


def _digest(value: Any) -> str:
    return str(value)[:_DIGITS] if value and value is not MISSING else "no digest"


def source_name(step: Step) -> str:
    """The data source that a part is of."""
    splits = step.spec.get("source", {}).get("splits", {})
    return step.name.removesuffix(f".{step.spec.get('part', '')}") if len(splits) != 1 else step.name


def _data(match: Paired) -> Iterator[Change]:
    groups: dict[str, list[tuple[Step, Step]]] = {}
    for before, after in match.both:
        if after.kind == "read":
            groups.setdefault(source_name(after), []).append((before, after))
    for name, parts in groups.items():
        yield from _source(name, parts)
    source_names = set(groups)
    for kind, steps in (("added", match.came), ("removed", match.gone)):
        for step in steps:
            if step.kind != "read":
                continue
            rows = step.estimate.rows
            noun = "part" if source_name(step) in source_names and source_name(step) != step.name else "data"
            words = f"{noun} {step.name} {kind}" + (f" ({rows:,} rows)" if rows is not None else "")
            path = step.spec.get("source", {}).get("path")
            old, new = (None, path) if kind == "added" else (path, None)
            yield Change("data", kind, f"data.{step.name}", old, new, words, True, (step.name,))


def _source(name: str, parts: list[tuple[Step, Step]]) -> Iterator[Change]:
    before, after = parts[0]
    where, steps = f"data.{name}", tuple(new.name for _, new in parts)
    old, new = (dict(s.ingredients.data or {}) for s in (before, after))
    rows = _rows(parts)
    digests = (old.pop("sha256", []), new.pop("sha256", []))
    if digests[0] != digests[1]:
        short = [", ".join(_digest(d) for d in side[:3]) or "none" for side in digests]
        words = f"{where}: other rows in the files (digest {short[0]} -> {short[1]}){rows}"
        yield Change("data", "digest", f"{where}.sha256", *digests, words, True, steps)
    hubs = (old.pop("hub", []), new.pop("hub", []))
    if hubs[0] != hubs[1]:
        hub_files = [
            ", ".join(f"{h['name']}@{_digest(h['revision'])}:{h['file']}" for h in side) or "none" for side in hubs
        ]
        words = f"{where}: {hub_files[0]} -> {hub_files[1]}{rows}"
        yield Change("data", "revision", f"{where}.revision", *hubs, words, True, steps)
    splits = tuple({str(part): share for part, share in side.pop("splits", [])} for side in (old, new))
    fields = {**differing(old, new), **{f"splits.{k}": v for k, v in differing(*splits).items()}}
    if splits[0] == splits[1] and list(splits[0]) != list(splits[1]):
        fields["splits"] = (list(splits[0]), list(splits[1]))
    for path, pair in fields.items():
        change = field_change("data", f"{where}.{path}", pair, steps=steps)
        yield replace(change, words=change.words + (rows if digests[0] == digests[1] and hubs[0] == hubs[1] else ""))
    if old.get("makes") == new.get("makes") and before.ingredients.part != after.ingredients.part:
        pair = (before.ingredients.part, after.ingredients.part)
        yield field_change("data", f"{where}.part", pair, steps=steps)
    changed = {path.partition(".")[0] for path in fields} | {"splits", "makes"}
    for path, pair in differing(before.spec.get("source", {}), after.spec.get("source", {})).items():
        if path.partition(".")[0] in changed or MISSING in pair or path in flat(old):
            continue
        # Where a file lies is not what it holds: that is told by its digest.
        yield field_change("data" if path == "path" else "runtime", f"{where}.{path}", pair, counts=False)
    if before.name != after.name:
        words = f"data {before.name} is now called {after.name}"
        yield Change("data", "renamed", where, before.name, after.name, words, False)


def _rows(parts: list[tuple[Step, Step]]) -> str:
    row_counts = []
    for before, after in parts:
        pair = (before.estimate.rows, after.estimate.rows)
        if pair[0] != pair[1] and None not in pair:
            part = after.name if len(parts) > 1 else "rows"
            row_counts.append(f"{part} {pair[0]:,} -> {pair[1]:,}")
    return f"; {', '.join(row_counts)}" if row_counts else ""


def _not_read(match: Paired) -> Iterator[Change]:
    """Models and data that an experiment names and no stage reads: said, since the file has changed."""
    for section in ("models", "data"):
        sides: list[Mapping[str, Any]] = [plan.source.get(section) or {} for plan in (match.old, match.new)]
        names_read = {source_name(s) if s.kind == "read" else s.name for p in (match.old, match.new) for s in p.steps}
        names_read |= {name.partition(".")[0] for name in names_read}
        for name in dict.fromkeys((*sides[1], *sides[0])):
            pair = (sides[0].get(name, MISSING), sides[1].get(name, MISSING))
            if name not in names_read and pair[0] != pair[1]:
                kind = "added" if pair[0] is MISSING else "removed" if pair[1] is MISSING else "changed"
                words = f"{section}.{name} {kind}; no stage reads it"
                plain = tuple(None if v is MISSING else v for v in pair)
                yield Change(section, kind, f"{section}.{name}", plain[0], plain[1], words, counts=False)
