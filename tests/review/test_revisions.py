"""Git revisions: compiled from their own files, with nothing of the working tree, which stays as it is."""

import json
import os
from contextlib import contextmanager
from pathlib import Path

import pytest

import cai
from cai.commands.planning import plan_of
from cai.errors import SpecError
from cai.files import library
from cai.identity import text_digest
from cai.review import revisions
from cai.review.sides import against, opener
from cai.store.artifacts import Store
from tests.support.review_project import commit, edit, git, plan, project, repository, run_cai

SMALL = "experiments/small.yaml"


@pytest.fixture
def repo(tmp_path, monkeypatch):
    folder = repository(tmp_path / "repo")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("CAI_HOME", str(tmp_path / "home"))
    return folder


@contextmanager
def opened(tmp_path):
    with opener(plan_of, Store(tmp_path / "home")) as found:
        yield found


def keys(made):
    return {step.name: step.key for step in made.steps}


def test_a_revision_has_the_plan_that_its_files_had(repo, tmp_path):
    before = keys(plan())
    edit(SMALL, ("epochs: 2", "epochs: 3"))
    edit("constitutions/house.yaml", ("rude", "cruel"))
    edit("prompt_templates/critique.jinja", ("one sentence", "ten words"))
    edit("prompt_templates/plain.jinja", ("ChatML", "another"))
    edit("data/asked.jsonl", ("question 7", "another question"))
    assert keys(plan()) != before
    with opened(tmp_path) as sides:
        assert keys(sides.open("HEAD:small").plan) == before
        assert keys(sides.open("main:experiments/small.yaml").plan) == before
        assert keys(sides.open("experiment=small").plan) == keys(plan())
        assert keys(sides.open("HEAD:small seed=3").plan) != before
        assert sides.open("'HEAD:small' 'description=two words'").plan.source["description"] == "two words"


def test_nothing_of_the_working_tree_leaks_in(repo, tmp_path):
    git(repo, "rm", "-q", "--cached", "data/asked.jsonl", "constitutions/house.yaml")
    git(repo, "commit", "-q", "-m", "without")
    assert Path("data/asked.jsonl").exists()
    with opened(tmp_path) as sides, pytest.raises(SpecError) as error:
        sides.open("HEAD:small")
    assert "no 'house' in constitutions/" in str(error.value)
    git(repo, "add", "constitutions")
    git(repo, "commit", "-q", "-m", "with a constitution")
    with opened(tmp_path) as sides, pytest.raises(SpecError) as error:
        sides.open("HEAD:small")
    assert "HEAD: experiments/small.yaml" in str(error.value)
    assert "'data/asked.jsonl' is not in" in str(error.value)
    assert "cai-review" not in str(error.value)  # our folder, of which nobody knows


def test_the_working_tree_the_index_and_the_refs_stay_as_they_are(repo, tmp_path):
    edit(SMALL, ("epochs: 2", "epochs: 3"))
    git(repo, "add", SMALL)
    edit(SMALL, ("epochs: 3", "epochs: 4"))
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in sorted(repo.rglob("*")) if p.is_file()}
    with opened(tmp_path) as sides:
        for text in ("HEAD:small", ":small", "main:small"):
            sides.open(text)
    after = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in sorted(repo.rglob("*")) if p.is_file()}
    assert after == before


def test_the_index_is_a_side_too(repo, tmp_path):
    edit(SMALL, ("epochs: 2", "epochs: 3"))
    git(repo, "add", SMALL)
    edit(SMALL, ("epochs: 3", "epochs: 4"))
    with opened(tmp_path) as sides:
        assert sides.open(":small").plan.step("sft").spec["training"]["epochs"] == 3


def test_a_folder_below_the_top_is_where_the_user_stands(tmp_path, monkeypatch):
    top = tmp_path / "repo"
    project(top / "deep" / "down")
    (top / "deep" / "data").mkdir()
    (top / "deep" / "down" / "data" / "asked.jsonl").rename(top / "deep" / "data" / "asked.jsonl")
    edit(str(top / "deep" / "down" / SMALL), ("path: data/asked.jsonl", "path: ../data/*.jsonl"))
    git(top, "init", "-q")
    commit(top, "first")
    monkeypatch.chdir(top / "deep" / "down")
    before = keys(plan())
    edit(SMALL, ("epochs: 2", "epochs: 3"))
    (top / "deep" / "data" / "more.jsonl").write_text('{"prompt": "not committed", "topic": "t"}\n')
    with opened(tmp_path) as sides:
        assert keys(sides.open("HEAD:small").plan) == before


@pytest.mark.parametrize("path", ["data", "data/", "./data/asked.jsonl", "data/*.jsonl", "*/asked.jsonl", "data/ask*"])
def test_data_is_taken_however_it_is_named(repo, tmp_path, path):
    edit(SMALL, ("path: data/asked.jsonl", f"path: '{path}'"))
    commit(repo, "another path")
    before = keys(plan())
    edit("data/asked.jsonl", ("question 7", "another question"))
    with opened(tmp_path) as sides:
        assert keys(sides.open("HEAD:small").plan) == before


def test_a_models_folder_is_the_revisions_too(repo, tmp_path):
    Path("weights").mkdir()
    Path("weights/config.json").write_text("{}")
    edit(SMALL, ('source: "hf:house/judge", revision: aaaaaaaaaaaa', 'source: "hf:weights"'))
    commit(repo, "weights of our own")
    before = plan().step("judging").key
    Path("weights/config.json").write_text('{"another": 1}')
    assert plan().step("judging").key != before
    with opened(tmp_path) as sides:
        assert sides.open("HEAD:small").plan.step("judging").key == before


