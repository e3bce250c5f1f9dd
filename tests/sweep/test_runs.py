"""Sweeps that really run: shared steps once, one cell's failure, stopping and going on, launchers of Hydra's."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cai.commands.running import run_verb
from cai.store.artifacts import Store
from tests.support.api_server import ApiServer, Say, asked_for
from tests.support.sweep_project import make_project, said, serving

pytestmark = pytest.mark.long  # servers, programs and many small waits


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with serving() as found:
        yield found


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: ApiServer) -> Path:
    monkeypatch.chdir(make_project(tmp_path / "p", server.url))
    monkeypatch.setenv("CAI_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CI", "1")
    return tmp_path / "p"


def cells(project: Path, name: str) -> list[dict[str, Any]]:
    folder = project / "runs" / name / "sweeps/latest"
    count = len(json.loads((folder / "sweep.json").read_text())["cells"])
    paths = [folder / str(number) / "cell.json" for number in range(count)]
    return [json.loads(path.read_text()) if path.is_file() else {"state": "-", "made": []} for path in paths]


def made(found: list[dict[str, Any]]) -> Counter[str]:
    return Counter(key for cell in found for key in cell["made"])


def test_cells_share_steps_and_answers(project: Path, server: ApiServer) -> None:
    assert run_verb(["-m", "experiment=judged", "+sweep=leave_one_out"]) == 0
    found = cells(project, "judged")
    assert [cell["state"] for cell in found] == ["done"] * 4
    assert [len(cell["made"]) for cell in found] == [5, 1, 1, 1]
    assert set(made(found).values()) == {1}
    asked = len(server.asked)
    # Answers, first answers, critiques and revisions: what cells have in common is asked once.
    assert asked < 12 * 2 + 4 * 24
    assert len({json.dumps(body, sort_keys=True) for _, body in server.asked}) == asked
    assert run_verb(["-m", "experiment=judged", "+sweep=leave_one_out"]) == 0
    assert len(server.asked) == asked
    assert made(cells(project, "judged")) == Counter()
    # A cell is a run like any other.
    folder = project / "runs/judged/sweeps/latest"
    assert {"plan.json", "record.json", "events.jsonl", "summary.md", "cell.json"} <= {
        path.name for path in (folder / "2").iterdir()
    }
    with (folder / "leaderboard.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == ["whole", "without kind", "without honest", "without brief"]
    assert [row["state"] for row in rows] == ["done"] * 4
    import pyarrow.parquet

    assert pyarrow.parquet.read_table(folder / "leaderboard.parquet").to_pylist()[1]["label"] == "without kind"


@pytest.mark.long
def test_cells_in_parallel_make_each_step_once(project: Path, server: ApiServer) -> None:
    joblib = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=3"]
    done = subprocess.run(
        [sys.executable, "-m", "cai", "-m", "experiment=judged", "+sweep=leave_one_out", *joblib],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = cells(project, "judged")
    assert [cell["state"] for cell in found] == ["done"] * 4
    assert set(made(found).values()) == {1}
    assert len(made(found)) == 8
    assert len({json.dumps(body, sort_keys=True) for _, body in server.asked}) == len(server.asked)
    assert "cell 3 (without brief)" in done.stdout


def failing(word: str) -> Any:
    """A server that refuses the key for whatever has the word in it: that is no row's own fate."""

    def react(path: str, body: dict[str, Any]) -> Say:
        if word in json.dumps(body):
            return Say({"error": {"message": "no"}}, status=401)
        return said(path, body)

    return react


def test_one_cell_that_fails_does_not_lose_the_others(
    project: Path, server: ApiServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.react = failing("Is it honest?")
    asked = ["-m", "experiment=judged", "+sweep=one_principle_at_a_time", "sweep.whole=false"]
    assert run_verb(asked) == 1
    assert [cell["state"] for cell in cells(project, "judged")] == ["done", "failed", "done"]
    assert "only honest): failed" in " ".join(capsys.readouterr().out.split())
    server.react = said
    assert run_verb(asked) == 0
    assert [len(cell["made"]) for cell in cells(project, "judged")] == [0, 1, 0]


def test_a_shared_step_that_fails_is_not_tried_by_every_cell(project: Path, server: ApiServer) -> None:
    server.react = failing("Question 3?")
    assert run_verb(["-m", "experiment=small", "+sweep=leave_one_out"]) == 1
    found = cells(project, "small")
    assert [cell["state"] for cell in found] == ["failed", "blocked", "blocked", "blocked"]
    assert "respond failed in cell 0 already" in found[2]["error"]
    refused = [body for _, body in server.asked if "Question 3?" in asked_for(body)]
    assert len(refused) == 1


def test_on_error_stop_leaves_the_rest(project: Path, server: ApiServer) -> None:
    server.react = failing("Is it kind?")
    asked = ["-m", "experiment=small", "+sweep=one_principle_at_a_time", "sweep.whole=false", "sweep.on_error=stop"]
    assert run_verb(asked) == 1
    assert [cell["state"] for cell in cells(project, "small")] == ["failed", "not run", "not run"]


@pytest.mark.long
def test_a_sweep_that_is_interrupted_goes_on_where_it_was(project: Path, server: ApiServer, tmp_path: Path) -> None:
    slow = {"on": True}

    def react(path: str, body: dict[str, Any]) -> Say:
        say = said(path, body)
        say.delay = 0.15 if slow["on"] and "Is it" in json.dumps(body) else 0.0
        return say

    server.react = react
    command = [sys.executable, "-m", "cai", "-m", "experiment=small", "+sweep=one_principle_at_a_time"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while len(server.asked) < 16 and process.poll() is None:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130, out
    states = [cell["state"] for cell in cells(project, "small")]
    assert states[0] == "incomplete"
    assert set(states[1:]) == {"not run"}
    slow["on"] = False
    before = len(server.asked)
    assert run_verb(command[3:]) == 0
    assert before >= 16
    assert [cell["state"] for cell in cells(project, "small")] == ["done"] * 4
    finished = {json.dumps(body, sort_keys=True) for _, body in server.asked[:before]}
    again = [body for _, body in server.asked[before:] if json.dumps(body, sort_keys=True) in finished]
    assert len(again) <= 12  # what was in flight: all rows of the step
    whole = {path.name: path.read_bytes() for path in Store(tmp_path / "home").root.glob("revise-*/rows.jsonl")}
    assert len(whole) == 1


def test_nothing_runs_when_one_cell_is_wrong(project: Path, server: ApiServer) -> None:
    from cai.errors import SpecError

    with pytest.raises(SpecError, match="rounds"):
        run_verb(["-m", "experiment=small", "stages.revise.rounds=1,0"])
    assert not server.asked
    assert not (project / "runs").exists()


def test_a_launcher_that_is_not_there_is_the_users_error(project: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cai", "-m", "experiment=small", "seed=1,2", "hydra/launcher=nowhere"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2, done.stderr
    assert "hydra/launcher" in done.stderr
