"""What the documents show works as it is shown."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from cai.cli import VERBS
from cai.commands.planning import compile_plan
from cai.files.library import Library, shipped_root
from tests.support.model_files import model_folder

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def block(text, language, holds):
    """The one fenced block of a language that holds some words."""
    found = [b for b in re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL) if holds in b]
    assert len(found) == 1
    return found[0]


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("experiments", "constitutions"):
        (tmp_path / name).mkdir()
    model_folder(tmp_path / "model")
    (tmp_path / "red_team.jsonl").write_text("".join(json.dumps({"prompt": f"question {i}"}) + "\n" for i in range(50)))
    (tmp_path / "helpful.jsonl").write_text(json.dumps({"prompt": "a", "answer": "b"}) + "\n")
    experiment = block(README, "yaml", "experiment=mine").replace("hf:/models/my-base-model", "hf:./model")
    (tmp_path / "experiments" / "mine.yaml").write_text(experiment)
    (tmp_path / "constitutions" / "mine.yaml").write_text(block(README, "yaml", "no-flattery"))
    return Library((tmp_path, shipped_root()))


def test_the_experiment_of_the_readme_compiles(project):
    names = [step.name for step in compile_plan(["experiment=mine"], project).steps]
    assert names[-1] == "sft"
    assert "red_team.train" in names


def test_the_constitution_of_the_readme_is_whole(project):
    plan = compile_plan(["experiment=mine", "constitution=mine"], project)
    principles = {p["id"]: p for p in plan.step("revise").resources["constitution"]["principles"]}
    assert "no-flattery" in principles
    assert principles["respect-privacy"]["weight"] == 2
    assert not any("sexual" in p["tags"] for p in principles.values())


def test_every_command_of_the_documents_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for path in [ROOT / "README.md", ROOT / "ARCHITECTURE.md", *sorted((ROOT / "docs").glob("*.md"))]:
        text = path.read_text()
        for verb in re.findall(r"python -m cai ([a-z]+)\b(?!=)", text):
            assert verb in VERBS, f"{path.name}: {verb}"
        for target in re.findall(r"^make ([a-z-]+)", text, re.MULTILINE):
            assert target in targets, f"{path.name}: {target}"


def test_the_links_of_the_documents_lead_somewhere():
    for path in [ROOT / "README.md", ROOT / "ARCHITECTURE.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for link in re.findall(r"\]\(([^)#:]+)\)", path.read_text()):
            assert (path.parent / link).exists(), f"{path.name}: {link}"


def test_the_stage_written_out_in_the_docs_works(tmp_path):
    from types import SimpleNamespace

    from cai.chat import Message
    from cai.data.rows import Conversation, read_rows, write_rows
    from cai.stages.base import Artifact

    code = block((ROOT / "docs" / "stages.md").read_text(), "python", "ShortenSpec")
    names: dict = {"__name__": "shorten"}
    exec(compile(code, "shorten.py", "exec", dont_inherit=True), names)
    row = Conversation("a", (Message("user", "Hi"), Message("assistant", "One. Two. Three. Four")))
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    write_rows(tmp_path / "in" / "rows.jsonl", [row])
    data = Artifact("k", "conversations", tmp_path / "in")
    outcome = names["run"](
        names["ShortenSpec"](kind="shorten", data="x"), SimpleNamespace(input=lambda role: data, out=tmp_path / "out")
    )
    assert (outcome.ledger.rows_in, outcome.ledger.rows_out) == (1, 1)
    [short] = read_rows(tmp_path / "out" / "rows.jsonl", Conversation)
    assert short.answer == "One. Two"
