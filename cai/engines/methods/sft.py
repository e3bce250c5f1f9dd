"""Supervised fine-tuning: learn the loss spans of conversations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cai.engines.methods.base import FIT_COLUMNS, Curve, Method, Plot, SupervisedSettings, TrainText


class SftSettings(SupervisedSettings):
    """Supervised fine-tuning on the loss spans of conversations."""


@dataclass(frozen=True, slots=True)
class SftData:
    """The folder of the model to start from, and rendered conversations to learn and to measure on.

    ``answer_end`` closes an answer in their texts: what a model must learn to stop; empty where nobody knows.
    """

    model: Path
    train: Sequence[TrainText]
    val: Sequence[TrainText]
    answer_end: str = ""


SFT = Method(
    name="sft",
    stage="sft",
    settings=SftSettings,
    data=SftData,
    makes="model",
    tokens_per_second=(800.0, 4000.0),
    plot=Plot(
        title="Supervised training",
        axis="step",
        curves=(Curve("Loss", "loss", {"loss": "training", "val_loss": "held out"}),),
        columns=FIT_COLUMNS,
    ),
)
