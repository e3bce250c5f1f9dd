"""The end-of-run summary: what it says, and that it never says more than the figures do."""

from __future__ import annotations

import copy
import json
import shlex
from dataclasses import asdict, replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cai.commands.talking import chat_verb
from cai.errors import SpecError
from cai.figures import intervals
from cai.figures.evaluation import parse_evaluation
from cai.figures.intervals import Interval
from cai.plan import Plan, Step, inputs_of
from cai.run.results import RunResult, StepResult
from cai.stages.base import Artifact
from cai.stages.evaluate.caveats import caveats
from cai.terminal.summary import QUESTION, interval, markdown, print_summary, render, summarize, trained_model


def figure(value: float | None, half: float = 0.1, n: int = 60) -> dict[str, Any]:
    if value is None:
        return {"value": None, "low": None, "high": None, "n": 0}
    return {"value": value, "low": value - half, "high": value + half, "n": n}


def share(successes: float, n: int) -> dict[str, Any]:
    return asdict(intervals.share(successes, n))


def model(reward: float | None, refused: int = 3) -> dict[str, Any]:
    return {
        "reward": None if reward is None else figure(reward),
        "reward_by_topic": {},
        "tokens": figure(48.2),
        "characters": figure(200),
        "distinct_2": 0.91,
        "different_answers": 1.0,
        "empty": 0,
        "refusals": share(refused, 60),
        "ended": share(60, 60),
        "reward_length_correlation": 0.1,
    }


def report() -> dict[str, Any]:
    accuracy = {"margin": figure(1), "longer_is_better": share(50, 100), "by_topic": {}, "by_kind": {}}
    made: dict[str, Any] = {
        "models": ["base", "sl-cai", "rl-cai"],
        "sets": {
            "red_team": {
                "rows": 60,
                "benign": False,
                "models": {"base": model(-0.52), "sl-cai": model(0.12, 12), "rl-cai": model(0.44, 20)},
                "wins": [{"model": "rl-cai", "against": "base", **share(49, 60), "wins": 48, "ties": 2, "losses": 10}],
            },
            "helpful": {
                "rows": 60,
                "benign": True,
                "models": {"base": model(0.5), "sl-cai": model(0.5), "rl-cai": model(0.45)},
                "wins": [],
            },
        },
        "reward_model": {
            "held_out": {"accuracy": share(110, 120), **accuracy},
            "independent": {"accuracy": share(31, 60), **accuracy},
        },
        "examples": [
            {
                "set": name,
                "id": f"{name}{i}",
                "topic": "t",
                "prompt": f"{name} question {i}?",
                "answers": {"base": f"Sure {i}", "sl-cai": "hm", "rl-cai": f"No {i}"},
                "rewards": {"base": -0.5, "sl-cai": 0.0, "rl-cai": 1.25},
            }
            for name in ("red_team", "helpful")
            for i in range(3)
        ],
    }
    made["caveats"] = caveats(parse_evaluation(made))
    return made


def step(name: str, kind: str, **inputs: Any) -> Step:
    return Step(name=name, kind=kind, makes="", key="0" * 64, seed=0, inputs=inputs_of(inputs))


PLAN = Plan(
    experiment="quick start",
    seed=3,
    engine={"kind": "embedded"},
    steps=(
        step("base", "fetch"),
        step("sl_mix", "mix"),
        step("sft", "sft", model="base", data="sl_mix"),
        step("evaluate", "evaluate", models={"base": "base", "sl-cai": "sft"}),
    ),
    outputs={"model": "sft", "evaluation": "evaluate"},
)
MAKES = {"base": "model", "sl_mix": "conversations", "sft": "model", "evaluate": "evaluation"}


def result(tmp_path: Path, evaluation: dict[str, Any] | None) -> RunResult:
    plan, results = PLAN, []
    if evaluation is None:
        plan = Plan(**{**vars(PLAN), "steps": PLAN.steps[:3], "outputs": {"model": "sft"}})
    for made in plan.steps:
        folder = tmp_path / "store" / made.name
        folder.mkdir(parents=True, exist_ok=True)
        results.append(StepResult(made, Artifact(made.key, MAKES[made.name], folder), False))
    if evaluation is not None:
        (tmp_path / "store" / "evaluate" / "evaluation.json").write_text(json.dumps(evaluation))
    run = tmp_path / "run"
    run.mkdir(exist_ok=True)
    return RunResult(plan, run, tuple(results), 372.0)


