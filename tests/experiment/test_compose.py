from __future__ import annotations

import subprocess
import sys

import pytest

from cai.errors import SpecError
from cai.experiment.compose import compose
from cai.files.library import Library, shipped_root


@pytest.fixture
def project(tmp_path):
    """A user's own folder in front of the shipped one."""
    (tmp_path / "experiments").mkdir()
    (tmp_path / "constitutions").mkdir()
    (tmp_path / "constitutions" / "mine.yaml").write_text(
        "description: one rule\nprinciples:\n- id: kind\n  critique: Is it unkind?\n"
        "  revision: Make it kind.\n  comparison: Which is kinder?\n"
    )
    (tmp_path / "experiments" / "small.yaml").write_text(
        "# python -m cai experiment=small\n"
        "defaults:\n  - /constitution: mine\n  - /template: chatml\n  - _self_\n"
        "seed: 3\nstages:\n  respond:\n    model: base\n    prompts: asked\n"
    )
    return tmp_path


def library(path):
    return Library((path, shipped_root()))


def test_groups_come_from_the_users_folder_first(project):
    data = compose(["experiment=small"], library(project)).data
    assert data["name"] == "small"
    assert data["template"] == {"name": "chatml"}
    assert data["constitution"]["principles"][0]["id"] == "kind"
    assert data["constitution"]["name"] == "mine"


def test_overrides_reach_every_field(project):
    data = compose(
        ["experiment=small", "seed=9", "stages.respond.model=other", "+stages.respond.limit=4"], library(project)
    ).data
    assert data["seed"] == 9
    assert data["stages"]["respond"] == {"model": "other", "prompts": "asked", "limit": 4}


def test_a_constitution_can_be_swapped_on_the_command_line(project):
    data = compose(["experiment=small", "constitution=general"], library(project)).data
    assert data["constitution"]["name"] == "general"


def test_an_experiment_extends_another(project):
    (project / "experiments" / "bigger.yaml").write_text("defaults:\n  - small\n  - _self_\nseed: 4\n")
    data = compose(["experiment=bigger"], library(project)).data
    assert data["seed"] == 4
    assert data["stages"]["respond"]["model"] == "base"
    assert data["name"] == "bigger"


def test_where_names_file_line_or_the_command_line(project):
    composed = compose(["experiment=small", "seed=9"], library(project))
    assert composed.where("stages.respond.model") == "experiments/small.yaml:9: stages.respond.model"
    assert composed.where("seed") == "command line: seed"
    assert composed.where("constitution.principles[0].revision") == (
        "constitutions/mine.yaml:5: constitution.principles[0].revision"
    )


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["experiment=smal"], ["experiments/", "did you mean 'small'"]),
        (["experiment=small", "constitution=generl"], ["constitutions/", "did you mean 'general'"]),
        (["experiment=small", "sed=3"], ["sed=3", "did you mean 'seed'"]),
        (["experiment=small", "seed=["], ["seed=["]),
        (["experiment=small", "name=${nothing.here}"], ["nothing.here"]),
    ],
)
def test_what_cannot_be_composed_says_where_and_what(project, overrides, words):
    with pytest.raises(SpecError) as error:
        compose(overrides, library(project))
    for word in words:
        assert word in str(error.value)


def test_a_name_never_leads_out_of_its_folder(project):
    (project / "secret.yaml").write_text("a: 1\n")
    with pytest.raises(SpecError):
        compose(["experiment=../secret"], library(project))
    with pytest.raises(SpecError):
        Library((project,)).find("experiments", "../secret")


def test_multirun_runs_every_cell(project):
    script = (
        "import sys; from cai.sweep.multirun import multirun\n"
        "def task(data, overrides): print('cell', data['seed'], data['constitution']['name'], flush=True)\n"
        "multirun(['-m', 'experiment=small', 'constitution=mine,general', 'seed=range(2)'], task)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=project, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    cells = [line for line in done.stdout.splitlines() if line.startswith("cell")]
    assert cells == ["cell 0 mine", "cell 1 mine", "cell 0 general", "cell 1 general"]
