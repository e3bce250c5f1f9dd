"""The stages that ask a model: rows, reasons, seeds, and the same bytes after being stopped anywhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from cai.clients.base import Completion, Finish
from cai.data.rows import Candidates, Comparison, Conversation, Prompt, read_rows
from cai.stages import KINDS
from cai.stages.base import take_apart
from cai.stages.flow.generation import Unfinished, settled
from cai.stages.respond import RespondSpec
from cai.stages.revise import ReviseSpec
from cai.stages.sample import SampleSpec
from tests.support.stage_doubles import Memory, Stopped, artifact, context, shipped, user

ROWS = [Prompt(f"row{i:02}", user(f"Question {i}?"), f"topic{i % 3}") for i in range(10)]


def prompts(folder: Path) -> dict[str, Any]:
    return {"model": artifact(folder / "base", "model"), "prompts": artifact(folder / "prompts", "prompts", ROWS)}


def responses(folder: Path) -> dict[str, Any]:
    from cai.chat import Message

    rows = [Conversation(r.id, (*r.messages, Message("assistant", f"Bad {r.id}.")), r.topic) for r in ROWS]
    return {"model": artifact(folder / "base", "model"), "responses": artifact(folder / "responses", "responses", rows)}


def candidates(folder: Path) -> dict[str, Any]:
    rows = [Candidates(r.id, r.messages, (f"kind {i}", f"rude {i}", "other"), r.topic) for i, r in enumerate(ROWS)]
    return {"model": artifact(folder / "base", "model"), "candidates": artifact(folder / "c", "candidates", rows)}


REVISE = {n: shipped(f"{n}.jinja") for n in ("critique", "revision")} | {
    "few_shots": shipped("few_shots/revision.yaml")
}
JUDGE_TEXTS = {"prompt": shipped("judge_contrast.jinja"), "exemplars": shipped("few_shots/judge.yaml")}
LETTERS = {"prompt": shipped("comparison.jinja")}
TOGETHER = {"prompt": shipped("comparison_set.jinja")}
BASE = {"model": "base", "chunk": 3}
STAGES: list[tuple[dict[str, Any], Any, dict[str, str]]] = [
    ({"kind": "respond", "prompts": "prompts", **BASE}, prompts, {}),
    ({"kind": "sample", "prompts": "prompts", "n": 3, **BASE}, prompts, {}),
    ({"kind": "revise", "responses": "r", "rounds": 2, **BASE}, responses, REVISE),
    (
        {"kind": "revise", "responses": "r", "rounds": 3, "train_on": "all", "direct": True, **BASE},
        responses,
        REVISE,
    ),
    ({"kind": "judge", "candidates": "c", "scoring": "contrast", **BASE}, candidates, JUDGE_TEXTS),
    ({"kind": "judge", "candidates": "c", "scoring": "logprob", "reasoning": True, **BASE}, candidates, LETTERS),
    (
        # None of what the double says can be read as a choice.
        {"kind": "judge", "candidates": "c", "scoring": "choice", "pairs": "best_worst", "max_drop_rate": 1.0, **BASE},
        candidates,
        LETTERS,
    ),
    ({"kind": "judge", "candidates": "c", "scoring": "best_worst", "abstain": "tie", **BASE}, candidates, TOGETHER),
]


def run(folder: Path, raw: dict[str, Any], inputs: Any, texts: dict[str, str], engine: Memory) -> bytes:
    kind = KINDS[raw["kind"]]
    kind.run(kind.spec.model_validate(raw), context(folder, engine, inputs(folder), texts))
    return (folder / "out" / "rows.jsonl").read_bytes()


@pytest.mark.parametrize(("raw", "inputs", "texts"), STAGES)
def test_a_stage_stopped_at_any_call_gives_the_bytes_of_an_uninterrupted_one(
    raw: dict[str, Any], inputs: Any, texts: dict[str, str], tmp_path: Path
) -> None:
    engine = Memory()
    whole = run(tmp_path / "whole", raw, inputs, texts, engine)
    assert engine.open == 0
    assert engine.calls >= 4
    for stop_at in range(1, engine.calls + 1):
        folder = tmp_path / f"stopped{stop_at}"
        stopped = Memory(stop_at=stop_at)
        with pytest.raises(Stopped):
            run(folder, raw, inputs, texts, stopped)
        assert stopped.open == 0, "the model stays served after a failure"
        assert run(folder, raw, inputs, texts, Memory()) == whole


def test_a_finished_stage_serves_no_model_again(tmp_path: Path) -> None:
    raw, inputs, texts = STAGES[0]
    run(tmp_path, raw, inputs, texts, Memory())
    engine = Memory()
    run(tmp_path, raw, inputs, texts, engine)
    assert engine.served == []


@pytest.mark.parametrize(("raw", "inputs", "texts"), STAGES[:4])
def test_the_ledger_balances_and_rows_keep_their_order(
    raw: dict[str, Any], inputs: Any, texts: dict[str, str], tmp_path: Path
) -> None:
    kind = KINDS[raw["kind"]]
    # Rows 3 and 7 get nothing usable.
    engine = Memory(texts={"Question 3?": "  ", "Question 7?": ""})
    outcome = kind.run(kind.spec.model_validate(raw), context(tmp_path, engine, inputs(tmp_path), texts))
    ledger = outcome.ledger
    assert ledger.rows_in == ledger.rows_out + sum(ledger.dropped.values())
    assert sum(ledger.dropped.values()) > 0
    written = [json.loads(line)["id"] for line in (tmp_path / "out/rows.jsonl").read_text().splitlines()]
    assert len(written) == ledger.rows_out
    assert written == sorted(written)
    assert not any(name.startswith(("row03", "row07")) for name in written)
    assert outcome.calls > 0
    assert outcome.tokens > 0


def test_respond_appends_the_answer_and_keeps_topic(tmp_path: Path) -> None:
    spec = RespondSpec(model="base", prompts="prompts", limit=2, system="Be brief.")
    KINDS["respond"].run(spec, context(tmp_path, Memory(texts={"Be brief.": "Sure."}), prompts(tmp_path)))
    rows = list(read_rows(tmp_path / "out/rows.jsonl", Conversation))
    assert [(r.id, r.topic, [m.content for m in r.messages]) for r in rows] == [
        ("row00", "topic0", ["Question 0?", "Sure."]),
        ("row01", "topic1", ["Question 1?", "Sure."]),
    ]


def test_repeated_ids_are_asked_once_and_counted(tmp_path: Path) -> None:
    inputs = prompts(tmp_path) | {"prompts": artifact(tmp_path / "twice", "prompts", [*ROWS, ROWS[0], ROWS[1]])}
    spec = RespondSpec(model="base", prompts="prompts")
    outcome = KINDS["respond"].run(spec, context(tmp_path, Memory(), inputs))
    assert outcome.ledger.dropped == {"repeated id": 2}
    assert (outcome.ledger.rows_in, outcome.ledger.rows_out) == (12, 10)


@pytest.mark.parametrize(
    ("text", "finish", "unfinished", "expected"),
    [
        ("One. Two is cut", Finish.LENGTH, Unfinished.TRIM, ("One.", "")),
        ('He said "No." And', Finish.LENGTH, Unfinished.TRIM, ('He said "No."', "")),
        ("One. Two is cut", Finish.LENGTH, Unfinished.KEEP, ("One. Two is cut", "")),
        ("One. Two is cut", Finish.LENGTH, Unfinished.DROP, ("", "unfinished")),
        ("no sentence ends", Finish.LENGTH, Unfinished.TRIM, ("", "unfinished")),
        ("no full stop", Finish.STOP, Unfinished.DROP, ("no full stop", "")),
        (" \n", Finish.LENGTH, Unfinished.KEEP, ("", "empty")),
    ],
)
def test_an_answer_that_was_cut(text: str, finish: Finish, unfinished: Unfinished, expected: tuple[str, str]) -> None:
    assert settled(Completion("r", text, 1, 1, finish), unfinished) == expected


def test_every_candidate_has_a_seed_and_temperature_of_its_own(tmp_path: Path) -> None:
    asked = []

    class Listening(Memory):
        def complete(self, model: str, batch: str, request: Any) -> Completion:
            asked.append(request)
            return super().complete(model, batch, request)

    spec = SampleSpec(model="base", prompts="prompts", n=3, temperatures=(0.0, 0.5, 1.0), limit=2)
    KINDS["sample"].run(spec, context(tmp_path, Listening(), prompts(tmp_path)))
    assert len({r.seed for r in asked}) == 6
    assert sorted(r.sampling.temperature for r in asked) == [0, 0, 0.5, 0.5, 1, 1]
    assert asked[0].sampling.stop == ("<|im_end|>",)


def test_identical_candidates_are_left_out_and_counted(tmp_path: Path) -> None:
    engine = Memory(texts={"Question 1?": "The same."})
    spec = SampleSpec(model="base", prompts="prompts", n=3)
    outcome = KINDS["sample"].run(spec, context(tmp_path, engine, prompts(tmp_path)))
    assert outcome.ledger.dropped == {"identical": 1}
    assert outcome.metrics["identical candidates"] == 2
    kept = SampleSpec(model="base", prompts="prompts", n=3, distinct=False)
    again = KINDS["sample"].run(kept, context(tmp_path / "kept", engine, prompts(tmp_path)))
    assert again.ledger.dropped == {}


def test_temperatures_must_fit(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="2 values for n=3"):
        SampleSpec(model="m", prompts="p", n=3, temperatures=(0.1, 0.2))
    with pytest.raises(ValidationError, match="greedy"):
        SampleSpec(model="m", prompts="p", n=2, sampling={"temperature": 0})


def revise(folder: Path, engine: Memory, **fields: Any) -> tuple[Any, list[Conversation]]:
    spec = ReviseSpec(model="base", responses="r", **fields)
    outcome = KINDS["revise"].run(spec, context(folder, engine, responses(folder), REVISE))
    return outcome, list(read_rows(folder / "out/rows.jsonl", Conversation))  # type: ignore[arg-type]


def test_each_round_keeps_its_principle_critique_and_revision(tmp_path: Path) -> None:
    _, rows = revise(tmp_path, Memory(), rounds=3)
    for row in rows:
        rounds = row.meta["rounds"]
        assert [r["round"] for r in rounds] == [1, 2, 3]
        assert row.answer == rounds[-1]["revision"]
        assert row.meta["response"] == f"Bad {row.id}."
        assert all(r["critique"] for r in rounds)
    assert len({r["principle"] for row in rows for r in row.meta["rounds"]}) == 4


def test_a_direct_revision_asks_for_no_critique(tmp_path: Path) -> None:
    outcome, rows = revise(tmp_path, Memory(), direct=True)
    assert outcome.calls == len(ROWS)
    assert all(row.meta["rounds"][0]["critique"] == "" for row in rows)


def test_which_revisions_train(tmp_path: Path) -> None:
    _, every = revise(tmp_path / "all", Memory(), rounds=3, train_on="all")
    _, some = revise(tmp_path / "some", Memory(), rounds=3, train_on="upto:2")
    _, final = revise(tmp_path / "final", Memory(), rounds=3)
    assert [r.id for r in every[:3]] == ["row00/1", "row00/2", "row00/3"]
    assert [r.id for r in some[:2]] == ["row00/1", "row00/2"]
    assert [r.answer for r in every if r.id.endswith("/3")] == [r.answer for r in final]
    assert [len(r.meta["rounds"]) for r in every[:3]] == [1, 2, 3]


@pytest.mark.parametrize(
    ("texts", "reason"),
    [
        ({"Question 2?": ""}, "critique: empty"),
        ({"Question 2? & Revise": "Revision: no."}, "revision: garbled"),
        ({"Question 2? & Bad row02. & Revise": "Bad ROW02."}, "revision: unchanged"),
        ({"Question 2? & Bad row02. & Revise": "I can not do it. I can not do it."}, "revision: repeats itself"),
        ({"Question 2?": "The critique says it. The critique says it."}, "critique: repeats itself"),
    ],
)
def test_a_failed_round_is_dropped_or_kept_as_the_spec_says(texts: dict[str, str], reason: str, tmp_path: Path) -> None:
    outcome, rows = revise(tmp_path / "drop", Memory(texts=texts))
    assert outcome.ledger.dropped == {reason: 1}
    assert "row02" not in [row.id for row in rows]
    outcome, rows = revise(tmp_path / "keep", Memory(texts=texts), failed="keep", unchanged="keep")
    assert outcome.ledger.dropped == {}
    assert outcome.metrics[f"kept: {reason}"] == 1
    assert "row02" in [row.id for row in rows]


def test_a_revision_copied_from_the_few_shots_is_noticed(tmp_path: Path) -> None:
    import yaml

    copied = yaml.safe_load(REVISE["few_shots"])["shots"][1]["revision"]
    engine = Memory(texts={"Question 2? & Bad row02. & Revise": copied.upper()})
    outcome, _ = revise(tmp_path, engine)
    assert outcome.ledger.dropped == {"revision: copied from the few-shots": 1}


def test_train_on_must_name_a_round_there_is() -> None:
    with pytest.raises(ValidationError, match="only 2 rounds"):
        ReviseSpec(model="m", responses="r", rounds=2, train_on="upto:3")


def test_only_texts_that_are_read_count() -> None:
    read = KINDS["judge"].spec
    contrast = take_apart(
        read.model_validate({"kind": "judge", "model": "m", "candidates": "c", "scoring": "contrast"})
    )
    letters = take_apart(read.model_validate({"kind": "judge", "model": "m", "candidates": "c"}))
    assert set(contrast.texts) == {"prompt", "exemplars"}
    assert letters.texts == {"prompt": ("prompt_templates", "comparison.jinja")}


def test_estimates_follow_the_rows() -> None:
    spec = ReviseSpec(model="m", responses="r", rounds=2, train_on="all", limit=5)
    estimate = spec.estimate({"model": None, "responses": 10})
    assert (estimate.rows, estimate.calls) == (10, 20)
    assert ReviseSpec(model="m", responses="r").estimate({"responses": None}).rows is None
    sample = SampleSpec(model="m", prompts="p", n=4, sampling={"max_tokens": 10}).estimate({"prompts": 3})
    assert (sample.rows, sample.calls, sample.tokens) == (3, 12, 120)


def test_comparisons_serve_as_prompts(tmp_path: Path) -> None:
    rows = [Comparison("c1", user("Which?"), "a", "b")]
    inputs = prompts(tmp_path) | {"prompts": artifact(tmp_path / "pairs", "comparisons", rows)}
    KINDS["respond"].run(RespondSpec(model="base", prompts="p"), context(tmp_path, Memory(), inputs))
    (row,) = read_rows(tmp_path / "out/rows.jsonl", Conversation)
    assert [m.role for m in row.messages] == ["user", "assistant"]
