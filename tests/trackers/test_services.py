"""Trackers that fail, come back, or live elsewhere: whatever they do costs the run nothing."""

import json
import os
import signal
import socket
import time
from dataclasses import replace

import pytest

import cai.trackers.watching as watching
from cai.errors import SpecError, StepFailed
from cai.store.artifacts import Store
from cai.store.events import EventLog, read_events
from cai.trackers.base import CurvePoint, Ending, Figures, RunAddress
from tests.support.executor_kinds import no_engine, step
from tests.support.tracker_kinds import KINDS, go, tracked_plan
from tests.support.tracker_processes import SECRET, TB, Scripted, follow, python, scalars


@pytest.fixture
def finished_run(tmp_path):
    go(tracked_plan(None), tmp_path / "home", tmp_path / "run")
    return tmp_path / "run"


def test_what_a_tracker_missed_is_told_when_it_is_back(finished_run, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    told, failures = [], ["start", "log", "log"]
    follower = follow(tmp_path, lambda _: Scripted(told, failures))
    assert follower.look(now=True) is False
    assert follower.look() is False  # not again at once
    assert told == []
    while not follower.look(now=True):
        pass
    assert follower.finish(time.monotonic() + 5)
    points = [one for one in told if isinstance(one, CurvePoint)]
    assert [point.position for point in points] == list(range(1, 9))
    assert [one.step for one in told if isinstance(one, Figures)] == ["rl", "evaluate"]
    assert isinstance(told[-1], Ending)
    noted = [e for e in read_events(finished_run / "events.jsonl") if e["event"] == "tracking.failed"]
    assert len(noted) == 1
    assert "ConnectionError: the server is away" in noted[0]["error"]
    out = capsys.readouterr()
    assert out.out.count("cannot be told now") == 1
    assert SECRET not in out.out + out.err + json.dumps(noted)


def test_the_next_process_goes_on_where_the_last_one_was(finished_run, tmp_path):
    told = []
    follower = follow(tmp_path, lambda _: Scripted(told), group="sweep")
    assert follower.finish(time.monotonic() + 5)
    count = len(told)
    log = EventLog(finished_run / "events.jsonl")
    log.write("run.started")
    log.write("step.done", "rl", reused=True)
    log.write("rl.iteration", "rl", data={"iteration": 9, "reward": 1.5})
    log.write("run.done")
    log.close()
    again = follow(tmp_path, lambda _: Scripted(told))
    assert again.finish(time.monotonic() + 5)
    start, point, ending = told[count:]
    assert start == ("start", "id-1")
    assert (point.position, point.values) == (9, {"reward": 1.5})
    assert ending.status == "done"
    assert json.loads((finished_run / "tracking" / "tensorboard.json").read_text())["group"] == "sweep"


def test_all_is_told_again_where_the_tracker_has_lost_the_run(finished_run, tmp_path):
    told = []
    assert follow(tmp_path, lambda _: Scripted(told)).finish(time.monotonic() + 5)

    class Forgetful(Scripted):
        def start(self, run, known):
            self.told.append(("start", known))
            return RunAddress("id-2", "somewhere")

    again = []
    assert follow(tmp_path, lambda _: Forgetful(again)).finish(time.monotonic() + 5)
    assert [one.position for one in again if isinstance(one, CurvePoint)] == list(range(1, 9))
    assert [one for one in again if isinstance(one, CurvePoint | Figures)] == [
        one for one in told if isinstance(one, CurvePoint | Figures)
    ]


def test_half_an_event_waits_for_its_other_half(tmp_path):
    folder = tmp_path / "run"
    go(tracked_plan(None), tmp_path / "home", folder)
    whole = (folder / "events.jsonl").read_bytes()
    cut = whole.index(b'"iteration":4') + 5
    (folder / "events.jsonl").write_bytes(whole[:cut])
    told = []
    follower = follow(tmp_path, lambda _: Scripted(told))
    assert follower.look()
    assert [one.position for one in told if isinstance(one, CurvePoint)] == [1, 2, 3]
    (folder / "events.jsonl").write_bytes(whole)
    assert follower.look()
    assert [one.position for one in told if isinstance(one, CurvePoint)] == list(range(1, 9))


@pytest.mark.long
def test_a_place_that_cannot_be_written_costs_the_run_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    said = []
    plan = tracked_plan({"tensorboard": {"dir": str(tmp_path / "file")}})
    result = go(plan, tmp_path / "home", tmp_path / "run", said)
    assert len(result.steps) == 2
    assert said[0].startswith("tensorboard: cannot be told now, and the run goes on without it (")
    assert said[1:] == ["tensorboard: not all was told; `python -m cai resume` of this run tells the rest"]


def test_a_process_that_is_killed_costs_the_run_nothing(tmp_path, monkeypatch):
    started = []
    real = watching._start

    def start(*args, **named):
        started.append(real(*args, **named))
        os.kill(started[-1].process.pid, signal.SIGKILL)
        return started[-1]

    monkeypatch.setattr(watching, "_start", start)
    said = []
    assert len(go(tracked_plan(TB), tmp_path / "home", tmp_path / "run", said).steps) == 2
    assert said == ["tensorboard: not all was told; `python -m cai resume` of this run tells the rest"]
    monkeypatch.setattr(watching, "_start", real)
    go(tracked_plan(TB), tmp_path / "home", tmp_path / "run")  # what `resume` does
    found = scalars(tmp_path / "run" / "tb")
    assert found["rl/reward"] == [(i, i / 2) for i in range(1, 9)]
    assert found["rl/end/reused"] == [(0, 0.0)]  # this very run had made it


def test_an_error_of_the_run_is_told_as_it_is(tmp_path):
    said = []
    unknown = replace(tracked_plan(TB), steps=(step("x", "no such kind"),))
    with pytest.raises(SpecError, match="no such kind"):
        go(unknown, tmp_path / "home", tmp_path / "run", said)
    assert said == []  # nothing had begun that could be told


# ---- MLflow and Weights & Biases -------------------------------------------------------------------------------------

READ_MLFLOW = """
import json, os, sys
os.environ.update(MLFLOW_ALLOW_FILE_STORE="true", MLFLOW_DISABLE_TELEMETRY="true")
from mlflow import MlflowClient
client = MlflowClient(sys.argv[1])
found = []
for run in client.search_runs([client.get_experiment_by_name("cai").experiment_id]):
    curve = client.get_metric_history(run.info.run_id, "rl/reward") if "rl/reward" in run.data.metrics else []
    found.append({"id": run.info.run_id, "name": run.info.run_name, "status": run.info.status, "tags": run.data.tags,
                  "params": run.data.params, "metrics": run.data.metrics, "curve": [(m.step, m.value) for m in curve]})
print(json.dumps(found))
"""


@pytest.mark.long
def test_mlflow_has_the_run_below_its_group_and_goes_on_with_it(tmp_path):
    home, uri = tmp_path / "home", (tmp_path / "mlruns").as_uri()
    tracking = {"mlflow": {"uri": uri}}
    said = []
    with pytest.raises(StepFailed):
        go(tracked_plan(tracking, fail_at=4), home, tmp_path / "small" / "one", said, group="by one's seed")
    go(tracked_plan(tracking), home, tmp_path / "small" / "one", said)
    runs = {run["name"]: run for run in python(READ_MLFLOW, uri)}
    assert set(runs) == {"small/one", "by one's seed"}
    one = runs["small/one"]
    assert said == [f"mlflow: run {one['id']} of {uri}"] * 2
    assert (one["status"], one["tags"]["cai.status"]) == ("FINISHED", "done")
    assert one["tags"]["mlflow.parentRunId"] == runs["by one's seed"]["id"]
    assert one["curve"] == [[i, i / 2] for i in range(1, 9)]
    assert one["params"]["stages.rl.steps"] == "8"
    assert one["metrics"]["evaluate/reward/red_team/rl-cai_high"] == 0.6
    assert one["metrics"]["rl/end/seconds_update"] == 0.5


READ_WANDB = """
import json, sys
from wandb.proto import wandb_internal_pb2

def records(data):  # the log format of LevelDB, after a head of 7 bytes
    at, parts = 7, []
    while at < len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        parts.append(data[at + 7 : at + 7 + size])
        at += 7 + size
        if kind in (1, 4):
            yield b"".join(parts)
            parts = []

found = {"history": [], "summary": {}, "config": {}, "metrics": []}
for data in records(open(sys.argv[1], "rb").read()):
    record = wandb_internal_pb2.Record()
    record.ParseFromString(data)
    kind = record.WhichOneof("record_type")
    key = lambda item: item.key or "/".join(item.nested_key)
    if kind == "run":
        found |= {"id": record.run.run_id, "group": record.run.run_group, "tags": list(record.run.tags)}
        found["config"] |= {key(item): json.loads(item.value_json) for item in record.run.config.update}
    if kind == "metric":
        found["metrics"].append([record.metric.name or record.metric.glob_name, record.metric.step_metric])
    if kind == "history":
        found["history"].append({key(item): json.loads(item.value_json) for item in record.history.item})
    if kind == "summary":
        found["summary"] |= {key(item): json.loads(item.value_json) for item in record.summary.update}
print(json.dumps(found))
"""


@pytest.mark.long
def test_wandb_has_the_run_offline_with_an_axis_for_each_curve(tmp_path):
    said = []
    tracking = {"wandb": {"mode": "offline", "tags": ["a"]}}
    go(tracked_plan(tracking), tmp_path / "home", tmp_path / "run", said, group="seeds")
    (file,) = (tmp_path / "run" / "tracking" / "wandb").glob("offline-run-*/*.wandb")
    found = python(READ_WANDB, file)
    assert (found["group"], found["tags"]) == ("seeds", ["a"])
    assert found["config"]["stages.rl.steps"] == 8
    assert ["rl/*", "rl/iteration"] in found["metrics"]
    rows = [row for row in found["history"] if "rl/reward" in row]
    assert [(row["rl/iteration"], row["rl/reward"]) for row in rows] == [(i, i / 2) for i in range(1, 9)]
    assert found["summary"]["evaluate/wins/red_team/rl-cai_vs_base"] == 0.8
    assert (found["summary"]["run/status"], found["summary"]["rl/end/reused"]) == ("done", False)
    assert said == [f"wandb: wandb sync {os.path.relpath(file.parent)}"]
    state = json.loads((tmp_path / "run" / "tracking" / "wandb.json").read_text())
    assert state["id"] == found["id"]


@pytest.mark.long
def test_no_secret_is_in_any_file(tmp_path, monkeypatch):
    for name in ("WANDB_API_KEY", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"):
        monkeypatch.setenv(name, SECRET)
    tracking = TB | {"wandb": {"mode": "offline"}, "mlflow": {"uri": (tmp_path / "mlruns").as_uri()}}
    said = []
    go(tracked_plan(tracking), tmp_path / "home", tmp_path / "run", said)
    assert len(said) == 3
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 50
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]


@pytest.mark.long
def test_a_server_that_never_answers_holds_up_only_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(watching, "PATIENCE", 4.0)
    with socket.create_server(("127.0.0.1", 0)) as server:  # takes connections and says nothing
        plan = tracked_plan({"mlflow": {"uri": f"http://127.0.0.1:{server.getsockname()[1]}"}})
        said, began = [], time.monotonic()
        with watching.tracked(plan, tmp_path / "run", tmp_path / "home", said.append):
            from cai.run.executor import run

            run(plan, store=Store(tmp_path / "home"), run_dir=tmp_path / "run", make_engine=no_engine, kinds=KINDS)
            assert time.monotonic() - began < 2.0
        assert time.monotonic() - began < 8.0
    assert said == ["mlflow: not all was told; `python -m cai resume` of this run tells the rest"]


@pytest.mark.long
def test_a_server_that_is_away_is_told_once_and_costs_the_run_nothing(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    said = []
    go(tracked_plan({"mlflow": {"uri": f"http://127.0.0.1:{port}"}}), tmp_path / "home", tmp_path / "run", said)
    assert [line.partition(" (")[0] for line in said] == [
        "mlflow: cannot be told now, and the run goes on without it",
        "mlflow: not all was told; `python -m cai resume` of this run tells the rest",
    ]
