"""What a person sees of a run and of a plan: on a terminal, in a pipe, with hostile text in it."""

from __future__ import annotations

import io
import json
import threading
from dataclasses import replace
from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from cai.errors import Incomplete, StepFailed
from cai.plan import Plan, Step, StepEstimate
from cai.run.status import Action, StepStatus
from cai.run.watch import Watcher
from cai.terminal.console import ConsoleWatcher, event_line, print_plan, record_line, render_plan
from cai.terminal.output import make_console
from cai.text import count, duration, one_line, plain

HOSTILE = "[bold]\x1b[2J\x1b]0;owned\x07[/bold]\r\x9b31m\u202e :smile:"


def step(name: str, kind: str = "respond", **fields: Any) -> Step:
    return Step(name=name, kind=kind, makes="prompts", key=name.ljust(64, "0"), seed=1, **fields)


COST = StepEstimate(rows=1500, calls=3000, prompt_tokens=240_000, tokens=96_000, seconds=75.0)
PLAN = Plan(
    experiment="quickstart",
    seed=7,
    engine={"name": "embedded", "device": "cpu", "generator": "openvino-genai"},
    steps=(
        step("base", "fetch", estimate=StepEstimate(rows=None, calls=0, prompt_tokens=0, tokens=0)),
        step("answers", "respond", estimate=COST, notes=["the model is small"]),
        step("rl", "rl", estimate=replace(COST, seconds=None)),
    ),
)
STATUSES = [
    StepStatus(PLAN.steps[0], Action.REUSE, "in the store"),
    StepStatus(PLAN.steps[1], Action.RUN, "constitution.principles[3].critique changed"),
    StepStatus(PLAN.steps[2], Action.RESUME, "stopped before its end"),
]
RECORD = {
    "seconds": 41.2,
    "outcome": {"ledger": {"rows_in": 400, "rows_out": 396, "dropped": {"too long": 4}}, "tokens": 8240, "calls": 400},
}


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def watcher(live: bool = False, width: int = 100, **console: Any) -> tuple[ConsoleWatcher, StringIO, Clock]:
    out, clock = StringIO(), Clock()
    made = Console(file=out, width=width, markup=False, emoji=False, highlight=False, **console)
    return ConsoleWatcher(made, live=live, show_plan=False, clock=clock), out, clock


def shown(renderable: Any, width: int = 80, **options: Any) -> str:
    out = StringIO()
    Console(file=out, width=width, **options).print(renderable)
    return out.getvalue()


def test_it_is_the_executors_watcher() -> None:
    watch: Watcher = watcher()[0]
    assert watch


def test_without_a_terminal_each_step_has_a_line_at_its_start_and_end() -> None:
    watch, out, clock = watcher()
    with watch:
        watch.run_started(PLAN, STATUSES)
        watch.step_done(PLAN.steps[0], RECORD, reused=True)
        watch.step_started(PLAN.steps[1], resumed=False)
        watch.step_done(PLAN.steps[1], RECORD, reused=False)
        watch.step_started(PLAN.steps[2], resumed=True)
        watch.waiting(PLAN.steps[2], "process 12 on host")
        watch.step_failed(PLAN.steps[2], StepFailed("rl (rl): no memory"))
        clock.now += 65
        watch.run_done(None)
    assert out.getvalue().splitlines() == [
        "[1/3] base     reused",
        "[2/3] answers: started",
        "[2/3] answers  done  400 -> 396 rows (4 dropped: too long 4), 41 s, 200 tok/s",
        "[3/3] rl: goes on where it was",
        "[3/3] rl       waits for process 12 on host, which is making it",
        "[3/3] rl       failed  rl (rl): no memory",
        "3 steps: 1 done, 1 reused in 1 min 05 s",
    ]


