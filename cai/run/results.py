"""What comes of a run: every step's artifact."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cai.plan import Plan, Step
from cai.stages.base import Artifact


@dataclass(frozen=True, slots=True)
class StepResult:
    """A step's artifact, and whether it was there before."""

    step: Step
    artifact: Artifact
    reused: bool


@dataclass(frozen=True, slots=True)
class RunResult:
    """A finished run: every step's artifact in the plan's order; ``seconds`` is wall time."""

    plan: Plan
    run_dir: Path
    steps: tuple[StepResult, ...]
    seconds: float

    def artifact(self, name: str) -> Artifact:
        """The artifact of the step of that name.

        Raises:
            KeyError: when the plan has no such step.
        """
        return {result.step.name: result.artifact for result in self.steps}[name]
