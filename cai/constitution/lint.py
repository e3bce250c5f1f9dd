"""What is probably wrong with a constitution that is well-formed: repeated principles, missing parts, leftovers.

Similarity is the share of common word pairs (Jaccard). Sets of pairs are bits of one integer, so that comparing each
of 200 principles with each other takes a few milliseconds.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise

from cai.constitution.model import SLUG, SLUG_RULE, TEXTS, Constitution, Principle
from cai.constitution.requests import REQUESTS

NEAR = 0.6
"""Share of common word pairs from which two principles count as nearly the same."""


class Level(str, Enum):
    """An error gives a wrong or useless result; a warning is worth a look."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing the linter saw."""

    level: Level
    where: str
    message: str
    next: str = ""

    def __str__(self) -> str:
        return f"{self.level.value}: {self.where}: {self.message}" + (f"; {self.next}" if self.next else "")


def lint(constitution: Constitution, needs: tuple[str, ...] = ()) -> list[Finding]:
    """Everything found, errors first. ``needs`` are the texts that the stages read, such as ``("critique",)``."""
    findings = [
        *_weights(constitution),
        *_ids(constitution),
        *_repeated(constitution),
    ]
    for principle in constitution.principles:
        where = f"{constitution.name}: {principle.id}"
        findings += _missing(principle, where, needs)
        for field in TEXTS:
            findings += _leftovers(getattr(principle, field), f"{where}.{field}")
    findings += _leftovers(constitution.preamble, f"{constitution.name}: preamble")
    return sorted(findings, key=lambda f: f.level is Level.WARNING)


def _weights(constitution: Constitution) -> Iterator[Finding]:
    if not constitution.principles:
        yield Finding(Level.ERROR, constitution.name, "has no principle", "add one")
    elif not constitution.active:
        message = "every principle has weight 0, so none can be drawn"
        yield Finding(Level.ERROR, f"{constitution.name}: weights", message, "give one a positive weight")


def _ids(constitution: Constitution) -> Iterator[Finding]:
    alike: dict[str, str] = {}
    for p in constitution.principles:
        where = f"{constitution.name}: {p.id}"
        if not SLUG.fullmatch(p.id):
            yield Finding(Level.ERROR, where, "is no id", SLUG_RULE)
        key = re.sub(r"[^a-z0-9]", "", p.id.lower())
        similar_id = alike.setdefault(key, p.id)
        if similar_id != p.id:
            yield Finding(
                Level.WARNING, where, f"id is easily taken for '{similar_id}'", "choose ids that differ in words"
            )


def _missing(principle: Principle, where: str, needs: tuple[str, ...]) -> Iterator[Finding]:
    has = {f for f in TEXTS if getattr(principle, f)}
    for field in needs:
        if not getattr(principle, field) and principle.weight > 0:
            yield Finding(
                Level.ERROR,
                f"{where}.{field}",
                "is missing, and a stage reads it",
                "write it, or exclude the principle",
            )
    if not has:
        yield Finding(Level.ERROR, where, "has no critique, revision or comparison", "write at least one")
    for field, counterpart in (("critique", "revision"), ("revision", "critique")):
        if counterpart in has and field not in has and field not in needs:
            yield Finding(
                Level.WARNING,
                f"{where}.{field}",
                f"is missing though there is a {counterpart}",
                "write both or neither",
            )


_VARIABLES = re.compile(
    r"\{\{.{0,80}?\}\}|\{%.{0,80}?%\}|\$\{[^}\n]{0,80}\}|\{[A-Za-z_][\w.]{0,60}\}|%\(\w{1,60}\)s"
    r"|<[A-Z][A-Z0-9_ ]{1,60}>|\[(?:INSERT|TODO|YOUR)\b[^\]\n]{0,60}\]"
)
_WRAPPERS = re.compile(
    r"(?:^|\s)(?:critique ?request|revision ?request):"
    r"|(?:^|\n)[ \t]*(?:human|assistant|critique|revision|options):"
    r"|(?:^|\s)(?:critique|revision|options):\s*$",
    re.IGNORECASE,
)
_CONTROL = re.compile(r"<\|[\w-]{1,40}\|>|<extra_id_\d+>|</?s>|\[/?INST\]|<</?SYS>>")


def _leftovers(text: str, where: str) -> Iterator[Finding]:
    if not text:
        return
    if match := _VARIABLES.search(text):
        message = f"holds the variable {match[0]!r}, which nothing fills in"
        yield Finding(Level.ERROR, where, message, "write the text out: principles are not templates")
    if match := _WRAPPERS.search(text):
        message = f"holds the wrapper {match[0].strip()!r} of a transcript"
        yield Finding(Level.WARNING, where, message, "take it out: the prompt templates add their own")
    if match := _CONTROL.search(text):
        message = f"holds {match[0]!r}, which is a control token of a chat template"
        yield Finding(Level.ERROR, where, message, "take it out: a message cannot start a turn")


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _pairs(words: list[str]) -> set[tuple[str, str]]:
    return set(pairwise(words)) or {(w, "") for w in words}


def _repeated(constitution: Constitution) -> Iterator[Finding]:
    """Principles that say the same, or nearly. The wording that imports put around every rule does not count."""
    principles = constitution.principles
    words = [[_words(getattr(p, f)) for f in TEXTS] for p in principles]
    first: dict[str, int] = {}
    same = {}
    for i, texts in enumerate(words):
        if any(texts) and (j := first.setdefault("\n".join(map(" ".join, texts)), i)) != i:
            same[i] = j
    masks, sizes = _masks(words)
    near: dict[int, tuple[int, float]] = {}
    # By size, so that the inner loop ends where the larger set alone makes the share too small.
    order = sorted((i for i in range(len(masks)) if sizes[i] and i not in same), key=sizes.__getitem__)
    for position, i in enumerate(order):
        mask, size = masks[i], sizes[i]
        for j in order[position + 1 :]:
            if size < NEAR * sizes[j]:
                break
            common = (mask & masks[j]).bit_count()
            if common >= NEAR * (size + sizes[j] - common):
                near.setdefault(max(i, j), (min(i, j), common / (size + sizes[j] - common)))
    for i, p in enumerate(principles):
        where = f"{constitution.name}: {p.id}"
        if i in same:
            message = f"says the same as '{principles[same[i]].id}'"
            yield Finding(Level.ERROR, where, message, "keep one of them; use weight to favour it")
        elif i in near:
            j, share = near[i]
            message = f"is nearly the same as '{principles[j].id}' ({share:.0%} of their word pairs are common)"
            yield Finding(Level.WARNING, where, message, "keep one, or make them differ")


def _masks(words: list[list[list[str]]]) -> tuple[list[int], list[int]]:
    """The word pairs of each principle as bits of one integer, and how many pairs it has."""
    ours = set().union(*(_pairs(_words(t.substitute(rule=""))) for t in REQUESTS.values()))
    sets = [set().union(*map(_pairs, texts)) - ours for texts in words]
    often = Counter(pair for pairs in sets for pair in pairs)
    # Pairs that only one principle has can never be common: they count in the size, and need no bit.
    numbers = {pair: n for n, pair in enumerate(p for p, count in often.items() if count > 1)}
    masks = []
    for pairs in sets:
        mask = 0
        for pair in pairs:
            if (n := numbers.get(pair)) is not None:
                mask |= 1 << n
        masks.append(mask)
    return masks, list(map(len, sets))
