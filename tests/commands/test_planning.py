from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from cai.commands.planning import compile_plan
from cai.engines import step_commands
from cai.engines.base import Places
from cai.files.library import Library, shipped_root
from cai.plan import by_role, plan_from_json
from tests.support.paths import GOLDEN

pytestmark = pytest.mark.long

PINNED = {
    "quickstart": ["engine.generator=transformers", "engine.device=cpu", "engine.generation_precision=float32"],
    "dpo_cai": ["engine.generator=transformers", "engine.device=cpu", "engine.generation_precision=float32"],
    "revisions": ["engine.generator=transformers", "engine.device=cpu", "engine.generation_precision=float32"],
    "mistral_rl_cai": ["engine.program=python"],
    "paper_rl_cai": ["engine.program=python"],
}
EXPERIMENTS = [name for name, _ in Library((shipped_root(),)).names("experiments")]


def cai(*args, cwd, **env):
    return subprocess.run(
        [sys.executable, "-m", "cai", *args],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "CAI_HOME": str(cwd / "home"), "NO_COLOR": "1", **env},
    )


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_shipped_experiments_have_the_plans_they_had(name):
    """A changed key means other results for the same YAML: bump a VERSION on purpose, then write the golden file anew.

    CAI_WRITE_GOLDEN=1 pytest tests/commands/test_planning.py
    """
    plan = compile_plan([f"experiment={name}", *PINNED[name]], Library((shipped_root(),)))
    found = {s.name: {"kind": s.kind, "makes": s.makes, "inputs": by_role(s.inputs), "key": s.key} for s in plan.steps}
    for s in plan.steps:
        if s.former:
            found[s.name]["former"] = s.former  # as stores have it that were made before
    for step, commands in step_commands(plan, Places(Path("/store"))).items():
        if commands:
            found[step]["commands"] = [shlex.join(command.argv) for command in commands]
    path = GOLDEN / f"{name}.json"
    if os.environ.get("CAI_WRITE_GOLDEN"):
        GOLDEN.mkdir(exist_ok=True)
        path.write_text(json.dumps(found, indent=1) + "\n")
    assert found == json.loads(path.read_text())


