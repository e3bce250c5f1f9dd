"""Slurm's arrays as one job of many tasks: states, cancelling, queueing one task again; on a real cluster."""

from __future__ import annotations

from pathlib import Path

import pytest

from cai.commands.jobs import _task
from cai.launchers import slurm_cli
from tests.support.slurm_cluster import Cluster
from tests.support.slurm_jobs import batch_script, ended_jobs, job_state


def test_an_array_is_one_job_of_many_tasks(cluster: Cluster, tmp_path: Path) -> None:
    body = "test $SLURM_ARRAY_TASK_ID != 1 || exit 1; while test -e hold; do sleep 0.1; done"
    (tmp_path / "hold").touch()
    path = batch_script(tmp_path, f"cd {tmp_path}; {body}", "--array=0-3%2")
    array = slurm_cli.submit(path)
    after = slurm_cli.submit(batch_script(tmp_path, "true", name="after"), after_any=[array])
    cluster.wait("two tasks", lambda: job_state(array) == "RUNNING")
    assert slurm_cli.live_job(path) == array
    cluster.wait("the failed one", lambda: slurm_cli.jobs([array])[array].tasks[1].state == "FAILED")
    known = slurm_cli.jobs([after, array])
    assert sorted(known) == sorted([array, after])
    assert (known[array].ended, known[after].reason, known[after].tasks) == (False, "Dependency", {})
    assert sorted(known[array].tasks) == [0, 1, 2, 3]
    assert known[array].tasks[2].id == f"{array}_2"
    (tmp_path / "hold").unlink()
    whole, then = ended_jobs(cluster, array, after)
    assert (whole.state, whole.exit_code, then.state) == ("FAILED", 1, "COMPLETED")
    again = slurm_cli.submit(batch_script(tmp_path, "sleep 600", "--array=0-3%2", name="again"))
    cluster.wait("two tasks", lambda: job_state(again) == "RUNNING")
    slurm_cli.cancel([again])
    (gone,) = ended_jobs(cluster, again)
    assert {task.state for task in gone.tasks.values()} == {"CANCELLED"}


@pytest.mark.long
def test_one_task_of_an_array_is_requeued_by_its_name(
    cluster: Cluster,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The last task to start has the array's own id: by it all tasks would be queued again.
    body = 'echo $SLURM_JOB_ID >> $SLURM_ARRAY_TASK_ID; test "$SLURM_RESTART_COUNT" || sleep 3'
    array = slurm_cli.submit(batch_script(tmp_path, f"cd {tmp_path}; {body}", "--array=0-1 --requeue"))
    cluster.wait("both", lambda: (tmp_path / "0").exists() and (tmp_path / "1").exists())
    ids = [(tmp_path / name).read_text().split()[0] for name in "01"]
    last = ids.index(array)
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", array)
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(last))
    slurm_cli.requeue(_task())
    assert slurm_cli.jobs([array])[array].restarts == 1
    states = ended_jobs(cluster, array, timeout=40)[0].tasks
    assert {number: task.restarts for number, task in states.items()} == {last: 1, 1 - last: 0}
