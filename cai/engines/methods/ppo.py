"""Proximal policy optimisation: sample answers, follow their rewards, and stay near where the policy started."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from cai.engines.methods.base import Curve, Lora, Method, Plot, Precision, PromptText
from cai.engines.rewards import RewardSource
from cai.identity import ADDED, RUNTIME
from cai.settings import Settings


class CriticStart(str, Enum):
    """Where PPO's value function starts: a copy of the reward model, or a head on the policy's own trunk."""

    REWARD = "reward"
    POLICY = "policy"


class RlSettings(Settings):
    """Proximal policy optimisation (arXiv 1707.06347) with a KL penalty to the starting policy."""

    iterations: Annotated[int, Field(ge=1)] = 10
    rollouts: Annotated[int, Field(ge=1, description="answers sampled per iteration")] = 64
    batch_size: Annotated[int, Field(ge=1, description="answers per optimizer step")] = 32
    micro_batch_size: Annotated[int, Field(ge=1)] = 8
    ppo_epochs: Annotated[int, Field(ge=1)] = 2
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 1e-4
    critic_learning_rate: Annotated[float, Field(gt=0, le=1)] = 1e-4
    critic: CriticStart = CriticStart.POLICY
    critic_warmup: Annotated[int, Field(ge=0, description="first iterations that train only the critic")] = 0
    max_tokens: Annotated[int, Field(ge=1, description="tokens of an answer")] = 48
    max_prompt_tokens: Annotated[int, Field(ge=1, description="longer prompts are dropped and counted")] = 512
    temperature: Annotated[float, Field(gt=0)] = 1.0
    top_k: Annotated[int, ADDED(0), Field(ge=0, description="sample from this many likeliest tokens; 0: from all")] = 0
    top_p: Annotated[
        float, ADDED(1.0), Field(gt=0, le=1, description="sample from the likeliest tokens that have this share")
    ] = 1.0
    kl_coefficient: Annotated[float, Field(ge=0)] = 0.02
    kl_limit: Annotated[
        float | None, Field(ge=0, description="stop when the mean KL of an answer exceeds this many nats")
    ] = None
    gamma: Annotated[float, Field(gt=0, le=1)] = 1.0
    gae_lambda: Annotated[float, Field(ge=0, le=1)] = 0.95
    clip: Annotated[float, Field(gt=0)] = 0.2
    value_clip: Annotated[float, Field(ge=0, description="0 switches value clipping off")] = 0.2
    entropy_bonus: Annotated[float, Field(ge=0)] = 0.0
    whiten_advantages: bool = True
    normalize_reward: Annotated[
        bool, Field(description="subtract the start policy's mean reward and divide by its deviation")
    ] = True
    missing_end_penalty: Annotated[
        float, Field(ge=0, description="subtracted from an answer that is cut at max_tokens")
    ] = 0.0
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    lora: Lora | None = Lora()
    precision: Precision = Precision.AUTO
    checkpoint_every: Annotated[int, Field(ge=1), RUNTIME] = 1
    snapshots: Annotated[
        tuple[Annotated[int, Field(ge=1)], ...],
        ADDED(()),
        Field(description="iterations after which the policy is kept, for stages of kind snapshot"),
    ] = ()

    @model_validator(mode="after")
    def _snapshots_within(self) -> RlSettings:
        if len(set(self.snapshots)) < len(self.snapshots):
            raise ValueError("snapshots names an iteration twice")
        if self.snapshots and max(self.snapshots) > self.iterations:
            raise ValueError(f"snapshots names iteration {max(self.snapshots)}, and there are only {self.iterations}")
        return self


@dataclass(frozen=True, slots=True)
class PpoData:
    """The folder of the policy to start from, what rewards its answers, rendered prompts, and what ends an answer."""

    policy: Path
    reward: RewardSource
    prompts: Sequence[PromptText]
    stops: tuple[str, ...] = ()


PPO = Method(
    name="ppo",
    stage="rl",
    settings=RlSettings,
    data=PpoData,
    makes="model",
    tokens_per_second=(130.0, 4000.0),
    samples=True,
    snapshots=True,
    plot=Plot(
        title="Reinforcement learning",
        axis="iteration",
        curves=(
            Curve("Reward", "mean reward of the answers", {"reward": ""}),
            Curve("KL", "KL to the start, nats an answer", {"kl": ""}),
            Curve("Length", "tokens of an answer", {"length": ""}),
            Curve("Entropy", "entropy of the next token, nats", {"entropy": ""}),
        ),
        columns={
            **{name: name for name in ("iteration", "reward", "kl", "length", "entropy", "ended")},
            "clip_fraction": "clipped",
        },
        remark="A reward that rises while KL runs away, length drifts or entropy collapses is over-optimised.",
    ),
)
