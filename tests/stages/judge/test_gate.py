"""A judge at chance stops its run before anything trains on its labels, unless the experiment says that it may."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cai.clients.base import Completion, Finish, Request
from cai.data.rows import Candidates, Comparison
from cai.errors import StepFailed
from cai.figures.judge_report import JUDGE_REPORT, LabelFigures, read_judge_report
from cai.figures.judge_standing import JudgeStanding, standing
from cai.stages.base import Outcome, take_apart
from cai.stages.judge.spec import judge_spec
from cai.stages.judge.stage import run
from tests.support.stage_doubles import Memory, artifact, context, user

PROMPT = "{#---\ndescription: test\nkind: prompt\nformat: text\n---#}\n{{ first }}|{{ second }}|"
Better = Callable[[str, str], bool]
CANDIDATES = [Candidates(f"r{i}", user("q"), (f"{i} one", f"{i + 1} two")) for i in range(5)]


class Choosing(Memory):
    """Writes (A) where the first of two answers is the better one to it; keeps what it was asked."""

    def __init__(self, better: Better) -> None:
        super().__init__()
        self.better = better
        self.prompts: list[str] = []

    def complete(self, model: str, batch: str, request: Request) -> Completion:
        first, second = request.prompt.split("|")[:2]
        self.prompts.append(request.prompt)
        return Completion(request.id, "(A)" if self.better(first.strip(), second) else "(B)", 1, 1, Finish.STOP)


def quality(answer: str) -> float:
    return float(answer.split()[0])


def labelled(n: int, *, noise: float = 0.0) -> list[Comparison]:
    """Pairs of which the better answer has the higher number; in a share ``noise`` of them people say otherwise.

    The lengths of the answers say nothing.
    """
    draw = random.Random(5)
    pairs = []
    for i in range(n):
        better, worse = f"{draw.uniform(5, 9):.3f} of {i}", f"{draw.uniform(1, 5):.3f} of {i}"
        if draw.random() < noise:
            better, worse = worse, better
        tails = [" x" * draw.randrange(4) for _ in range(2)]
        pairs.append(Comparison(f"p{i}", user("q"), better + tails[0], worse + tails[1]))
    return pairs


def by_quality(first: str, second: str) -> bool:
    return quality(first) > quality(second)


def by_number(first: str, second: str) -> bool:
    """Reads the last digits of the better one's number: the same in both orders, and nothing to do with the labels."""
    return int(first.split()[0][-2:]) > int(second.split()[0][-2:])


def by_length(first: str, second: str) -> bool:
    return (len(first), first) > (len(second), second)


def judge(folder: Path, engine: Choosing, pairs: list[Comparison], **fields: Any) -> Outcome:
    inputs = {"model": artifact(folder / "m", "model"), "candidates": artifact(folder / "c", "candidates", CANDIDATES)}
    if pairs:
        inputs["labelled"] = artifact(folder / "l", "comparisons", pairs)
        fields = {"labelled": "people", "labelled_limit": None, **fields}
    spec = judge_spec(model="m", candidates="c", scoring="choice", **fields)
    return run(spec, context(folder, engine, inputs, {"prompt": PROMPT}))


def figures(folder: Path) -> LabelFigures:
    labels = read_judge_report(folder / "out" / JUDGE_REPORT).labelled
    assert labels is not None
    return labels


def test_a_judge_at_chance_stops_before_it_judges_a_row(tmp_path: Path) -> None:
    engine = Choosing(by_number)
    with pytest.raises(StepFailed) as raised:
        judge(tmp_path, engine, labelled(120))
    words = str(raised.value)
    assert words.startswith("the judge is not clearly better than chance (the lower bound of kappa must be above 0): ")
    assert re.search(r"agreement 0\.\d\d \(.*\), kappa .*, over 120 labelled pairs; 'always the .*' has 0\.\d\d", words)
    for todo in ("another judge", "another scoring", "more labelled pairs", "`uncalibrated: true`"):
        assert todo in words
    assert len(engine.prompts) == 2 * 120, "the labelled pairs alone are paid for"
    assert not any("one" in prompt for prompt in engine.prompts)
    assert list((tmp_path / "out").iterdir()) == []


