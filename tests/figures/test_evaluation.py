"""``evaluation.json``: written and read by one type, whatever program wrote it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cai.errors import SpecError
from cai.figures.evaluation import (
    VERSION,
    AdherenceFigures,
    AxisRatings,
    Evaluation,
    ExampleAnswers,
    ModelFigures,
    ModelWins,
    PrincipleChange,
    PromptSetFigures,
    RevisionFigures,
    RevisionRound,
    RewardModelFigures,
    parse_evaluation,
    read_evaluation,
    write_evaluation,
)
from cai.figures.intervals import Interval, mean, share, wins
from tests.support import report_runs

REWARDS = [0.25, -1.5, 1 / 3, 2.0, 1e-9]


def whole() -> Evaluation:
    """An evaluation with every part."""
    figures = ModelFigures(
        reward=mean(REWARDS),
        reward_by_topic={"law": mean(REWARDS[:3])},
        tokens=mean([3.0, 4.0, 5.0]),
        distinct_2=0.5,
        different_answers=1.0,
        empty=1,
        refusals=share(1, 5),
    )
    won = ModelWins("rl", "base", value=0.75, low=0.3, high=0.95, n=5, wins=3, ties=1, losses=1)
    return Evaluation(
        models=("base", "rl"),
        sets={"red": PromptSetFigures(5, False, {"base": ModelFigures(), "rl": figures}, (won,), (won,))},
        axes={"harmlessness": ("red",)},
        elo={"harmlessness": AxisRatings("base", {"base": Interval(0.0, 0.0, 0.0, 5), "rl": Interval(90.5, n=5)}, 5)},
        over_refusal={"rl": share(0, 0)},
        reward_model={"pairs": RewardModelFigures(share(3.5, 5), by_kind={"easy": share(2, 2)})},
        revisions={
            "revise": RevisionFigures(
                rows=5,
                rounds=(RevisionRound(0, mean(REWARDS)), RevisionRound(1, wins=wins([1.0, 2.0], [1.0, 0.0]))),
                by_principle={"kind": PrincipleChange(Interval(0.5, n=2), 2)},
            )
        },
        adherence=AdherenceFigures("judge", 10, 1, {"red": {"rl": {"kind": share(1, 5)}}}),
        examples=(ExampleAnswers("red", "r0", "law", "Is it „fair“?", {"rl": "No\n."}, {"rl": None}),),
        caveats=("Few rows.",),
    )


@pytest.mark.parametrize("evaluation", [whole(), Evaluation(models=("base",), sets={})], ids=["whole", "bare"])
def test_what_is_written_is_read_and_written_again_with_the_same_bytes(evaluation: Evaluation, tmp_path: Path) -> None:
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    write_evaluation(first, evaluation)
    assert read_evaluation(first) == evaluation
    write_evaluation(second, read_evaluation(first))
    assert second.read_bytes() == first.read_bytes()


def test_the_file_says_its_version_first_and_keeps_the_order_that_it_always_had(tmp_path: Path) -> None:
    write_evaluation(tmp_path / "evaluation.json", whole())
    document = json.loads((tmp_path / "evaluation.json").read_text(encoding="utf-8"))
    parts = "models sets axes elo over_refusal reward_model revisions adherence examples caveats"
    assert list(document) == ["version", *parts.split()]
    assert document["version"] == VERSION
    assert list(document["sets"]["red"]) == ["rows", "benign", "models", "wins", "pairs"]
    measured = "reward reward_by_topic tokens characters distinct_1 distinct_2 self_bleu different_answers empty"
    measured += " refusals evasive repetition ended reward_length_correlation"
    assert list(document["sets"]["red"]["models"]["rl"]) == measured.split()
    won = ["value", "low", "high", "n", "wins", "ties", "losses"]
    assert list(document["sets"]["red"]["wins"][0]) == ["model", "against", *won]
    assert list(document["revisions"]["revise"]["rounds"][1]["wins"]) == won
    changed = document["revisions"]["revise"]["by_principle"]["kind"]
    assert changed == {"change": {"value": 0.5, "low": None, "high": None, "n": 2}, "n": 2}


def test_without_a_judge_adherence_is_an_empty_object(tmp_path: Path) -> None:
    write_evaluation(tmp_path / "evaluation.json", Evaluation(models=("base",), sets={}))
    assert json.loads((tmp_path / "evaluation.json").read_text(encoding="utf-8"))["adherence"] == {}
    assert read_evaluation(tmp_path / "evaluation.json").adherence is None


def test_a_file_of_before_there_were_versions_is_read_and_what_it_lacks_is_empty() -> None:
    document = report_runs.evaluation(new=False)
    assert "version" not in document
    evaluation = parse_evaluation(document)
    assert evaluation.version == 1
    assert (evaluation.axes, evaluation.elo, evaluation.over_refusal, evaluation.revisions) == ({}, {}, {}, {})
    assert evaluation.adherence is None
    red = evaluation.sets["red_team"]
    assert red.models["base"].tokens == Interval(30.0, 28.0, 32.0, 40)
    assert (red.models["base"].evasive, red.models["base"].self_bleu) == (Interval(), None)
    assert red.comparisons == red.wins != ()
    assert red.pairs == ()


def test_keys_that_this_program_does_not_know_are_left_out() -> None:
    document = report_runs.evaluation()
    known = parse_evaluation(document)
    document["weather"] = "fine"
    document["sets"]["red_team"]["mood"] = {"value": 1.0}
    document["sets"]["red_team"]["models"]["base"]["reward"]["median"] = 0.0
    assert parse_evaluation(document) == known


def test_a_file_of_a_newer_program_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "evaluation.json"
    path.write_text(json.dumps({"version": VERSION + 1, "models": "other", "sets": []}), encoding="utf-8")
    with pytest.raises(SpecError) as error:
        read_evaluation(path)
    assert str(error.value) == (
        f"{path}: an evaluation of version {VERSION + 1}, and this program reads up to {VERSION}; "
        "upgrade constitution-as-code"
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "cannot be read (Expecting property name"),
        ("[]", "is no JSON object"),
        ("{}", "cannot be read (models: "),
        ('{"models": ["m"], "sets": {"red": {"rows": "many"}}}', "cannot be read (sets.red.rows: "),
        ('{"version": "new", "models": ["m"], "sets": {}}', "cannot be read (version: "),
        (b"\xff", "cannot be read ("),
        (None, "cannot be read ([Errno 2]"),
    ],
)
def test_a_damaged_or_foreign_file_is_told_by_its_place(text: Any, words: str, tmp_path: Path) -> None:
    path = tmp_path / "evaluation.json"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(SpecError) as error:
        read_evaluation(path)
    assert str(error.value).startswith(f"{path}: {words}")
    assert str(error.value).endswith("; run `store verify`")


def test_the_types_are_imported_without_anything_heavy() -> None:
    program = "import sys, cai.figures.evaluation; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert not {"torch", "numpy", "scipy", "pydantic"} & set(loaded.split())
