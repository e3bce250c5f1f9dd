"""Reward modelling: learn from comparisons which answer is the better one, with soft labels (Bradley-Terry)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from cai.engines.methods.base import FIT_COLUMNS, Curve, Method, PairText, Plot, SupervisedSettings


class RewardSettings(SupervisedSettings):
    """Bradley-Terry reward model with soft labels: -[p log s(d) + (1 - p) log s(-d)], d = r_chosen - r_rejected."""

    learning_rate: Annotated[float, Field(gt=0, le=1)] = 1e-4
    center_coefficient: Annotated[
        float, Field(ge=0, description="weight of (r_chosen + r_rejected)^2, arXiv 2312.09244")
    ] = 0.01


@dataclass(frozen=True, slots=True)
class RewardData:
    """The folder of the model to start from, and rendered pairs to learn and to measure on."""

    model: Path
    train: Sequence[PairText]
    val: Sequence[PairText]


REWARD = Method(
    name="reward",
    stage="reward",
    settings=RewardSettings,
    data=RewardData,
    makes="reward_model",
    tokens_per_second=(1200.0, 4000.0),
    answers=2,
    plot=Plot(
        title="Reward model training",
        axis="step",
        curves=(
            Curve("Loss", "loss", {"loss": "training", "val_loss": "held out"}),
            Curve("Accuracy", "", {"accuracy": "training", "val_accuracy": "held out"}, share=True, reference=0.5),
        ),
        columns=FIT_COLUMNS,
    ),
)
