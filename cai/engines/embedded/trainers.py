"""The training methods that the embedded engine has: one line for each, whose file is loaded when it is first used."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from cai.engines.base import Attempt, Trained
from cai.engines.embedded.settings import Hardware
from cai.engines.methods.dpo import DPO
from cai.engines.methods.ppo import PPO
from cai.engines.methods.reward import REWARD
from cai.engines.methods.sft import SFT

Trainer = Callable[[Any, Any, Attempt, Hardware], Trained]
"""``(data, settings, attempt, hardware)``, of the method's own types."""


def _late(module: str) -> Trainer:
    """``train`` of a module of this room: with it comes torch."""

    def train(data: Any, settings: Any, attempt: Attempt, hardware: Hardware) -> Trained:
        trainer: Trainer = import_module(f"cai.engines.embedded.{module}").train
        return trainer(data, settings, attempt, hardware)

    return train


TRAINERS: dict[str, Trainer] = {
    SFT.name: _late("sft"),
    REWARD.name: _late("reward"),
    DPO.name: _late("dpo"),
    PPO.name: _late("ppo"),
}
