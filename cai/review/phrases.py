"""What every format of a review says in the same words: its headline, its costs, its figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cai.figures.intervals import Interval
from cai.review.changes import SECTIONS, Change
from cai.review.labels import LABELS, Flips
from cai.review.metrics import Metric, below
from cai.review.results import Results
from cai.review.review import Review
from cai.review.words import SAME, Pieces
from cai.terminal.plan_view import short
from cai.text import count, duration

NO_RESULT = "Changes no result"
_KEPT = 12


def plural(number: int, word: str) -> str:
    """``1 change``, ``2 changes``."""
    return f"{number:,} {word}{'s' * (number != 1)}"


def headline(review: Review) -> str:
    """The whole review in a line."""
    if review.problems:
        return f"{review.subject} cannot be compiled: {plural(len(review.problems), 'problem')}"
    if review.same:
        return f"{review.subject}: nothing changed"
    steps, run = len([e for e in review.effects if e.action != "removed"]), again(review)
    changes = plural(len(review.changes), "change")
    if not run:
        return f"{review.subject}: {changes}, no step runs again"
    return f"{review.subject}: {changes}, {run} of {plural(steps, 'step')} run again"


def again(review: Review) -> int:
    """How many steps have to be run."""
    return sum(effect.action in ("rerun", "new") for effect in review.effects)


def by_section(review: Review) -> dict[str, list[Change]]:
    """Changes under the titles they are shown under; those that change no result come last, under one title."""
    changes_by_title: dict[str, list[Change]] = {}
    for section, title in SECTIONS.items():
        if counted := [c for c in review.changes if c.section == section and c.counts]:
            changes_by_title[title] = counted
    if rest := [c for c in review.changes if not c.counts]:
        changes_by_title[NO_RESULT] = rest
    return changes_by_title


def cost_words(totals: Mapping[str, Any]) -> str:
    """What runs again costs: ``about 390 calls, 18.7k tokens read, 15.6k written, time 1 min 52 s``."""
    cost, unknown = totals["cost"], totals["unknown"]

    def least(name: str, text: str) -> str:
        return f"at least {text}" if name in unknown else text

    parts = [
        least("calls", f"{count(cost['calls'])} calls"),
        least("prompt_tokens", f"{_k(cost['prompt_tokens'])} tokens read"),
    ]
    parts.append(least("tokens", f"{_k(cost['tokens'])} written"))
    parts.insert(0, least("rows", f"{count(cost['rows'])} rows"))
    seconds = duration(cost["seconds"])
    parts.append(f"time {seconds}" if "seconds" not in unknown else "time not known")
    if "seconds" in unknown and cost["seconds"]:
        parts[-1] += f" (at least {seconds})"
    if "gpu_hours" in unknown:
        gpu_hours = cost["gpu_hours"]
        parts.append(f"at least {gpu_hours:.3g} GPU-hours" if gpu_hours else "GPU-hours not known")
    elif cost["gpu_hours"]:
        parts.append(f"{cost['gpu_hours']:.3g} GPU-hours")
    return f"about {', '.join(parts)}"


def step_cost(estimate: Mapping[str, float | None]) -> tuple[str, str, str, str]:
    """Rows, calls, tokens (read and written) and time of one step."""
    seconds = estimate["seconds"]
    tokens = f"{_k(estimate['prompt_tokens'])} / {_k(estimate['tokens'])}"
    time = "?" if seconds is None else duration(seconds) if seconds >= 1 else "< 1 s"
    return count(estimate["rows"]), count(estimate["calls"]), tokens, time


def _k(number: float | None) -> str:
    return short(None if number is None else round(number))


def figure(interval: Interval, sign: bool = False) -> str:
    """``0.12 [-0.03, 0.31]``; ``sign`` writes a plus where there is one."""
    text = "" if interval.value is None else number(interval.value, sign)
    if interval.low is None or interval.high is None:
        return text
    return f"{text} [{number(interval.low)}, {number(interval.high)}]"


def number(value: float, sign: bool = False) -> str:
    """Three digits, as many as intervals of this kind carry."""
    rounded = f"{value:{'+' if sign else ''}.3g}"
    return rounded.removeprefix("-").removeprefix("+") if float(rounded) == 0 else rounded


def verdict(metric: Metric) -> str:
    """``worse``, ``better``, or ``clear`` where neither is; empty where the intervals leave a doubt."""
    if not metric.comparable:
        return "other scale"
    if metric.worse:
        return "worse"
    change = metric.difference
    if change is not None and change.low is not None and change.high is not None:
        clear = change.low > 0 or change.high < 0
    else:
        clear = below(metric.before, metric.after) or below(metric.after, metric.before)
    if not clear:
        return ""
    return "better" if metric.better else "clear"


def metric_row(metric: Metric) -> tuple[str, str, str, str, str]:
    """What, before, after, the difference on the same prompts, and what it means."""
    subject = f"{metric.group}: {metric.of}, {metric.name}"
    change = "" if metric.difference is None else figure(metric.difference, sign=True)
    return subject, figure(metric.before), figure(metric.after), change, verdict(metric)


def moved(metrics: Sequence[Metric]) -> list[Metric]:
    """The metrics whose figures differ at all, those beyond doubt first."""
    moved_metrics = [m for m in metrics if figure(m.before) != figure(m.after)]
    order = {"worse": 0, "better": 1, "clear": 2, "other scale": 4}
    return sorted(moved_metrics, key=lambda m: order.get(verdict(m), 3))


def flip_words(flips: Flips) -> list[str]:
    """What the matrix says, in sentences."""
    if flips.still:
        return (
            [f"all {plural(flips.pairs, 'pair')} have the labels they had"]
            if flips.pairs
            else ["no pair on either side"]
        )
    sentences = []
    if flips.pairs:
        share = flips.changed / flips.pairs
        sentence = f"{flips.changed:,} of {plural(flips.pairs, 'pair')} with the same answers have another label"
        sentences.append(f"{sentence} ({share:.1%}), {flips.flipped:,} of them the other way round".replace("%", " %"))
        if flips.shift is not None:
            sentences.append(f"p(A) moved by {number(flips.shift)} on average")
    if flips.written_anew:
        sentences.append(f"{plural(flips.written_anew, 'pair')} with other answers than before")
    if flips.only_before or flips.only_after:
        sentences.append(f"{plural(flips.only_before, 'pair')} only before, {flips.only_after:,} only after")
    return sentences


def matrix_rows(flips: Flips, rewritten: bool = False) -> list[list[str]]:
    """Rows of the matrix with its head: label before down, label after across."""
    matrix = flips.rewritten if rewritten else flips.same
    head = ["before \\ after", *LABELS]
    return [head, *([before, *(f"{matrix[before][after]:,}" for after in LABELS)] for before in LABELS)]


def result_notes(results: Results) -> list[str]:
    """What a reader must know of the results before the figures."""
    notes = list(results.missing)
    for evaluation in results.evaluations:
        if not evaluation.same_reward_model:
            notes.append(
                f"{evaluation.step}: scored by two different reward models, so rewards, win rates and Elo have no "
                "common scale; their differences are not given"
            )
        for side, names in zip(("before", "after"), evaluation.only, strict=True):
            if names:
                notes.append(f"{evaluation.step}: only {side}: {', '.join(names)}")
    return notes


def trimmed(pieces: Pieces, limit: int) -> Pieces:
    """A word diff with long unchanged stretches cut to what stands beside a change, at most ``limit`` characters."""
    trimmed_pieces: list[tuple[str, str]] = []
    remaining = limit
    for place, (kind, text) in enumerate(pieces):
        words = text.split()
        if kind == SAME and len(words) > 2 * _KEPT + 4:
            first = words[:_KEPT] if place else []
            last = words[-_KEPT:] if place < len(pieces) - 1 else []
            text = " ".join([*first, "...", *last])
        if len(text) > remaining:
            trimmed_pieces.append((kind, f"{text[: max(remaining - 3, 0)]}..."))
            break
        remaining -= len(text)
        trimmed_pieces.append((kind, text))
    return tuple(trimmed_pieces)


def untouched(review: Review) -> list[str]:
    """Names of the steps that are reused."""
    return [effect.name for effect in review.effects if effect.action == "same"]
