"""RL: improve the policy by PPO against the reward model, with a KL penalty to where it started."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from cai.engines.methods.base import PromptText
from cai.engines.methods.ppo import PPO, PpoData, RlSettings
from cai.engines.rewards import RewardModel
from cai.stages.base import Context, EngineSpec, Estimate, Outcome, Wants
from cai.stages.flow.generation import PROMPT_TOKENS, as_prompt, distinct, rows_of
from cai.stages.respond import limited
from cai.stages.sft import trained_outcome


class RlSpec(EngineSpec):
    """Start from ``model``, sample answers to ``prompts``, follow ``reward``.

    ``training.snapshots`` names iterations whose policies are kept, for stages of kind ``snapshot``.
    """

    MAKES: ClassVar[str] = "model"
    USES_TEMPLATE: ClassVar[bool] = True
    kind: Literal["rl"] = "rl"
    model: Annotated[str, Wants("model")]
    reward: Annotated[str, Wants("reward_model")]
    prompts: Annotated[
        str | tuple[str, ...], Wants("prompts", "conversations", "comparisons"), Field(description="one or several")
    ]
    training: RlSettings = RlSettings()
    limit: Annotated[int | None, Field(ge=1, description="only the first n prompts")] = None

    def estimate(self, rows: Mapping[str, int | None]) -> Estimate:
        """``iterations`` times ``rollouts`` answers."""
        calls = self.training.iterations * self.training.rollouts
        n = limited(rows.get("prompts"), self.limit)
        return Estimate(n, calls, calls * PROMPT_TOKENS, calls * self.training.max_tokens)


def run(spec: RlSpec, ctx: Context) -> Outcome:
    """Render the prompts and hand them to the engine."""
    prompt_inputs = ctx.inputs["prompts"]
    artifacts = prompt_inputs if isinstance(prompt_inputs, tuple) else (ctx.input("prompts"),)
    prompts, repeated = distinct([as_prompt(row) for artifact in artifacts for row in rows_of(artifact)][: spec.limit])
    texts = [PromptText(row.id, ctx.chat.prompt(row.messages)) for row in prompts]
    data = PpoData(ctx.input("model").path, RewardModel(ctx.input("reward").path), texts, ctx.stops)
    trained = ctx.engine.train(PPO, data, spec.training, ctx.attempt)
    outcome = trained_outcome(trained, len(prompts))
    ledger = outcome.ledger
    if repeated:
        dropped = {**ledger.dropped, "repeated id": repeated}
        ledger = type(ledger)(ledger.rows_in + repeated, ledger.rows_out, dropped)
    return Outcome(ledger, outcome.metrics)
