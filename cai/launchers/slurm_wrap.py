"""A command of NeMo as a step of a job: the ``srun`` in front of its argv. Pure, so that a plan shows what will run.

Each flag has a reason:

- ``--ntasks`` next to ``--ntasks-per-node``: inside a job ``srun`` takes the job's own number of tasks otherwise.
- ``--mem=0``: all memory that the job has there, and none of it for this step alone. Otherwise ``srun`` takes the limit
  of the batch script's component, which may be a small node without GPUs, and claims that much.
- ``--exact --relative`` on servers: several of them share a component, so each takes only its own CPUs and GPUs, on the
  node of the component that it was planned for. All other commands have their component to themselves and get all.
- ``--kill-on-bad-exit``: one failed rank ends the others, which would wait for it for ever.
- ``--container-env``: what a command sets wins over what the image sets (pyxis does it the other way round).
"""

from __future__ import annotations

from dataclasses import replace

from cai.launchers.base import Command
from cai.launchers.settings import Slurm


def wrap(settings: Slurm, command: Command, components: int) -> Command:
    """``command`` with ``srun`` before its argv; unchanged when it asks for no nodes, as ``work`` does.

    ``components`` is how many components the step's job has; above one the command's own is named (``--het-group``).
    """
    need = command.resources
    if need.nodes == 0:
        return command
    if not 0 <= command.component < components:
        raise ValueError(f"{command.role}: component {command.component} of a job of {components}")
    argv = ["srun"]
    if components > 1:
        argv.append(f"--het-group={command.component}")
    argv += [
        f"--nodes={need.nodes}",
        f"--ntasks={need.nodes * need.tasks_per_node}",
        f"--ntasks-per-node={need.tasks_per_node}",
        "--mem=0",
    ]
    if settings.gpus and need.gpus_per_node:
        argv.append(f"--gpus-per-node={need.gpus_per_node}")
    if shares_component(command):
        # Without --gpus-per-node there are no GPUs to divide, and a cluster that gives whole nodes to a job gives all
        # of them to each step.
        argv.append("--exact" if settings.gpus else "--overlap")
    if shares_component(command) or command.relative:
        argv.append(f"--relative={command.relative}")
    argv.append("--kill-on-bad-exit=1")
    if settings.container:
        # The working folder is the container's; there need be no such folder on the node.
        return replace(command, argv=(*argv, *_container(settings, command), *command.argv), cwd="")
    return replace(command, argv=(*argv, *command.argv))


def shares_component(command: Command) -> bool:
    """Whether others may run beside it in the same component: true of the inference servers, of nothing else."""
    return command.role.split("-")[0] == "server"


def _container(settings: Slurm, command: Command) -> list[str]:
    flags = [f"--container-image={settings.container}"]
    if settings.mounts:
        flags.append(f"--container-mounts={','.join(settings.mounts)}")
    if command.cwd:
        flags.append(f"--container-workdir={command.cwd}")
    names = sorted({*command.env, *command.addresses})
    if names:
        flags.append(f"--container-env={','.join(names)}")
    return flags
