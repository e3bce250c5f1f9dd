"""From a command line to cells: what is swept, which principles each cell has, and problems before anything runs."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest

from cai.commands.planning import compile_plan
from cai.commands.sweeping import plan_sweep
from cai.constitution import Constitution
from cai.errors import SpecError
from cai.store.artifacts import Store
from cai.sweep.cells import compile_cells
from cai.sweep.plan import sweep_data, sweep_plan
from cai.sweep.settings import SweepSpec
from cai.sweep.variations import variations
from tests.support.sweep_project import IDS, make_project

URL = "http://127.0.0.1:9/v1"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(make_project(tmp_path / "p", URL))
    monkeypatch.setenv("CAI_HOME", str(tmp_path / "home"))
    return tmp_path / "p"


def labels(*overrides: str) -> list[str]:
    return [cell.label for cell in compile_cells(overrides).cells]


def test_values_are_combined_in_hydras_order(project: Path) -> None:
    found = compile_cells(["experiment=small", "constitution=three,two", "seed=range(2)", "description=x"])
    assert [dict(c.values) for c in found.cells] == [
        {"constitution": name, "seed": str(seed)} for name in ("three", "two") for seed in (0, 1)
    ]
    assert [c.plan.seed for c in found.cells] == [0, 1, 0, 1]
    assert [c.principles for c in found.cells] == [IDS, IDS, IDS[:2], IDS[:2]]
    assert found.name == "small"


def test_a_glob_stands_for_the_files_that_match(project: Path) -> None:
    assert labels("experiment=small", "constitution=glob(t*)") == ["constitution=three", "constitution=two"]


def test_a_cell_is_the_plan_of_its_own_overrides(project: Path) -> None:
    for preset in ("leave_one_out", "one_principle_at_a_time", "nested_subsets"):
        for cell in compile_cells(["experiment=small", "stages.revise.rounds=1,2", f"+sweep={preset}"]).cells:
            assert compile_plan(cell.overrides).to_json() == cell.plan.to_json()


def test_leave_one_out_is_the_whole_and_each_without_one(project: Path) -> None:
    cells = compile_cells(["experiment=small", "+sweep=leave_one_out"]).cells
    assert [c.label for c in cells] == ["whole", *(f"without {i}" for i in IDS)]
    assert [c.principles for c in cells] == [IDS, IDS[1:], (IDS[0], IDS[2]), IDS[:2]]
    assert labels("experiment=small", "+sweep=leave_one_out", "sweep.whole=false") == [f"without {i}" for i in IDS]


def test_each_constitution_is_varied_by_its_own_principles(project: Path) -> None:
    assert labels("experiment=small", "constitution=three,two", "+sweep=one_principle_at_a_time") == [
        *(f"constitution=three, {what}" for what in ("whole", "only kind", "only honest", "only brief")),
        *(f"constitution=two, {what}" for what in ("whole", "only kind", "only honest")),
    ]


def test_what_a_constitution_leaves_out_stays_out(project: Path) -> None:
    cells = compile_cells(["experiment=small", "constitution.exclude=[honest]", "+sweep=leave_one_out"]).cells
    assert [c.principles for c in cells] == [("kind", "brief"), ("brief",), ("kind",)]
    weighted = compile_cells(["experiment=small", "constitution.weights={brief:0}", "+sweep=leave_one_out"]).cells
    assert [c.label for c in weighted] == ["whole", "without kind", "without honest"]


def sixteen() -> Constitution:
    return Constitution.from_json({"name": "c", "principles": [{"id": f"p{i}", "critique": "?"} for i in range(16)]})


def test_nested_subsets_lie_inside_each_other() -> None:
    for order, draws in (("file", 1), ("random", 3)):
        spec = SweepSpec(preset="nested_subsets", order=order, draws=draws)
        found = variations(spec, sixteen(), 7)
        assert [len(v.ids) for v in found if v.kind == "whole"] == [16]  # once, however many draws
        for draw in range(draws):
            sets = [set(v.ids) for v in found if v.draw == draw and v.kind == "first"]
            # A set that two draws have in common runs once.
            assert [len(s) for s in sets] == [1, 2, 4, 8] or (draws > 1 and [len(s) for s in sets] == [2, 4, 8])
            assert all(a < b for a, b in pairwise(sets))
    assert variations(spec, sixteen(), 7) == variations(spec, sixteen(), 7)
    assert variations(spec, sixteen(), 7) != variations(spec, sixteen(), 8)


def test_sizes_beyond_the_constitution_are_the_whole_of_it() -> None:
    spec = SweepSpec(preset="nested_subsets", sizes=(3, 40, 20), whole=False)
    assert [len(v.ids) for v in variations(spec, sixteen(), 0)] == [3, 16]
    spec = SweepSpec(preset="nested_subsets", sizes=(3, 4), whole=False)
    assert [len(v.ids) for v in variations(spec, sixteen(), 0)] == [3, 4]


def test_explicit_sets_are_ids_tags_and_globs(project: Path) -> None:
    cells = compile_cells(["experiment=small", "+sweep.sets={tone:['tag:tone'],b:['b*',kind]}"]).cells
    assert [(c.label, c.principles) for c in cells] == [
        ("whole", IDS),
        ("tone", ("kind", "brief")),  # b is the same set, and runs once
    ]


def test_a_file_of_sweeps_can_be_the_users_own(project: Path) -> None:
    (project / "sweeps").mkdir()
    (project / "sweeps/mine.yaml").write_text("sets: {truth: ['tag:truth']}\nwhole: false\n")
    assert labels("experiment=small", "+sweep=mine") == ["truth"]
    assert labels("experiment=small", "sweep=mine", "sweep.whole=true") == ["whole", "truth"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["+sweep=leave_one_ou"], ["no 'leave_one_ou' in sweeps/", "did you mean 'leave_one_out'"]),
        (["+sweep=leave_one_out", "sweep.wole=true"], ["command line: sweep.wole", "did you mean 'whole'"]),
        (["+sweep=nested_subsets", "sweep.sizes=[0]"], ["sweep.sizes"]),
        (["+sweep.sets={x:[knd]}"], ["sweep.sets.x", "'knd' matches no principle", "did you mean 'kind'"]),
        (["+sweep=leave_one_out,nested_subsets"], ["names more than one sweep"]),
        (["seed=interval(0,1)"], ["an interval has no end"]),
        (["constitution=three,tow"], ["no 'tow' in constitutions/", "did you mean 'two'"]),
        (["stages.revise.rounds=1,0"], ["stages.revise.rounds", "stages.revise.rounds=0"]),
        (["+sweep=leave_one_out", "sweep.sets={a:[kind]}"], ["give `sets` or `preset`, not both"]),
        (["+sweep=leave_one_out", "constitution.include=[kind]"], ["without it nothing is left"]),
        (["seed=range(20000)"], ["20,000 cells"]),
        (["+sweep=nested_subsets", "sweep.draws=2"], ["order: random"]),
    ],
)
def test_every_problem_is_told_before_anything_runs(project: Path, overrides: list[str], words: list[str]) -> None:
    with pytest.raises(SpecError) as error:
        compile_cells(["experiment=small", *overrides])
    for word in words:
        assert word in str(error.value)


def test_problems_of_many_cells_are_told_once_with_the_cells(project: Path) -> None:
    with pytest.raises(SpecError) as error:
        compile_cells(["experiment=small", "seed=range(5)", "stages.revise.rounds=1,0"])
    assert len(error.value.problems) == 1
    assert "and 4 more" in str(error.value)


def test_a_sweep_without_m_says_what_is_missing(project: Path) -> None:
    with pytest.raises(SpecError, match="add -m"):
        compile_plan(["experiment=small", "+sweep=leave_one_out"])


def test_launchers_are_hydras_and_reach_no_cell(project: Path) -> None:
    found = compile_cells(["experiment=small", "seed=1,2", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"])
    assert found.launch == ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    assert [c.overrides for c in found.cells] == [("experiment=small", "seed=1"), ("experiment=small", "seed=2")]


def test_the_plan_of_a_sweep_counts_shared_steps_once(project: Path, tmp_path: Path) -> None:
    found = sweep_data(sweep_plan(compile_cells(["experiment=judged", "+sweep=leave_one_out"]), Store(tmp_path)))
    steps = {step["name"]: step for step in found["steps"]}
    assert {n: (s["cells"], s["different"], s["to_run"]) for n, s in steps.items()} == {
        "m": (4, 1, 1),
        "asks": (4, 1, 1),
        "respond": (4, 1, 1),
        "revise": (4, 4, 4),
        "evaluate": (4, 1, 1),
    }
    assert steps["respond"]["cost"]["calls"] == 12
    assert steps["respond"]["saved"]["calls"] == 36
    assert steps["revise"]["saved"]["calls"] == 0
    assert found["totals"]["steps"] == 20
    assert found["totals"]["different"] == 8


def test_plan_m_shows_and_starts_nothing(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan_sweep(["experiment=judged", "+sweep=leave_one_out"], "text", None, None) == 0
    text = capsys.readouterr().out
    assert "4 cells, 20 steps, 8 of them different; 8 to run" in text
    assert "without honest: 5 of 5 steps to run" in text
    assert plan_sweep(["experiment=judged", "+sweep=leave_one_out"], "json", None, None) == 0
    assert json.loads(capsys.readouterr().out)["cells"][2]["overrides"][-1] == "constitution.exclude=[honest]"
    assert plan_sweep(["experiment=judged", "+sweep=leave_one_out"], "md", None, None) == 0
    assert "| respond | 1 of 4 |" in capsys.readouterr().out
    assert not (project / "runs").exists()
    with pytest.raises(SpecError, match="--out"):
        plan_sweep(["experiment=judged", "seed=1,2"], "text", Path("x"), None)
