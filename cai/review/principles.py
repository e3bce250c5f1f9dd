"""What became of each principle: reworded, reweighted, added, removed, in other order. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from cai.constitution import TEXTS
from cai.plan import Plan
from cai.review.changes import Change, Paired, field_change, listed, text_change, value_text

_TOLD = ("rationale",)
_ABOUT = ("name", "description", "source", "licence")


def principle_changes(match: Paired) -> Iterator[Change]:
    """Every difference of the two constitutions, principles in the order of the new one."""
    old, new = constitution_of(match.old), constitution_of(match.new)
    if old is None and new is None:
        return
    before, after = _by_id(old), _by_id(new)
    reads = _Reads(match)
    renamed = {
        a: b for a in before for b in after if a not in after and b not in before and _alike(before[a], after[b])
    }
    for name, principle in after.items():
        if name in before:
            yield from _changed(name, before[name], principle, reads=reads, among=after)
        elif name in renamed.values():
            was = next(a for a, b in renamed.items() if b == name)
            words = f"principle {was} is now called {name}: rows are dealt by the name, so others draw it"
            steps = reads.of(name)
            yield Change("principles", "renamed", f"principles.{name}.id", was, name, words, bool(steps), steps)
        else:
            yield _whole("added", name, principle, reads=reads, among=after)
    for name, principle in before.items():
        if name not in after and name not in renamed:
            yield _whole("removed", name, principle, reads=reads, among=before)
    stayed = [n for n in before if n in after]
    if stayed != [n for n in after if n in before]:
        steps = reads.any()
        words = f"principles in another order: {', '.join(stayed)} -> {', '.join(n for n in after if n in before)}"
        yield Change("principles", "reordered", "principles", list(before), list(after), words, bool(steps), steps)
    yield from _about(old or {}, new or {}, reads)


def constitution_of(plan: Plan) -> Mapping[str, Any] | None:
    """The constitution as a plan has frozen it; None where no step reads one."""
    return next((s.resources["constitution"] for s in plan.steps if "constitution" in s.resources), None)


class _Reads:
    """Which steps read which field of which principle, on either side, by the new side's names."""

    def __init__(self, match: Paired) -> None:
        self._kinds = {s.name: s.kind for s in (*match.old.steps, *match.new.steps)}
        self._readers: dict[tuple[str, str], dict[str, None]] = {}
        for plan, names in ((match.new, {}), (match.old, match.renamed)):
            for step in plan.steps:
                for entry in step.ingredients.principles():
                    for field in entry:
                        field_key = (str(entry.get("id", "")), field)
                        self._readers.setdefault(field_key, {})[names.get(step.name, step.name)] = None

    def of(self, name: str, *fields: str) -> tuple[str, ...]:
        field_names = fields or ("id",)
        return tuple(dict.fromkeys(step for field in field_names for step in self._readers.get((name, field), ())))

    def any(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(step for steps in self._readers.values() for step in steps))

    def words(self, steps: tuple[str, ...], share: float) -> str:
        """``read by revise and judge; revise draws it 25 % of the time``; says so where nothing reads it."""
        if not steps:
            return "no stage reads this"
        text = f"read by {listed(steps)}"
        draws = [step for step in steps if self._kinds.get(step) == "revise"]
        return text + (f"; {draws[0]} draws it {share:.0%} of the time" if draws and share else "").replace("%", " %")


def _by_id(constitution: Mapping[str, Any] | None) -> dict[str, Mapping[str, Any]]:
    return {str(p["id"]): p for p in (constitution or {}).get("principles", ())}


