"""Direct preference optimisation (arXiv 2305.18290): learn from comparisons without a reward model.

Labels may be soft: a pair whose better answer is the better one with probability p has the conservative loss

    -[p log s(b d) + (1 - p) log s(-b d)],   d = log pi(c) / ref(c) - log pi(r) / ref(r),

c chosen, r rejected, b ``beta`` (E. Mitchell, A note on DPO with noisy preferences, 2023). With p = 1 it is the loss of
the paper; a tie pulls both answers to where they were.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from cai.engines.methods.base import FIT_COLUMNS, Curve, Method, PairText, Plot, SupervisedSettings


class DpoSettings(SupervisedSettings):
    """Direct preference optimisation with soft labels, against the model that training starts from or another one."""

    learning_rate: Annotated[float, Field(gt=0, le=1)] = 5e-5
    beta: Annotated[float, Field(gt=0, description="how dear it is to leave the reference, per nat of an answer")] = 0.1


@dataclass(frozen=True, slots=True)
class DpoData:
    """The folder of the model to start from, rendered pairs to learn and to measure on, and the reference's folder.

    Without a ``reference`` it is the model to start from.
    """

    model: Path
    train: Sequence[PairText]
    val: Sequence[PairText]
    reference: Path | None = None


DPO = Method(
    name="dpo",
    stage="dpo",
    settings=DpoSettings,
    data=DpoData,
    makes="model",
    tokens_per_second=(700.0, 4000.0),
    answers=2,
    plot=Plot(
        title="Preference training",
        axis="step",
        curves=(
            Curve("Loss", "loss", {"loss": "training", "val_loss": "held out"}),
            Curve("Accuracy", "", {"accuracy": "training", "val_accuracy": "held out"}, share=True, reference=0.5),
            Curve("Margin", "reward of the better answer less the other's", {"margin": "training"}),
            Curve("Rewards", "b log pi / ref", {"reward_chosen": "chosen", "reward_rejected": "rejected"}),
        ),
        columns={**FIT_COLUMNS, "margin": "margin", "reward_chosen": "chosen", "reward_rejected": "rejected"},
        remark="Where both rewards fall together, training makes the better answers less likely too: raise beta.",
    ),
)