def printed(tmp_path: Path, evaluation: dict[str, Any] | None, width: int = 80) -> str:
    out = StringIO()
    print_summary(result(tmp_path, evaluation), Console(file=out, width=width, markup=False, emoji=False))
    return out.getvalue()


def test_it_says_what_changed_by_how_much_with_intervals(tmp_path: Path) -> None:
    flat = " ".join(printed(tmp_path, report()).split())
    for part in (
        "On 'red_team' (60 prompts), mean and 95% interval:",
        "rl-cai 0.44 [0.34, 0.54] 33% [23%, 46%] 48 0.91",
        "From 'base' to 'rl-cai' the reward rises by 0.96; the intervals do not overlap.",
        "'rl-cai' beats 'base' on 82% [70%, 89%] of the prompts (48 won, 2 tied, 10 lost).",
        "On 'helpful' (60 harmless prompts, on which a refusal is a fault)",
        "the reward falls by 0.05; the intervals overlap, so this may be chance.",
        "held_out 92% [85%, 95%] 120",
        "independent 52% [39%, 64%] 60",
    ):
        assert part in flat


def test_it_shows_answers_of_every_set_before_and_after(tmp_path: Path) -> None:
    text = printed(tmp_path, report())
    assert "[red_team] red_team question 0?" in text
    assert "[helpful] helpful question 0?" in text
    assert text.count("question") == 3
    assert "base, reward -0.50: Sure 0" in text
    assert "rl-cai, reward 1.25: No 0" in text


def test_it_says_what_the_numbers_do_not_show(tmp_path: Path) -> None:
    text = " ".join(printed(tmp_path, report()).split())
    assert "On 'independent' the reward model is right in 52% of the pairs" in text
    assert "not clearly better than chance" in text
    assert "no person has judged these answers" in text


def test_it_says_where_everything_lies_and_what_to_do_next(tmp_path: Path) -> None:
    text = printed(tmp_path, report(), width=300)
    for path in ("store/sft", "store/sl_mix", "run/plan.json", "run/events.jsonl", "run/summary.md"):
        assert str(tmp_path / path) in text
    assert "conversations of sft:" in text
    assert "The run took 6 min 12 s." in text
    assert f"python -m cai chat {tmp_path / 'run'}" in text
    question = next(line for line in text.splitlines() if "--message" in line)
    assert shlex.split(question)[-1] == "How can I hack into my neighbour's Wifi?"
    assert f"python -m cai serve {tmp_path / 'run'}" in text


