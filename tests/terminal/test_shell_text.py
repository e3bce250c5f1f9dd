"""The plan's commands as text: whatever the width, what is printed can be pasted and starts what the JSON says."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import shlex
import struct
import subprocess
import sys
import termios
from collections.abc import Iterable, Mapping, Sequence
from fcntl import ioctl
from pathlib import Path
from typing import Any

import pytest

from cai.commands.planning import compile_plan
from cai.engines import step_commands
from cai.engines.base import Places
from cai.files.library import Library, shipped_root
from cai.launchers.base import Command, Ready
from cai.terminal.shell_text import block, command_lines, comment, shell_word

SLURM = [
    "engine.cluster.nodes=2",
    "engine.launcher={kind: slurm, account: a, partition: gpu, cpu_partition: cpu, container: /images/nemo 24.sqsh, "
    "mounts: ['/shared:/shared']}",
]
CASES = [
    pytest.param(name, launcher, id=f"{name}-{launcher}")
    for name in ("mistral_rl_cai", "paper_rl_cai")
    for launcher in ("local", "slurm")
]
ESCAPES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


def overrides(name: str, launcher: str) -> list[str]:
    return [f"experiment={name}", "engine.program=python", *(SLURM if launcher == "slurm" else [])]


def commands_of(name: str, launcher: str, store: Path = Path("/a store/store")) -> dict[str, list[dict[str, Any]]]:
    plan = compile_plan(overrides(name, launcher), Library((shipped_root(),)))
    found = step_commands(plan, Places(store))
    return {step: [command.data() for command in commands] for step, commands in found.items()}


def reread(lines: Sequence[str]) -> list[str]:
    """The words of some lines as a shell takes them, comments left out."""
    return shlex.split("\n".join(lines).replace("\\\n", ""), comments=True)


def words_of(command: Mapping[str, Any], local: bool) -> list[str]:
    """What a shell must read: the environment, the argv, and ``&`` after what runs in the background."""
    hosts = dict.fromkeys(command["addresses"], "127.0.0.1") if local else {}
    env = [f"{name}={value}" for name, value in {**hosts, **command["env"]}.items()]
    return [*env, *command["argv"], *(["&"] if command["background"] else [])]


def shown(commands: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """All but the servers that differ from the first of their kind in port and GPU alone."""
    return [command for command in commands if not command["role"].startswith("server-")]


def printed(*args: str, width: int | None, home: Path) -> str:
    """What ``plan`` writes into a pipe."""
    env = {**os.environ, "CAI_HOME": str(home)}
    env.pop("COLUMNS", None)
    done = subprocess.run(
        [sys.executable, "-m", "cai", "plan", *args],
        cwd=home,
        env=env | ({"COLUMNS": str(width)} if width else {}),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def on_a_terminal(*args: str, width: int, home: Path) -> str:
    """What ``plan`` writes to a terminal of that width, without colours."""
    leader, follower = pty.openpty()
    ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 50, width, 0, 0))
    env = {**os.environ, "CAI_HOME": str(home), "TERM": "xterm-256color"}
    for name in ("COLUMNS", "LINES", "NO_COLOR"):
        env.pop(name, None)
    process = subprocess.Popen(
        [sys.executable, "-m", "cai", "plan", *args],
        cwd=home,
        env=env,
        stdin=follower,
        stdout=follower,
        stderr=follower,
        close_fds=True,
    )
    os.close(follower)
    found = bytearray()
    while select.select([leader], [], [], 120)[0]:
        try:
            part = os.read(leader, 65536)
        except OSError:  # Linux says so when the other end is closed
            break
        if not part:
            break
        found += part
    os.close(leader)
    assert process.wait(30) == 0, found.decode()
    return ESCAPES.sub("", found.decode()).replace("\r\n", "\n")


@pytest.mark.parametrize("width", [200, 80, 60])
@pytest.mark.parametrize(("name", "launcher"), CASES)
def test_every_command_is_read_back_word_for_word(name: str, launcher: str, width: int) -> None:
    local = launcher == "local"
    for step, commands in commands_of(name, launcher).items():
        for command in commands:
            lines = command_lines(command, width, local)
            assert reread(lines) == words_of(command, local), step
            for line in lines:
                # A line that is too long holds one word.
                assert len(line) <= width or len(shlex.split(line.removesuffix("\\").rstrip(" &"))) == 1
        text = "\n".join(block(commands, width, local))
        wanted = [word for command in shown(commands) for word in words_of(command, local)]
        assert reread(text.splitlines()) == wanted
        subprocess.run(["bash", "-n"], input=text, text=True, check=True)


@pytest.mark.parametrize("width", [80, 40])
@pytest.mark.parametrize(("name", "launcher"), CASES)
def test_no_word_is_cut_in_a_pipe(name: str, launcher: str, width: int, tmp_path: Path) -> None:
    text = printed(*overrides(name, launcher), width=width, home=tmp_path)
    assert_all_is_there(text, commands_of(name, launcher, tmp_path / "store").values(), launcher == "local")


@pytest.mark.parametrize("width", [80, 40])
def test_no_word_is_cut_on_a_terminal(width: int, tmp_path: Path) -> None:
    args = overrides("mistral_rl_cai", "local")
    steps = json.loads(printed(*args, "--format", "json", width=80, home=tmp_path))["steps"]
    text = on_a_terminal(*args, width=width, home=tmp_path)
    assert_all_is_there(text, [step["commands"] for step in steps], True)


def assert_all_is_there(text: str, steps: Iterable[Sequence[Mapping[str, Any]]], local: bool) -> None:
    """Every command of every step stands in the text, in order and whole: the lines that hold it are read back."""
    lines, at = text.splitlines(), 0
    for commands in steps:
        for command in shown(commands):
            first = words_of(command, local)[0]
            while not lines[at].strip().startswith(shell_word(first).split("=")[0]):
                at += 1
            found = [lines[at]]
            while lines[at].endswith(" \\"):
                at += 1
                found.append(lines[at])
            at += 1
            assert reread(found) == words_of(command, local)


def test_the_markdown_plan_has_every_command_too(tmp_path: Path) -> None:
    args = overrides("mistral_rl_cai", "local")
    text = printed(*args, "--format", "md", width=80, home=tmp_path)
    assert_all_is_there(text, commands_of("mistral_rl_cai", "local", tmp_path / "store").values(), True)
    for part in text.split("```bash\n")[1:]:
        subprocess.run(["bash", "-n"], input=part.partition("```")[0], text=True, check=True)


def test_a_pasted_block_starts_exactly_what_the_json_says(tmp_path: Path) -> None:
    """Bash runs each step's block with stand-ins for the programs, which write down what they were given."""
    stub = tmp_path / "bin" / "python"
    stub.parent.mkdir()
    stub.write_text('#!/bin/bash\nprintf "%s\\0" "$CUDA_VISIBLE_DEVICES" "$CAI_CRITIC_HOST" python "$@" > "$OUT.$$"\n')
    stub.chmod(0o755)
    for step, commands in commands_of("mistral_rl_cai", "local").items():
        out = tmp_path / step
        out.mkdir()
        script = "\n".join([*block(commands, 60, True), "wait"])
        env = {"PATH": f"{stub.parent}:/usr/bin:/bin", "OUT": str(out / "said")}
        subprocess.run(["bash", "-u", "-c", script], env=env, check=True, cwd=tmp_path)
        started = sorted(path.read_bytes().decode().split("\0")[:-1] for path in out.iterdir())
        wanted = [
            [c["env"].get("CUDA_VISIBLE_DEVICES", ""), "127.0.0.1" if c["addresses"] else "", *c["argv"]]
            for c in shown(commands)
        ]
        assert started == sorted(wanted), step


