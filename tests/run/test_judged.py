"""Training looks at the judges behind it, whenever their labels were made, and results tell what they rest on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from cai.commands.jobs import status_verb
from cai.errors import StepFailed
from cai.figures.intervals import Interval, share
from cai.figures.judge_report import JUDGE_REPORT, BeyondChance, JudgeReport, LabelFigures, write_judge_report
from cai.figures.running_sums import rounded_interval
from cai.plan import Ingredients, Plan, Step, inputs_of
from cai.report import overview
from cai.report.model import Text
from cai.report.runs import Run
from cai.run.executor import run
from cai.run.finished import read_finished
from cai.run.judged import judge_remarks, judges_behind
from cai.run.results import RunResult
from cai.run.status import statuses_since
from cai.stages.base import Context, Ledger, Outcome, StageSpec, take_apart
from cai.stages.judge.spec import ChoiceJudge, JudgeSpec
from cai.store.artifacts import Store
from cai.store.events import new_run_folder
from cai.sweep.board import label_notes
from cai.terminal.plan_view import plan_data
from cai.terminal.summary import Block, summarize
from tests.support.executor_kinds import CountSpec, Kind, count, no_engine, step

AT_CHANCE = LabelFigures(
    counts={"rows": 200},
    accuracy=rounded_interval(share(102, 200)),
    beyond_chance=BeyondChance(kappa=Interval(0.02, -0.12, 0.16, 200)),
)
GOOD = LabelFigures(
    counts={"rows": 200},
    accuracy=rounded_interval(share(150, 200)),
    beyond_chance=BeyondChance(Interval(0.5, 0.37, 0.61, 200), "always the longer", Interval(0.2, 0.1, 0.3, 200)),
)
OLD = LabelFigures(accuracy=rounded_interval(share(102, 200)))
"""Of a program that did not know of kappa."""
MEASURED = "agreement 0.51 (0.44 to 0.58), kappa 0.02 (-0.12 to 0.16), over 200 labelled pairs"
REMARK = f"'judge': labels of an uncalibrated judge: {MEASURED}."


class PlainSpec(StageSpec):
    MAKES: ClassVar[str] = "comparisons"
    kind: str = "mix"


class Site:
    """Runs of one plan, whose judge's report says what ``labels`` are; ``trained`` counts what was trained."""

    def __init__(self, folder: Path) -> None:
        self.store = Store(folder / "home")
        self.runs = folder / "runs"
        self.labels: LabelFigures | None = AT_CHANCE
        self.trained: list[str] = []

    def judge(self, spec: JudgeSpec, ctx: Context) -> Outcome:
        (ctx.out / "train.jsonl").write_text("{}\n")
        write_judge_report(ctx.out / JUDGE_REPORT, JudgeReport(labelled=self.labels))
        return Outcome(Ledger(1, 1))

    def mix(self, spec: PlainSpec, ctx: Context) -> Outcome:
        (ctx.out / "train.jsonl").write_text("{}\n")
        return Outcome(Ledger(1, 1))

    def train(self, spec: PlainSpec, ctx: Context) -> Outcome:
        self.trained.append(ctx.name)
        (ctx.out / "model").write_text("m")
        return Outcome(Ledger(1, 1))

    def run(self, plan: Plan) -> RunResult:
        kinds = {
            "count": Kind(CountSpec, count),
            "judge": Kind(ChoiceJudge, self.judge),
            "mix": Kind(PlainSpec, self.mix),
            "reward": Kind(PlainSpec, self.train),
            "rl": Kind(PlainSpec, self.train),
        }
        where = new_run_folder(self.runs, plan.experiment)
        return run(plan, store=self.store, run_dir=where, make_engine=no_engine, kinds=kinds)

    def remarks(self, plan: Plan) -> list[str]:
        stored = {each.name: self.store.find(each.kind, each.key) for each in plan.steps}
        return judge_remarks(plan, {name: artifact for name, artifact in stored.items() if artifact is not None})


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def plain(name: str, kind: str, reads: Step) -> Step:
    ingredients = Ingredients(kind=kind, version=1, spec={}, seed=0, inputs={"data": reads.key})
    spec, inputs = {"kind": kind}, inputs_of({"data": reads.name})
    return Step(name, kind, "comparisons", ingredients.key(), 0, inputs, spec, ingredients=ingredients)


def plan_of(name: str = "judged", **fields: Any) -> Plan:
    """answers -> judge -> mix -> reward -> rl."""
    answers = step("answers", rows=2)
    written = {"model": "m", "candidates": "answers", "labelled": "people", **fields}
    spec = ChoiceJudge.model_validate({"kind": "judge", "scoring": "choice", **written})
    ingredients = Ingredients(
        kind="judge", version=2, spec=take_apart(spec).semantic, seed=0, inputs={"candidates": answers.key}
    )
    inputs = inputs_of({"candidates": "answers"})
    plain_spec = spec.model_dump(mode="json")
    judge = Step("judge", "judge", "comparisons", ingredients.key(), 0, inputs, plain_spec, ingredients=ingredients)
    mix = plain("mix", "mix", judge)
    reward = plain("reward", "reward", mix)
    return Plan(name, 0, {"kind": "none"}, (answers, judge, mix, reward, plain("rl", "rl", reward)))


def test_the_judges_behind_a_step_are_found_through_every_step_between() -> None:
    plan = plan_of()
    assert [each.name for each in judges_behind(plan, plan.step("rl"))] == ["judge"]
    assert judges_behind(plan, plan.step("answers")) == []


