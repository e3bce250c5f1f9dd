"""The report of a judge that names the best and the worst recovers what was built into it, by place and by order."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from cai.clients.base import Request
from cai.data.rows import Candidates, Comparison, read_rows
from cai.figures.judge_report import JUDGE_REPORT, read_judge_report
from cai.report.model import Table
from cai.report.page import build
from cai.stages.judge.report import summary_rows
from cai.stages.judge.spec import judge_spec
from cai.stages.judge.stage import run
from tests.support.judges import SET, Naming, Say, by_quality, ends, liking, quality, rows
from tests.support.report_runs import make_run
from tests.support.stage_doubles import artifact, context, user


def report(
    folder: Path, say: Say, candidates: Sequence[Candidates], labelled: Sequence[Comparison] = (), **fields: Any
) -> tuple[dict[str, Any], Any]:
    inputs = {"model": artifact(folder / "m", "model"), "candidates": artifact(folder / "c", "candidates", candidates)}
    if labelled:
        inputs["labelled"] = artifact(folder / "l", "comparisons", labelled)
        fields = {"labelled": "l", "uncalibrated": True, **fields}
    spec = judge_spec(model="m", candidates="c", scoring="best_worst", max_drop_rate=1.0, **fields)
    outcome = run(spec, context(folder, Naming(say), inputs, {"prompt": SET}))
    return json.loads((folder / "out/judge_report.json").read_text()), outcome


def test_a_fair_judge_has_no_bias_for_any_place(tmp_path: Path) -> None:
    found, outcome = report(tmp_path, liking(None, 0.0), rows(300))
    assert found["judge"] == {
        "scoring": "best_worst",
        "principles": "one",
        "pairs": "best_worst",
        "order": "both",
        "samples": 1,
    }
    assert found["votes"] == {"asked": 600, "readable": 600, "even": 0, "unreadable": {}}
    assert found["pairs"] == {"asked": 300, "decided": 300, "ties": 0, "unreadable": 0, "identical": 0}
    assert found["position"]["bias"]["value"] == found["swap"]["mean difference of p"]["value"] == 0
    for end in ("best", "worst"):
        for place in found["sets"]["places"]["4"][end]:
            assert place["low"] < 0.25 < place["high"]
            assert place["n"] == 600
    assert outcome.metrics["swap consistency"] == 1
    assert found["confidence"]["mean"] == 1


@pytest.mark.parametrize("place", range(4))
def test_a_liking_for_any_place_is_found_at_that_place(place: int, tmp_path: Path) -> None:
    found, _ = report(tmp_path, liking(place, 1.5, noise=0.5), rows(300))
    best = found["sets"]["places"]["4"]["best"]
    assert max(range(4), key=lambda at: best[at]["value"]) == place
    assert best[place]["low"] > 0.3
    bias = found["position"]["bias"]
    if place == 0:
        assert bias["low"] > 0.03
    if place == 3:
        assert bias["high"] < -0.03
    if place == 0:
        assert found["position"]["first shown wins"]["value"] == best[0]["value"]


@pytest.mark.long
def test_labels_are_as_right_as_they_say(tmp_path: Path) -> None:
    """Each level of agreement of a noisy judge is right about as often as its p: that is what makes them labels."""
    asked = rows(4000, seed=3)
    right: dict[float, list[bool]] = {}
    inputs = {"model": artifact(tmp_path / "m", "model"), "candidates": artifact(tmp_path / "c", "candidates", asked)}
    spec = judge_spec(model="m", candidates="c", scoring="best_worst", chunk=500)
    run(spec, context(tmp_path, Naming(liking(None, 0.0, noise=1.5)), inputs, {"prompt": SET}))
    for row in read_rows(tmp_path / "out/rows.jsonl", Comparison):
        assert isinstance(row, Comparison)
        right.setdefault(row.p_chosen, []).append(quality(row.chosen) > quality(row.rejected))
    assert set(right) == {0.5, 0.75, 0.875, 1.0}
    shares = {p: sum(each) / len(each) for p, each in right.items()}
    for p, share in shares.items():
        assert abs(share - p) < 0.07, shares


def test_labelled_comparisons_are_sets_of_two(tmp_path: Path) -> None:
    draw = random.Random(2)
    pairs = []
    for i, row in enumerate(rows(60, size=2, seed=5)):
        better, worse = sorted(row.answers, key=quality, reverse=True)
        wrong = draw.random() < 0.25
        pairs.append(Comparison(f"p{i}", user("q"), *((worse, better) if wrong else (better, worse)), topic="t"))
    wrong = sum(quality(pair.chosen) < quality(pair.rejected) for pair in pairs)
    found, outcome = report(tmp_path, liking(None, 0.0), rows(5), pairs)
    assert found["labelled"]["accuracy"]["value"] == pytest.approx(1 - wrong / 60, abs=1e-6)
    assert outcome.calls == 2 * 5 + 2 * 60
    assert found["rows"] == 5
    mute, _ = report(tmp_path / "mute", lambda *_: "Hm.", rows(2), pairs)
    assert mute["labelled"]["counts"] == {"rows": 60, "unreadable": 60}
    # As candidates: held against the labels that they came with.
    inputs = {
        "model": artifact(tmp_path / "m2", "model"),
        "candidates": artifact(tmp_path / "c2", "comparisons", pairs),
    }
    spec = judge_spec(model="m", candidates="c", scoring="best_worst")
    run(spec, context(tmp_path / "anew", Naming(), inputs, {"prompt": SET}))
    anew = json.loads((tmp_path / "anew/out/judge_report.json").read_text())
    assert anew["given labels"]["accuracy"] == found["labelled"]["accuracy"]


def test_principles_that_disagree_are_told_apart(tmp_path: Path) -> None:
    def by_principle(request: Request, answers: list[str]) -> str:
        if "Which is 0?" in request.prompt:
            return ends(answers, max(answers, key=len), min(answers, key=len))
        return by_quality(request, answers)

    found, _ = report(tmp_path, by_principle, rows(80), principles="ensemble", ensemble=4)
    each = found["principles"]["each"]
    assert each["p0"]["agrees with the others"]["value"] < 1
    assert each["p1"]["agrees with the others"]["value"] == 1
    assert found["principles"]["pairwise agreement"]["n"] == 6 * 80
    assert each["p0"]["pairs"] == 80


def test_the_summary_and_the_report_page_say_which_places_win(tmp_path: Path) -> None:
    found, _ = report(tmp_path, liking(0, 1.0, noise=1.0), [*rows(60), *rows(9, size=3, seed=8, name="small")])
    summary = summary_rows(read_judge_report(tmp_path / "out" / JUDGE_REPORT))
    told = {name: (value, meaning) for name, value, meaning in summary}
    assert "tie" in told["orders contradict"][1]
    assert told["best of 4, by place"][1].startswith("25% each is fair")
    assert told["best of 3, by place"][0].endswith("n=18")
    assert list(told)[:4] == ["votes read", "pairs decided", "swap consistency", "position bias"]
    finished = make_run(tmp_path / "run")
    (finished.artifacts["judge"].path / "judge_report.json").write_text(json.dumps(found))
    (section,) = [section for section in build([finished])[0].sections if section.id == "judges"]
    (table,) = [block for block in section.blocks if isinstance(block, Table)]
    assert {row[0] for row in table.rows} == set(told)
