"""Slurm's own commands, typed: submit, ask, cancel, requeue, and where a node is.

Text goes in and out of ``sbatch``, ``squeue``, ``scancel`` and ``scontrol``, since no cluster lacks them (``--json``,
``sacct`` and the REST interface many do). A controller that does not answer for a moment is asked again for two
minutes; what Slurm refuses fails at once, in Slurm's own words.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from cai.errors import PrerequisiteError, StepFailed
from cai.launchers.slurm_script import dependency

PATIENCE = 120.0
"""Seconds for which a controller that does not answer is asked again."""

_FAILED = ("BOOT_FAIL", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT")
ENDED = frozenset({"COMPLETED", "CANCELLED", "PREEMPTED", "REVOKED", *_FAILED})

# The request never arrived, so it can be repeated; or nobody knows whether it did, so a submission cannot.
_UNREACHED = ("Unable to contact slurm controller", "Connection refused", "standby mode")
_UNSURE = ("Socket timed out", "Zero Bytes were transmitted", "Message receive failure", "Connection reset")
_COLUMNS = ("JobID", "HetJobID", "ArrayJobID", "ArrayTaskID", "State", "Reason", "exit_code", "RestartCnt", "NodeList")
_KEPT = ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_JWT")


@dataclass(frozen=True, slots=True)
class JobState:
    """A job as the controller sees it; a heterogeneous one as a whole, under its leader's id, an array under its own.

    ``state`` and ``reason`` are Slurm's words (``PENDING``, ``Dependency``). ``exit_code`` is the batch script's, 128
    plus the signal for one that ended by a signal, 0 until then. ``nodes`` is a node list, empty while pending.
    ``tasks`` are an array's, by number; it has ended when all have. Those that ended long ago are no longer known.
    """

    id: str
    state: str
    reason: str = ""
    exit_code: int = 0
    restarts: int = 0
    nodes: str = ""
    tasks: Mapping[int, JobState] = field(default_factory=dict)

    @property
    def ended(self) -> bool:
        """Whether it has come to an end, good or bad; a job that is requeued has not."""
        return self.state in ENDED


def submit(script: Path, after: Sequence[str] = (), after_any: Sequence[str] = ()) -> str:
    """Submit a batch script; its job id (the leader's, for a heterogeneous job; an array's own).

    The job starts when every job in ``after`` has ended well, and is cancelled when one has not; for those in
    ``after_any`` any end will do. All components of a heterogeneous job wait. Slurm takes an id that the controller has
    forgotten for one that has ended well, so leave out what is done and never rely on the dependency alone.

    When the controller takes the request but its answer is lost, the job is looked up by the script's path instead of
    being submitted twice; so a script with a live job must not be submitted again.

    Raises:
        PrerequisiteError: when there is no ``sbatch`` here.
        StepFailed: when Slurm refuses it or cannot be reached.
    """
    script = script.absolute()
    argv = ["sbatch", "--parsable", *dependency(after, after_any)]
    env = {name: value for name, value in os.environ.items() if name in _KEPT or not name.startswith("SLURM")}
    end = time.monotonic() + PATIENCE
    while True:
        completed = _call([*argv, str(script)], env)
        words = _words(completed)
        if completed.returncode == 0:
            # --parsable prints ID or ID;CLUSTER.
            return completed.stdout.strip().splitlines()[-1].split(";")[0]
        unsure = any(word in words for word in _UNSURE)
        if not (unsure or _unreached(words)) or time.monotonic() > end:
            raise StepFailed(f"{script}: sbatch did not take it: {words}")
        time.sleep(1)
        if unsure and (job_id := live_job(script)):
            return job_id


def live_job(script: Path) -> str | None:
    """The id of the job, waiting or running, that was submitted from ``script``; the newest when there are several."""
    completed = _ask(["squeue", "--me", "--all", "--noheader", "--Format=JobID:|,HetJobID:|,ArrayJobID:|,Command:"])
    job_ids: list[int] = []
    for line in completed.stdout.splitlines():
        job, leader, array, command = line.split("|", 3)
        if command.strip() == str(script.absolute()):
            job_ids.append(int(next(name for name in (leader, array, job) if _is_id(name))))
    return str(max(job_ids)) if job_ids else None


def jobs(ids: Sequence[str]) -> dict[str, JobState]:
    """The states of jobs, by id; one that the controller no longer knows (or never knew) is absent.

    Raises:
        StepFailed: when the controller cannot be reached for ``PATIENCE`` seconds.
    """
    if not ids:
        return {}
    columns = ",".join(f"{name}:|" for name in _COLUMNS)
    argv = ["squeue", f"--jobs={','.join(ids)}", "--array", "--states=all", "--all", "--noheader"]
    completed = _ask([*argv, f"--Format={columns}"], passing=("Invalid job id",))
    parts: dict[str, list[JobState]] = {}
    arrays: dict[str, dict[int, JobState]] = {}
    for line in completed.stdout.splitlines():
        cells = (cell.strip() for cell in line.split("|")[: len(_COLUMNS)])
        job, leader, array, task, state, reason, code, restarts, nodes = cells
        key = leader if _is_id(leader) else job
        number = int(restarts) if restarts.isdigit() else 0
        reason = "" if reason == "None" else reason
        part = JobState(key, state.split()[0], reason, _exit_code(code), number, nodes)
        if _is_id(array) and task.isdigit():
            # A task has a job id too, and one of them has the array's.
            arrays.setdefault(array, {})[int(task)] = replace(part, id=f"{array}_{task}")
            continue
        # The leader, which runs the batch script, comes first.
        parts.setdefault(key, []).insert(0 if job == key else len(parts.get(key, [])), part)
    whole = {key: _whole(components) for key, components in parts.items()}
    whole |= {key: _of_tasks(key, tasks) for key, tasks in arrays.items()}
    return {key: whole[key] for key in ids if key in whole}


def cancel(ids: Sequence[str]) -> None:
    """Cancel jobs, waiting or running, with all their components; those that have ended are left as they are."""
    if ids:
        _ask(["scancel", *ids], passing=("already completing or completed", "Invalid job id"))


def requeue(job: str) -> None:
    """Put a running job back into the queue under its own id; Slurm stops it and counts a restart."""
    _ask(["scontrol", "requeue", job])


def node_address(name: str) -> str:
    """The address under which other nodes reach a node (``NodeAddr``).

    Raises:
        StepFailed: when the cluster has no such node.
    """
    completed = _ask(["scontrol", "show", "node", name, "--oneliner"])
    address = re.search(r"\bNodeAddr=(\S+)", completed.stdout)
    if address is None:
        raise StepFailed(f"scontrol show node {name}: no NodeAddr: {_words(completed)}")
    return address[1]


def hosts(nodelist: str) -> list[str]:
    """The nodes of a list such as ``gpu[01-03,07]``, in its order."""
    return _ask(["scontrol", "show", "hostnames", nodelist]).stdout.split()


def _whole(parts: list[JobState]) -> JobState:
    """One state of a job's components: it has ended when all have, and well only when all have ended well."""
    leader = parts[0]
    nodes = ",".join(part.nodes for part in parts if part.nodes)
    deciding = leader
    if leader.ended:
        going = [part for part in parts if not part.ended]
        broken = [part for part in parts if part.state != "COMPLETED"]
        if going:
            deciding = going[0]
        elif leader.state == "COMPLETED" and broken:
            deciding = broken[0]
    return replace(deciding, nodes=nodes, restarts=leader.restarts)


