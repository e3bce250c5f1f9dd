"""The judge's report recovers what was built into a judge: its place, its taste for length, noise, and certainty."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from cai.clients.base import Completion, Finish, Request, Score, ScoreRequest
from cai.data.rows import Candidates, Comparison
from cai.figures.intervals import Interval, PlainFigure, share
from cai.figures.judge_report import JUDGE_REPORT, read_judge_report
from cai.figures.running_sums import Alpha, Correlation, Mean
from cai.identity import uniform
from cai.judging.reading import sigmoid
from cai.stages.judge.calibration import Calibration, cross_entropy
from cai.stages.judge.report import summary_rows
from cai.stages.judge.spec import judge_spec
from cai.stages.judge.stage import run
from tests.support import judges as judge_help
from tests.support.stage_doubles import Memory, Stopped, artifact, context, shipped, user

LETTERS = "{#---\ndescription: test\nkind: prompt\nformat: text\n---#}\n{{ first }}|{{ second }}|{{ principle }}|"
Leaning = Callable[[str, str, str], float]


def quality(answer: str) -> float:
    """Answers of these tests begin with how good they are."""
    return float(answer.split()[0])


class Judge(Memory):
    """Prefers the first answer by ``leaning`` logits; ``says`` overrules what it would write."""

    def __init__(self, leaning: Leaning, says: Callable[[Request], str] | None = None) -> None:
        super().__init__()
        self.leaning, self.says = leaning, says

    def _of(self, prompt: str) -> float:
        first, second, principle = prompt.split("|")[:3]
        return self.leaning(first, second, principle)

    def likelihood(self, request: ScoreRequest) -> Score:
        leaning = self._of(request.prompt)
        return Score(request.id, math.log(sigmoid(leaning if request.continuation.strip() == "(A)" else -leaning)), 1)

    def complete(self, model: str, batch: str, request: Request) -> Completion:
        text = self.says(request) if self.says else "(A)" if self._of(request.prompt) > 0 else "(B)"
        return Completion(request.id, text, 1, 1, Finish.STOP)


def rows(n: int, answers: int = 2, spread: float = 2.0, seed: int = 0) -> list[Candidates]:
    """Rows of two answers, farther apart than a set's."""
    return judge_help.rows(n, answers, seed, spread=spread)


def report(
    folder: Path, engine: Memory, found: Sequence[Candidates], labelled: Sequence[Comparison] = (), **fields: Any
) -> tuple[dict[str, Any], Any]:
    inputs = {"model": artifact(folder / "m", "model"), "candidates": artifact(folder / "c", "candidates", found)}
    if labelled:
        inputs["labelled"] = artifact(folder / "l", "comparisons", labelled)
        fields = {"labelled": "l", "labelled_limit": None, "uncalibrated": True, **fields}
    spec = judge_spec(model="m", candidates="c", **{"max_drop_rate": 1.0, **fields})
    outcome = run(spec, context(folder, engine, inputs, {"prompt": LETTERS}))
    return json.loads((folder / "out/judge_report.json").read_text()), outcome


def told_of(folder: Path) -> list[tuple[str, str, str]]:
    """What people are told of the judge of a folder."""
    return summary_rows(read_judge_report(folder / "out" / JUDGE_REPORT))


def by_quality(first: str, second: str, principle: str) -> float:
    return quality(first) - quality(second)


def test_a_judge_that_always_names_the_first_is_found_out(tmp_path: Path) -> None:
    found, outcome = report(tmp_path, Judge(by_quality, lambda _: "(A)"), rows(40), scoring="choice")
    assert found["swap"]["consistency"] == {**_rounded(share(0, 40)), "n": 40}
    assert found["swap"]["mean difference of p"]["value"] == 1
    assert found["position"]["bias"] == {"value": 0.5, "low": 0.5, "high": 0.5, "n": 80}
    assert found["position"]["first shown wins"]["value"] == 1
    assert found["pairs"] == {"asked": 40, "decided": 0, "ties": 40, "unreadable": 0, "identical": 0}
    assert found["length"]["longer wins"]["n"] == 0
    assert (outcome.metrics["swap consistency"], outcome.metrics["position bias"]) == (0, 0.5)
    assert "longer wins" not in outcome.metrics


