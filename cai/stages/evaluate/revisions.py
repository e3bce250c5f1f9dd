"""What each round of revision does to the reward, and what each principle does that a round drew.

All texts of a row are scored side by side with the same prompt, so that a change is within the row.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from cai.chat import Message
from cai.data.rows import Conversation, Row
from cai.engines.base import RewardScorer
from cai.figures import intervals
from cai.figures.evaluation import PrincipleChange, RevisionFigures, RevisionRound
from cai.figures.running_sums import Mean
from cai.stages.base import Context
from cai.stages.evaluate.answers import artifacts_by_label, rewards_of
from cai.stages.evaluate.spec import EvaluateSpec
from cai.stages.flow.generation import rows_of


@dataclass(frozen=True, slots=True)
class Revised:
    """One row's way: its prompt, the first answer and that of every round, and the principle that each round drew."""

    prompt: tuple[Message, ...]
    texts: tuple[str, ...]
    principles: tuple[str, ...]


def revisions(spec: EvaluateSpec, ctx: Context, scorer: RewardScorer) -> dict[str, RevisionFigures]:
    """Reward, change and win rate of every round, and the change by principle, for each of the named revisions."""
    figures_by_label = {}
    for label, artifact in artifacts_by_label(ctx, "revisions").items():
        rows = ways(rows_of(artifact))
        pairs = []
        for row in rows:
            prompt = ctx.chat.prompt(row.prompt)
            pairs.append([(prompt, ctx.chat.answer(row.prompt, text)) for text in row.texts])
        rewards = rewards_of(pairs, scorer, ctx.work / "revisions" / f"{label}.jsonl", spec.chunk)
        figures_by_label[label] = figures(rows, rewards, ctx.seed)
    return figures_by_label


def ways(rows: Sequence[Row]) -> list[Revised]:
    """The way of every row, as far as it is known.

    Where every round's revision comes out (``train_on: all``), those of one row are one way, and the last has it all.
    """
    longest: dict[str, Conversation] = {}
    for row in rows:
        if isinstance(row, Conversation) and "response" in row.meta and row.meta.get("rounds"):
            name = row.id.removesuffix(f"/{len(row.meta['rounds'])}")
            if name not in longest or len(row.meta["rounds"]) > len(longest[name].meta["rounds"]):
                longest[name] = row
    return [
        Revised(
            row.prompt,
            (row.meta["response"], *(turn["revision"] for turn in row.meta["rounds"])),
            tuple(turn["principle"] for turn in row.meta["rounds"]),
        )
        for row in longest.values()
    ]


def figures(rows: Sequence[Revised], rewards: Sequence[Sequence[float]], seed: int = 0) -> RevisionFigures:
    """From the rewards of every row's texts, the first answer's first. A round counts the rows that have it."""
    rounds = []
    for n in range(max(map(len, rewards), default=0)):
        reaching = [values for values in rewards if len(values) > n]
        rounds.append(
            RevisionRound(
                round=n,
                reward=intervals.mean([values[n] for values in reaching], seed),
                change=intervals.mean([values[n] - values[0] for values in reaching], seed),
                wins=intervals.wins([v[n] for v in reaching], [v[n - 1] for v in reaching]) if n else None,
            )
        )
    changed: dict[str, list[list[float]]] = defaultdict(list)
    for row, values in zip(rows, rewards, strict=True):
        steps: dict[str, list[float]] = defaultdict(list)
        for n, principle in enumerate(row.principles, 1):
            steps[principle].append(values[n] - values[n - 1])
        for principle, changes in steps.items():
            changed[principle].append(changes)
    by_principle = {name: _change(changed[name]) for name in sorted(changed)}
    return RevisionFigures(len(rows), tuple(rounds), by_principle)


def _change(groups: Sequence[Sequence[float]]) -> PrincipleChange:
    """The mean change of a round with this principle; a row that drew it twice is one row for the interval."""
    mean = Mean()
    for changes in groups:
        mean.add(changes)
    return PrincipleChange(mean.mean(), mean.n)
