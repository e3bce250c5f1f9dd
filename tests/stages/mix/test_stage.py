"""Mixing: nothing is lost without a reason, and no prompt is on both sides of the split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from cai.chat import Message
from cai.data.rows import Comparison, Conversation, Prompt, Row
from cai.errors import PlanError
from cai.stages.mix.stage import MixSpec, prompt_group
from tests.support.mixing import mix
from tests.support.small_tokenizers import word_level_folder
from tests.support.stage_doubles import TEMPLATE, artifact, user


def talk(name: str, question: str, answer: str = "An answer.") -> Conversation:
    return Conversation(name, (*user(question), Message("assistant", answer)))


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.9, 0.99])
def test_no_prompt_is_on_both_sides(share: float, tmp_path: Path) -> None:
    rows: list[Row] = [talk(f"r{i}", f"question {i % 17}", f"answer {i}") for i in range(100)]
    rows += [talk(f"shout{i}", f"  QUESTION  {i}", "x") for i in range(17)]
    _, train, val = mix(tmp_path, [rows], {"val": share})
    assert len(train) + len(val) == len(rows)
    assert train
    assert val
    assert not {prompt_group(r) for r in train} & {prompt_group(r) for r in val}


def test_turns_of_one_conversation_stay_together() -> None:
    short = talk("a", "Hello", "Hi.")
    longer = Conversation("b", (*short.messages, *user("And then?"), Message("assistant", "Then.")))
    assert prompt_group(short) == prompt_group(longer)


def test_the_split_moves_no_row_when_others_come(tmp_path: Path) -> None:
    rows: list[Row] = [talk(f"r{i}", f"question {i}") for i in range(60)]
    _, train, val = mix(tmp_path / "a", [rows], {"val": 0.2})
    _, more, more_val = mix(tmp_path / "b", [[*rows, *(talk(f"n{i}", f"new {i}") for i in range(20))]], {"val": 0.2})
    assert {r.id for r in val} <= {r.id for r in more_val}
    assert {r.id for r in train} <= {r.id for r in more}
    assert [r.id for r in more if r.id.startswith("r")] == [r.id for r in train], "the order holds too"


def test_duplicates_go_across_sources(tmp_path: Path) -> None:
    one: list[Row] = [talk(f"a{i}", f"q{i}") for i in range(5)]
    two: list[Row] = [talk(f"b{i}", f"q{i}") for i in range(3)] + [talk("b9", "q1", "Another answer.")]
    outcome, train, val = mix(tmp_path, [one, two], {})
    assert outcome.ledger.dropped == {"duplicate": 3}
    assert len(train) + len(val) == 6


def test_ratio_counts_from_the_first_source(tmp_path: Path) -> None:
    one: list[Row] = [talk(f"a{i}", f"q{i}") for i in range(10)]
    two: list[Row] = [talk(f"b{i}", f"p{i}") for i in range(40)]
    sources = [{"from": "a", "rows": 8}, {"from": "b", "ratio": 1.5}]
    outcome, train, val = mix(tmp_path, [one, two], {"sources": sources})
    names = [r.id[0] for r in [*train, *val]]
    assert (names.count("a"), names.count("b")) == (8, 12)
    assert outcome.ledger.dropped == {"not chosen": 30}
    larger = [{"from": "a", "rows": 8}, {"from": "b", "ratio": 2}]
    _, more, more_val = mix(tmp_path / "more", [one, two], {"sources": larger})
    assert {r.id for r in [*train, *val]} < {r.id for r in [*more, *more_val]}, "more rows keep those of fewer"


def test_held_out_prompts_are_not_trained_on(tmp_path: Path) -> None:
    rows: list[Row] = [talk(f"a{i}", f"Question {i}") for i in range(10)]
    test = artifact(tmp_path / "test", "prompts", [Prompt("t", user("question  3"))])
    outcome, train, val = mix(tmp_path, [rows], {"held_out": ["test"]}, held_out=(test,))
    assert outcome.ledger.dropped == {"held out": 1}
    assert "a3" not in {r.id for r in [*train, *val]}


@pytest.mark.parametrize("kind", ["conversations", "comparisons"])
def test_the_length_is_that_of_the_rendered_text_in_the_models_tokens(kind: str, tmp_path: Path) -> None:
    model = artifact(word_level_folder(tmp_path / "model"), "model")
    long = "word " * 30
    if kind == "conversations":
        rows: list[Row] = [talk("a", "q", "short"), talk("b", "q2", long)]
    else:
        rows = [Comparison("a", user("q"), "x", "y"), Comparison("b", user("q2"), "x", long)]
    outcome, train, val = mix(tmp_path, [rows], {"model": "m", "max_tokens": 30, "val": 0}, model=model)
    assert outcome.ledger.dropped == {"too long": 1}
    assert [r.id for r in train] == ["a"]
    assert val == []


def test_the_length_in_characters_counts_the_template(tmp_path: Path) -> None:
    rows: list[Row] = [talk("a", "q", "short")]
    size = len(TEMPLATE.render(rows[0].messages))
    assert mix(tmp_path / "fits", [rows], {"max_chars": size})[0].ledger.rows_out == 1
    assert mix(tmp_path / "long", [rows], {"max_chars": size - 1})[0].ledger.dropped == {"too long": 1}


def test_a_mix_of_comparisons_makes_comparisons(tmp_path: Path) -> None:
    rows: list[Row] = [Comparison(f"c{i}", user(f"q{i}"), "yes", "no", 0.7) for i in range(5)]
    outcome, train, val = mix(tmp_path, [rows, [Comparison("d", user("q1"), "yes", "other")]], {})
    assert outcome.ledger.dropped == {}
    assert {r.p_chosen for r in [*train, *val] if isinstance(r, Comparison)} == {0.7, 1.0}


def test_the_kind_follows_the_sources() -> None:
    spec = MixSpec.model_validate({"kind": "mix", "sources": [{"from": "a"}, {"from": "b"}]})
    assert spec.makes({"sources.0": "revisions", "sources.1": "conversations"}) == "conversations"
    assert spec.makes({"sources.0": "comparisons", "sources.1": "comparisons", "model": "model"}) == "comparisons"
    with pytest.raises(PlanError, match="make one mix of each"):
        spec.makes({"sources.0": "revisions", "sources.1": "comparisons"})


@pytest.mark.parametrize(
    ("raw", "match"),
    [
        ({"sources": []}, "at least 1"),
        ({"sources": [{"from": "a", "ratio": 1}]}, "first source"),
        ({"sources": [{"from": "a"}, {"from": "b", "rows": 2, "ratio": 1}]}, "not both"),
        ({"sources": [{"from": "a"}], "max_tokens": 9}, "give both or neither"),
        ({"sources": [{"from": "a"}], "val": 1}, "less than 1"),
    ],
)
def test_settings_that_make_no_sense(raw: dict[str, Any], match: str) -> None:
    with pytest.raises(ValidationError, match=match):
        MixSpec.model_validate({"kind": "mix", **raw})


def test_the_estimate_knows_shares() -> None:
    sources = [{"from": "a", "rows": 8}, {"from": "b", "ratio": 0.5}]
    spec = MixSpec.model_validate({"kind": "mix", "sources": sources})
    assert spec.estimate({"sources": 60, "sources.0": 10, "sources.1": 50}).rows == 12
    assert spec.estimate({"sources": None, "sources.0": None, "sources.1": 50}).rows is None
