"""Shards as tasks of a job array: the parts of a step that Slurm starts beside each other, before the step's own job.

A step's record (``jobs/<step>.json``) then holds the array too: ``array: {job, script, count}``. The step's job waits
for the end of the array, good or bad, and does what its tasks left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cai.files.durable import write_durably
from cai.launchers import slurm_cli
from cai.launchers.slurm_script import TASK, Component, script
from cai.plan import Step
from cai.run.job_files import job_file, read_json, word_file
from cai.run.submitted import Submission


@dataclass(frozen=True, slots=True)
class Tasks:
    """How many of an array's tasks are where; ``waiting`` are the rest."""

    count: int
    running: int = 0
    done: int = 0
    failed: int = 0

    @property
    def ended(self) -> int:
        """Tasks that are over."""
        return self.done + self.failed

    def __str__(self) -> str:
        waiting = self.count - self.running - self.ended
        more = ((self.done, "done"), (self.failed, "failed"), (waiting, "waiting"))
        return ", ".join([f"shards {self.running}/{self.count} running", *(f"{n} {word}" for n, word in more if n)])


def ids_of(record: Mapping[str, Any]) -> list[str]:
    """The ids of a step's jobs: its own, and its array's."""
    return [job for job in (record["job"], record.get("array", {}).get("job", "")) if job]


def is_alive(record: Mapping[str, Any], known: Mapping[str, slurm_cli.JobState]) -> bool:
    """Whether any of a step's jobs waits or runs."""
    return any(not known[job].ended for job in ids_of(record) if job in known)


def write_array(sub: Submission, step: Step, count: int, components: Sequence[Component], body: Sequence[str]) -> Path:
    """Write the script of a step's array. The last line of ``body`` is the command of the step itself."""
    path = job_file(sub.run_dir, step.name, ".shards.sbatch")
    lines = [*body[:-1], f"{body[-1]} --shard {TASK}/{count}"]
    name, log = f"{sub.plan.experiment}.{step.name}.shards", sub.file(step.name, ".out")
    text = script(sub.launcher, step.name, components, lines, log=log, job_name=name, folder=Path(sub.cwd), array=count)
    write_durably(path, text)
    for index in range(count):
        word_file(sub.run_dir, step.name, index).unlink(missing_ok=True)
    return path


def tasks_of(
    run_dir: Path, step: str, record: Mapping[str, Any], known: Mapping[str, slurm_cli.JobState]
) -> Tasks | None:
    """How far a step's array is; None where it has none, or none of it waits or runs."""
    array = record.get("array", {})
    state = known.get(array.get("job", ""))
    if state is None or state.ended:
        return None
    running = done = failed = 0
    for index in range(array["count"]):
        task = state.tasks.get(index)
        if task is not None and not task.ended:
            running += task.state != "PENDING"
            continue
        # Slurm forgets tasks that ended long ago, each by itself; their words stay.
        word: dict[str, Any] = {"code": 0 if task is not None and task.state == "COMPLETED" else 1}
        with suppress(OSError, ValueError):
            word = read_json(word_file(run_dir, step, index))
        done, failed = done + (word["code"] == 0), failed + (word["code"] != 0)
    return Tasks(array["count"], running, done, failed)
