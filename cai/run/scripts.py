"""A plan as scripts that a person can read, change and run: shell for one machine, sbatch for a cluster.

Each step is one file with the commands of the plan, word for word. This program does what lies before and after them
(``step --prepare``, ``step --finish``): it writes upstream's data files and takes what upstream made into the store, so
that a script and a run share every finished step. ``run.sh`` runs them in order, or submits them chained. A step in
shards does its parts side by side first: as background processes, or as an array with a script of its own.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from cai.engines import engine_of
from cai.engines.base import Places
from cai.files.durable import write_durably
from cai.launchers.base import Command
from cai.launchers.outside import host_variable
from cai.launchers.settings import Slurm
from cai.launchers.slurm_script import dependency
from cai.plan import Plan, Step
from cai.run.job_files import file_name
from cai.run.job_graph import PlannedJob, job_graph
from cai.store.artifacts import Store


def write_scripts(plan: Plan, store: Store, folder: Path) -> Path:
    """Write ``plan.json``, one script for each step and ``run.sh`` into ``folder``; returns ``run.sh``.

    Raises:
        PrerequisiteError: when the folder cannot be written.
    """
    folder = folder.absolute()
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    kind, settings = engine_of(plan.engine)
    launcher = kind.launcher(settings)
    write_durably(folder / "plan.json", plan.to_json())
    graph = job_graph(plan, Places(store.root, str(folder / "plan.json")))
    names: dict[str, str] = {}
    for number, job in enumerate(graph, 1):
        step = job.step
        suffix = "sbatch" if isinstance(launcher, Slurm) else "sh"
        names[step.name] = f"{number:02d}-{file_name(step.name).replace('.', '-')}.{suffix}"
        body = _body(job, folder, isinstance(launcher, Slurm))
        if isinstance(launcher, Slurm):
            log, job_name = folder / "logs" / f"{file_name(step.name)}.out", f"cai-{step.name}"
            text = job.script(launcher, body, log=log, name=job_name)
            if job.shards > 1:
                array = job.array_script(launcher, body, log=log, name=job_name)
                _write(folder / _array(names[step.name]), array)
        else:
            text = "\n".join(["#!/usr/bin/env bash", "set -euo pipefail", *body]) + "\n"
        _write(folder / names[step.name], text)
    run = folder / "run.sh"
    _write(run, _submit(graph, names) if isinstance(launcher, Slurm) else _in_order(plan, names))
    return run


def _write(path: Path, text: str) -> None:
    write_durably(path, text)
    path.chmod(0o755)


def _array(name: str) -> str:
    """The script of the array that does the parts of the step whose own script is ``name``."""
    return name.replace(".sbatch", ".shards.sbatch")


def _body(job: PlannedJob, folder: Path, slurm: bool) -> list[str]:
    step, work = job.step, job.work
    others = [command for command in job.commands if command.role != "work"]
    lines = [f"# Step '{step.name}': {step.kind}.", f"cd {shlex.quote(str(Path.cwd()))}", ""]
    if not others or any(command.turn for command in others):
        if others:
            lines.append("# Several models are served one after the other, so the program starts the servers itself:")
            lines += [f"#   {shlex.join(command.argv)}" for command in others]
        return [*lines, *([] if slurm else _parts(job, folder)), shlex.join(work.argv)]
    is_done = shlex.join((*work.argv, "--done"))
    lines += [f"if {is_done}; then exit 0; fi  # it is in the store already", ""]
    if not any(command.background for command in others) or any(command.role == "actor" for command in others):
        lines += ["# What the commands read.", shlex.join((*work.argv, "--prepare")), ""]
    if any(command.background for command in others):
        lines += ["# Servers end with this script.", "trap 'kill $(jobs -p) 2>/dev/null || true; wait' EXIT", ""]
    for command in others:
        lines += _command(command, others, folder=folder, step=step, slurm=slurm)
    return [*lines, "# Look at the result and keep it in the store.", shlex.join((*work.argv, "--finish"))]


def _parts(job: PlannedJob, folder: Path) -> list[str]:
    """The shards of a step, side by side; what one of them leaves undone the step itself does."""
    shards = job.shards
    if shards == 1:
        return []
    log = shlex.quote(str(folder / "logs" / f"{file_name(job.step.name)}.shard"))
    return [
        f"# {shards} parts side by side; then the step puts them together and does what one of them left.",
        "trap 'kill $(jobs -p) 2>/dev/null || true; wait' EXIT",
        f"for shard in $(seq 0 {shards - 1}); do",
        f'    {shlex.join(job.work.argv)} --shard "$shard"/{shards} >> {log}-"$shard".log 2>&1 &',
        "done",
        "wait",
        "",
    ]


def _command(command: Command, others: Sequence[Command], *, folder: Path, step: Step, slurm: bool) -> list[str]:
    lines = [f"# {command.role}"]
    for variable, role in command.addresses.items():
        lines.append(f"export {variable}={_host(role, others, slurm)}")
    env = [f"{name}={shlex.quote(value)}" for name, value in command.env.items()]
    lines.append(" \\\n    ".join([*env, *_grouped(command.argv)]))
    log = shlex.quote(str(folder / "logs" / f"{file_name(step.name)}-{command.role}.log"))
    if not command.background:
        return [*lines, ""]
    lines[-1] += f" \\\n    >> {log} 2>&1 &"
    lines.append(f"export {host_variable(command.role)}={_host(command.role, others, slurm)}")
    if command.ready is not None and any(command.role in c.addresses.values() for c in others):
        lines += [*_wait(command), ""]
    return [*lines, ""]


def _wait(command: Command) -> list[str]:
    """Until the port accepts, or the server has ended."""
    assert command.ready is not None
    host = f"${host_variable(command.role)}"
    return [
        f"until (exec 3<>/dev/tcp/{host}/{command.ready.port}) 2>/dev/null; do",
        f"    kill -0 $! || {{ echo '{command.role} ended before it was ready' >&2; exit 1; }}",
        "    sleep 2",
        "done",
    ]


def _host(role: str, others: Sequence[Command], slurm: bool) -> str:
    if not slurm:
        return "127.0.0.1"
    command = next(c for c in others if c.role == role)
    nodes = f"SLURM_JOB_NODELIST_HET_GROUP_{command.component}"
    name = f'$(scontrol show hostnames "${{{nodes}:-$SLURM_JOB_NODELIST}}" | sed -n {command.relative + 1}p)'
    return f"$(scontrol show node {name} | sed -n 's/.*NodeAddr=\\([^ ]*\\).*/\\1/p')"


def _grouped(argv: Sequence[str]) -> list[str]:
    """A word with ``=`` on a line of its own; what comes before the first one together."""
    first = next((i for i, word in enumerate(argv) if "=" in word and not word.startswith("-")), len(argv))
    return [shlex.join(argv[:first]), *(shlex.quote(word) for word in argv[first:])]


def _in_order(plan: Plan, names: dict[str, str]) -> str:
    lines = ["#!/usr/bin/env bash", "# Every step, in order.", "set -euo pipefail", 'cd "$(dirname "$0")"', ""]
    return "\n".join([*lines, *(f"bash {shlex.quote(names[step.name])}" for step in plan.steps)]) + "\n"


def _submit(graph: Sequence[PlannedJob], names: dict[str, str]) -> str:
    lines = [
        "#!/usr/bin/env bash",
        "# Every step as a job, each after those it reads from; a failed one cancels what depends on it.",
        "set -euo pipefail",
        'cd "$(dirname "$0")"',
        "declare -A job",
        "",
    ]
    for job in graph:
        after = [f"${{job[{shlex.quote(name)}]}}" for name in job.needs]
        script_name = names[job.step.name]
        if job.shards > 1:
            lines.append(f"shards=$({_sbatch(dependency(after), _array(script_name))})")
        waits = dependency(after, ["$shards"] if job.shards > 1 else [])
        lines.append(f"job[{shlex.quote(job.step.name)}]=$({_sbatch(waits, script_name)})")
    return "\n".join([*lines, "", 'squeue --jobs="$(IFS=,; echo "${job[*]}")"']) + "\n"


def _sbatch(waits: Sequence[str], script_name: str) -> str:
    return " ".join(["sbatch", "--parsable", *waits, shlex.quote(script_name)])
