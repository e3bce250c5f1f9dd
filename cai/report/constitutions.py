"""The constitutions: every principle with its texts, its weight, how often it was drawn, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cai.figures.intervals import Interval
from cai.identity import canonical
from cai.report.model import Block, Detail, Heading, Rule, Rules, Section, Table, Text, interval, percent
from cai.report.overview import named_model, reports
from cai.report.runs import Run
from cai.text import count

Drawn = Mapping[str, Mapping[str, int]]
"""How often each principle was drawn, by source of samples (a step, with its run's name where that is needed)."""

TEXTS = (("critique", "Critique request"), ("revision", "Revision request"), ("comparison", "Comparison"))


def constitutions(runs: Sequence[Run], drawn: Drawn) -> Section:
    """Each different constitution once, with who uses it."""
    users_by_text: dict[str, tuple[dict[str, Any], list[str]]] = {}
    for run in runs:
        for step in run.plan.steps:
            if constitution := step.resources.get("constitution"):
                users = users_by_text.setdefault(canonical(constitution), (constitution, []))[1]
                users.append(f"{run.label}: {step.name}" if len(runs) > 1 else step.name)
    blocks: list[Block] = []
    for constitution, users in users_by_text.values():
        blocks += _constitution_blocks(constitution, users, runs, drawn)
    if not blocks:
        blocks.append(Text(("No step of these runs reads a constitution.",), "missing"))
    title = "The constitution" if len(users_by_text) < 2 else "The constitutions"
    return Section("constitution", title, tuple(blocks), "Constitution")


def _constitution_blocks(
    constitution: Mapping[str, Any], users: Sequence[str], runs: Sequence[Run], drawn: Drawn
) -> list[Block]:
    principles = constitution.get("principles", [])
    active = [p for p in principles if p.get("weight", 1) > 0]
    paragraphs = [str(constitution.get("description") or "")]
    if constitution.get("preamble"):
        paragraphs.append(f"Preamble: {constitution['preamble']}")
    source = ", ".join(str(constitution[k]) for k in ("source", "licence") if constitution.get(k))
    paragraphs.append(f"{len(active)} of {len(principles)} principles can be drawn. Read by {', '.join(users)}.")
    paragraphs += [f"From: {source}."] if source else []
    blocks: list[Block] = [Heading(str(constitution.get("name", ""))), Text(tuple(filter(None, paragraphs)))]
    changes = _changes(runs)
    total = {source: sum(counts.values()) for source, counts in drawn.items()}
    sources = [s for s in drawn if any(p["id"] in drawn[s] for p in principles)]
    rows = []
    for p in principles:
        draws = [
            f"{count(drawn[s].get(p['id'], 0))} ({percent(drawn[s].get(p['id'], 0) / total[s])})" if total[s] else "-"
            for s in sources
        ]
        moved = [interval(by.get(p["id"])) for by in changes.values()]
        rows.append((p["id"], ", ".join(p.get("tags", [])) or "-", f"{p.get('weight', 1):g}", *draws, *moved))
    head = ("principle", "tags", "weight", *(f"drawn by {s}" for s in sources), *(f"reward, {n}" for n in changes))
    blocks.append(
        Table("How often each principle was drawn, and how its revisions changed the reward", head, tuple(rows), "ll")
    )
    blocks.append(Rules(tuple(_rule(p) for p in principles)))
    return blocks


def _changes(runs: Sequence[Run]) -> dict[str, dict[str, Interval]]:
    """The change of reward by principle, for each evaluated set of revisions."""
    return {
        named_model(who, label): {principle: effect.change for principle, effect in revised.by_principle.items()}
        for _, who, evaluation in reports(runs)
        for label, revised in evaluation.revisions.items()
        if revised.by_principle
    }


def _rule(principle: Mapping[str, Any]) -> Rule:
    texts = tuple(Detail(title, str(principle[field])) for field, title in TEXTS if principle.get(field))
    facts = []
    if principle.get("priority"):
        facts.append(Detail("priority", str(principle["priority"])))
    if principle.get("rationale"):
        facts.append(Detail("why", str(principle["rationale"])))
    return Rule(str(principle["id"]), texts, tuple(facts), tuple(principle.get("tags", ())))