def test_without_a_terminal_progress_is_told_at_most_every_ten_seconds() -> None:
    watch, out, clock = watcher()
    watch.run_started(PLAN, STATUSES)
    progress = watch.step_started(PLAN.steps[1], False)
    progress.expect(rows=300)
    for _ in range(250):
        clock.now += 0.125
        progress.advance(rows=1, tokens=20)
    lines = [line for line in out.getvalue().splitlines() if "rows" in line]
    assert len(lines) == 3  # in 31 s
    assert lines[0] == "[2/3] answers: 80/300 rows, 160 tok/s, 28 s left"


def test_time_left_does_not_count_rows_that_an_earlier_attempt_had_done() -> None:
    watch, _, clock = watcher()
    progress = watch.step_started(PLAN.steps[1], True)
    progress.expect(rows=1000)
    clock.now += 30  # loading the model
    progress.advance(rows=900)
    assert progress.seconds_left() is None
    for _ in range(10):
        clock.now += 1
        progress.advance(rows=1)
    assert progress.seconds_left() == pytest.approx(90)


def test_training_without_rows_is_measured_in_tokens() -> None:
    watch, _, clock = watcher()
    progress = watch.step_started(PLAN.steps[1], False)
    progress.expect(tokens=1000)
    progress.advance(tokens=100)
    clock.now += 10
    progress.advance(tokens=100)
    assert progress.numbers() == "200/1,000 tokens, 10 tok/s, 1 min 20 s left"


def test_the_live_line_shows_step_count_rate_time_and_note() -> None:
    for width in (100, 40):
        watch, out, clock = watcher(live=True, width=width, force_terminal=True, color_system=None)
        with watch:
            watch.run_started(PLAN, STATUSES)
            progress = watch.step_started(PLAN.steps[2], False)
            progress.expect(rows=100)
            progress.advance(rows=10, tokens=50)
            clock.now += 10
            progress.advance(rows=10, tokens=500)
            watch.note(PLAN.steps[2], "rl.iteration", {"iteration": 3, "reward": 0.4213, "kl": 1.25})
            lines = shown(watch._picture(), width=width).splitlines()
            watch.step_done(PLAN.steps[2], RECORD, False)
        assert lines[0].startswith("[3/3] rl")
        assert "20/100 rows, 50 tok/s" in lines[0]
        assert "iteration 3: reward 0.421, KL 1.25" in lines[1]
        assert all(len(line) <= width for line in lines)
        assert "[3/3] rl" in out.getvalue()
        assert out.getvalue().rindex("\x1b[?25h") > out.getvalue().rindex("\x1b[?25l")  # the cursor is given back


