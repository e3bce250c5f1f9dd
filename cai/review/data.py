"""A review as plain data for programs. Its keys are stable; ``format`` goes up when they change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from cai.figures.intervals import Interval
from cai.review.changes import Change
from cai.review.gates import GateVerdict
from cai.review.labels import Flips
from cai.review.metrics import Metric
from cai.review.phrases import headline
from cai.review.reruns import Effect
from cai.review.results import Results
from cai.review.review import Review
from cai.text import json_text

FORMAT = 1


def review_data(review: Review) -> dict[str, Any]:
    """One review as plain data."""
    return {
        "experiment": review.subject,
        "headline": headline(review),
        "before": {"label": review.before[0], "what": review.before[1]},
        "after": {"label": review.after[0], "what": review.after[1]},
        "same": review.same,
        "problems": list(review.problems),
        "changes": [_change(change) for change in review.changes],
        "steps": [_step(effect) for effect in review.effects],
        "totals": dict(review.totals),
        "results": None if review.results is None else _results(review.results),
    }


def document(reviews: Sequence[Review], verdicts: Sequence[Sequence[GateVerdict]], since: str | None = None) -> str:
    """The JSON text of one review, or with ``since`` of every experiment that differs."""
    documents = [
        {**review_data(r), "gates": [asdict(v) for v in gate_verdicts]}
        for r, gate_verdicts in zip(reviews, verdicts, strict=True)
    ]
    content: dict[str, Any] = documents[0] if since is None else {"since": since, "reviews": documents}
    return json_text({"format": FORMAT, **content}, indent=1) + "\n"


def _change(change: Change) -> dict[str, Any]:
    texts = [{"field": t.field, "how": t.how, "pieces": [list(p) for p in t.pieces]} for t in change.texts]
    plain = {name: getattr(change, name) for name in ("section", "kind", "where", "before", "after", "words", "counts")}
    return {**plain, "steps": list(change.steps), "texts": texts}


def _step(effect: Effect) -> dict[str, Any]:
    before, after = effect.key
    plain = {name: getattr(effect, name) for name in ("name", "kind", "action", "why", "cause", "stored")}
    keys = {"key_before": before or None, "key_after": after or None}
    return {**plain, **keys, "estimate": dict(effect.estimate)}


def _results(results: Results) -> dict[str, Any]:
    evaluations = [
        {
            "step": evaluation.step,
            "same_reward_model": evaluation.same_reward_model,
            "metrics": [_metric(metric) for metric in evaluation.metrics],
            "only_before": list(evaluation.only[0]),
            "only_after": list(evaluation.only[1]),
            "samples": [asdict(sample) for sample in evaluation.samples],
        }
        for evaluation in results.evaluations
    ]
    return {"evaluations": evaluations, "labels": [_flips(f) for f in results.flips], "missing": list(results.missing)}


def _metric(metric: Metric) -> dict[str, Any]:
    sides = {"before": metric.before, "after": metric.after, "difference": metric.difference}
    return asdict(metric) | {name: None if side is None else _figure(side) for name, side in sides.items()}


def _figure(figure: Interval) -> dict[str, Any]:
    """A figure that no rows are counted for, as the variety of all answers is, has no ``n``."""
    return {"value": figure.value, "low": figure.low, "high": figure.high, "n": figure.n or None}


def _flips(flips: Flips) -> dict[str, Any]:
    numbers = ("pairs", "changed", "flipped", "written_anew", "only_before", "only_after", "shift")
    return {
        "step": flips.step,
        **{name: getattr(flips, name) for name in numbers},
        "same": flips.same,
        "other": flips.rewritten,
    }
