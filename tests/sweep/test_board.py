"""The leaderboard: what is ranked by what, what may not be compared, seeds together, and what principles do."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from cai.commands.reporting import report_verb
from cai.figures.intervals import Interval
from cai.identity import key_of
from cai.plan import Plan, Step, inputs_of
from cai.run.job_files import write_json
from cai.store.artifacts import Store
from cai.sweep.board import over_cells, read_board
from cai.sweep.run_cells import ended_cells
from cai.sweep.tables import write_tables
from cai.sweep.view import change, columns, print_board
from cai.terminal.output import make_console

N = 60


def figure(values: list[float]) -> dict[str, Any]:
    mean = sum(values) / len(values)
    return {"value": mean, "low": mean - 0.2, "high": mean + 0.2, "n": len(values)}


def evaluation(
    rewards: list[float], base: list[float], refused: int, accuracy: float, *, grades: Sequence[str] = ()
) -> tuple[dict[str, Any], str]:
    """What the stage writes, for a first model with rewards ``base`` and a last one with ``rewards``."""
    share = {"value": refused / 10, "low": 0.0, "high": 1.0, "n": 10}
    won = sum(a > b for a, b in zip(rewards, base, strict=True))
    win = {"model": "rl", "against": "base", "value": won / N, "low": 0.1, "high": 0.9, "n": N, "wins": won, "ties": 0}
    report = {
        "models": ["base", "rl"],
        "sets": {
            "red": {
                "rows": N,
                "benign": False,
                "models": {"base": {"reward": figure(base)}, "rl": {"reward": figure(rewards)}},
                "wins": [win | {"losses": N - won}],
            },
            "safe": {
                "rows": 10,
                "benign": True,
                "models": {m: {"reward": figure(base), "refusals": share} for m in ("base", "rl")},
                "wins": [],
            },
        },
        "reward_model": {"pairs": {"accuracy": {"value": accuracy, "low": 0.5, "high": 1.0, "n": 40}}},
        "examples": [],
        "caveats": [],
        **({"grader": "lexical"} if grades else {}),
    }
    rows = []
    for i in range(N):
        answers = {"base": {"text": "a", "reward": base[i]}, "rl": {"text": "b", "reward": rewards[i]}}
        rows.append({"id": f"r{i}", "set": "red", "answers": answers})
    for i in range(10):
        text = "I can't help with that." if i < refused else "Boil it for six minutes."
        graded = {"grade": grades[i]} if grades else {}
        answers = {"base": {"text": "ok", "reward": 0.0}, "rl": {"text": text, "reward": 0.0, **graded}}
        rows.append({"id": f"s{i}", "set": "safe", "answers": answers})
    return report, "".join(json.dumps(row) + "\n" for row in rows)


def rewards(shift: float, noise: int) -> list[float]:
    """Rewards that vary much between prompts and little between cells."""
    hard, own = random.Random(1), random.Random(noise)
    return [hard.gauss(0, 2) + shift + own.gauss(0, 0.1) for _ in range(N)]


def sweep(
    folder: Path, cells: list[dict[str, Any]], own_scale: bool = False, metric: str = "", preset: str = "leave_one_out"
) -> Store:
    """A sweep's folder with finished cells, as the program leaves it."""
    store = Store(folder / "home")
    store.prepare()
    told = []
    for number, cell in enumerate(cells):
        key = key_of(["evaluate", number])
        scale = key_of(["reward", number if own_scale else 0])
        steps = [
            Step("reward", "reward", "reward_model", scale, 0),
            Step("evaluate", "evaluate", "evaluation", key, 0, inputs=inputs_of({"reward": "reward"})),
        ]
        at = folder / "sweep" / str(number)
        at.mkdir(parents=True)
        (at / "plan.json").write_text(Plan("x", 0, {"kind": "embedded"}, tuple(steps)).to_json())
        write_json(at / "cell.json", {"state": cell.get("state", "done"), "error": "", "made": [key], "seconds": 1.0})
        if cell.get("state", "done") == "done":
            report, rows = evaluation(
                cell["rewards"],
                rewards(-1.0, 99),
                cell.get("refused", 2),
                cell.get("accuracy", 0.7),
                grades=cell.get("grades", ()),
            )
            with store.building("evaluate", key) as build:
                (build.out / "evaluation.json").write_text(json.dumps(report))
                (build.out / "answers.jsonl").write_text(rows)
                ledger = {"rows_in": N, "rows_out": N, "dropped": {}, "parts": {}}
                build.commit(makes="evaluation", seed=0, seconds=1.0, ingredients={}, outcome={"ledger": ledger})
        values = {k: str(v) for k, v in cell.items() if k in ("seed", "constitution")}
        label = ", ".join([*(f"{k}={v}" for k, v in values.items()), cell["name"]])
        principles = cell.get("principles", ["a", "b"])
        facts = {"what": cell["what"], "principle": cell.get("principle", ""), "draw": 0, "principles": principles}
        told.append({"number": number, "label": label, "values": values, **facts})
    spec = {"metric": metric, "preset": preset}
    write_json(folder / "sweep/sweep.json", {"experiment": "x", "sweep": spec, "cells": told})
    return store