def test_progress_may_be_told_from_many_threads() -> None:
    watch, _, _ = watcher()
    progress = watch.step_started(PLAN.steps[1], False)
    threads = [
        threading.Thread(target=lambda: [progress.advance(rows=1, tokens=2) for _ in range(500)]) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (progress.rows, progress.tokens) == (4000, 8000)


def test_a_stopped_run_is_not_called_failed() -> None:
    watch, out, _ = watcher()
    watch.run_started(PLAN, STATUSES)
    watch.step_failed(PLAN.steps[1], Incomplete("stopped by SIGTERM"))
    assert "answers  stopped" in out.getvalue()


def test_hostile_text_is_shown_and_does_nothing() -> None:
    evil = step(HOSTILE, notes=[HOSTILE])
    plan = replace(PLAN, experiment=HOSTILE, steps=(evil,), engine={"name": HOSTILE})
    status = [StepStatus(evil, Action.RUN, HOSTILE)]
    watch, out, clock = watcher()
    watch.run_started(plan, status)
    progress = watch.step_started(evil, False)
    clock.now += 11
    progress.note(HOSTILE, answer=HOSTILE)
    watch.step_done(evil, {**RECORD, "outcome": {"ledger": {"rows_in": 1, "dropped": {HOSTILE: 1}}}}, False)
    watch.step_failed(evil, StepFailed(HOSTILE))
    told = [out.getvalue(), shown(render_plan(plan, status)), render_plan(plan, status, "md")]
    for text in told:
        assert not {"\x1b", "\x07", "\r", "\x9b", "\u202e"} & set(text)
        assert ":smile:" in text
    assert "[bold]" in told[0]
    assert "\\[bold\\]" in told[2]


def test_the_plan_is_shown_first_unless_there_is_nothing_to_do() -> None:
    for statuses, wanted in ((STATUSES, True), ([StepStatus(s, Action.REUSE, "") for s in PLAN.steps], False)):
        out = StringIO()
        ConsoleWatcher(Console(file=out, width=80), live=False).run_started(PLAN, statuses)
        assert ("openvino-genai" in out.getvalue()) == wanted


def test_no_color_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    def text() -> str:
        return shown(render_plan(PLAN, STATUSES), force_terminal=True, color_system="standard")

    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[32m" in text()
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[32m" not in text()


@pytest.mark.parametrize("width", [80, 50, 30])
def test_the_plan_says_what_runs_why_and_what_it_costs(width: int) -> None:
    text = shown(render_plan(PLAN, STATUSES), width=width)
    assert all(len(line) <= width for line in text.splitlines())
    flat = "".join(text.split())
    for part in ("quickstart,seed7", "embedded:devicecpu", "themodelissmall"):
        assert part in flat
    if width == 80:
        assert "240.0k" in text
        assert "96.0k" in text
        assert "1 min 15 s" in text
        assert "1 run, 1 resume" in text
        # The time of one step is not known, so the sum is the least.
        assert "time at least 1 min 15 s (not known of rl)" in " ".join(text.split())


def test_the_markdown_plan_is_one_table() -> None:
    text = render_plan(PLAN, STATUSES, "md")
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 3
    assert {row.replace("\\|", "").count("|") for row in rows} == {10}
    assert rows[3] == (
        "| answers | respond | run | constitution.principles\\[3\\].critique changed | 1,500 | 3,000 | 240.0k | 96.0k "
        "| 1 min 15 s |"
    )
    assert "- answers: the model is small" in text


def test_the_json_plan_is_stable() -> None:
    data = json.loads(render_plan(PLAN, STATUSES, "json"))
    assert list(data) == ["format", "experiment", "seed", "engine", "steps", "totals"]
    assert data["totals"] == {
        "reuse": 1, "run": 1, "resume": 1, "calls": 6000, "prompt_tokens": 480_000, "tokens": 192_000, "seconds": None,
        "gpu_hours": None, "known": {"seconds": 75.0}, "unknown": {"seconds": ["rl"]},
    }  # fmt: skip
    assert data["steps"][1]["action"] == "run"
    assert data["steps"][0]["estimate"]["rows"] is None


def test_a_plan_with_nothing_to_do_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    print_plan(PLAN, [StepStatus(s, Action.REUSE, "in the store") for s in PLAN.steps], format="md")
    assert "3 reuse; nothing to do." in capsys.readouterr().out


def test_a_stream_that_cannot_encode_a_character_shows_it_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(raw, encoding="ascii"))
    console = make_console()
    console.out("é")
    console.file.flush()
    assert raw.getvalue() == b"\\xe9\n"


def test_numbers_as_a_person_reads_them() -> None:
    assert [duration(s) for s in (None, 0.44, 9.96, 41, 59.6, 200, 18_120)] == [
        "?", "0.4 s", "10 s", "41 s", "1 min 00 s", "3 min 20 s", "5 h 02 min",
    ]  # fmt: skip
    assert [count(n) for n in (None, 0, 12_345)] == ["?", "0", "12,345"]
    assert plain("a\tb\nc\x00\x7f") == "a\tb\nc\u2400\u2421"
    assert one_line("a\n\n  b" * 99, 10) == "a ba ba..."
    assert record_line({"seconds": 2.0, "outcome": {"ledger": {}}}) == "2.0 s"
    assert event_line("loaded", {}) == "loaded"
    moved = {"endpoint": "http://x/v1", "from": 64, "to": 80, "reason": "rise"}
    assert event_line("limit.moved", moved) == "calls at once: 64 -> 80 (rise)"
