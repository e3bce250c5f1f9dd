"""A step's batch script, as text: a person can read it, change it, and submit it by hand. Pure; writes no file.

The last line of the body replaces the shell (``exec``), so that Slurm's warning before the time limit, which goes to
the batch shell alone (``--signal=B:USR1``), reaches this program: a shell would handle it only after its child ended.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cai.errors import Problem, SpecError
from cai.launchers.base import Command, Resources
from cai.launchers.settings import Slurm

TASK = '"$SLURM_ARRAY_TASK_ID"'
"""The number of an array's task, as its script writes it."""
_PLAIN = re.compile(r"[\w@%+=:,./()!-]+", re.ASCII)


@dataclass(frozen=True, slots=True)
class Component:
    """What one part of a (heterogeneous) job asks for; ``time`` is the limit of the whole job."""

    nodes: int = 1
    gpus_per_node: int = 0
    tasks_per_node: int = 1
    time: str = ""


def components_of(settings: Slurm, commands: Sequence[Command]) -> tuple[Component, ...]:
    """What a step's job must hold for all of its commands.

    Servers of a turn on the same node run side by side, so what they need adds up; turns, and commands in the
    foreground, follow each other.
    A component in which nothing but this program runs is one node without GPUs.
    """
    placed = [command for command in commands if command.resources.nodes > 0]
    gpus = any(command.resources.gpus_per_node for command in placed)
    time_limits = [c.resources.time for c in commands if c.resources.time]
    time = max(time_limits, key=seconds_of, default="") or (settings.time if gpus else settings.cpu_time)
    count = max((command.component for command in commands), default=0) + 1
    return tuple(_component([c for c in placed if c.component == i], time) for i in range(count))


def script(
    settings: Slurm,
    step_name: str,
    components: Sequence[Component],
    body: Sequence[str],
    *,
    log: Path,
    job_name: str,
    folder: Path | None = None,
    array: int = 0,
) -> str:
    """The text for ``sbatch``; standard output and error of the job are appended to ``log``.

    ``folder`` is where the script begins; by default where it is submitted. An ``array`` has so many tasks, numbered
    from 0; task K writes to ``<log>.shard-K.out``, where ``log`` ends with ``.out``.

    Raises:
        SpecError: when a setting spans lines, which no ``#SBATCH`` line can.
    """
    lines = ["#!/bin/bash", f"# The job of step '{_one_line('step', step_name)}'."]
    for index, component in enumerate(components):
        if index:
            lines.append("#SBATCH hetjob")
        options = _header(
            settings,
            component,
            job_name=job_name,
            log=None if index else log,
            folder=folder,
            array=array,
        )
        lines += [f"#SBATCH --{option}" for option in options]
    lines += ["", "set -euo pipefail"]
    lines += ["# A warning that comes before the program listens for it must not end the job.", "trap '' USR1"]
    if settings.setup:
        # Activation scripts (conda, modules) commonly read variables that are not set.
        lines += ["set +u", *settings.setup, "set -u"]
    return "\n".join([*lines, *body]) + "\n"


def dependency(after: Iterable[str], after_any: Iterable[str] = ()) -> tuple[str, ...]:
    """sbatch's options that make a job wait: for jobs that must end well, and for those of which any end will do."""
    kinds = (("afterok", list(after)), ("afterany", list(after_any)))
    waits = [f"{kind}:{':'.join(ids)}" for kind, ids in kinds if ids]
    if not waits:
        return ()
    return (f"--dependency={','.join(waits)}", "--kill-on-invalid-dep=yes")


def _header(
    settings: Slurm, component: Component, *, job_name: str, log: Path | None, folder: Path | None, array: int
) -> Iterable[str]:
    """One component's options. What concerns the batch script is said once, in the first (``log`` given)."""
    gpus = component.gpus_per_node > 0
    options = {
        "job-name": job_name,
        "account": settings.account,
        "partition": settings.partition if gpus else settings.cpu_partition or settings.partition,
        "qos": settings.qos,
        "constraint": settings.constraint if gpus else "",
        "time": component.time,
        "nodes": str(component.nodes),
        "ntasks-per-node": str(component.tasks_per_node),
        "gpus-per-node": str(component.gpus_per_node) if gpus and settings.gpus else "",
    }
    if log is not None:
        # In a file name of Slurm's, % begins a placeholder.
        output = str(log).replace("%", "%%")
        if array:
            options |= {"array": f"0-{array - 1}"}
            output = output.removesuffix(".out") + ".shard-%a.out"
        options |= {"output": output, "open-mode": "append", "chdir": str(folder or "")}
        options |= {"signal": f"B:USR1@{settings.warn}"} if settings.warn else {}
    yield from (f"{option}={_quoted(option, value)}" for option, value in options.items() if value)
    yield "requeue" if settings.requeue else "no-requeue"
    yield from (_one_line("engine.launcher.options", option) for option in settings.options)


def _component(commands: Sequence[Command], time: str) -> Component:
    if not commands:
        return Component(time=time)
    nodes = max(command.relative + command.resources.nodes for command in commands)
    needs = [_on_node(node, commands) for node in range(nodes)]
    return Component(nodes, max(gpus for gpus, _ in needs), max(tasks for _, tasks in needs), time)


def _on_node(node: int, commands: Sequence[Command]) -> tuple[int, int]:
    """GPUs and tasks at once on one node."""
    here = [c for c in commands if c.relative <= node < c.relative + c.resources.nodes]
    others = [c.resources for c in here if not c.background]

    def at_once(gpus: bool) -> int:
        def of(resources: Resources) -> int:
            return resources.gpus_per_node if gpus else resources.tasks_per_node

        turns = {server.turn for server in here if server.background}
        together = (sum(of(c.resources) for c in here if c.background and c.turn == turn) for turn in turns)
        return max(together, default=0) + max(map(of, others), default=0)

    return at_once(gpus=True), max(at_once(gpus=False), 1)


def seconds_of(limit: str) -> int:
    """A time limit in seconds, as Slurm reads it: minutes, M:S, H:M:S, D-H, D-H:M or D-H:M:S. 0 is no limit."""
    days, dash, clock = limit.rpartition("-")
    parts = [int(part or 0) for part in clock.split(":")]
    if not dash and len(parts) < 3:
        parts = [0, *parts]
    hours, minutes, seconds = [*parts, 0, 0][:3]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def _quoted(option: str, value: str) -> str:
    value = _one_line(option, value)
    if _PLAIN.fullmatch(value):
        return value
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _one_line(setting: str, value: str) -> str:
    if "\n" in value or "\r" in value:
        raise SpecError(Problem(setting, f"{value!r} spans lines", "an #SBATCH line holds one value on one line"))
    return value