def test_the_newest_run_is_named_by_its_experiment_and_others_by_their_folder(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    printed(tmp_path, report())
    (tmp_path / "runs" / "quick start").mkdir(parents=True)
    (tmp_path / "runs" / "quick start" / "latest").symlink_to(tmp_path / "run")
    text = printed(tmp_path, report(), width=300)
    for verb in ("chat", "serve", "report", "rows"):
        assert f'python -m cai {verb} "quick start"' in text
    (tmp_path / "runs" / "quick start" / "latest").unlink()
    assert "python -m cai chat run\n" in printed(tmp_path, report(), width=300)


def test_no_talk_is_offered_with_a_model_that_was_not_made(tmp_path: Path) -> None:
    done = result(tmp_path, report())
    artifacts = {step.step.name: step.artifact for step in done.steps}
    assert "cai chat" in markdown(summarize(done.plan, done.run_dir, artifacts))
    # Nothing was trained: the model is the one that was fetched, or none at all.
    for outputs in ({"model": "base", "evaluation": "evaluate"}, {"evaluation": "evaluate"}):
        text = markdown(summarize(replace(done.plan, outputs=outputs), done.run_dir, artifacts))
        assert "cai chat" not in text
        assert "cai serve" not in text
        assert "cai rows" in text
    # What trains it did not end well.
    assert trained_model(done.plan, {name: made for name, made in artifacts.items() if name != "sft"}) == ""


def test_whoever_asks_for_a_model_that_is_not_made_is_told_what_makes_it(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CAI_HOME", str(tmp_path / "home"))
    run = tmp_path / "runs" / "quick start" / "latest"
    run.mkdir(parents=True)
    steps = tuple(replace(step, makes=MAKES[step.name]) for step in PLAN.steps)
    (run / "plan.json").write_text(replace(PLAN, steps=steps).to_json())
    with pytest.raises(SpecError, match=r"sft: the model has not been made yet; `python -m cai resume .runs"):
        chat_verb(["quick start", "--message", "Hello?"])


def test_on_a_cluster_talking_is_offered_inside_an_allocation(tmp_path: Path) -> None:
    done = result(tmp_path, report())
    artifacts = {step.step.name: step.artifact for step in done.steps}
    plan = replace(done.plan, engine={"kind": "nemo_aligner", "launcher": {"kind": "slurm"}})
    text = markdown(summarize(plan, done.run_dir, artifacts))
    assert "inside an allocation (salloc)\npython -m cai chat" in text


@pytest.mark.parametrize("width", [80, 40])
def test_the_next_commands_can_be_pasted(tmp_path: Path, width: int) -> None:
    text = printed(tmp_path, report(), width)
    block = text.partition("\nNext\n")[2].partition("\n\n")[0]
    lines = block.replace("\\\n", "").splitlines()
    assert [shlex.split(line)[:4] for line in lines] == [
        ["python", "-m", "cai", verb] for verb in ("chat", "chat", "serve", "report", "rows")
    ]
    assert shlex.split(lines[1])[4:] == [str(tmp_path / "run"), "--message", QUESTION]


@pytest.mark.parametrize("width", [80, 60])
def test_it_is_readable_at_80_columns(tmp_path: Path, width: int) -> None:
    text = printed(tmp_path, report(), width)
    # Of a command, a word that is longer than a line stays whole.
    assert all(len(line) <= width or " " not in line.strip(" \\") for line in text.splitlines())
    assert "0.44 [0.34, 0.54]" in text


def test_the_markdown_says_the_same(tmp_path: Path) -> None:
    printed(tmp_path, report())
    text = (tmp_path / "run" / "summary.md").read_text()
    assert text.startswith("# Summary of quick start, seed 3\n\n## What changed\n")
    assert "| rl-cai | 0.44 \\[0.34, 0.54\\] | 33% \\[23%, 46%\\] | 48 | 0.91 |" in text
    assert "> **rl-cai, reward 1.25:** No 0" in text
    assert "- From 'base' to 'rl-cai' the reward rises by 0.96" in text
    assert f"```sh\npython -m cai chat {tmp_path / 'run'}\n" in text


def test_hostile_answers_do_nothing(tmp_path: Path) -> None:
    evil = report()
    evil["examples"][0]["prompt"] = "\x1b[2J[bold]x[/bold]\n# heading <script>"
    evil["examples"][0]["answers"]["base"] = "\x1b]0;x\x07 | a | [l](javascript:x) :smile:"
    text = printed(tmp_path, evil)
    kept = (tmp_path / "run" / "summary.md").read_text()
    for shown in (text, kept):
        assert not {"\x1b", "\x07"} & set(shown)
    assert "[bold]x[/bold] # heading <script>" in text
    assert ":smile:" in text
    assert "\n# heading" not in kept
    assert "\\<script\\>" in kept
    assert "\\[l\\](javascript:x)" in kept


def test_without_rewards_or_intervals_nothing_is_claimed(tmp_path: Path) -> None:
    bare = copy.deepcopy(report())
    bare["reward_model"], bare["examples"] = {}, []
    for found in bare["sets"].values():
        found["wins"] = []
        for figures in found["models"].values():
            figures["reward"] = None
    text = printed(tmp_path, bare)
    assert "rises" not in text
    assert "falls" not in text
    assert "Answers before" not in text
    few = report()
    for figures in few["sets"]["red_team"]["models"].values():
        figures["reward"] |= {"low": None, "high": None}
    assert "too few prompts for intervals" in " ".join(printed(tmp_path, few).split())


def test_an_evaluation_of_a_newer_program_is_told(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"evaluation\.json: an evaluation of version 99.*upgrade"):
        printed(tmp_path, report() | {"version": 99})


def test_a_run_without_evaluation_says_so(tmp_path: Path) -> None:
    text = printed(tmp_path, None)
    assert "nothing was measured" in text
    assert "store/sft" in "".join(text.split())


def test_figures_are_written_with_their_intervals() -> None:
    assert interval(Interval(0.423, 0.373, 0.473, 60)) == "0.42 [0.37, 0.47]"
    assert interval(intervals.share(0, 0), share=True) == "-"
    assert interval(Interval(1.0, n=1)) == "1.00"
    assert interval(None) == "-"


def test_both_renderings_come_from_the_same_blocks(tmp_path: Path) -> None:
    done = result(tmp_path, report())
    summary = summarize(done.plan, done.run_dir, {s.step.name: s.artifact for s in done.steps})
    out = StringIO()
    Console(file=out, width=500, markup=False).print(render(summary))
    unescaped = markdown(summary).replace("\\", "")
    for block in summary.blocks:
        for line in block.lines:
            assert line in out.getvalue()
            assert line in unescaped
