"""Templates that did not ship: a process of their own, whose limits hold, and which hands nothing out."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from cai.chat import ChatTemplate, Message, PromptTemplate, isolation
from cai.chat.isolation import PROCESS
from cai.chat.shipped import SHIPPED
from cai.errors import SpecError
from cai.files.library import shipped_root

HEAD = "{#---\ndescription: d\nkind: prompt\n---#}\n"
FOLDER = shipped_root() / "prompt_templates"


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Limits that a test need not wait for."""
    monkeypatch.setenv("CAI_RENDER_SECONDS", "0.2")
    monkeypatch.setenv("CAI_RENDER_MB", "64")
    PROCESS.stop()
    yield
    PROCESS.stop()


def render(body: str, **values: object) -> str:
    return PromptTemplate.from_text("t", HEAD + body, "t.jinja").render(**values)


def test_every_shipped_template_is_named_by_its_digest_and_nothing_else_is() -> None:
    """After a change to a shipped template: put its new digest into cai/chat/shipped.py."""
    digests = {sha256(path.read_bytes()).hexdigest(): path.name for path in FOLDER.glob("*.jinja")}
    assert {name for digest, name in digests.items() if digest not in SHIPPED} == set()
    assert set(digests) >= SHIPPED


NESTED = "{% set n = namespace(s=['a']) %}{% for a in range(99) %}{% set n.s = [n.s, n.s] %}{% endfor %}"
SQUARED = "{% set n = namespace(i=9) %}{% for a in range(99) %}{% set n.i = n.i * n.i %}{% endfor %}"
DEEP = "{% set n = namespace(s=[]) %}{% for a in range(99999) %}{% set n.s = [n.s] %}{% endfor %}"
LONG = "{% set s = 'x' * 10**7 %}"
TURNS = "{% for a in range(99999) %}{% for b in range(99999) %}"
ENDS = "{% endfor %}{% endfor %}"

BOMBS = {
    **{f"nested through {name}": NESTED + "{{ n.s | " + name + " }}" for name in ("tojson", "lower", "string", "trim")},
    **{f"nested through {name}": NESTED + "{{ n.s | " + name + " }}" for name in ("pprint", "title", "urlize")},
    "nested joined": NESTED + "{{ n.s | join }}",
    "nested replaced": NESTED + "{{ n.s | replace('a', 'b') }}",
    "nested counted as words": NESTED + "{{ n.s | wordcount }}",
    "nested formatted": NESTED + "{{ '%s' % (n.s,) }}{{ '{}'.format(n.s) }}",
    "nested compared": NESTED + NESTED.replace("n.", "m.").replace("set n", "set m") + "{{ n.s == m.s }}",
    "nested searched": NESTED + "{{ 'b' in (n.s | string) }}",
    "nested as a key": NESTED.replace("[n.s, n.s]", "(n.s, n.s)") + "{{ {n.s: 1} | length }}",
    "squared": SQUARED,
    "power": "{{ 9 ** (9 ** 9) }}",
    "power written": "{{ (9 ** (9 ** 6)) | string }}",
    "long number divided": "{% set i = 10 ** (10 ** 6) %}" + TURNS + "{% set j = i // 7 %}" + ENDS,
    "deep": DEEP + "{{ n.s | string }}",
    "deep compared": DEEP + DEEP.replace("n.", "m.").replace("set n", "set m") + "{{ n.s == m.s }}",
    "deep to JSON": DEEP + "{{ n.s | tojson }}",
    "range": "{% for a in range(10**8) %}{% endfor %}",
    "silent loops": TURNS + ENDS,
    "loops over text": "{% set t = 'x' * 1000 %}" + "{% for a in t %}" * 5 + "{% endfor %}" * 5,
    "written": "{% for a in range(9999) %}{{ 'x' * 1000 }}{% endfor %}",
    "collected": "{% set t %}" + TURNS + "y" * 5000 + ENDS + "{% endset %}{{ t | length }}",
    "multiplied text": "{{ 'x' * 10**10 }}",
    "multiplied list": "{% set a = [1] * 10**9 %}",
    "doubled text": "{% set n = namespace(s='xx') %}{% for a in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}",
    "doubled by ~": "{% set n = namespace(s='xx') %}{% for a in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
    "doubled list": "{% set n = namespace(s=[1]) %}{% for a in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}",
    "replace": LONG + "{{ s.replace('', s) }}",
    "replace filter": LONG + "{{ s | replace('x', s) }}",
    "join": LONG + "{{ s.join(s) }}",
    "join filter": LONG + "{{ s | join(s) }}",
    "indent": LONG + "{{ ('x\n' * 10**6) | indent(s) }}",
    "split": LONG + TURNS + "{% set t = s.split('x') %}" + ENDS,
    "searched": LONG + TURNS + "{% set t = (s[1:] ~ 'y') in s %}" + ENDS,
    "stripped of tags": "{{ ('<' * 10**6) | striptags }}",
    "urlized": "{{ ('www.' * 10**6) | urlize }}",
    "wrapped": "{{ ('x ' * 10**6) | wordwrap(1) }}",
    "padding": "{{ 'x'.ljust(10**10) }}",
    "centering": "{{ 'x' | center(10**10) }}",
    "format": "{{ '%10000000000d' | format(1) }}",
    "format method": "{{ '{:10000000000}'.format(1) }}",
    "percent": "{{ '%10000000000d' % 1 }}",
    "expanded tabs": "{{ '\t'.expandtabs(10**10) }}",
    "zeros": "{{ 'x'.zfill(10**10) }}",
    "bytes": "{{ (1).to_bytes(10**10, 'big') }}",
    "batches": "{% for b in [1] | batch(10**10, 'x') %}{% endfor %}",
    "slices": "{% for b in [1] | slice(10**10) %}{% endfor %}",
    "json indent": "{{ [1] | tojson(indent=10**10) }}",
    "json separators": LONG + "{{ ([1] * 10**6) | tojson(separators=(s, s)) }}",
    "rounding": "{{ 1.5 | round(10**9, 'ceil') }}",
    "macro doubling": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "macro without end": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "recursive loop": "{% for a in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "translated": "{{ ('x' * 10**6).translate({120: 'y' * 10**6}) }}",
    "deep source": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "nested loops in source": "{% for a in 'xy' %}" * 30 + "{% endfor %}" * 30,
    "many filters in source": "{{ 'x'" + "| upper" * 7000 + " }}",
    "folded while compiling": "{{ ('x' * 10**9) | length }}",
    "long source": "x" * 100_000,
}


