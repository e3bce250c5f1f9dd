"""Weights & Biases: curves as history with an axis for each step, figures as the run's summary.

Nothing but what is told goes there: no code, no output of the terminal, nothing of the machine.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Sequence
from typing import Any

from cai.trackers.base import CurvePoint, Ending, RunAddress, RunFacts, Telling, clean
from cai.trackers.settings import Wandb

_PATIENCE = 12.0
"""Seconds in which the server must answer when a run begins; it is tried again later."""


class WandbRuns:
    """A ``Tracker`` of runs in one project."""

    def __init__(self, settings: Wandb) -> None:
        self._settings = settings
        self._run: Any = None
        self._axes: set[str] = set()

    def start(self, run: RunFacts, resume_id: str) -> RunAddress:
        """Make the run, or go on with it."""
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        settings = self._settings
        quiet = wandb.Settings(
            silent=True,
            init_timeout=_PATIENCE,
            console="off",
            disable_code=True,
            disable_git=True,
            x_disable_meta=True,
            x_disable_stats=True,
            x_disable_machine_info=True,
        )
        self._run = wandb.init(
            project=settings.project,
            entity=settings.entity,
            mode=settings.mode,
            name=run.name,
            id=resume_id or uuid.uuid4().hex[:12],
            resume="allow",
            group=run.group or None,
            tags=list(settings.tags) or None,
            config=dict(run.config),
            dir=str(run.folder / "tracking"),
            settings=quiet,
        )
        folder = os.path.relpath(os.path.dirname(str(self._run.dir)))
        return RunAddress(str(self._run.id), str(self._run.url or f"wandb sync {folder}"))

    def log(self, entries: Sequence[Telling]) -> None:
        """A row of history for each point, with the axis of its curve; figures go into the summary."""
        for entry in entries:
            if isinstance(entry, CurvePoint):
                axis = f"{entry.prefix}/{entry.axis}"
                if axis not in self._axes:
                    self._axes.add(axis)
                    self._run.define_metric(axis)
                    self._run.define_metric(f"{entry.prefix}/*", step_metric=axis)
                self._run.log(
                    {axis: entry.position} | {f"{entry.prefix}/{name}": value for name, value in entry.values.items()}
                )
            else:
                self._run.summary.update({**entry.values, clean(f"{entry.step}/end/reused"): entry.reused})

    def finish(self, ending: Ending) -> None:
        """The run's sums and its status; waits until all has been sent, or lies in the file."""
        status_fields = {"run/status": ending.status, "run/reused": ", ".join(ending.reused)}
        self._run.summary.update({**ending.values, **status_fields})
        self._run.finish(exit_code=0 if ending.status in ("done", "running") else 1)