def _rounded(figure: Interval) -> dict[str, Any]:
    return {key: round(value, 6) for key, value in asdict(figure).items()}


def test_a_question_read_in_one_order_tells_nothing_of_the_place(tmp_path: Path) -> None:
    asked = [Candidates("r0", user("q"), ("1 a", "2 b")), Candidates("r1", user("q"), ("3 a", "4 b"))]
    mute = Judge(by_quality, lambda request: "Hm." if request.prompt.startswith("2 b") else "(A)")
    found, outcome = report(tmp_path, mute, asked, scoring="choice")
    assert found["swap"]["read in one order only"] == 1
    assert found["swap"]["consistency"]["n"] == 1
    assert found["position"]["bias"]["n"] == 2
    # The one that was read in both orders contradicts itself; the other would be a liking for the first place.
    assert (found["pairs"]["decided"], found["pairs"]["ties"], found["pairs"]["unreadable"]) == (0, 1, 1)
    assert outcome.ledger.dropped == {"read in one order only": 1}
    alone, _ = report(tmp_path / "given", mute, asked, scoring="choice", order="given")
    assert alone["pairs"]["decided"] == 2, "where one order is asked, it is all there is"


def test_a_fair_judge_has_no_bias(tmp_path: Path) -> None:
    found, _ = report(tmp_path, Judge(by_quality), rows(40))
    assert found["swap"]["consistency"]["value"] == 1
    assert found["swap"]["mean difference of p"]["value"] == 0
    assert found["swap"]["read in one order only"] == 0
    assert found["position"]["bias"]["value"] == pytest.approx(0, abs=1e-9)
    assert found["position"]["first shown wins"]["value"] == 0.5


@pytest.mark.parametrize("bias", [0.8, -1.5])
def test_the_bias_for_the_place_is_what_was_built_in(bias: float, tmp_path: Path) -> None:
    asked = rows(300)
    found, _ = report(tmp_path, Judge(lambda a, b, _: quality(a) - quality(b) + bias), asked)
    leanings = [quality(row.answers[0]) - quality(row.answers[1]) for row in asked]
    exact = sum(sigmoid(d + bias) + sigmoid(bias - d) for d in leanings) / (2 * len(leanings)) - 0.5
    same = sum((d + bias > 0) == (d - bias > 0) for d in leanings)
    assert found["position"]["bias"]["value"] == pytest.approx(exact, abs=1e-6)
    assert found["position"]["bias"]["low"] < exact < found["position"]["bias"]["high"]
    assert found["swap"]["consistency"] == _rounded(share(same, 300))


def test_a_drawn_order_shows_the_bias_too_and_no_swap(tmp_path: Path) -> None:
    found, _ = report(tmp_path, Judge(lambda a, b, _: 0.8), rows(200), order="random")
    assert found["swap"]["consistency"]["n"] == 0
    assert found["position"]["bias"]["value"] == pytest.approx(sigmoid(0.8) - 0.5, abs=1e-6)


@pytest.mark.parametrize("taste", [0.8, 0.35])
def test_the_taste_for_length_is_what_was_built_in(taste: float, tmp_path: Path) -> None:
    def leaning(first: str, second: str, _: str) -> float:
        longer, shorter = sorted((first, second), key=len, reverse=True)
        likes = longer if uniform(0, longer, shorter) < taste else shorter
        return 2.0 if likes == first else -2.0

    asked = rows(1000)
    found, outcome = report(tmp_path, Judge(leaning), asked)
    unequal = [sorted(row.answers, key=len) for row in asked if len(row.answers[0]) != len(row.answers[1])]
    exact = sum(uniform(0, longer, shorter) < taste for shorter, longer in unequal)
    assert found["length"]["longer wins"] == _rounded(share(exact, len(unequal)))
    assert found["length"]["longer wins"]["low"] < taste < found["length"]["longer wins"]["high"]
    assert outcome.metrics["longer wins"] == found["length"]["longer wins"]["value"]
    p = exact / len(unequal)
    assert found["length"]["mean p of the longer"]["value"] == pytest.approx(p * sigmoid(2) + (1 - p) * sigmoid(-2))