@pytest.mark.long
@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_an_error_and_the_next_template_renders(name: str) -> None:
    with pytest.raises(SpecError, match=r"^t\.jinja"):
        render(BOMBS[name])
    assert render("{{ x }}", x="still here") == "still here"


def test_the_limits_are_said_with_the_line_and_how_to_raise_them(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = "one\n{% for a in range(3000) %}{% for b in range(1000) %}\n{% set c = a * b %}{% endfor %}{% endfor %}"
    monkeypatch.setenv("CAI_RENDER_SECONDS", "0.1")
    with pytest.raises(SpecError, match=r"^t\.jinja:[67]: takes longer than 0.1 s of .* CAI_RENDER_SECONDS"):
        render(loop)
    monkeypatch.setenv("CAI_RENDER_SECONDS", "60")
    assert render(loop) == "one\n"
    with pytest.raises(SpecError, match=r"^t\.jinja:5: needs more than 64 MB; .* CAI_RENDER_MB"):
        render("{{ ('x' * 10**8) | length }}")
    monkeypatch.setenv("CAI_RENDER_MB", "512")
    PROCESS.stop()
    assert render("{{ ('x' * 10**8) | length }}") == "100000000"


@pytest.mark.parametrize("value", ["soon", "0", "-1", "nan", "inf", "1e9"])
def test_a_limit_that_is_none_is_an_error(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("CAI_RENDER_MB", value)
    with pytest.raises(SpecError, match="CAI_RENDER_MB"):
        render("{{ x }}", x="a limit that is none " + value)


def test_what_comes_back_is_what_the_program_itself_would_have_made() -> None:
    messages = (
        Message("system", "Sei knapp. \ud800 \u202e"),
        Message("user", "é\U0001f600\x00\r\n{{ x }}"),
        Message("assistant", "a"),
    )
    for path in sorted(FOLDER.glob("*.jinja")):
        text = path.read_text(encoding="utf-8")
        if "kind: chat" not in text:
            continue
        here, there = ChatTemplate.from_text("t", text), ChatTemplate.from_text("t", text + "{# mine #}")
        turns = messages if "system" in text else messages[1:]
        assert there.spans(turns) == here.spans(turns)
        assert there.prompt(turns[:-1]) == here.prompt(turns[:-1])
        assert there.stops == here.stops


def test_only_templates_that_did_not_ship_start_the_process() -> None:
    chat = ChatTemplate.from_file(FOLDER / "chatml.jinja")
    chat.prompt((Message("user", "hello"),))
    assert PROCESS.pid is None
    render("{{ x }}", x="mine")
    assert PROCESS.pid is not None


def test_the_process_has_nothing_of_the_environment_and_opens_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    render("{{ x }}", x="mine")
    process = Path(f"/proc/{PROCESS.pid}")
    names = {entry.partition(b"=")[0] for entry in (process / "environ").read_bytes().split(b"\0") if entry}
    assert names <= {b"LD_LIBRARY_PATH"}
    limits = (process / "limits").read_text()
    for line in ("Max open files", "Max file size", "Max processes", "Max core file size"):
        (row,) = [found for found in limits.splitlines() if found.startswith(line)]
        assert row.removeprefix(line).split()[1] in ("0", "3")
    assert {path.name for path in (process / "fd").iterdir()} == {"0", "1", "2"}


def test_a_process_that_another_killed_is_replaced() -> None:
    render("{{ x }}", x="mine")
    assert PROCESS.pid is not None
    os.kill(PROCESS.pid, signal.SIGKILL)
    assert render("{{ x }}", x="again") == "again"


def test_ctrl_c_is_for_the_program() -> None:
    render("{{ x }}", x="mine")
    before = PROCESS.pid
    assert before is not None
    os.kill(before, signal.SIGINT)
    assert render("{{ x }}", x="again") == "again"
    assert PROCESS.pid == before


def test_an_interrupted_answer_is_not_taken_for_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    template = PromptTemplate.from_text("t", HEAD + "{{ x }}", "t.jinja")
    assert template.render(x="warm") == "warm"

    def interrupt() -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(isolation.select, "poll", interrupt)
        with pytest.raises(KeyboardInterrupt):
            template.render(x="interrupted")
    assert template.render(x="the next") == "the next"


def test_threads_share_it() -> None:
    template = PromptTemplate.from_text("t", HEAD + "{{ x }}", "t.jinja")
    wrong = []

    def work(thread: int) -> None:
        wrong.extend(n for n in range(50) if template.render(x=f"{thread} {n}") != f"{thread} {n}")

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_fork_starts_its_own() -> None:
    render("{{ x }}", x="mine")
    child = os.fork()
    if not child:
        os._exit(0 if render("{{ x }}", x="forked") == "forked" else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert render("{{ x }}", x="still mine") == "still mine"


def test_it_ends_with_the_program_even_when_that_is_killed() -> None:
    code = (
        "import sys; from cai.chat import PromptTemplate; from cai.chat.isolation import PROCESS\n"
        f"PromptTemplate.from_text('t', {HEAD + '{{ x }}'!r}, 't').render(x='a')\n"
        "print(PROCESS.pid, flush=True); sys.stdin.read()"
    )
    program = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert program.stdin is not None
    assert program.stdout is not None
    with program.stdin, program.stdout:
        pid = int(program.stdout.readline())
        program.kill()
        program.wait()
    for _ in range(1000):
        if not Path(f"/proc/{pid}").exists() or "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text():
            return
        threading.Event().wait(0.01)
    raise AssertionError("the process outlived the program")


def test_an_answer_that_is_none_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """As from a process that a template took over."""
    for said in (b"\xff" * 8, (5).to_bytes(8, "little") + b"[[[[[", (2).to_bytes(8, "little") + b"[]"):
        script = f"import sys; sys.stdin.buffer.read(8); sys.stdout.buffer.write({said!r}); sys.stdout.flush()"
        monkeypatch.setattr(isolation, "_START", script)
        PROCESS.stop()
        with pytest.raises(SpecError, match=r"^t\.jinja: ended the process in which it rendered"):
            render("{{ x }}", x=f"a new template {said!r}"[:40])