def _of_tasks(array: str, tasks: Mapping[int, JobState]) -> JobState:
    """One state of an array: at work when a task is, else waiting when one waits, else the worst of the ends."""
    every = [tasks[number] for number in sorted(tasks)]
    going = [task for task in every if not task.ended]
    at_work = [task for task in going if task.state != "PENDING"]
    broken = [task for task in every if task.state != "COMPLETED"]
    deciding = next(iter([*at_work, *going, *broken, *every]))
    nodes = ",".join(dict.fromkeys(task.nodes for task in at_work if task.nodes))
    restarts = sum(task.restarts for task in every)
    return replace(deciding, id=array, nodes=nodes, restarts=restarts, tasks=dict(tasks))


def _is_id(text: str) -> bool:
    return text.isdigit() and text != "0"


def _exit_code(text: str) -> int:
    """From ``code:signal``, or from the wait status that squeue prints as one number."""
    code, _, number = text.partition(":")
    if not code.isdigit():
        return 0
    status = int(code) << 8 | int(number or 0) if number else int(code)
    return 128 + (status & 0x7F) if status & 0x7F else status >> 8


def _unreached(words: str) -> bool:
    return any(word in words for word in _UNREACHED)


def _ask(argv: Sequence[str], passing: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """Run a command that can be repeated; errors that hold one of ``passing`` count as answers."""
    end = time.monotonic() + PATIENCE
    pause = 0.25
    while True:
        completed = _call(argv, None)
        words = _words(completed)
        if completed.returncode == 0 or any(word in words for word in passing):
            return completed
        transient = _unreached(words) or any(word in words for word in _UNSURE)
        if not transient or time.monotonic() > end:
            raise StepFailed(f"{' '.join(argv)}: {words}")
        time.sleep(pause)
        pause = min(2 * pause, 5.0)


def _call(argv: Sequence[str], env: dict[str, str] | None) -> subprocess.CompletedProcess[str]:
    if shutil.which(argv[0]) is None:
        raise PrerequisiteError(
            f"{argv[0]}: not found on PATH; the slurm launcher needs Slurm's commands: run this on a login node, "
            "or use engine.launcher.kind=local"
        )
    return subprocess.run(argv, env=env, capture_output=True, text=True, errors="replace", check=False)


def _words(completed: subprocess.CompletedProcess[str]) -> str:
    return " ".join(
        (completed.stderr.strip() or completed.stdout.strip() or f"exit code {completed.returncode}").split()
    )
