"""What rewards a policy's answers while it is trained."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class RewardModel:
    """A reward model that a stage has trained; ``path`` is its folder."""

    path: Path


RewardSource = RewardModel
"""Whatever can reward: a type that grows. An engine refuses the sources that it cannot ask."""
