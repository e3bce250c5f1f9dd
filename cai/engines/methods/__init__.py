"""Training methods: one file for each, and the table that names them."""

from __future__ import annotations

from typing import Any

from cai.engines.methods.base import Method
from cai.engines.methods.dpo import DPO
from cai.engines.methods.ppo import PPO
from cai.engines.methods.reward import REWARD
from cai.engines.methods.sft import SFT

METHODS: dict[str, Method[Any, Any]] = {method.name: method for method in (SFT, REWARD, DPO, PPO)}

_BY_STAGE = {method.stage: method for method in METHODS.values()}


def method_of(kind: str) -> Method[Any, Any] | None:
    """The method by which stages of a kind train; None where they train nothing."""
    return _BY_STAGE.get(kind)
