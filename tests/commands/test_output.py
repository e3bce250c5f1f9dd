"""Text of files and models on a terminal and in a pipe: every verb shows it, none hands on what a terminal obeys."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.table import Table
from rich.text import Text

from cai.files.library import shipped_root
from cai.terminal.output import PlainConsole, make_console
from cai.text import exact, json_text, plain, raw, shown_output
from tests.support.toy_project import ToyProject, conversation_lines

pytestmark = pytest.mark.long

# Sets the title, clears the screen, colours by a C1 control, turns letters around, goes back, deletes.
HOSTILE = "a\x1b]0;mine\x07\x1b[2J\x9b31m\u202egpj.exe\u2066\u2028\x08\x7f\x85z"
OBEYED = re.compile("[\x00-\x08\x0b-\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u2028\u2029]")
QUOTED = json.dumps(HOSTILE)

EXPERIMENT = f"""\
# {QUOTED}
defaults:
  - /constitution: mine
  - /template: mine
  - _self_
description: {QUOTED}
engine: {{kind: nemo_aligner, launcher: {{kind: local}}}}
data:
  talk: {{path: talk.jsonl, makes: conversations}}
stages:
  sl_mix: {{kind: mix, sources: [{{from: talk}}], val: 0.25}}
"""
CONSTITUTION = f"""\
description: {QUOTED}
principles:
  - id: mine
    critique: {QUOTED}
    revision: {QUOTED}
    comparison: {QUOTED}
"""


ASKS = "{#---\ndescription: asks\nkind: prompt\n---#}\n{# " + HOSTILE + " #}{{ question }}\n"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> ToyProject:
    project = ToyProject(tmp_path_factory.mktemp("hostile") / "there", {"TERM": "dumb"})
    template = (shipped_root() / "prompt_templates" / "nemo_extra_id.jinja").read_text()
    template = re.sub("description: .*", lambda _: f"description: {QUOTED}", template, count=1)
    for folder, name, text in (
        ("experiments", "toy.yaml", EXPERIMENT),
        ("experiments", "other.yaml", EXPERIMENT.replace("val: 0.25", "val: 0.5").replace("a\\u001b", "b\\u001b")),
        ("experiments", "wrong.yaml", EXPERIMENT + f"  {QUOTED}: {{kind: {QUOTED}}}\n"),
        ("constitutions", "mine.yaml", CONSTITUTION),
        ("prompt_templates", "asks.jinja", ASKS),
        ("prompt_templates", "mine.jinja", template + "{# " + HOSTILE + " #}"),
    ):
        (project.at / folder).mkdir(exist_ok=True)
        (project.at / folder / name).write_text(text)
    turns = [{"role": "user", "content": HOSTILE}, {"role": "assistant", "content": HOSTILE}]
    (project.at / "talk.jsonl").write_text(conversation_lines(5) + (json.dumps({"messages": turns}) + "\n") * 5)
    project.cai("experiment=toy")
    return project


def on_a_terminal(project: ToyProject, args: list[str]) -> str:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "cai", *args], cwd=project.at, env=project.env, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    parts = []
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # how a terminal ends
            break
        if not part:
            break
        parts.append(part)
    os.close(ours)
    process.wait(timeout=60)
    return b"".join(parts).decode().replace("\r\n", "\n")


VERBS = {
    "list": "list",
    "show constitution": "show mine",
    "show template": "show template=mine",
    "show experiment": "show experiment=toy",
    "plan": "plan experiment=toy",
    "plan md": "plan experiment=toy --format md",
    "plan json": "plan experiment=toy --format json",
    "validate": "validate experiment=wrong",
    "run": "experiment=toy",
    "status": "status toy",
    "status json": "status toy --format json",
    "rows": "rows toy sl_mix",
    "rows why": "rows toy --why",
    "diff": "diff toy other",
    "diff md": "diff toy other --format md",
    "diff json": "diff toy other --format json",
    "unknown verb": HOSTILE,
    "unknown name": f"show {HOSTILE.replace(chr(0x1F), '')}",
    "unknown run": f"rows x{HOSTILE}",
    "import": "import talk.jsonl",
    "store": "store ls",
}


@pytest.mark.parametrize("name", VERBS)
def test_no_verb_hands_on_what_a_terminal_obeys(project: ToyProject, name: str) -> None:
    assert OBEYED.findall(on_a_terminal(project, VERBS[name].split(" "))) == []


def test_a_pipe_gets_json_that_means_the_same_and_a_file_as_it_is(project: ToyProject) -> None:
    done = project.start("rows", "toy", "sl_mix", "--limit", "0")
    out, _ = done.communicate(timeout=60)
    assert OBEYED.findall(out) == []
    contents = {message["content"] for line in out.splitlines() for message in json.loads(line)["messages"]}
    assert HOSTILE in contents
    shown, _ = project.start("show", "asks").communicate(timeout=60)
    assert shown == f"# prompt_templates/asks.jinja\n{ASKS}"
    assert OBEYED.findall(on_a_terminal(project, ["show", "asks"])) == []


def test_what_is_printed_passes_one_gate(capsys: pytest.CaptureFixture[str]) -> None:
    with shown_output():
        print("a", HOSTILE)
        print(HOSTILE, file=sys.stderr)
        sys.stdout.writelines([HOSTILE])
        exact(HOSTILE)
        assert raw(sys.stdout) is not sys.stdout
    out, err = capsys.readouterr()
    assert out == f"a {plain(HOSTILE)}\n{plain(HOSTILE)}{HOSTILE}"
    assert err == plain(HOSTILE) + "\n"


def test_a_console_shows_the_same_and_keeps_its_own_styles(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("name")
    table.add_row(Text(HOSTILE))
    with shown_output():
        console = make_console()
        console.print(Text(HOSTILE))
        console.out(HOSTILE)
        console.print(table)
    out, _ = capsys.readouterr()
    assert OBEYED.findall(out) == []
    coloured = PlainConsole(file=io.StringIO(), force_terminal=True, color_system="standard", markup=False)
    coloured.print(Text("\x1b[2Jred", style="red"))
    assert coloured.file.getvalue() == "\x1b[31m\u241b[2Jred\x1b[0m\n"  # type: ignore[attr-defined]


def test_json_means_the_same_and_can_be_written_anywhere() -> None:
    value = {"é": [HOSTILE, "\ud800", "👋", 1.5, None]}
    text = json_text(value)
    assert json.loads(text) == value
    assert "é" in text
    assert "👋" in text
    assert OBEYED.findall(text) == []
    text.encode()


def test_a_stream_that_cannot_encode_shows_what_it_can(tmp_path: Path) -> None:
    code = "from cai.cli import main; main(['show', 'no\u00e9\\ud800'])"
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONIOENCODING": "ascii"},
                          cwd=tmp_path, capture_output=True, text=True, timeout=60)  # fmt: skip
    assert "error: no\\xe9\\ud800: no experiment" in done.stderr
