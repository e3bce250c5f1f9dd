"""The jobs of a plan on a cluster: one a step, after those it reads from, with an array before it for its shards.

Both ways to a cluster are written from here: jobs that this program submits, and scripts that a person submits.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cai.engines import commands_of
from cai.engines.base import Places
from cai.launchers.base import Command
from cai.launchers.settings import Slurm
from cai.launchers.slurm_script import TASK, Component, components_of, script
from cai.plan import Plan, Step
from cai.run.shards import shards_of


@dataclass(frozen=True)
class PlannedJob:
    """A step as a job. ``commands`` are the step's, this program's own among them (``work``).

    ``needs`` are the steps whose jobs must have ended well; ``shards`` is the size of the array before it, 1 for none.
    """

    step: Step
    commands: tuple[Command, ...]
    needs: tuple[str, ...]
    shards: int

    @property
    def work(self) -> Command:
        """This program at work on the step."""
        return next(command for command in self.commands if command.role == "work")

    def components(self, launcher: Slurm) -> tuple[Component, ...]:
        """What the job asks the cluster for."""
        return components_of(launcher, self.commands)

    def script(self, launcher: Slurm, body: Sequence[str], *, log: Path, name: str, folder: Path | None = None) -> str:
        """The batch script. The last line of ``body`` is the command of the step itself."""
        components = self.components(launcher)
        return script(launcher, self.step.name, components, body, log=log, job_name=name, folder=folder)

    def array_script(
        self, launcher: Slurm, body: Sequence[str], *, log: Path, name: str, folder: Path | None = None
    ) -> str:
        """The batch script of the step's array, of which each task does its part of what ``body`` does."""
        lines = [*body[:-1], f"{body[-1]} --shard {TASK}/{self.shards}"]
        return script(
            launcher,
            self.step.name,
            self.components(launcher),
            lines,
            log=log,
            job_name=name,
            folder=folder,
            array=self.shards,
        )


def planned_job(plan: Plan, step: Step, places: Places) -> PlannedJob:
    """A step's job; one whose engine starts no processes has only this program in it."""
    commands = commands_of(plan, step, places) or (alone(step, places),)
    return PlannedJob(step, commands, tuple(step.needs()), shards_of(step))


def job_graph(plan: Plan, places: Places) -> tuple[PlannedJob, ...]:
    """The job of every step, in the plan's order: each comes after all that it needs."""
    return tuple(planned_job(plan, step, places) for step in plan.steps)


def alone(step: Step, places: Places) -> Command:
    """This program on one step, where nothing else is started."""
    return Command("work", (sys.executable, "-m", "cai", "step", places.plan, step.name))
