"""Trackers: what a run measures is told to them in full, once, and never at the run's cost."""

import json
import signal
import subprocess
import sys
import time

import pytest
import yaml

from cai.commands.planning import compile_plan
from cai.errors import PrerequisiteError, SpecError, StepFailed
from cai.experiment.model import parse
from cai.experiment.schema import experiment_schema
from cai.figures.evaluation import Evaluation, parse_evaluation
from cai.files.library import Library, shipped_root
from cai.files.locks import locked
from cai.store.artifacts import Store
from cai.store.events import read_events
from cai.trackers.base import CurvePoint, Figures, apart, clean
from cai.trackers.figures import evaluation_figures, revision_points, step_end
from cai.trackers.settings import Tracking
from cai.trackers.story import Story, config_of
from cai.trackers.watching import check_trackers
from tests.support.toy_project import ToyProject
from tests.support.tracker_kinds import EVALUATION, figure, go, tracked_plan
from tests.support.tracker_processes import ROOT, SECRET, TB, Scripted, follow, program, python, scalars

EXPERIMENT = {
    "name": "mine",
    "models": {"base": "hf:/somewhere"},
    "data": {"asked": {"path": "x.jsonl", "makes": "prompts"}},
    "stages": {"respond": {"model": "base", "prompts": "asked"}},
}


def problems(tracking):
    with pytest.raises(SpecError) as error:
        parse(EXPERIMENT | {"tracking": tracking})
    return {p.where: p for p in error.value.problems}


def test_every_tracker_is_off_unless_asked():
    assert parse(EXPERIMENT).tracking.enabled() == {}
    off = parse(EXPERIMENT | {"tracking": {"wandb": None, "mlflow": False}}).tracking
    assert off.enabled() == {}
    on = parse(EXPERIMENT | {"tracking": {"tensorboard": True, "wandb": {"mode": "offline"}}}).tracking.enabled()
    assert (on["tensorboard"].dir, on["wandb"].project, list(on)) == ("tensorboard", "cai", ["tensorboard", "wandb"])


def test_what_is_wrong_with_a_tracker_is_told_with_its_field():
    found = problems({"wandbb": {}, "tensorboard": {"folder": "x"}, "wandb": {"mode": "sometimes"}})
    assert "did you mean 'wandb'" in found["tracking.wandbb"].next
    assert found["tracking.tensorboard.folder"].message == "unknown field"
    assert "online" in found["tracking.wandb.mode"].message
    assert "mapping" in problems("wandb")["tracking"].message


