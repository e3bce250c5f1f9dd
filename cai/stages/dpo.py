"""DPO: learn from comparisons directly, without a reward model; labels may be soft."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from cai.engines.methods.dpo import DPO, DpoData, DpoSettings
from cai.stages.base import Context, EngineSpec, Estimate, Outcome, Wants
from cai.stages.flow.generation import PROMPT_TOKENS
from cai.stages.reward import pair_texts
from cai.stages.sft import trained_outcome


class DpoSpec(EngineSpec):
    """Train ``model`` on ``data``; the data's part ``val`` is only measured.

    ``training.beta`` keeps the policy near the reference, which is ``model`` itself where none is named.
    """

    MAKES: ClassVar[str] = "model"
    USES_TEMPLATE: ClassVar[bool] = True
    kind: Literal["dpo"] = "dpo"
    model: Annotated[str, Wants("model")]
    data: Annotated[str, Wants("comparisons")]
    reference: Annotated[
        str | None, Wants("model"), Field(description="what the policy is kept near; empty: the model itself")
    ] = None
    training: DpoSettings = DpoSettings()

    def estimate(self, rows: Mapping[str, int | None]) -> Estimate:
        """Both answers of every pair are read once an epoch, and once by the reference."""
        n = rows.get("data")
        return Estimate(n, tokens=int((n or 0) * (self.training.epochs + 0.5) * 4 * PROMPT_TOKENS))


def run(spec: DpoSpec, ctx: Context) -> Outcome:
    """Render the pairs and hand them to the engine."""
    train, val = (pair_texts(ctx, ctx.input("data"), name) for name in ("train", "val"))
    reference = ctx.input("reference").path if spec.reference else None
    data = DpoData(ctx.input("model").path, train, val, reference)
    trained = ctx.engine.train(DPO, data, spec.training, ctx.attempt)
    return trained_outcome(trained, len(train) + len(val))
