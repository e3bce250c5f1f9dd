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
from cai.run.job_files import job_file, read_json, word_file
from cai.run.job_graph import PlannedJob
from cai.run.submitted import Submission


@dataclass(frozen=True, slots=True)
class Tasks:
    """How many of an array's tasks are where; ``waiting`` are the rest."""

    count: int
    running: int = 0
    completed: int = 0
    failed: int = 0

    @property
    def ended(self) -> int:
        """Tasks that are over."""
        return self.completed + self.failed

    def __str__(self) -> str:
        waiting = self.count - self.running - self.ended
        more = ((self.completed, "done"), (self.failed, "failed"), (waiting, "waiting"))
        return ", ".join([f"shards {self.running}/{self.count} running", *(f"{n} {word}" for n, word in more if n)])


def ids_of(record: Mapping[str, Any]) -> list[str]:
    """The ids of a step's jobs: its own, and its array's."""
    return [job for job in (record["job"], record.get("array", {}).get("job", "")) if job]


def is_alive(record: Mapping[str, Any], job_states: Mapping[str, slurm_cli.JobState]) -> bool:
    """Whether any of a step's jobs waits or runs."""
    return any(not job_states[job].ended for job in ids_of(record) if job in job_states)


def write_array(sub: Submission, job: PlannedJob, body: Sequence[str]) -> Path:
    """Write the script of a step's array. The last line of ``body`` is the command of the step itself."""
    step = job.step.name
    path = job_file(sub.run_dir, step, ".shards.sbatch")
    name, log = f"{sub.plan.experiment}.{step}.shards", sub.file(step, ".out")
    write_durably(path, job.array_script(sub.launcher, body, log=log, name=name, folder=Path(sub.cwd)))
    for index in range(job.shards):
        word_file(sub.run_dir, step, index).unlink(missing_ok=True)
    return path


def tasks_of(
    run_dir: Path, step: str, record: Mapping[str, Any], job_states: Mapping[str, slurm_cli.JobState]
) -> Tasks | None:
    """How far a step's array is; None where it has none, or none of it waits or runs."""
    array = record.get("array", {})
    state = job_states.get(array.get("job", ""))
    if state is None or state.ended:
        return None
    running = completed = failed = 0
    for index in range(array["count"]):
        task = state.tasks.get(index)
        if task is not None and not task.ended:
            running += task.state != "PENDING"
            continue
        # Slurm forgets tasks that ended long ago, each by itself; their words stay.
        word: dict[str, Any] = {"code": 0 if task is not None and task.state == "COMPLETED" else 1}
        with suppress(OSError, ValueError):
            word = read_json(word_file(run_dir, step, index))
        completed, failed = completed + (word["code"] == 0), failed + (word["code"] != 0)
    return Tasks(array["count"], running, completed, failed)
