"""The training methods that NeMo-Aligner's trainers have: one line for each, with upstream's names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cai.engines.methods.base import Method
from cai.engines.methods.ppo import PPO
from cai.engines.methods.reward import REWARD
from cai.engines.methods.sft import SFT


@dataclass(frozen=True, slots=True)
class Trainer:
    """One of upstream's trainers.

    ``role`` is the command that trains, ``section`` its part of the config's ``trainer``, and ``batches`` are where the
    config has batch sizes, the training data's first. ``result`` is the name that the config gives to ``exp_manager``,
    and so to the model. ``critic``: a second model is trained in a server beside it.
    """

    method: Method[Any, Any]
    role: str
    section: str
    batches: tuple[str, ...]
    result: str
    critic: bool = False

    @property
    def models(self) -> int:
        """Models that are loaded and saved."""
        return 2 if self.critic else 1


SFT_TRAINER = Trainer(
    method=SFT,
    role="train",
    section="trainer.sft",
    batches=("model.data.train_ds", "model.data.validation_ds"),
    result="megatron_gpt_sft",
)
REWARD_TRAINER = Trainer(method=REWARD, role="train", section="trainer.rm", batches=("model",), result="megatron_gpt")
PPO_TRAINER = Trainer(
    method=PPO,
    role="actor",
    section="trainer.ppo",
    batches=("model",),
    result="megatron_gpt_ppo_actor",
    critic=True,
)
TRAINED_BY = {trainer.method.name: trainer for trainer in (SFT_TRAINER, REWARD_TRAINER, PPO_TRAINER)}
SECTIONS = tuple(trainer.section for trainer in TRAINED_BY.values())
_BY_STAGE = {trainer.method.stage: trainer for trainer in TRAINED_BY.values()}


def trainer_of(kind: str) -> Trainer | None:
    """Who trains in stages of a kind; None where nothing is trained, or not by upstream."""
    return _BY_STAGE.get(kind)