@pytest.mark.long
def test_the_correlation_with_length_knows_the_noise(tmp_path: Path) -> None:
    def ratio(first: str, second: str) -> float:
        return math.log(len(first) / len(second))

    pure, _ = report(tmp_path / "pure", Judge(lambda a, b, _: ratio(a, b)), rows(200))
    assert pure["length"]["correlation of logit p and log length ratio"]["value"] == pytest.approx(1)
    asked = rows(2000, spread=1.0)
    mixed, _ = report(tmp_path / "mixed", Judge(lambda a, b, _: ratio(a, b) + quality(a) - quality(b)), asked)
    mean_square = sum(ratio(*row.answers) ** 2 for row in asked) / len(asked)
    assert mixed["length"]["correlation of logit p and log length ratio"]["value"] == pytest.approx(
        math.sqrt(mean_square / (mean_square + 2)), abs=0.05
    )


@pytest.mark.long
def test_a_judge_that_errs_at_random_contradicts_itself_as_often_as_that_makes(tmp_path: Path) -> None:
    errs = 0.15

    def noisy(first: str, second: str, _: str) -> float:
        right = 3.0 if quality(first) > quality(second) else -3.0
        return -right if uniform(1, first, second) < errs else right

    found, _ = report(tmp_path, Judge(noisy), rows(2000))
    expected = errs**2 + (1 - errs) ** 2
    consistency = found["swap"]["consistency"]
    assert consistency["low"] < expected < consistency["high"]
    assert consistency["high"] - consistency["low"] < 0.05


def labelled(n: int, seed: int = 1) -> list[Comparison]:
    """Pairs whose labels are drawn with p = sigmoid(difference of quality)."""
    draw = random.Random(seed)
    made = []
    for i, row in enumerate(rows(n, seed=seed)):
        one, two = row.answers
        right = draw.random() < sigmoid(quality(one) - quality(two))
        pair = (one, two) if right else (two, one)
        made.append(Comparison(f"pair{i}", user("q"), *pair, topic=f"topic{i % 3}"))
    return made


@pytest.mark.long
@pytest.mark.parametrize("certainty", [3.0, 0.5])
def test_the_fitted_temperature_undoes_a_wrong_certainty(certainty: float, tmp_path: Path) -> None:
    pairs = labelled(3000)
    judge = Judge(lambda a, b, _: certainty * (quality(a) - quality(b)))
    found, outcome = report(tmp_path, judge, rows(3), pairs, temperature=2.0)
    people = found["labelled"]
    right = sum(quality(pair.chosen) > quality(pair.rejected) for pair in pairs)
    assert people["accuracy"] == _rounded(share(right, 3000))
    assert (outcome.metrics["labelled accuracy"], outcome.metrics["labelled n"]) == (round(right / 3000, 6), 3000)
    fitted = people["fitted"]
    # The judge reads its logits at temperature 2, so they are certainty / 2 times the true ones.
    assert fitted["temperature"] == pytest.approx(certainty / 2, rel=0.1)
    assert fitted["setting"] == pytest.approx(certainty, rel=0.1)
    assert fitted["log loss"] <= people["log loss"]["value"]
    ps = [sigmoid(certainty / 2 * (quality(pair.chosen) - quality(pair.rejected))) for pair in pairs]
    loss = sum(cross_entropy(p, 1) for p in ps) / len(ps)
    assert people["log loss"]["value"] == pytest.approx(loss, abs=1e-6)
    assert people["brier"]["value"] == pytest.approx(sum((1 - p) ** 2 for p in ps) / len(ps), abs=1e-6)
    assert sum(place["n"] for place in people["reliability"]) == 3000
    assert set(people["topics"]) == {"topic0", "topic1", "topic2"}


