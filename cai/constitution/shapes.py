"""The shapes in which principles are published, and one reader for each; none of their text is shipped here.

A shape is seen from the data, not from the file's name. Each reader returns drafts; ``READERS`` is the table.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from cai.constitution.few_shots import comparison_examples, is_few_shots
from cai.constitution.model import SLUG, Constitution
from cai.constitution.requests import clean, looks_like_comparison, requests_for
from cai.constitution.resolve import resolve_constitution
from cai.errors import Problem, SpecError

MAX_PRINCIPLES = 2000
MAX_TEXT = 20_000


@dataclass(frozen=True, slots=True)
class Draft:
    """What a file says of one principle; ``id`` is empty where the file names none."""

    id: str = ""
    critique: str = ""
    revision: str = ""
    comparison: str = ""
    tags: tuple[str, ...] = ()
    weight: float = 1.0
    rationale: str = ""
    priority: int = 0

    @property
    def only_comparison(self) -> bool:
        """Whether the draft has nothing but a comparison."""
        return bool(self.comparison) and not (self.critique or self.revision)


_CRITIQUE = ("prompt", "critique", "critique_request", "critic", "critique_prompt")
_REVISION = ("edit_request", "revision", "revision_request", "revision_prompt")
_COMPARISON = ("comparison", "comparison_request", "preference")
_RULE = ("principle", "rule", "statement")


def _texts(record: Mapping[str, Any], names: tuple[str, ...], where: str) -> list[str]:
    name = next((n for n in names if record.get(n)), None)
    value = record[name] if name else []
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not all(isinstance(v, str) for v in values):
        raise SpecError(Problem(f"{where}.{name}", "must be a text or a list of texts", f"is a {type(value).__name__}"))
    return [clean(v) for v in values]


def _record(record: Mapping[str, Any], name: str, where: str) -> list[Draft]:
    """One record; several phrasings of its requests make several principles."""
    critiques, revisions, comparisons = (_texts(record, n, where) for n in (_CRITIQUE, _REVISION, _COMPARISON))
    if not (critiques or revisions or comparisons):
        return [replace(_stated(rule), id=name or _stated(rule).id) for rule in _texts(record, _RULE, where)]
    drafts = []
    count = max(len(critiques), len(revisions), len(comparisons))
    for number in range(count):
        # One revision request for several critiques (or the reverse) belongs to each of them.
        critique, revision, comparison = (
            t[number] if len(t) > number else t[0] if len(t) == 1 else "" for t in (critiques, revisions, comparisons)
        )
        drafts.append(Draft(f"{name}-{number + 1}" if name and count > 1 else name, critique, revision, comparison))
    return drafts


def _records(data: Any, where: str) -> list[Draft]:
    pairs = [(f"{where}.{k}", str(k), v) for k, v in data.items()] if isinstance(data, dict) else None
    if pairs is None:
        pairs = [(f"{where}[{n}]", str(v.get("id") or v.get("name") or ""), v) for n, v in enumerate(data)]
    return [draft for place, name, record in pairs for draft in _record(record, make_slug(name), place)]


def _wrapped(data: Any, where: str) -> list[Draft]:
    return _records(data["constitutions"], f"{where}: constitutions")


def _comparisons(data: Any, where: str) -> list[Draft]:
    return [Draft(comparison=text) for text in (clean(v) for v in data) if text]


def _stated(rule: str, tags: tuple[str, ...] = ()) -> Draft:
    rule = " ".join(rule.split())
    lead = re.match(r"\*\*(.+?)\*\*|__(.+?)__", rule)
    plain = re.sub(r"\*\*|__|`", "", rule).strip()
    name = make_slug((lead[1] or lead[2]) if lead else " ".join(plain.split()[:6]))
    requests = requests_for(plain)
    return Draft(name, requests["critique"], requests["revision"], requests["comparison"], tags, rationale=plain)


def _plain_list(data: Any, where: str) -> list[Draft]:
    return [_stated(rule) for rule in data if rule.strip()]


_HEADING = re.compile(r"(#{1,6})\s+(\S.*)$")
_ITEM = re.compile(r"\s{0,12}(?:[-*+•]|\(?\d{1,4}[.)])\s+(.+)$")


def _markdown(text: str, where: str) -> list[Draft]:
    """Bullets and numbered lines are principles; headings from the second level on tag what is under them."""
    tags: dict[int, str] = {}
    rules: list[tuple[str, tuple[str, ...]]] = []
    paragraphs: list[tuple[str, tuple[str, ...]]] = []
    into: list[tuple[str, tuple[str, ...]]] | None = None
    fenced = False
    for line in map(str.rstrip, text.splitlines()):
        if line.lstrip().startswith(("```", "~~~")):
            fenced, into = not fenced, None
            continue
        if fenced or not line or re.fullmatch(r"\s*([-*_]\s*){3,}", line):
            into = None
            continue
        if heading := _HEADING.match(line):
            level = len(heading[1])
            tags = {n: t for n, t in tags.items() if n < level}
            if name := make_slug(heading[2]):
                tags[level] = name
            into = None
            continue
        own = tuple(t for n, t in tags.items() if n > 1)
        if item := _ITEM.match(line):
            into = rules
            into.append((item[1], own))
        elif into is not None:
            into[-1] = (f"{into[-1][0]} {line.strip()}", into[-1][1])
        else:
            into = paragraphs
            into.append((line.strip(), own))
    # A text without any list is a principle a paragraph; with one, its paragraphs are prose around the list.
    return [_stated(rule, own) for rule, own in rules or paragraphs]


def ours(data: Mapping[str, Any], where: str) -> Constitution:
    """Our own format as data; principles may be plain sentences. It stands alone: nothing is looked for on disk."""
    entries = data.get("principles")
    if isinstance(entries, list) and entries and all(isinstance(e, str) for e in entries):
        stated = [asdict(d) for d in with_unique_ids(_plain_list(entries, where))]
        data = {**data, "principles": stated}

    def alone(name: str) -> Mapping[str, Any]:
        raise SpecError(Problem(name, "this kind of file stands alone", "write the extended principles into it"))

    return resolve_constitution(data, alone, where)


def drafts_of(constitution: Constitution) -> list[Draft]:
    """The principles of a constitution as drafts."""
    return [Draft(**p.model_dump()) for p in constitution.principles]


def _ours(data: Any, where: str) -> list[Draft]:
    return drafts_of(ours(data, where))


def _no_examples(data: Any, where: str) -> list[Draft]:
    message = "holds examples that compare two answers" if comparison_examples(data) else "holds few-shot examples"
    raise SpecError(Problem(where, f"{message}, not principles", "name it as `few_shots` of the revise stage instead"))


READERS: dict[str, Callable[[Any, str], list[Draft]]] = {
    "ours": _ours,
    "few_shots": _no_examples,
    "critique_revision": _records,
    "wrapped": _wrapped,
    "comparisons": _comparisons,
    "plain": _plain_list,
    "markdown": _markdown,
}
"""Shape -> reader."""


def shape_of(data: Any) -> str | None:
    """The key of ``READERS`` that reads the data; None when no shape fits."""
    if isinstance(data, str):
        return "few_shots" if is_few_shots(data) else "markdown"
    if not isinstance(data, list | dict) or not data:
        return None
    if is_few_shots(data) or comparison_examples(data):
        return "few_shots"
    if isinstance(data, dict):
        if "principles" in data or "extends" in data:
            return "ours"
        if _are_records(data.get("constitutions")):
            return "wrapped"
        return "critique_revision" if _are_records(list(data.values())) else None
    if all(isinstance(v, str) for v in data):
        return "comparisons" if sum(looks_like_comparison(v) for v in data) * 2 > len(data) else "plain"
    return "critique_revision" if _are_records(data) else None


def _are_records(values: Any) -> bool:
    if not isinstance(values, list) or not values:
        return False
    # ``prompt`` alone is what most data sets have; it is a critique request only beside an ``edit_request``.
    marks = {*_CRITIQUE, *_REVISION, *_COMPARISON, *_RULE} - {"prompt"}
    return all(isinstance(v, dict) and marks & v.keys() for v in values)


def with_unique_ids(drafts: Iterable[Draft]) -> list[Draft]:
    """Drafts with ids, each different: repeated ones get a number."""
    used: set[str] = set()
    result = []
    for number, draft in enumerate(drafts, 1):
        base = draft.id or f"{'comparison' if draft.only_comparison else 'principle'}-{number}"
        name = base
        for copy in range(2, MAX_PRINCIPLES + 2):
            if name not in used:
                break
            name = f"{base[:72]}-{copy}"
        used.add(name)
        result.append(replace(draft, id=name))
    return result


def make_slug(text: str) -> str:
    """An id made of any text, at most 60 characters; empty when nothing of it can be used."""
    candidate = re.sub(r"[^a-z0-9._]+", "-", text[:200].lower())[:60].strip("-._")
    return candidate if SLUG.fullmatch(candidate) else ""