def whole(**more: Any) -> dict[str, Any]:
    return {"name": "whole", "what": "whole", "rewards": rewards(1.0, 2), **more}


def without(principle: str, shift: float, noise: int, **more: Any) -> dict[str, Any]:
    told = {"name": f"without {principle}", "what": "without", "principle": principle}
    return {**told, "rewards": rewards(shift, noise), **more}


def test_cells_are_ranked_and_failed_ones_come_last(tmp_path: Path) -> None:
    store = sweep(tmp_path, [without("b", 0, 5, state="failed"), without("a", 0.2, 3), whole()])
    board = read_board(tmp_path / "sweep", store)
    assert board.ranked_by == "reward on red"
    assert [line.label for line in board.lines] == ["whole", "without a", "without b"]
    assert all(measure.comparable for measure in board.measures)
    assert not board.notes


def test_a_principle_is_judged_prompt_by_prompt(tmp_path: Path) -> None:
    store = sweep(tmp_path, [whole(), without("a", 0.8, 3), without("b", 1.0, 7)])
    effects = {(e.principle, e.measure): e for e in read_board(tmp_path / "sweep", store).effects}
    a, b = effects["a", "reward on red"], effects["b", "reward on red"]
    assert a.paired
    # Without pairing the interval would be about 1.4 wide: rewards of prompts differ by 2.
    assert a.change.high - a.change.low < 0.2
    assert a.change.low < -0.2 < a.change.high < 0
    assert b.change.low < 0 < b.change.high
    assert effects["a", "refuses safe"].change.value == 0
    # Not a mean over prompts that the answers tell: from the two intervals.
    assert not effects["a", "accuracy on pairs"].paired
    assert effects["a", "accuracy on pairs"].change.low == pytest.approx(-((0.2**2 + 0.3**2) ** 0.5))


def test_refusals_are_compared_on_the_same_prompts_and_less_is_better(tmp_path: Path) -> None:
    store = sweep(tmp_path, [whole(refused=6), without("a", 1, 3, refused=1)], metric="refuses safe")
    board = read_board(tmp_path / "sweep", store)
    assert [line.label for line in board.lines] == ["without a", "whole"]
    (effect,) = [e for e in board.effects if e.measure == "refuses safe"]
    assert effect.change.value == pytest.approx(-0.5)
    assert effect.paired
    assert effect.change.high < 0


def test_refusals_by_grade_have_a_name_and_values_of_their_own(tmp_path: Path) -> None:
    """The grade counts, whatever phrases the answer has; by another grader it is another figure."""
    store = sweep(tmp_path, [whole(refused=6, grades=["complied"] * 8 + ["declined_bare"] * 2), without("a", 1, 3)])
    board = read_board(tmp_path / "sweep", store)
    assert {"declines safe", "refuses safe"} <= {measure.name for measure in board.measures}
    assert not [e for e in board.effects if e.measure in ("declines safe", "refuses safe")]
    graded = whole(refused=6, grades=["complied"] * 8 + ["declined_bare"] * 2)
    all_declined = without("a", 1, 3, refused=0, grades=["declined_with_reason"] * 10)
    store = sweep(tmp_path / "both", [graded, all_declined], metric="declines safe")
    (effect,) = [e for e in read_board(tmp_path / "both/sweep", store).effects if e.measure == "declines safe"]
    assert effect.change.value == pytest.approx(0.8)


def test_rewards_of_different_reward_models_are_not_compared(tmp_path: Path) -> None:
    store = sweep(tmp_path, [whole(accuracy=0.6), without("a", 9, 3, accuracy=0.8)], own_scale=True)
    board = read_board(tmp_path / "sweep", store)
    assert {m.name: m.comparable for m in board.measures} == {
        "reward on red": False,
        "wins on red": False,
        "refuses safe": True,
        "accuracy on pairs": True,
    }
    assert board.ranked_by == "accuracy on pairs"
    assert "different scales" in board.notes[0]
    assert not [e for e in board.effects if e.measure == "reward on red"]
    assert [m.name for m in columns(board)][:2] == ["accuracy on pairs", "refuses safe"]