@pytest.mark.long
def test_a_judge_of_the_right_certainty_is_calibrated(tmp_path: Path) -> None:
    found, _ = report(tmp_path, Judge(by_quality), rows(3), labelled(3000))
    people = found["labelled"]
    assert people["fitted"]["temperature"] == pytest.approx(1, rel=0.1)
    assert people["expected calibration error"]["value"] < 0.03
    over, _ = report(tmp_path / "over", Judge(lambda a, b, _: 4 * by_quality(a, b, "")), rows(3), labelled(3000))
    assert over["labelled"]["expected calibration error"]["value"] > 0.08


def test_a_judge_of_length_alone_is_no_better_than_the_rule(tmp_path: Path) -> None:
    pairs = labelled(400)
    found, _ = report(tmp_path, Judge(lambda a, b, _: float(len(a) - len(b))), rows(3), pairs)
    people = found["labelled"]
    rule = people["baselines"]["always the longer"]
    assert people["accuracy"]["value"] == pytest.approx(rule["accuracy"]["value"])
    assert people["above always the longer"]["value"] == 0
    other = people["baselines"]["always the shorter"]["accuracy"]["value"]
    assert rule["accuracy"]["value"] + other == pytest.approx(1)
    assert people["longer preferred"]["judge"]["value"] == 1
    longer = [len(pair.chosen) > len(pair.rejected) for pair in pairs if len(pair.chosen) != len(pair.rejected)]
    assert people["longer preferred"]["human"] == _rounded(share(sum(longer), len(longer)))
    assert rule["log loss"] <= people["baselines"]["a coin"]["log loss"]
    # In a judge that prefers what people do not, nothing is worth its certainty.
    worse, _ = report(tmp_path / "worse", Judge(lambda a, b, _: -by_quality(a, b, "")), rows(3), pairs)
    assert worse["labelled"]["fitted"] == {
        "slope": 0,
        "temperature": None,
        "log loss": pytest.approx(math.log(2), abs=1e-6),
        "n": 400,
    }


def test_rules_are_scored_like_a_judge_with_one_certainty() -> None:
    found = Calibration(both=False)
    draw = random.Random(3)
    data = [(draw.choice((0.0, 0.2, 1.0)), draw.choice((-3, 0, 5))) for _ in range(60)]
    for y, longer in data:
        found.see({"votes": [[0, 1, 0, 0, 0, 0.6]], "human": y, "lengths": [10 + longer, 10]}, {})
    of_longer = [y if longer > 0 else 1 - y for y, longer in data if longer]
    q = sum(of_longer) / len(of_longer)
    p = [0.5 if longer == 0 else q if longer > 0 else 1 - q for _, longer in data]
    rule = found.figures().baselines["always the longer"]
    assert rule.brier == pytest.approx(sum((a - y) ** 2 for a, (y, _) in zip(p, data, strict=True)) / 60, abs=1e-6)
    loss = sum(cross_entropy(a, y) for a, (y, _) in zip(p, data, strict=True)) / 60
    assert rule.log_loss == pytest.approx(loss, abs=1e-6)


def test_what_people_left_open_and_what_could_not_be_read_is_counted(tmp_path: Path) -> None:
    pairs = [
        Comparison("open", user("q"), "1 a", "2 b", 0.5),
        Comparison("same", user("q"), "1 a", "1 a"),
        Comparison("mute", user("q"), "3 mute", "2 b"),
        Comparison("mute", user("q"), "3 mute", "2 b"),
        Comparison("read", user("q"), "4 a", "2 b"),
    ]
    says = Judge(
        by_quality,
        lambda request: "Hm." if "mute" in request.prompt else "(A) or (B)" if "|9" in request.prompt else "(A)",
    )
    found, outcome = report(tmp_path, says, [Candidates("r", user("q"), ("8 x", "9 y"))], pairs, scoring="choice")
    counts = found["labelled"]["counts"]
    assert counts == {"human ties": 1, "identical": 1, "repeated id": 1, "rows": 5, "unreadable": 1}
    assert found["labelled"]["accuracy"]["n"] == 1
    assert found["votes"] == {"asked": 2, "readable": 1, "even": 0, "unreadable": {"several options named": 1}}
    assert outcome.ledger.dropped == {"read in one order only": 1}
    assert outcome.ledger.rows_in == 1
    assert outcome.calls == 2 + 2 * 3


