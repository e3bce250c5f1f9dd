"""Rows near evaluation data are left out and counted, in all kinds of rows and in all parts; the rest is as it was."""

from __future__ import annotations

from pathlib import Path

from cai.chat import Message
from cai.data.rows import Comparison, Conversation, Prompt, read_rows
from cai.stages.decontaminate import NEAR, DecontaminateSpec, run
from tests.support.stage_doubles import Memory, artifact, context, user

ASKED = "Tell me how the thing on the upper shelf may be taken down and put back unseen"
SPEC = DecontaminateSpec(data="d", against=("t", "u"))


def test_rows_near_any_of_the_sets_are_left_out(tmp_path: Path) -> None:
    rows = [
        Prompt("1", user(ASKED + ", please")),
        Prompt("2", user("What is left?")),
        Prompt("3", user("WHAT is right")),
        Prompt("4", user("And this one?"), topic="t", meta={"a": 1}),
    ]
    inputs = {
        "data": artifact(tmp_path / "d", "prompts", rows=rows),
        "against": (
            artifact(tmp_path / "t", "prompts", rows=[Prompt("x", user(ASKED))]),
            artifact(tmp_path / "u", "comparisons", rows=[Comparison("y", user("What is right?"), "a", "b")]),
        ),
    }
    outcome = run(SPEC, context(tmp_path, Memory(), inputs))
    assert list(read_rows(tmp_path / "out/rows.jsonl", Prompt)) == [rows[1], rows[3]]
    assert (outcome.ledger.rows_in, outcome.ledger.rows_out, outcome.ledger.dropped) == (4, 2, {NEAR: 2})


def test_parts_stay_parts(tmp_path: Path) -> None:
    def said(name: str, text: str) -> Conversation:
        return Conversation(name, (*user(text), Message("assistant", "No.")))

    inputs = {
        "data": artifact(
            tmp_path / "d",
            "conversations",
            train=[said("1", ASKED), said("2", "Why?")],
            val=[said("3", "How?"), said("4", "When?")],
        ),
        "against": (
            artifact(tmp_path / "t", "conversations", train=[said("x", ASKED)], val=[said("y", "When?")]),
            artifact(tmp_path / "u", "prompts", rows=[]),
        ),
    }
    outcome = run(SPEC, context(tmp_path, Memory(), inputs))
    names = {
        name: [row.id for row in read_rows(tmp_path / f"out/{name}.jsonl", Conversation)] for name in ("train", "val")
    }
    assert names == {"train": ["2"], "val": ["3"]}
    assert outcome.ledger.parts == {"train": 1, "val": 1}
    assert outcome.ledger.dropped == {NEAR: 2}
