"""``python -m cai diff`` as a person and as a pipeline use it: sides, formats, gates, exit codes."""

import json
import re
from pathlib import Path

import pytest

from cai.store.artifacts import Store
from tests.support.review_project import (
    candidates,
    commit,
    edit,
    evaluation,
    labels,
    plan,
    repository,
    run_cai,
    write_run,
)

pytestmark = pytest.mark.long  # servers, programs and many small waits

SMALL, HOUSE = "experiments/small.yaml", "constitutions/house.yaml"


@pytest.fixture
def repo(tmp_path, monkeypatch):
    folder = repository(tmp_path / "repo")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("CAI_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    return folder


def told(capsys):
    found = capsys.readouterr()
    return found.out, found.err


def test_one_experiment_is_held_against_head(repo, capsys):
    edit(HOUSE, ("that are rude.", "that are rude or unfair."))
    assert run_cai("diff", "small") == 0
    out, _ = told(capsys)
    assert "small: 1 change, 8 of 13 steps run again" in out
    assert "[-rude.-] {+rude or unfair.+}" in out


def test_overrides_are_put_on_both_sides_and_quoted_ones_on_one(repo, capsys):
    assert run_cai("diff", "small", "small", "seed=3", "--exit-code") == 0
    assert run_cai("diff", "small", "small seed=3", "--exit-code") == 1
    assert "seed: 0 -> 3" in told(capsys)[0]


def test_plans_runs_and_locks_are_sides(repo, capsys, tmp_path):
    Path("plan.json").write_text(plan("seed=2").to_json())
    write_run(Path("runs/small/first"), plan("seed=4"), Store(tmp_path / "home"), {})
    assert run_cai("lock", "experiment=small") == 0
    for side, seed in (("plan.json", 2), ("runs/small/first", 4), ("locks/small.lock.yaml", 0)):
        assert run_cai("diff", side, "small seed=1") == 0
        assert f"seed: {seed} -> 1" in told(capsys)[0]
    assert run_cai("diff", "plan.json", "runs/small/first", "seed=3") == 2
    assert "nothing to override" in told(capsys)[1]


@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_text_fits_the_terminal(repo, capsys, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    edit(HOUSE, ("that are rude.", f"that are rude. {'word ' * 60}"))
    edit("prompt_templates/critique.jinja", ("Be short.", "Be short, " + "and shorter, " * 20))
    assert run_cai("diff", "small") == 0
    out, _ = told(capsys)
    assert max(map(len, out.splitlines())) <= width
    assert "word word" in out


def test_three_formats_and_a_file(repo, capsys):
    edit(SMALL, ("epochs: 2", "epochs: 3"))
    assert run_cai("diff", "small", "--format", "json", "--out", "out/review.json") == 0
    out, _ = told(capsys)
    assert Path("out/review.json").read_text() == out
    data = json.loads(out)
    assert data["format"] == 1
    (change,) = data["changes"]
    assert (change["where"], change["before"], change["after"]) == ("stages.sft.training.epochs", 2, 3)
    assert next(s["name"] for s in data["steps"] if s["action"] == "rerun") == "sft"
    assert run_cai("diff", "small", "--format", "md", "--out", "review.md") == 0
    assert Path("review.md").read_text() == told(capsys)[0]
    assert run_cai("diff", "small", "--out", "review.txt") == 0
    assert "epochs: 2 -> 3" in Path("review.txt").read_text()
    assert run_cai("diff", "small", "--out", "data/asked.jsonl/x") == 2


@pytest.mark.parametrize(
    ("change", "gate", "code"),
    [
        ((SMALL, ("epochs: 2", "epochs: 3")), "hyperparameters", 1),
        ((SMALL, ("epochs: 2", "epochs: 3")), "principles,template,prompts,data,models,seed,engine,stages", 0),
        ((SMALL, ("epochs: 2", "epochs: 3")), "any", 1),
        ((SMALL, ("epochs: 2", "epochs: 3")), "rerun", 1),
        ((SMALL, ("epochs: 2", "epochs: 3")), "calls>100", 1),
        ((SMALL, ("epochs: 2", "epochs: 3")), "calls>1M,seconds>10k,gpu_hours>0", 0),
        ((SMALL, ("epochs: 2", "epochs: 3")), "metrics", 1),
        ((SMALL, ("a small experiment", "told better")), "any,rerun", 0),
        ((SMALL, ("seed: 0", "seed: 1")), "seed", 1),
        ((HOUSE, ("rude", "cruel")), "principles", 1),
        (("prompt_templates/plain.jinja", ("ChatML", "another")), "template", 1),
        (("prompt_templates/critique.jinja", ("Be short", "Be brief")), "prompts", 1),
        (("data/asked.jsonl", ("question 7", "another")), "data", 1),
        ((SMALL, ("aaaaaaaaaaaa", "bbbbbbbbbbbb")), "models", 1),
        ((SMALL, ("generation_precision: float32", "generation_precision: bfloat16")), "engine", 1),
    ],
)
def test_gates_end_with_1_and_name_themselves(repo, capsys, change, gate, code):
    path, pair = change
    edit(path, pair)
    assert run_cai("diff", "small", "--fail-on", gate) == code
    assert ("held back by" in told(capsys)[1]) == bool(code)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("principle", "did you mean 'principles'"),
        ("cost>5", "'cost>5' is no gate"),
        ("calls", "has no limit; write calls>1000"),
        ("seed>3", "takes no limit"),
        ("labels>5", "wrong unit; write labels>5%"),
        ("calls>5%", "wrong unit; write calls>1000"),
        (",", "names no gate"),
    ],
)
def test_unknown_gates_are_wrong_input(repo, capsys, text, words):
    assert run_cai("diff", "small", "--fail-on", text) == 2
    assert words in told(capsys)[1]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ((), "wants two sides"),
        (("small", "small", "small"), "has 3 sides"),
        (("--since", "HEAD", "small"), "looks at every experiment"),
        (("--since", "nowhere"), "no such git revision"),
        (("small", "--format", "xml"), "invalid choice"),
        (("runs/nothing",), "is no experiment"),
    ],
)
def test_wrong_use_ends_with_2(repo, capsys, args, words):
    assert run_cai("diff", *args) == 2
    assert words in told(capsys)[1]