def test_a_judge_that_never_answers_has_no_figures(tmp_path: Path) -> None:
    found, outcome = report(tmp_path, Judge(by_quality, lambda _: "Hm."), rows(5), labelled(4), scoring="choice")
    assert found["votes"]["unreadable"] == {"no option named": 10}
    assert found["pairs"] == {"asked": 5, "decided": 0, "ties": 0, "unreadable": 5, "identical": 0}
    assert found["labelled"]["accuracy"]["n"] == 0
    assert outcome.ledger.dropped == {"unparsed": 5}
    assert {k: v for k, v in outcome.metrics.items() if "labelled" in k and "usage" not in k} == {"labelled n": 0}
    assert ("votes read", "0 of 10", "no option named 10") in told_of(tmp_path)


def test_principles_that_disagree_are_told_apart(tmp_path: Path) -> None:
    def leaning(first: str, second: str, principle: str) -> float:
        longer = 1.0 if len(first) > len(second) else -1.0
        better = 1.0 if quality(first) > quality(second) else -1.0
        return longer if "Which is 0?" in principle else better

    asked = [row for row in rows(300) if len(row.answers[0]) != len(row.answers[1])]
    found, _ = report(tmp_path, Judge(leaning), asked, principles="ensemble", ensemble=4)
    odd = sum((len(a) > len(b)) != (quality(a) > quality(b)) for a, b in (row.answers for row in asked))
    n = len(asked)
    principles = found["principles"]
    # Of the six pairs of four principles three hold p0.
    assert principles["pairwise agreement"]["value"] == pytest.approx(1 - odd * 3 / (6 * n), abs=1e-6)
    assert principles["pairwise agreement"]["n"] == 6 * n
    assert principles["each"]["p0"]["agrees with the others"] == _rounded(share(n - odd, n))
    assert principles["each"]["p1"]["agrees with the others"]["value"] == 1
    assert principles["each"]["p0"]["mean p of the longer"]["value"] == pytest.approx(sigmoid(1), abs=1e-6)
    assert principles["each"]["p0"]["pairs"] == n
    assert any(name == "principles agree" for name, _, _ in told_of(tmp_path))


def test_krippendorffs_alpha_is_that_of_the_pairs_both_ways_round() -> None:
    draw = random.Random(5)
    units = [[draw.choice((0.0, 0.5, 1.0)) for _ in range(draw.randrange(1, 5))] for _ in range(40)]
    found = Alpha()
    for unit in units:
        found.add(unit)
    mirrored = [u for unit in units if len(unit) > 1 for u in (unit, [1 - v for v in unit])]
    values = [v for unit in mirrored for v in unit]
    n = len(values)
    observed = sum(2 * sum(a != b for a, b in combinations(unit, 2)) / (len(unit) - 1) for unit in mirrored) / n
    expected = sum(2 * (a != b) for a, b in combinations(values, 2)) / (n * (n - 1))
    assert found.figure().value == pytest.approx(1 - observed / expected, abs=1e-6)
    same = Alpha()
    for verdict in (1.0, 1.0, 0.0):
        same.add([verdict] * 3)
    assert same.figure() == PlainFigure(1, 3)


def test_figures_of_one_row_count_as_much_as_they_are_worth() -> None:
    single, fourfold, plain = Mean(), Mean(), Mean()
    draw = random.Random(2)
    for _ in range(200):
        value = float(draw.random() < 0.7)
        plain.add([value])
        single.add([value])
        fourfold.add([value] * 4)
    wide, told = plain.share(), fourfold.share()
    assert replace(told, n=200) == wide, "four copies of a value are one value"
    assert asdict(wide) == _rounded(share(plain.total, 200))
    assert fourfold.mean().low == plain.mean().low
    alike = Mean()
    for _ in range(10):
        alike.add([1.0] * 7)
    assert asdict(alike.share()) == {**_rounded(share(10, 10)), "n": 70}
    assert Mean().share().value is None
    assert Correlation().figure().value is None