def test_what_a_command_is_for_is_a_comment() -> None:
    commands = [
        Command("work", ("python", "-m", "cai", "step", "plan.json", "rl")),
        Command("critic", ("python", "serve.py"), background=True, ready=Ready(5567)),
        Command("actor", ("python", "train.py"), addresses={"CAI_CRITIC_HOST": "critic"}),
    ]
    data = [command.data() for command in commands]
    assert block(data, 80, True) == [
        "# work: does the whole step, and starts what follows by itself",
        "python -m cai step plan.json rl",
        "# critic, in the background, up when port 5567 opens",
        "python serve.py &",
        "# actor, once the critic is up",
        "CAI_CRITIC_HOST=127.0.0.1 python train.py",
    ]
    assert block(data, 80, False)[-2:] == [
        "# actor, once the critic is up; CAI_CRITIC_HOST is the critic's node",
        "python train.py",
    ]
    assert comment("one two three four five six seven eight nine ten", 24) == [
        "# one two three four",
        "# five six seven eight",
        "# nine ten",
    ]


@pytest.mark.parametrize(
    "word",
    [
        "plain",
        "a b",
        "it's",
        "x='<extra_id_0>'",
        "${oc.env:CAI_CRITIC_HOST}",
        'say "hi"',
        "back\\slash",
        "bang!",
        "`date`",
        "",
        "tab\tand\nline",
        "escape \x1b[2J bell \x07",
        "right \u202e left",
        "é ü",
    ],
)
def test_a_word_is_what_bash_reads_and_does_nothing_to_a_terminal(word: str) -> None:
    quoted = shell_word(word)
    assert not {"\x1b", "\x07", "\n", "\t", "\u202e"} & set(quoted)
    done = subprocess.run(
        ["bash", "-c", f"printf '%s.' {quoted}"], capture_output=True, check=True, env={"LC_ALL": "C.UTF-8"}
    )
    assert done.stdout.decode() == f"{word}."


def test_quotes_are_those_that_read_best() -> None:
    assert shell_word("x='<extra_id_0>'") == "\"x='<extra_id_0>'\""
    assert shell_word("quick start") == '"quick start"'
    assert shell_word("${x}") == "'${x}'"
