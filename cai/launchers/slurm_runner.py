"""Commands of a step inside its job: local processes that are ``srun``, whose tasks are on the job's nodes.

The argv comes with its ``srun`` already (``slurm_wrap`` put it there while planning), so all that is left to say at
run time is where each command's node is, and how many CPUs a server's share of its node is. A stopped ``srun`` takes
its tasks on all nodes with it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from cai.errors import Problem, SpecError, StepFailed
from cai.launchers.base import Command, Server
from cai.launchers.local import HERE, LocalRunner
from cai.launchers.settings import Local, Slurm
from cai.launchers.slurm_cli import hosts, node_address
from cai.launchers.slurm_wrap import shares_component


class SrunRunner:
    """Runs the commands of one step in the allocation that this process is in.

    Raises:
        SpecError: outside a job, where there are no nodes to start anything on.
    """

    def __init__(self, settings: Slurm) -> None:
        if not os.environ.get("SLURM_JOB_ID"):
            raise SpecError(
                Problem(
                    "engine.launcher",
                    "the model's server needs GPU nodes, and this process is in no Slurm job",
                    "give --server http://HOST:PORT of one that runs, or do this inside an allocation (salloc)",
                )
            )
        self._local = LocalRunner(Local(grace=settings.grace), host_of=host_of)

    def start(self, command: Command, log: Path) -> Server:
        """Start a background command; see ``LocalRunner.start``."""
        return self._local.start(_with_share(command), log)

    def run(self, command: Command, log: Path, beside: Sequence[Server] = ()) -> None:
        """Run a command to its end; see ``LocalRunner.run``."""
        self._local.run(_with_share(command), log, beside)

    def close(self) -> None:
        """Stop everything that was started here."""
        self._local.close()


def host_of(command: Command) -> str:
    """The address of the (first) node that a command runs on: of its component the one that ``relative`` says.

    Raises:
        StepFailed: when the job has no such component or node.
    """
    if command.resources.nodes == 0:
        return HERE
    nodelist = _of_component("SLURM_JOB_NODELIST", command.component)
    if not nodelist:
        raise StepFailed(
            f"{command.role}: wants component {command.component} of a heterogeneous job, which this job "
            f"({os.environ.get('SLURM_JOB_ID')}) does not have; submit the step with its own script"
        )
    nodes = _hosts(nodelist)
    if command.relative + command.resources.nodes > len(nodes):
        raise StepFailed(
            f"{command.role}: wants {command.resources.nodes} nodes from number {command.relative} on, but "
            f"component {command.component} of this job has {len(nodes)} ({nodelist})"
        )
    return _address(nodes[command.relative])


# A node keeps its address while the job runs.
_hosts = cache(hosts)
_address = cache(node_address)


def _of_component(name: str, component: int) -> str:
    """A variable of this job's component; a job that is not heterogeneous has component 0 alone."""
    plain = os.environ.get(name, "") if component == 0 else ""
    return os.environ.get(f"{name}_HET_GROUP_{component}", plain)


def _with_share(command: Command) -> Command:
    """A server's CPUs: the part of its node's that it has of the GPUs. Without it ``--exact`` gives one CPU a task.

    Both variables are ``--cpus-per-task`` to ``srun``, the second since 22.05.
    """
    need = command.resources
    cpus = re.match(r"\d+", _of_component("SLURM_JOB_CPUS_PER_NODE", command.component))
    gpus = re.search(r"\d+$", _of_component("SLURM_GPUS_PER_NODE", command.component))
    if not (shares_component(command) and need.gpus_per_node and cpus and gpus):
        return command
    each = int(cpus[0]) * need.gpus_per_node // int(gpus[0]) // need.tasks_per_node
    share = str(max(1, each))
    return replace(command, env={"SLURM_CPUS_PER_TASK": share, "SRUN_CPUS_PER_TASK": share, **command.env})