def test_the_interval_of_a_mean_holds_the_truth_as_often_as_it_says() -> None:
    draw = random.Random(11)
    held = 0
    for _ in range(400):
        found = Mean()
        for _ in range(40):
            row = draw.gauss(0, 1)
            found.add([row + draw.gauss(0, 0.3) for _ in range(draw.randrange(1, 6))])
        figure = found.mean()
        assert figure.low is not None
        assert figure.high is not None
        held += figure.low < 0 < figure.high
    assert 0.91 < held / 400 < 0.985


STOPS: list[dict[str, Any]] = [
    {"scoring": "logprob", "principles": "ensemble", "ensemble": 2},
    {"scoring": "choice", "order": "random", "samples": 2, "sampling": {"temperature": 1.0}, "reasoning": True},
    {"scoring": "contrast"},
    {"scoring": "best_worst", "principles": "ensemble", "ensemble": 2, "abstain": "tie"},
]


@pytest.mark.parametrize("fields", STOPS)
def test_the_report_is_the_same_bytes_wherever_the_work_was_stopped(fields: dict[str, Any], tmp_path: Path) -> None:
    prompts = {"contrast": "judge_contrast.jinja", "best_worst": "comparison_set.jinja"}
    prompt = shipped(prompts.get(fields["scoring"], "comparison.jinja"))
    texts = {"prompt": prompt, "exemplars": shipped("few_shots/judge.yaml")}

    class Wordy(Memory):
        def complete(self, model: str, batch: str, request: Request) -> Completion:
            done = super().complete(model, batch, request)
            text = f"{done.text} ({'AB'[len(done.text) % 2]})"
            if "/set/" in request.id:  # one in three cannot be read
                text = f"Best: ({'AB'[request.seed % 2]}), worst: ({'BCB'[request.seed % 3]})"
            return Completion(request.id, text, 1, 3, Finish.STOP)

    def judged(folder: Path, engine: Memory) -> bytes:
        inputs = {
            "model": artifact(folder / "m", "model"),
            "candidates": artifact(folder / "c", "candidates", rows(7, answers=3)),
            "labelled": artifact(folder / "l", "comparisons", labelled(5)),
        }
        odd = {"labelled": "l", "uncalibrated": True, "max_drop_rate": 1.0}
        spec = judge_spec(model="m", candidates="c", chunk=3, **odd, **fields)
        outcome = run(spec, context(folder, engine, inputs, texts))
        assert outcome.calls > 0
        return (folder / "out/judge_report.json").read_bytes() + (folder / "out/rows.jsonl").read_bytes()

    engine = Wordy()
    whole = judged(tmp_path / "whole", engine)
    assert engine.open == 0
    for stop_at in range(1, engine.calls + 1):
        folder = tmp_path / f"stopped{stop_at}"
        with pytest.raises(Stopped):
            judged(folder, Wordy(stop_at=stop_at))
        assert judged(folder, Wordy()) == whole


def test_the_summary_says_every_figure_with_its_interval(tmp_path: Path) -> None:
    report(tmp_path, Judge(lambda a, b, _: by_quality(a, b, "") + 0.5), rows(60), labelled(80))
    told = {name: (value, meaning) for name, value, meaning in told_of(tmp_path)}
    assert list(told) == [
        "votes read",
        "pairs decided",
        "swap consistency",
        "position bias",
        "longer wins",
        "labelled: accuracy",
        "labelled: kappa",
        "labelled: above best rule",
        "labelled: log loss",
        "labelled: calibration error",
        "labelled: longer preferred",
    ]
    assert told["position bias"][0].startswith("+0.")
    assert "n=120" in told["position bias"][0]
    assert "coin 50%" in told["labelled: accuracy"][1]
    report(tmp_path / "empty", Judge(by_quality), [Candidates("r", user("q"), ("1 a",))])
    assert [name for name, _, _ in told_of(tmp_path / "empty")] == ["votes read", "pairs decided"]
