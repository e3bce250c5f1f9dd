"""How far a reward model can be trusted: how often it prefers the better answer of pairs that it has not trained on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from cai.data.rows import Comparison
from cai.engines.base import RewardScorer
from cai.figures import intervals
from cai.figures.evaluation import RewardModelFigures
from cai.figures.intervals import Interval
from cai.stages.base import Artifact, Context, chunks
from cai.stages.evaluate.answers import artifacts_by_label
from cai.stages.evaluate.spec import EvaluateSpec
from cai.stages.flow.generation import distinct, rows_of


def accuracy(spec: EvaluateSpec, ctx: Context, scorer: RewardScorer) -> dict[str, RewardModelFigures]:
    """How often the reward model prefers the better answer, by set of pairs; ties in the labels do not count."""
    figures_by_set = {}
    for name, artifact in artifacts_by_label(ctx, "comparisons").items():
        rows, _ = distinct([row for row in _held_out(artifact) if isinstance(row, Comparison)])
        rows = [row for row in rows if row.p_chosen != 0.5]
        better: list[float] = []
        margins: list[float] = []
        for chunk in chunks(rows, spec.chunk):
            prompts = [ctx.chat.prompt(row.messages) for row in chunk]
            pairs = zip(prompts, chunk, strict=True)
            rewards = scorer.score(
                [(p, ctx.chat.answer(r.messages, text)) for p, r in pairs for text in (r.chosen, r.rejected)]
            )
            for row, chosen, rejected in zip(chunk, rewards[::2], rewards[1::2], strict=True):
                margin = (chosen - rejected) if row.p_chosen > 0.5 else (rejected - chosen)
                margins.append(margin)
                better.append(1.0 if margin > 0 else 0.5 if margin == 0 else 0.0)
        longer = [_longer(row) for row in rows]
        figures_by_set[name] = RewardModelFigures(
            accuracy=intervals.share(sum(better), len(better)),
            margin=intervals.mean(margins, ctx.seed),
            longer_is_better=intervals.share(sum(longer), len(longer)),
            by_topic=_grouped(rows, better, lambda row: row.topic),
            by_kind=_grouped(rows, better, lambda row: str(row.meta.get("kind", ""))),
        )
    return figures_by_set


def _held_out(artifact: Artifact) -> Iterable[Any]:
    """A mix is checked on its validation part, anything else on all its rows."""
    return rows_of(artifact, "val") if (artifact.path / "val.jsonl").exists() else rows_of(artifact)


def _longer(row: Comparison) -> float:
    good, bad = (row.chosen, row.rejected) if row.p_chosen > 0.5 else (row.rejected, row.chosen)
    return 1.0 if len(good) > len(bad) else 0.5 if len(good) == len(bad) else 0.0


def _grouped(
    rows: Sequence[Comparison], better: Sequence[float], group: Callable[[Comparison], str]
) -> dict[str, Interval]:
    groups: dict[str, list[float]] = defaultdict(list)
    for row, value in zip(rows, better, strict=True):
        if group(row):
            groups[group(row)].append(value)
    return {name: intervals.share(sum(values), len(values)) for name, values in sorted(groups.items())}
