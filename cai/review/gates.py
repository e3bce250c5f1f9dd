"""Gates: what makes ``diff`` end with exit code 1. A gate that cannot be decided holds back, and says so."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from cai.errors import Problem, SpecError, did_you_mean
from cai.review.changes import SECTIONS, Change, listed
from cai.review.reruns import COSTS
from cai.review.results import Results, worse
from cai.review.review import Review
from cai.terminal.plan_view import short

ANY, RERUN, METRICS, LABELS = "any", "rerun", "metrics", "labels"
_COUNTED = [name for name in SECTIONS if name not in ("description", "runtime")]
PLAIN = (ANY, *_COUNTED, RERUN, METRICS)
LIMITED = (LABELS, *COSTS)
_GATE = re.compile(r"(?P<word>[a-z_]+)(?:>(?P<number>[0-9]+(?:\.[0-9]*)?)(?P<unit>[kMG%]?))?")
_CALLED = {"prompt_tokens": "tokens read", "tokens": "tokens written", "gpu_hours": "GPU-hours"}
_UNITS = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "%": 0.01}


@dataclass(frozen=True, slots=True)
class Gate:
    """One word of ``--fail-on``, with its limit where it has one."""

    text: str
    word: str
    limit: float | None = None


@dataclass(frozen=True, slots=True)
class GateVerdict:
    """Whether a gate holds back, and why."""

    gate: str
    failed: bool
    why: str


def gates(text: str) -> tuple[Gate, ...]:
    """The gates of ``--fail-on``.

    Raises:
        SpecError: with every word that is no gate.
    """
    parsed_gates, problems = [], []
    for word in filter(None, (part.strip() for part in text.split(","))):
        match = _GATE.fullmatch(word)
        name = match["word"] if match else word.partition(">")[0]
        if match is None or name not in (*PLAIN, *LIMITED):
            problems.append(Problem("--fail-on", f"'{word}' is no gate", did_you_mean(name, (*PLAIN, *LIMITED))))
        elif (name in LIMITED) != (match["number"] is not None):
            hint = f"write {name}>{'5%' if name == LABELS else '1000'}" if name in LIMITED else f"write {name}"
            problems.append(Problem("--fail-on", f"'{word}' {'has no' if name in LIMITED else 'takes no'} limit", hint))
        elif (match["unit"] == "%") != (name == LABELS) and match["number"]:
            hint = f"write {name}>5%" if name == LABELS else f"write {name}>1000"
            problems.append(Problem("--fail-on", f"'{word}' has the wrong unit", hint))
        else:
            limit = float(match["number"]) * _UNITS[match["unit"]] if match["number"] else None
            parsed_gates.append(Gate(word, name, limit))
    if not parsed_gates and not problems:
        problems.append(Problem("--fail-on", "names no gate", f"known: {', '.join((*PLAIN, *LIMITED))}"))
    if problems:
        raise SpecError(problems)
    return tuple(parsed_gates)


def judged(requested_gates: Sequence[Gate], review: Review) -> tuple[GateVerdict, ...]:
    """What each gate says of a review."""
    return tuple(GateVerdict(gate.text, *_judged(gate, review)) for gate in requested_gates)


def _judged(gate: Gate, review: Review) -> tuple[bool, str]:
    if review.problems:
        return True, "the experiment cannot be compiled"
    if gate.word == ANY or gate.word in _COUNTED:
        matching_changes = [c for c in review.changes if c.counts and (gate.word in (ANY, c.section))]
        return bool(matching_changes), _changes(matching_changes)
    if gate.word == RERUN:
        run = [e.name for e in review.effects if e.action in ("rerun", "new")]
        return bool(run), f"{len(run)} steps run again: {listed(run)}" if run else "no step runs again"
    if gate.word in COSTS:
        return _over(gate, review)
    if review.results is None:
        return True, "cannot be told: both sides must be finished runs"
    return _metrics(review.results) if gate.word == METRICS else _labels(gate, review.results)


def _changes(changes: Sequence[Change]) -> str:
    if not changes:
        return "no such change"
    return changes[0].words + (f"; and {len(changes) - 1} more" if len(changes) > 1 else "")


def _over(gate: Gate, review: Review) -> tuple[bool, str]:
    cost, limit = review.totals["cost"][gate.word], gate.limit or 0.0
    name = _CALLED.get(gate.word, gate.word)
    if cost > limit:
        return True, f"about {short(round(cost))} {name}, more than {short(round(limit))}"
    if gate.word in review.totals["unknown"]:
        return True, f"cannot be told: some steps do not say how many {name} they take"
    return False, f"about {short(round(cost))} {name}"


def _metrics(results: Results) -> tuple[bool, str]:
    worse_metrics = worse(results)
    if worse_metrics:
        first = worse_metrics[0]
        words = f"{first.group}: {first.name} of {first.of} got worse"
        return True, words + (f"; and {len(worse_metrics) - 1} more" if len(worse_metrics) > 1 else "")
    compared = sum(m.comparable and m.better != 0 for e in results.evaluations for m in e.metrics)
    return (False, f"none of {compared} got worse") if compared else (True, "cannot be told: nothing is comparable")


def _labels(gate: Gate, results: Results) -> tuple[bool, str]:
    pairs = sum(flips.pairs for flips in results.flips)
    if not pairs:
        return True, "cannot be told: no pair has the same answers on both sides"
    share = sum(flips.changed for flips in results.flips) / pairs
    limit = gate.limit or 0.0
    return share > limit, f"{share:.1%} of {pairs:,} labels are others now".replace("%", " %")