def _alike(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    return all(old.get(f) == new.get(f) for f in TEXTS) and any(old.get(f) for f in TEXTS)


def _share(principle: Mapping[str, Any], among: Mapping[str, Mapping[str, Any]]) -> float:
    total = sum(float(p.get("weight", 1)) for p in among.values())
    return float(principle.get("weight", 1)) / total if total else 0.0


def _changed(
    name: str,
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    *,
    reads: _Reads,
    among: Mapping[str, Mapping[str, Any]],
) -> Iterator[Change]:
    texts = [f for f in TEXTS if old.get(f, "") != new.get(f, "")]
    # Fields that some stage reads apart from those that none does: one may change a result, the other cannot.
    for is_read in (True, False):
        fields = [f for f in texts if bool(reads.of(name, f)) is is_read]
        if not fields:
            continue
        steps = reads.of(name, *fields) if is_read else ()
        words = f"principle {name}: {listed(fields)} reworded ({reads.words(steps, _share(new, among))})"
        yield Change(
            "principles",
            "reworded",
            f"principles.{name}",
            {f: old.get(f, "") for f in fields},
            {f: new.get(f, "") for f in fields},
            words,
            is_read,
            steps,
            tuple(text_change(f, old.get(f, ""), new.get(f, "")) for f in fields),
        )
    old_weight, new_weight = float(old.get("weight", 1)), float(new.get("weight", 1))
    if old_weight != new_weight:
        steps = reads.of(name)
        on_off = " (switched off)" if not new_weight else " (switched on)" if not old_weight else ""
        words = f"principle {name}: weight {value_text(old_weight)} -> {value_text(new_weight)}{on_off}"
        words += f"; drawn {_share(new, among):.0%} of the time".replace("%", " %") if new_weight and steps else ""
        yield Change(
            "principles", "reweighted", f"principles.{name}.weight", old_weight, new_weight, words, bool(steps), steps
        )
    if old.get("priority", 0) != new.get("priority", 0):
        steps = reads.of(name, "priority")
        pair = (old.get("priority", 0), new.get("priority", 0))
        words = f"principle {name}: priority {pair[0]} -> {pair[1]}"
        yield Change("principles", "priority", f"principles.{name}.priority", *pair, words, bool(steps), steps)
    if list(old.get("tags", ())) != list(new.get("tags", ())):
        steps = reads.of(name, "tags")
        pair = (list(old.get("tags", ())), list(new.get("tags", ())))
        words = f"principle {name}: tags {value_text(pair[0])} -> {value_text(pair[1])}"
        yield Change("principles", "retagged", f"principles.{name}.tags", *pair, words, bool(steps), steps)
    for field in _TOLD:
        if old.get(field, "") != new.get(field, ""):
            where, pair = f"principles.{name}.{field}", (old.get(field, ""), new.get(field, ""))
            text = (text_change(field, *pair),)
            words = f"principle {name}: {field} reworded"
            yield Change("principles", "reworded", where, *pair, words, False, (), text)


def _whole(
    kind: str, name: str, principle: Mapping[str, Any], *, reads: _Reads, among: Mapping[str, Mapping[str, Any]]
) -> Change:
    fields = [f for f in TEXTS if principle.get(f)]
    steps = reads.of(name)
    weight = float(principle.get("weight", 1))
    about = "weight 0, so it is never drawn" if not weight else f"weight {value_text(weight)}; "
    about += reads.words(steps, _share(principle, among)) if weight else ""
    plain = dict(principle)
    old, new = (None, plain) if kind == "added" else (plain, None)
    texts = [("", principle[f]) if kind == "added" else (principle[f], "") for f in fields]
    shown_texts = tuple(text_change(f, *pair) for f, pair in zip(fields, texts, strict=True))
    words = f"principle {name} {kind} ({about})"
    return Change("principles", kind, f"principles.{name}", old, new, words, bool(steps), steps, shown_texts)


def _about(old: Mapping[str, Any], new: Mapping[str, Any], reads: _Reads) -> Iterator[Change]:
    pair = (str(old.get("preamble", "")), str(new.get("preamble", "")))
    if pair[0] != pair[1]:
        steps = reads.of("", "preamble")
        readers = f"read by {listed(steps)}" if steps else "no stage reads this"
        text = (text_change("preamble", *pair),)
        words = f"the constitution's preamble reworded ({readers})"
        yield Change("principles", "preamble", "constitution.preamble", *pair, words, bool(steps), steps, text)
    for field in _ABOUT:
        pair = (str(old.get(field, "")), str(new.get(field, "")))
        if pair[0] != pair[1]:
            yield field_change("description", f"constitution.{field}", pair, counts=False)