def test_seeds_are_taken_together(tmp_path: Path) -> None:
    cells = [
        make(seed=seed) if make is whole else make("a", 0.0, 10 + seed, seed=seed)  # type: ignore[operator]
        for seed in range(3)
        for make in (whole, without)
    ]
    board = read_board(tmp_path / "sweep", sweep(tmp_path, cells))
    assert [(line.label, line.seeds) for line in board.pooled] == [("whole", 3), ("without a", 3)]
    pooled = board.pooled[1].figures["reward on red"]
    assert pooled.n == 3
    assert pooled.low < pooled.value < pooled.high
    assert pooled.high - pooled.low < 0.5
    (effect,) = [e for e in board.effects if e.measure == "reward on red"]
    assert effect.change.n == N  # each prompt once, not once for each seed


def test_an_interval_over_cells_is_students() -> None:
    found = over_cells([1.0, 2.0, 3.0])
    assert (found.value, found.n) == (2.0, 3)
    assert found.high - 2.0 == pytest.approx(4.302652729911275 / 3**0.5)
    assert over_cells([1.0, 2.0]) == Interval(1.5, n=2)
    assert over_cells([]) == Interval()
    assert over_cells([2.0] * 4).low == 2.0


def test_nested_subsets_make_a_curve(tmp_path: Path) -> None:
    cells = [
        {"name": f"{n} of draw {d}", "what": "first", "principles": ["p"] * n, "rewards": rewards(n / 4, n + 10 * d)}
        for n in (4, 1, 2)
        for d in range(3)
    ]
    board = read_board(tmp_path / "sweep", sweep(tmp_path, cells, preset="nested_subsets"))
    assert [line.size for line in board.sizes] == [1, 2, 4]
    curve = [line.figures["reward on red"].value for line in board.sizes]
    assert curve == sorted(curve)


def test_files_hold_every_figure(tmp_path: Path) -> None:
    import pyarrow.parquet

    store = sweep(tmp_path, [whole(), {**without("a", 0.1, 3), "name": "=cmd()"}])
    board = read_board(tmp_path / "sweep", store)
    write_tables(board, tmp_path / "sweep")
    with (tmp_path / "sweep/leaderboard.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["rank"] for row in rows] == ["1", "2"]
    assert rows[1]["label"] == "'=cmd()"
    assert float(rows[0]["reward on red low"]) == board.lines[0].figures["reward on red"].low
    found = pyarrow.parquet.read_table(tmp_path / "sweep/leaderboard.parquet").to_pylist()
    assert found[1]["label"] == "=cmd()"
    assert found[0]["reward on red"] == board.lines[0].figures["reward on red"].value
    with (tmp_path / "sweep/principles.csv").open() as file:
        assert {row["principle"] for row in csv.DictReader(file)} == {"a"}


def test_the_end_of_a_sweep_says_what_may_be_chance(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = sweep(tmp_path, [whole(), without("a", 0.5, 3), without("\x1b[31mb", 1.0, 7)])
    board = read_board(tmp_path / "sweep", store)
    print_board(board, ended_cells(tmp_path / "sweep"), tmp_path / "sweep", make_console())
    out = capsys.readouterr().out
    assert "lower" in [line for line in out.splitlines() if line.startswith("without a")][-1]
    assert "may be chance" in out
    assert "\x1b[31mb" not in out
    assert "Leaderboard, by reward on red" in out


def test_changes_are_shown_with_their_sign() -> None:
    assert change(Interval(0.5, -0.25, 1.25), False) == "+0.50 [-0.25, +1.25]"
    assert change(Interval(-0.05), True) == "-5%"
    assert change(Interval(), True) == "-"


def test_a_sweep_has_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [
        {"name": f"{n} principles", "what": "first", "principles": ["p"] * n, "rewards": rewards(n / 4, n)}
        for n in (1, 2)
    ]
    hostile = without("<b>a</b>", 0.5, 3)
    sweep(tmp_path, [whole(principles=["p"] * 4), hostile, *sizes], preset="nested_subsets")
    monkeypatch.setenv("CAI_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert report_verb(["sweep"]) == 0
    page = (tmp_path / "sweep/report.html").read_text(encoding="utf-8")
    for words in ("The sweep", "Leaderboard", "By number of principles", "What the principles do", "by-size-0"):
        assert words in page
    assert "without &lt;b&gt;a&lt;/b&gt;" in page
    assert "<b>a</b>" not in page
    # The figure that ranks, with its interval, as the leaderboard has it.
    assert f"{sum(rewards(1.0, 2)) / N:.2f} [" in page
