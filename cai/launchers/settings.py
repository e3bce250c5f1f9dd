"""Where commands run, as an experiment's YAML says it. Nothing here decides a result, so nothing counts for a key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from cai.settings import Settings

TIME = r"^(\d+-)?\d+(:\d+){0,2}$"
"""A time limit of Slurm's: minutes, M:S, H:M:S, D-H, D-H:M or D-H:M:S."""


class Local(Settings):
    """Processes on this machine. ``grace``: seconds between SIGTERM and SIGKILL."""

    kind: Literal["local"] = "local"
    grace: Annotated[float, Field(gt=0)] = 15.0


class Slurm(Settings):
    """Jobs of a Slurm cluster: one for each step, chained by dependency.

    ``partition`` is for GPUs, ``cpu_partition`` for steps without (default: the same). ``container`` and ``mounts``
    become pyxis flags of ``srun``. ``setup`` are shell lines that every job runs first (modules, virtual environment).
    ``options`` are more ``#SBATCH`` options, written without the leading dashes (``exclusive``, ``reservation=x``).
    A job that nears its time limit stops cleanly and is requeued, at most ``max_requeues`` times. ``poll`` is how
    often, in seconds, the queue is asked.
    """

    kind: Literal["slurm"] = "slurm"
    account: str = ""
    partition: str = ""
    cpu_partition: str = ""
    qos: str = ""
    constraint: str = ""
    time: Annotated[str, Field(pattern=TIME, description="limit of a job with GPUs")] = "04:00:00"
    cpu_time: Annotated[str, Field(pattern=TIME, description="limit of a job without GPUs")] = "01:00:00"
    container: Annotated[str, Field(description="image of NeMo's commands; empty runs them on the node itself")] = ""
    mounts: tuple[str, ...] = ()
    gpus: Annotated[bool, Field(description="ask for GPUs with --gpus-per-node; some clusters give whole nodes")] = True
    setup: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    requeue: bool = True
    max_requeues: Annotated[int, Field(ge=0)] = 5
    warn: Annotated[int, Field(ge=0, description="seconds before the time limit at which a job stops cleanly")] = 120
    grace: Annotated[float, Field(gt=0)] = 30.0
    poll: Annotated[float, Field(gt=0)] = 5.0


Launcher = Annotated[Local | Slurm, Field(discriminator="kind")]


def is_local(engine: Mapping[str, Any]) -> bool:
    """Whether an engine's commands run on this machine, and not in the jobs of a cluster."""
    launcher = engine.get("launcher")
    return not isinstance(launcher, Mapping) or launcher.get("kind", "local") == "local"
