"""Jobs on the tests' Slurm: a clean queue to begin with, batch scripts, their states, their end."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cai.launchers import slurm_cli
from tests.support.slurm_cluster import Cluster


@pytest.fixture
def cluster(slurm: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """The cluster in this process's environment, with an empty queue before and after."""
    for name in [name for name in os.environ if name.startswith(("SLURM", "SBATCH", "SRUN"))]:
        monkeypatch.delenv(name)
    for name, value in slurm.env.items():
        monkeypatch.setenv(name, value)
    yield slurm
    slurm.clear()


def batch_script(folder: Path, body: str, *headers: str, name: str = "job") -> Path:
    """A batch script of the given lines; each of ``headers`` is a component."""
    parts = [f"#SBATCH --output={folder}/{name}.out {header}" for header in headers or ("",)]
    path = folder / f"{name}.sbatch"
    path.write_text("#!/bin/bash\n" + "\n#SBATCH hetjob\n".join(parts) + f"\n{body}\n")
    return path


def job_state(job: str) -> str:
    return slurm_cli.jobs([job])[job].state


def ended_jobs(cluster: Cluster, *ids: str, timeout: float = 30.0) -> list[slurm_cli.JobState]:
    """Wait until these jobs have ended."""
    cluster.wait(f"the end of {ids}", lambda: all(job.ended for job in slurm_cli.jobs(ids).values()), timeout)
    states = slurm_cli.jobs(ids)
    return [states[job] for job in ids]