def test_planning_loads_no_torch_and_writes_nothing(tmp_path):
    script = (
        "import sys; from cai.cli import main; code = main(['plan']); "
        "names = ('torch', 'transformers', 'datasets', 'openvino_genai', 'scipy', 'numpy'); "
        "heavy = [m for m in names if m in sys.modules]; "
        "print('HEAVY', heavy, code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        env={"PATH": "", "HOME": str(tmp_path), "CAI_HOME": str(tmp_path / "home")},
    )
    assert "HEAVY [] 0" in done.stdout, done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_plan_can_be_written_read_and_shown_in_three_formats(tmp_path):
    done = cai("plan", "--out", "plan.json", "--format", "json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    plan = plan_from_json((tmp_path / "plan.json").read_text())
    assert [s["name"] for s in shown["steps"]] == [s.name for s in plan.steps]
    assert all(s["action"] == "run" for s in shown["steps"])
    markdown = cai("plan", "--format", "md", cwd=tmp_path).stdout
    assert "| respond |" in markdown or "`respond`" in markdown
    text = cai("plan", "stages.sft.training.epochs=3", cwd=tmp_path).stdout
    assert "evaluate" in text


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["plan", "stages.sft.trainin.epochs=3"], "did you mean 'training'"),
        (["plan", "experiment=quickstrt"], "did you mean 'quickstart'"),
        (["plan", "sed=3"], "did you mean 'seed'"),
        (["plann"], "did you mean 'plan'"),
        (["plan", "--format", "xml"], "invalid choice"),
        (["apply", "missing.json"], "missing.json"),
        (["rows", "nothing"], "no run of that name"),
        (["chat", "nothing"], "no run of that name"),
        (["show", "quikstart"], "did you mean 'quickstart'"),
        (["import", "missing.txt", "--out", "x.yaml"], "missing.txt"),
    ],
)
def test_wrong_input_exits_with_2_and_says_what_to_do(tmp_path, args, words):
    done = cai(*args, cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("verb", [["validate", "template=bomb"], ["plan", "template=bomb"], ["show", "bomb"]])
def test_a_template_that_would_never_end_is_an_error(tmp_path, verb):
    nested = "{% set n = namespace(x='a') %}{% for i in range(40) %}{% set n.x = [n.x, n.x] %}{% endfor %}"
    template = (shipped_root() / "prompt_templates" / "chatml.jinja").read_text()
    (tmp_path / "prompt_templates").mkdir()
    (tmp_path / "prompt_templates" / "bomb.jinja").write_text(template + nested + "{{ n.x | lower }}")
    done = cai(*verb, cwd=tmp_path)
    assert done.returncode == 2
    assert re.match(r"error: prompt_templates/bomb\.jinja:\d+: (takes longer than 1 s|needs more than)", done.stderr)


def test_a_prompt_template_that_cannot_be_used_is_shown_and_is_an_error(tmp_path):
    (tmp_path / "prompt_templates").mkdir()
    (tmp_path / "prompt_templates" / "mine.jinja").write_text(
        "{#---\ndescription: d\nkind: prompt\n---#}\n{{ a | nothing }}\n"
    )
    done = cai("show", "mine", cwd=tmp_path)
    assert done.returncode == 2
    assert "{{ a | nothing }}" in done.stdout
    assert "prompt_templates/mine.jinja:5: No filter named 'nothing'." in done.stderr


def test_one_odd_file_does_not_hide_the_others(tmp_path):
    for folder in ("experiments", "constitutions", "prompt_templates"):
        (tmp_path / folder).mkdir()
    (tmp_path / "experiments" / "broken.yaml").write_text("a: [")
    (tmp_path / "constitutions" / "zeros.yaml").symlink_to("/dev/zero")
    (tmp_path / "elsewhere.jinja").write_text("{#---\ndescription: not in the folder\nkind: prompt\n---#}\n")
    (tmp_path / "prompt_templates" / "linked.jinja").symlink_to(tmp_path / "elsewhere.jinja")
    done = cai("list", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "\n  broken\n" in done.stdout
    assert "  quickstart " in done.stdout
    assert "zeros" not in done.stdout
    assert "linked" not in done.stdout


def test_schemas_are_not_written_over_a_file(tmp_path):
    (tmp_path / "mine.json").write_text("kept")
    done = cai("schema", "--out", "mine.json", cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr == (
        "error: --out: mine.json cannot be written into (it is a file); name a folder: both schemas go into it\n"
    )
    assert (tmp_path / "mine.json").read_text() == "kept"


def test_validate_all_reads_the_users_folders_too(tmp_path):
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "bad.yaml").write_text("stages:\n  respond:\n    modle: x\n")
    done = cai("validate", "--all", cwd=tmp_path)
    assert done.returncode == 2
    assert "experiments/bad.yaml:3: stages.respond.modle: unknown field; did you mean 'model'?" in done.stdout
    assert "experiment quickstart (experiments/quickstart.yaml): valid" in done.stdout


def test_a_constitution_is_imported_linted_and_used(tmp_path):
    (tmp_path / "rules.md").write_text("# Honesty\n- Do not invent facts.\n- Say when you are unsure.\n")
    done = cai("import", "rules.md", "--out", "constitutions/mine.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert cai("validate", "constitution=mine", cwd=tmp_path).returncode == 0
    again = cai("import", "rules.md", "--out", "constitutions/mine.yaml", cwd=tmp_path)
    assert again.returncode == 2
    assert "--force" in again.stderr


def test_the_schemas_in_docs_are_those_of_the_code():
    from cai.constitution import constitution_schema
    from cai.experiment.schema import experiment_schema

    folder = shipped_root() / "docs" / "schema"
    assert json.loads((folder / "experiment.schema.json").read_text()) == experiment_schema()
    assert json.loads((folder / "constitution.schema.json").read_text()) == constitution_schema()


@pytest.mark.parametrize(
    "verb",
    [
        "",
        "plan",
        "apply",
        "validate",
        "list",
        "show",
        "schema",
        "rows",
        "store",
        "import",
        "chat",
        "serve",
        "diff",
        "lock",
        "report",
    ],
)
def test_every_verb_has_help(tmp_path, verb):
    done = cai(*([verb] if verb else []), "-h", cwd=tmp_path)
    assert done.returncode == 0
    assert "usage" in done.stdout