@pytest.mark.parametrize("labels", [AT_CHANCE, OLD])
def test_labels_that_lie_in_the_store_already_are_looked_at_before_they_are_learnt(
    site: Site, labels: LabelFigures
) -> None:
    site.labels = labels
    with pytest.raises(StepFailed) as raised:
        site.run(plan_of())
    assert raised.value.exit_code == 1
    words = str(raised.value)
    assert words.startswith(
        "reward (reward): it would learn the labels of 'judge': the judge is not clearly better than"
    )
    assert "over 200 labelled pairs" in words
    assert "`uncalibrated: true`" in words
    assert site.trained == []
    # The word alone is enough, and nothing but the training is done again.
    done = site.run(plan_of(uncalibrated=True))
    assert [each.step.name for each in done.steps if not each.reused] == ["reward", "rl"]
    assert site.trained == ["reward", "rl"]


def test_who_asks_for_less_first_does_not_ask_for_others(site: Site) -> None:
    site.run(plan_of("mine", uncalibrated=True))
    theirs = plan_of("theirs")
    later = replace(theirs, steps=(*theirs.steps[:4], replace(plain("rl", "rl", theirs.step("mix")), name="rl2")))
    with pytest.raises(StepFailed, match=r"rl2 \(rl\): it would learn the labels of 'judge'"):
        site.run(later)


def test_labels_of_a_judge_that_passes_are_learnt_and_nothing_is_said(site: Site) -> None:
    site.labels = GOOD
    site.run(plan_of())
    assert site.trained == ["reward", "rl"]
    assert site.remarks(plan_of()) == []
    assert site.remarks(plan_of(uncalibrated=True)) == [
        "'judge': labels of an uncalibrated judge: agreement 0.75 (0.69 to 0.80), kappa 0.50 (0.37 to 0.61), over 200 "
        "labelled pairs; that is better than chance, so its stage need not say `uncalibrated`."
    ]


def test_labels_of_a_judge_without_labelled_pairs_are_learnt_as_ever_and_it_is_said(site: Site) -> None:
    site.labels = None
    plan = plan_of(labelled=None)
    site.run(plan)
    assert site.trained == ["reward", "rl"]
    assert site.remarks(plan) == [
        "'judge': labels of a judge that is not calibrated: it was held against no labelled pairs, "
        "so nothing says that they are better than chance."
    ]


def test_what_an_uncalibrated_judge_measured_is_told(site: Site) -> None:
    plan = plan_of(uncalibrated=True)
    assert site.remarks(plan) == ["'judge': labels of an uncalibrated judge: not measured yet."]
    site.run(plan)
    assert site.remarks(plan) == [REMARK]
    verdict = "not clearly better than chance"
    assert site.remarks(plan_of()) == [f"'judge': labels of a judge that is {verdict}: {MEASURED}."]


def test_every_telling_of_a_run_repeats_it(
    site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CAI_HOME", str(site.store.home))
    done = site.run(plan_of(uncalibrated=True))
    summary = summarize(done.plan, done.run_dir, {each.step.name: each.artifact for each in done.steps})
    assert summary.blocks[:2] == (
        Block("heading", ("What the labels rest on",)),
        Block("bullets", (REMARK,)),
    ), "before any result"
    finished = read_finished(done.run_dir, site.store)
    (told,) = (
        block for block in overview.summary([Run("run", finished)]).blocks if REMARK in getattr(block, "lines", ())
    )
    assert isinstance(told, Text)
    capsys.readouterr()
    assert status_verb([str(done.run_dir)]) == 0
    assert f"\n{REMARK}\n" in capsys.readouterr().out
    status_verb([str(done.run_dir), "--format", "json"])
    assert json.loads(capsys.readouterr().out)["labels"] == [REMARK]


def test_the_leaderboard_of_a_sweep_says_of_which_cells(site: Site) -> None:
    spoken = read_finished(site.run(plan_of("spoken", uncalibrated=True)).run_dir, site.store)
    site.labels = GOOD
    silent = read_finished(site.run(plan_of("silent", margin=0.1)).run_dir, site.store)
    assert list(label_notes({1: spoken, 2: silent, 3: spoken})) == [f"cells 1, 3: {REMARK}"]
    assert list(label_notes({1: spoken})) == [REMARK]
    assert list(label_notes({1: silent})) == []


@pytest.mark.parametrize(
    ("fields", "note"),
    [
        ({}, None),
        ({"labelled": None}, "not calibrated: held against no labelled pairs (labelled)"),
        ({"uncalibrated": True}, "uncalibrated: its labels are trained on whatever labelled pairs say of it"),
    ],
)
def test_the_plan_says_it_before(site: Site, fields: dict[str, Any], note: str | None) -> None:
    plan = plan_of(**fields)
    data = plan_data(plan, statuses_since(None, plan, site.store))
    notes = {each["name"]: each["notes"] for each in data["steps"]}
    assert notes["judge"] == ([note] if note else [])
    assert not any(notes[name] for name in notes if name != "judge")


def test_a_report_that_cannot_be_read_stops_no_telling(tmp_path: Path) -> None:
    (tmp_path / JUDGE_REPORT).write_text("{")
    (remark,) = judge_remarks(plan_of(), {"judge": Folder(tmp_path)})
    assert remark.startswith("'judge': what its labels rest on is not known: ")


class Folder:
    """An artifact that is a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