def test_an_experiment_may_say_that_it_wants_such_labels(tmp_path: Path) -> None:
    outcome = judge(tmp_path, Choosing(by_number), labelled(120), uncalibrated=True)
    assert outcome.ledger.rows_out == 5
    labels = figures(tmp_path)
    assert standing(labels) is JudgeStanding.AT_CHANCE
    assert labels.beyond_chance is not None
    assert outcome.metrics["labelled kappa"] == labels.beyond_chance.kappa.value


def test_a_judge_that_reads_the_answers_passes_and_is_above_every_rule(tmp_path: Path) -> None:
    judge(tmp_path, Choosing(by_quality), labelled(120, noise=0.2))
    labels = figures(tmp_path)
    beyond = labels.beyond_chance
    assert beyond is not None
    assert standing(labels) is JudgeStanding.ABOVE_RULES
    assert labels.accuracy.value is not None
    # The order of the answers is drawn, so that chance agrees on about half.
    assert beyond.kappa.value == pytest.approx(2 * labels.accuracy.value - 1, abs=0.03)
    best = labels.baselines[beyond.best_rule].accuracy.value
    assert best == max(rule.accuracy.value or 0 for name, rule in labels.baselines.items() if name != "a coin")
    assert beyond.above_best_rule.value == pytest.approx(labels.accuracy.value - (best or 0), abs=1e-5)


def test_a_judge_of_lengths_is_better_than_chance_and_not_than_the_rule(tmp_path: Path) -> None:
    pairs = [
        Comparison(f"p{i}", user("q"), f"{i} long and longer", f"{i} short")
        if i % 4
        else Comparison(f"p{i}", user("q"), f"{i} short", f"{i} long and longer")
        for i in range(80)
    ]
    judge(tmp_path, Choosing(by_length), pairs)
    labels = figures(tmp_path)
    assert labels.beyond_chance is not None
    assert labels.beyond_chance.best_rule == "always the longer"
    assert labels.beyond_chance.above_best_rule.value == 0
    assert standing(labels) is JudgeStanding.ABOVE_CHANCE


def test_more_may_be_asked_of_it(tmp_path: Path) -> None:
    judge(tmp_path / "fair", Choosing(by_quality), labelled(120, noise=0.2), min_kappa=0.3)
    with pytest.raises(StepFailed, match=r"not clearly above min_kappa 0\.7 \(the lower bound of kappa must"):
        judge(tmp_path / "much", Choosing(by_quality), labelled(120, noise=0.2), min_kappa=0.7)


def test_a_judge_that_contradicts_itself_has_a_kappa_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(StepFailed, match=r"agreement 0\.50 \(0\.41 to 0\.59\), kappa 0\.00 \(-0\.18 to 0\.18\)"):
        judge(tmp_path, Choosing(lambda first, second: True), labelled(120))


def test_pairs_that_all_could_not_be_read_are_no_calibration(tmp_path: Path) -> None:
    pairs = [Comparison(f"p{i}", user("q"), f"{i} same", f"{i} same") for i in range(3)]
    with pytest.raises(StepFailed, match=r"none of 3 labelled pairs could be compared \(identical 3\)"):
        judge(tmp_path, Choosing(by_quality), pairs)


def test_three_pairs_prove_nothing(tmp_path: Path) -> None:
    with pytest.raises(StepFailed, match="over 3 labelled pairs"):
        judge(tmp_path, Choosing(by_quality), labelled(3))


def test_without_labelled_pairs_all_is_as_it_was(tmp_path: Path) -> None:
    engine = Choosing(by_number)
    outcome = judge(tmp_path, engine, [])
    assert outcome.ledger.rows_out == 5
    assert len(engine.prompts) == 2 * 5
    assert read_judge_report(tmp_path / "out" / JUDGE_REPORT).labelled is None


def test_what_may_be_trained_on_is_no_part_of_what_the_labels_are() -> None:
    plain = take_apart(judge_spec(model="m", candidates="c", labelled="l"))
    said = take_apart(judge_spec(model="m", candidates="c", labelled="l", uncalibrated=True, min_kappa=0.4))
    assert plain == said