@pytest.mark.long
def test_since_tells_every_experiment_that_differs(repo, capsys):
    Path("experiments/second.yaml").write_text("defaults: [small, _self_]\nname: second\nseed: 7\n")
    Path("experiments/gone.yaml").write_text("defaults: [small, _self_]\nname: gone\n")
    commit(repo, "three experiments")
    assert run_cai("diff", "--since", "HEAD", "--exit-code") == 0
    assert "no experiment differs from HEAD" in told(capsys)[0]
    edit(HOUSE, ("rude", "cruel"))
    Path("experiments/gone.yaml").unlink()
    Path("experiments/fresh.yaml").write_text("defaults: [small, _self_]\nname: fresh\n")
    assert run_cai("diff", "--since", "HEAD", "--exit-code", "--format", "json") == 1
    data = json.loads(told(capsys)[0])
    assert data["since"] == "HEAD"
    assert [r["experiment"] for r in data["reviews"]] == ["fresh", "gone", "second", "small"]
    fresh, gone, second, _ = (r["changes"] for r in data["reviews"])
    assert [c["words"].partition(":")[0] for c in fresh] == ["experiment fresh added"]
    assert [c["words"].partition(":")[0] for c in gone] == ["experiment gone removed"]
    assert [c["section"] for c in second] == ["principles"]
    assert run_cai("diff", "--since", "HEAD", "--format", "md") == 0
    assert told(capsys)[0].startswith("## 4 experiments differ from `HEAD`\n")


@pytest.mark.long
def test_since_tells_what_broke_and_not_what_was_broken(repo, capsys):
    Path("experiments/broken.yaml").write_text("stages: {respond: {modle: x}}\n")
    commit(repo, "one that never compiled")
    assert run_cai("diff", "--since", "HEAD") == 0
    told(capsys)
    edit(SMALL, ("responses: respond", "responses: respnd"))
    assert run_cai("diff", "--since", "HEAD") == 2
    out, _ = told(capsys)
    assert "small cannot be compiled: 1 problem" in out
    assert "did you mean 'respond'" in " ".join(out.split())
    assert "modle" not in out
    edit("experiments/broken.yaml", ("stages: {respond: {modle: x}}", "defaults: [small, _self_]\nname: broken"))
    edit(SMALL, ("responses: respnd", "responses: respond"))
    assert run_cai("diff", "--since", "HEAD") == 0
    assert "experiment broken could not be compiled at HEAD" in told(capsys)[0]


def test_finished_runs_are_held_against_each_other(repo, capsys, tmp_path):
    store = Store(tmp_path / "home")
    texts = [(f"a {i}", f"b {i}") for i in range(20)]
    written = {"rows.jsonl": candidates(texts)}
    good = [(f"answer {i}.", 1.0 + i % 3) for i in range(20)]
    bad = [(f"another answer {i}", 0.2 * (i % 4)) for i in range(20)]
    votes = [0.9] * 20
    for name, overrides, answers, p in (
        ("first", (), good, votes),
        ("second", ("stages.rl.training.iterations=9",), bad, votes),
        ("third", ("stages.judge.margin=0.2",), good, [0.1] * 3 + votes[3:]),
    ):
        said = evaluation({"base": good, "rl": answers})
        files = {"sample": written, "judge": {"rows.jsonl": labels(texts, p)}, "evaluate": said}
        write_run(Path(f"runs/{name}"), plan(*overrides), store, files)
    assert run_cai("diff", "runs/first", "runs/second", "--fail-on", "metrics") == 1
    out, err = told(capsys)
    assert re.search(r"rl, reward +1\.95 \[.*worse", out)
    assert "ended of rl got worse" in err or "reward of rl got worse" in err
    assert run_cai("diff", "runs/second", "runs/first", "--fail-on", "metrics,labels>0%") == 0
    told(capsys)
    assert run_cai("diff", "runs/first", "runs/third", "--fail-on", "labels>10%") == 1
    out, err = told(capsys)
    assert "3 of 20 pairs with the same answers have another label (15.0 %), 3 of them the other way round" in out
    assert "two different reward models" in out
    assert "15.0 % of 20 labels are others now" in err
    assert run_cai("diff", "runs/first", "runs/third", "--fail-on", "labels>20%") == 0


def test_every_kind_of_side_is_in_the_help(repo, capsys):
    with pytest.raises(SystemExit):
        run_cai("diff", "-h")
    out, _ = told(capsys)
    assert "REV:EXPERIMENT" in out
    assert "labels>5%" in out
