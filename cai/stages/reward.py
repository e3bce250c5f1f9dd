"""Reward: train a Bradley-Terry reward model on comparisons whose labels may be soft."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from cai.data.rows import Comparison
from cai.engines.methods.base import PairText
from cai.engines.methods.reward import REWARD, RewardData, RewardSettings
from cai.stages.base import Artifact, Context, EngineSpec, Estimate, Outcome, Wants
from cai.stages.flow.generation import PROMPT_TOKENS, rows_of
from cai.stages.sft import trained_outcome


class RewardSpec(EngineSpec):
    """Train a reward model from ``model`` on ``data``; the data's part ``val`` is only measured."""

    MAKES: ClassVar[str] = "reward_model"
    USES_TEMPLATE: ClassVar[bool] = True
    kind: Literal["reward"] = "reward"
    model: Annotated[str, Wants("model")]
    data: Annotated[str, Wants("comparisons")]
    training: RewardSettings = RewardSettings()

    def estimate(self, rows: Mapping[str, int | None]) -> Estimate:
        """Both answers of every pair are read once an epoch."""
        n = rows.get("data")
        return Estimate(n, tokens=int((n or 0) * self.training.epochs * 4 * PROMPT_TOKENS))


def run(spec: RewardSpec, ctx: Context) -> Outcome:
    """Render the pairs and hand them to the engine."""
    train, val = (pair_texts(ctx, ctx.input("data"), name) for name in ("train", "val"))
    data = RewardData(ctx.input("model").path, train, val)
    trained = ctx.engine.train(REWARD, data, spec.training, ctx.attempt)
    return trained_outcome(trained, len(train) + len(val))


def pair_texts(ctx: Context, data: Artifact, name: str) -> list[PairText]:
    """The rendered comparisons of one part of an artifact."""
    rows = [row for row in rows_of(data, name) if isinstance(row, Comparison)]
    return [
        PairText(
            row.id,
            ctx.chat.prompt(row.messages),
            ctx.chat.answer(row.messages, row.chosen),
            ctx.chat.answer(row.messages, row.rejected),
            row.p_chosen,
        )
        for row in rows
    ]