def test_where_the_program_is_the_repository_its_shipped_files_are_the_revisions(tmp_path, monkeypatch):
    top = tmp_path / "checkout"
    project(top / "mine")
    (top / "mine" / "constitutions" / "house.yaml").rename(top / "mine" / "house.yaml")
    for name in ("experiments", "constitutions", "prompt_templates", "cai/data"):
        (top / name).mkdir(parents=True)
    (top / "mine" / "house.yaml").rename(top / "constitutions" / "house.yaml")
    rows = "".join(json.dumps({"prompt": f"shipped {i}", "topic": f"t{i % 4}"}) + "\n" for i in range(40))
    (top / "cai" / "data" / "asked.jsonl").write_text(rows)
    own = Path(library.__file__).relative_to(Path(cai.__file__).parent)
    (top / "cai" / own.parent).mkdir()
    (top / "cai" / own).write_text("")
    shipped = Path(revisions.__file__).parents[2] / "prompt_templates"
    for found in [*shipped.glob("*.jinja"), *shipped.glob("few_shots/*.yaml")]:
        at = top / "prompt_templates" / found.relative_to(shipped)
        at.parent.mkdir(exist_ok=True)
        at.write_text(found.read_text())
    edit(str(top / "mine" / SMALL), ("path: data/asked.jsonl", "path: shipped:asked.jsonl"))
    git(top, "init", "-q")
    commit(top, "first")
    monkeypatch.setattr(revisions, "shipped_root", lambda: top)
    monkeypatch.setattr(revisions, "_PACKAGE", top / "cai")
    monkeypatch.chdir(top / "mine")
    edit(str(top / "constitutions" / "house.yaml"), ("rude", "cruel"))
    (top / "cai" / "data" / "asked.jsonl").write_text(rows.replace("shipped 7", "edited"))
    with opened(tmp_path) as sides:
        made = sides.open("HEAD:small").plan
    digest = made.step("asked.sl").ingredients.data["sha256"]
    assert digest == [text_digest(rows)]
    assert "rude" in made.step("revise").resources["constitution"]["principles"][1]["critique"]


def test_links_that_lead_out_of_the_repository_are_not_followed(repo, tmp_path):
    secret = tmp_path / "secret.jsonl"
    secret.write_text('{"prompt": "secret", "topic": "t"}\n')
    Path("data/asked.jsonl").unlink()
    Path("data/asked.jsonl").symlink_to(secret)
    commit(repo, "a link")
    with opened(tmp_path) as sides, pytest.raises(SpecError, match=r"asked\.jsonl' is not in"):
        sides.open("HEAD:small")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("mian:small", ["mian", "no such git revision", "did you mean 'main'"]),
        ("HEAD~9:small", ["HEAD~9", "no such git revision"]),
        ("HEAD:smal", ["HEAD:smal", "did you mean 'small'"]),
        ("HEAD:", ["HEAD:", "names no experiment"]),
        ("HEAD:../small", ["has no '../small'"]),
        ("smal", ["smal", "did you mean 'small'"]),
        ("--output=owned:small", ["is no git revision"]),
        ("-h:small", ["is no git revision"]),
        ("'HEAD small", ["close the quotes"]),
        ("''", ["names nothing"]),
        ("HEAD:small stages.sft.training.epoch=3", ["HEAD: ", "did you mean 'epochs'"]),
    ],
)
def test_what_names_nothing_is_told(repo, tmp_path, text, words):
    with opened(tmp_path) as sides, pytest.raises(SpecError) as error:
        sides.open(text)
    assert all(word in str(error.value) for word in words), str(error.value)
    assert not Path("owned").exists()


def test_without_a_repository_or_without_git_it_is_said(tmp_path, monkeypatch):
    monkeypatch.chdir(project(tmp_path / "project"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    with opened(tmp_path) as sides, pytest.raises(SpecError, match="is in no git repository"):
        sides.open("HEAD:small")
    monkeypatch.setenv("PATH", str(tmp_path))
    with opened(tmp_path) as sides, pytest.raises(SpecError, match="there is no git here"):
        sides.open("HEAD:small")


def test_a_shallow_clone_says_how_to_deepen_it(repo, tmp_path, monkeypatch):
    commit(repo, "second")
    git(tmp_path, "clone", "-q", "--depth", "1", f"file://{repo}", "shallow")
    monkeypatch.chdir(tmp_path / "shallow")
    with opened(tmp_path) as sides, pytest.raises(SpecError, match="--unshallow"):
        sides.open("HEAD~1:small")


def test_one_side_alone_is_held_against_head():
    assert against("small seed=1") == "HEAD:small seed=1"
    assert against("experiment=small") == "HEAD:small"
    with pytest.raises(SpecError, match="nothing to be compared with"):
        against("main:small")


def test_a_hook_of_git_can_ask_too(repo, tmp_path, monkeypatch, capsys):
    """Inside a hook git has set its own variables."""
    monkeypatch.setenv("GIT_DIR", str(repo / ".git"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(repo / ".git" / "index"))
    edit(SMALL, ("epochs: 2", "epochs: 3"))
    assert run_cai("diff", "small", "--exit-code") == 1
    assert "epochs: 2 -> 3" in capsys.readouterr().out
    assert os.environ["GIT_DIR"]