@pytest.mark.parametrize(
    "tracking",
    [
        {"wandb": {"api_key": SECRET}},
        {"mlflow": {"uri": f"https://me:{SECRET}@host/"}},
        {"mlflow": {"uri": f"https://host/?token={SECRET}"}},
        {"mlflow": {"uri": f"postgresql://me:{SECRET}@host/db"}},
    ],
    ids=["key", "password", "query", "database"],
)
def test_a_secret_in_an_experiment_is_refused_and_not_repeated(tracking):
    (problem,) = problems(tracking).values()
    assert SECRET not in str(problem)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """An experiment that needs no model: data, and a mix of it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CAI_HOME", str(tmp_path / "home"))
    (tmp_path / "experiments").mkdir()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    rows = [{"prompt": f"question {i}", "answer": "an answer of some words"} for i in range(9)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "experiments" / "mine.yaml").write_text(
        "template: {name: chatml}\ndata:\n  rows: {path: rows.jsonl, makes: conversations}\n"
        "stages:\n  all: {kind: mix, sources: [{from: rows}]}\n"
    )
    return Library((tmp_path, shipped_root()))


def test_tracking_is_in_the_plan_and_changes_no_step(project):
    off = compile_plan(["experiment=mine"], project)
    on = compile_plan(["experiment=mine", "tracking.tensorboard.dir=tb", "tracking.wandb.tags=[a,b]"], project)
    assert on.steps == off.steps
    assert "tracking" not in off.source
    assert on.source["tracking"]["tensorboard"] == {"dir": "tb"}
    assert on.source["tracking"]["wandb"]["tags"] == ["a", "b"]
    assert Tracking.model_validate(on.source["tracking"]).enabled().keys() == {"tensorboard", "wandb"}
    again = compile_plan(["experiment=mine", "tracking.wandb.mode=offline", "tracking.wandb=null"], project)
    assert again == off


def test_the_schema_for_editors_knows_tracking():
    properties = experiment_schema()["properties"]["tracking"]["properties"]
    assert set(properties) == {"tensorboard", "wandb", "mlflow"}


@pytest.mark.long
def test_a_run_of_the_command_line_is_told(project, tmp_path):
    command = [sys.executable, "-m", "cai", "experiment=mine", "tracking.tensorboard.dir=tb"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "tensorboard: tensorboard --logdir runs/mine/" in done.stdout
    found = scalars(tmp_path / "runs" / "mine" / "latest" / "tb")
    assert found["all/end/rows_out"] == [(0, 9.0)]
    assert found["run/steps_made"] == [(0, 2.0)]


# ---- what has to be there --------------------------------------------------------------------------------------------


def test_a_tracker_that_is_not_installed_is_told_before_the_run(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(
        PrerequisiteError, match=r"mlflow is not installed; pip install .*\[trackers\].*tracking.mlflow=null"
    ):
        go(tracked_plan({"mlflow": {}}), tmp_path / "home", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_online_tracking_without_a_key_is_told_before_the_run(monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    with pytest.raises(PrerequisiteError, match="WANDB_API_KEY"):
        check_trackers(tracked_plan({"wandb": {}}))
    assert check_trackers(tracked_plan({"wandb": {"mode": "offline"}})) == ["wandb"]
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    assert check_trackers(tracked_plan({"wandb": {}})) == ["wandb"]


def test_a_database_needs_all_of_mlflow(monkeypatch):
    monkeypatch.setitem(sys.modules, "sqlalchemy", None)
    with pytest.raises(PrerequisiteError, match="pip install mlflow"):
        check_trackers(tracked_plan({"mlflow": {"uri": "sqlite:///mlflow.db"}}))


def test_a_password_goes_only_to_an_allowed_server_that_an_experiment_names(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    plan = tracked_plan({"mlflow": {"uri": "https://mlflow.example.com"}})
    assert check_trackers(plan) == ["mlflow"]
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hunter2")
    with pytest.raises(PrerequisiteError, match=r"MLFLOW_TRACKING_PASSWORD would be sent to mlflow\.example") as told:
        check_trackers(plan)
    assert "hunter2" not in str(told.value)
    monkeypatch.setenv("CAI_KEY_HOSTS", "MLFLOW_TRACKING_PASSWORD=mlflow.example.com")
    assert check_trackers(plan) == ["mlflow"]
    monkeypatch.delenv("CAI_KEY_HOSTS")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mlflow.example.com/")
    assert check_trackers(plan) == ["mlflow"], "the user's own address"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.delenv("MLFLOW_TRACKING_PASSWORD")
    (tmp_path / ".mlflow").mkdir()
    (tmp_path / ".mlflow" / "credentials").write_text("[mlflow]\nmlflow_tracking_password = hunter2\n")
    with pytest.raises(PrerequisiteError, match="MLFLOW_TRACKING_PASSWORD would be sent"):
        check_trackers(plan)


def test_without_tracking_nothing_of_it_is_imported():
    off = python(
        "import json, sys, cai.cli\nfrom cai.experiment.model import parse\n"
        "print(json.dumps(sorted(name for name in sys.modules if name.startswith('cai.trackers'))))"
    )
    assert off == ["cai.trackers", "cai.trackers.settings"]


# ---- what is told ----------------------------------------------------------------------------------------------------


def test_curves_and_figures_are_in_the_event_file(tmp_path):
    said = []
    go(tracked_plan(TB), tmp_path / "home", tmp_path / "run", said)
    found = scalars(tmp_path / "run" / "tb")
    assert found["rl/reward"] == [(i, i / 2) for i in range(1, 9)]
    assert found["rl/kl"][-1] == (8, 0.8)
    assert found["rl/tokens_per_s"][0] == (1, 100.0)
    assert {"rl/iteration", "rl/iterations", "rl/training", "rl/end/nan"}.isdisjoint(found)
    assert (found["rl/end/rows_in"], found["rl/end/rows_dropped"]) == ([(0, 10.0)], [(0, 3.0)])
    assert found["rl/end/dropped/prompt_too_long"] == [(0, 3.0)]
    assert (found["rl/end/calls"], found["rl/end/tokens"]) == ([(0, 5.0)], [(0, 600.0)])
    assert "rl/end/seconds" in found
    assert found["rl/end/seconds_update"] == [(0, 0.5)]
    assert found["rl/end/reused"] == [(0, 0.0)]
    assert [found[f"evaluate/reward/red_team/rl-cai{end}"][0][1] for end in ("", "_low", "_high")] == [0.5, 0.4, 0.6]
    assert found["evaluate/wins/red_team/rl-cai_vs_base"] == [(0, 0.8)]
    assert (found["run/steps_made"], found["run/tokens"]) == ([(0, 2.0)], [(0, 600.0)])
    assert said == [f"tensorboard: tensorboard --logdir {tmp_path / 'run' / 'tb'}"]


def test_a_reused_step_shows_its_curve_and_says_so(tmp_path):
    go(tracked_plan(None), tmp_path / "home", tmp_path / "first")
    go(tracked_plan(TB), tmp_path / "home", tmp_path / "second")
    found = scalars(tmp_path / "second" / "tb")
    assert found["rl/reward"] == [(i, i / 2) for i in range(1, 9)]
    assert found["rl/end/reused"] == [(0, 1.0)]
    assert (found["run/steps_made"], found["run/steps_reused"]) == ([(0, 0.0)], [(0, 2.0)])
    assert "run/tokens" not in found  # nothing was asked in this run


def test_a_folder_for_all_runs_keeps_them_apart_by_group_and_name(tmp_path):
    plan = tracked_plan({"tensorboard": {"dir": str(tmp_path / "all")}})
    go(plan, tmp_path / "home", tmp_path / "small" / "one", group="leave_one_out")
    assert scalars(tmp_path / "all" / "leave_one_out" / "small" / "one")["rl/reward"]


def test_the_config_is_flat_and_holds_no_settings_of_launchers(tmp_path):
    config = config_of(tracked_plan(TB, steps=5))
    assert (config["experiment"], config["seed"], config["stages.rl.steps"]) == ("small", 3, 5)
    assert config["engine.torch"] == "2"
    assert "export" not in json.dumps(config)


def test_the_constitution_has_an_id_that_follows_its_principles(project, tmp_path):
    (tmp_path / "experiments" / "full.yaml").write_text(
        "defaults: [{/constitution: quickstart}, {/template: chatml}, _self_]\n"
        "models: {base: {source: 'hf:./model'}}\ndata: {asked: {path: rows.jsonl, makes: prompts}}\n"
        "stages:\n  respond: {model: base, prompts: asked}\n  revise: {model: base, responses: respond}\n"
    )
    one, two = (config_of(compile_plan(["experiment=full", *more], project)) for more in ([], ["constitution=general"]))
    assert (one["constitution.name"], two["constitution.name"]) == ("quickstart", "general")
    assert one["constitution.id"] != two["constitution.id"]
    assert one["stages.revise.rounds"] == 1
    assert one["models.base.source"] == "hf:./model"


def test_every_part_of_an_evaluation_is_told_and_none_has_to_be_there():
    later = {"round": 1, "reward": figure(0.4), "wins": figure(0.6)}
    made = EVALUATION | {
        "elo": {"harmlessness": {"reference": "base", "models": {"rl-cai": figure(90.0)}, "rows": 9}},
        "adherence": {"model": "judge", "sets": {"red_team": {"base": {"no-threats": figure(0.3)}}}},
        "over_refusal": {"rl-cai": figure(0.2), "base": figure(None)},
        "reward_model": {"held_out": {"accuracy": figure(0.7), "by_topic": {"hate": figure(0.1)}}},
        "revisions": {"base": {"rows": 4, "rounds": [later, {"round": 0, "reward": figure(0.1), "wins": None}]}},
    }
    evaluation = parse_evaluation(made)
    found = evaluation_figures(evaluation)
    assert found["elo/harmlessness/rl-cai"] == 90.0
    assert found["violated/red_team/base/no-threats_high"] == pytest.approx(0.4)
    assert found["over_refusal/rl-cai_low"] == pytest.approx(0.1)
    assert found["reward_model/held_out/accuracy"] == 0.7
    assert found["distinct_1/red_team/rl-cai"] == 0.75
    assert not [
        name for name in found if "hate" in name or "over_refusal/base" in name or "distinct_1/red_team/base" in name
    ]
    points = revision_points("evaluate", evaluation, 1.0)
    assert [(p.prefix, p.axis, p.position, p.values["reward"]) for p in points] == [
        ("evaluate/revisions/base", "round", 0, 0.1),
        ("evaluate/revisions/base", "round", 1, 0.4),
    ]
    empty = Evaluation(models=(), sets={})
    assert evaluation_figures(empty) == {}
    assert revision_points("evaluate", empty, 1.0) == []


@pytest.mark.parametrize("text", ["{", "[]", "{}", json.dumps(EVALUATION | {"version": 99})])
def test_an_evaluation_that_cannot_be_read_stops_no_tracker(text, tmp_path):
    (tmp_path / "evaluation.json").write_text(text)
    figures, points = step_end("evaluate", "evaluate", folder=tmp_path, record={"outcome": {"calls": 4}}, t=0.0)
    assert (figures["evaluate/end/calls"], points) == (4.0, [])
    assert not [name for name in figures if "reward" in name]


def test_the_experiment_of_the_document_is_one():
    text = (ROOT / "docs" / "tracking.md").read_text()
    block = text.partition("```yaml\n")[2].partition("```")[0]
    assert set(parse(EXPERIMENT | yaml.safe_load(block)).tracking.enabled()) == {"tensorboard", "wandb", "mlflow"}


def test_names_are_what_every_tracker_takes():
    assert clean("judge/agreement of the two orders") == "judge/agreement_of_the_two_orders"
    assert clean("a//b/../c:ü") == "a/b/__/c"
    assert len(clean("x" * 400)) == 240
    assert apart({"a": 1.0, "a/b/c": 2.0, "d/e": 3.0}) == {"a": 1.0, "a_b_c": 2.0, "d/e": 3.0}


def test_a_torn_curve_is_left_out(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    assert step_end("sft", "sft", folder=tmp_path, record={"outcome": {}}, t=0.0) == ({"sft/end/rows_dropped": 0.0}, [])


def test_steps_of_a_cluster_that_had_no_job_are_told_at_the_end(tmp_path):
    plan, home = tracked_plan(TB), tmp_path / "home"
    go(tracked_plan(None), home, tmp_path / "run")
    store = Store(home)
    story = Story(plan, lambda s: store.find(s.kind, s.key))
    assert story.take({"t": 5.0, "event": "job.submitted", "step": "rl", "job": "7"}) == []
    told = story.take({"t": 9.0, "event": "step.done", "step": "rl", "reused": False})
    assert [type(one) for one in told] == [CurvePoint] * 8 + [Figures]
    assert story.ending("running").status == "running"
    (evaluated,) = story.take({"t": 11.0, "event": "run.done"})
    assert (evaluated.step, evaluated.reused) == ("evaluate", True)
    ending = story.ending("running")
    assert (ending.status, ending.reused, ending.values["run/seconds"]) == ("done", ("evaluate",), 6.0)


def test_the_time_between_two_attempts_is_no_time_of_the_run():
    story = Story(tracked_plan(TB), lambda s: None)
    for t, event in [
        (0, "run.started"),
        (4, "step.started"),
        (100, "run.started"),
        (103, "run.failed"),
        (900, "tracking.failed"),
    ]:
        story.take({"t": float(t), "event": event})
    assert (story.ending("killed").status, story.ending("killed").values["run/seconds"]) == ("failed", 7.0)


# ---- runs that stop, and go on ---------------------------------------------------------------------------------------


def test_a_killed_run_has_told_what_it_did_and_goes_on_in_the_same_curve(tmp_path):
    home, run_dir = tmp_path / "home", tmp_path / "run"
    assert program(home, run_dir, TB, "5").returncode == -signal.SIGKILL
    while not (run_dir / "tracking" / "tensorboard.json").exists():  # the process that tells lives on for a moment
        time.sleep(0.05)
    with locked(run_dir / "tracking" / "tensorboard.lock"):
        killed = scalars(run_dir / "tb")
    assert killed["rl/reward"] == [(i, i / 2) for i in range(1, 6)]
    assert "run/seconds" in killed
    done = program(home, run_dir, TB)
    assert done.returncode == 0, done.stderr
    # The run itself imports no tracker, even when it is told to one.
    assert not {"tensorboard", "wandb", "mlflow", "torch"} & set(json.loads(done.stdout)["loaded"])
    notes = [e["data"]["iteration"] for e in read_events(run_dir / "events.jsonl") if e["event"] == "rl.iteration"]
    assert notes == [1, 2, 3, 4, 5, 4, 5, 6, 7, 8]  # training went back to its checkpoint
    found = scalars(run_dir / "tb")
    assert found["rl/reward"] == [(i, i / 2) for i in range(1, 9)]  # the curve did not
    assert found["rl/end/reused"] == [(0, 0.0)]
    assert len(list((run_dir / "tb").iterdir())) == 2


def test_a_failed_step_ends_the_tracked_run_as_failed(tmp_path):
    plan, told = tracked_plan(TB, fail_at=2), []
    with pytest.raises(StepFailed, match="scripted training fails"):
        go(plan, tmp_path / "home", tmp_path / "run")
    assert scalars(tmp_path / "run" / "tb")["rl/reward"] == [(1, 0.5), (2, 1.0)]
    (tmp_path / "run" / "tracking" / "tensorboard.json").unlink()
    follow(tmp_path, lambda _: Scripted(told)).finish(time.monotonic() + 5)
    assert told[-1].status == "failed"


@pytest.mark.long
def test_a_run_on_a_cluster_is_told_when_somebody_watches(cluster_project: ToyProject):
    project = cluster_project
    project.cai("experiment=toy", "tracking.tensorboard=true", "--detach")
    assert not (project.run / "tensorboard").exists()
    assert "tensorboard: tensorboard --logdir runs/toy/" in project.cai("resume")
    found = scalars(project.run / "tensorboard")
    assert (found["sl_mix/end/rows_out"], found["sl_mix/end/reused"]) == ([(0, 40.0)], [(0, 0.0)])
    project.cai("experiment=toy", "tracking.tensorboard=true")
    found = scalars(project.run / "tensorboard")
    assert (found["sl_mix/end/reused"], found["run/steps_reused"]) == ([(0, 1.0)], [(0, 2.0)])


# ---- trackers that fail ----------------------------------------------------------------------------------------------
