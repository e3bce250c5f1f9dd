"""What is known of data while planning stands in the plan, and a training without rows is an error."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cai.errors import SpecError
from cai.files.library import Library, shipped_root
from cai.planning.resolver import resolve_data
from tests.support.small_experiment import raw_experiment


@pytest.fixture
def raw(tmp_path, monkeypatch):
    return raw_experiment(tmp_path, monkeypatch)


def plan(raw):
    return resolve_data(raw, Library((Path.cwd(), shipped_root())))


def add_prompts(*lines):
    with Path("prompts.jsonl").open("a") as file:
        file.writelines(f"{line}\n" for line in lines)


def test_dropped_rows_and_duplicates_are_told_once_where_the_source_is_first_read(raw):
    add_prompts("junk", json.dumps({"prompt": "question 3"}))
    steps = {step.name: step for step in plan(raw).steps}
    assert steps["asked.sl"].notes == [
        "of 42 records 1 makes no row: not_json 1",
        "of 42 records 1 is a duplicate of an earlier one, and read once",
    ]
    assert steps["asked.rl"].notes == []


def test_notes_do_not_count(raw):
    before = {step.name: step.key for step in plan(raw).steps if step.kind != "read"}
    raw["data"]["asked"]["splits"] = {"sl": 0.5, "rl": 0.5}
    assert {step.name: step.key for step in plan(raw).steps if step.kind != "read"} == before


def test_a_poor_split_is_told_at_the_part(raw):
    Path("prompts.jsonl").write_text('{"prompt": "one"}\n{"prompt": "two"}\n{"prompt": "three"}\n')
    raw["data"]["asked"]["splits"] = {"sl": 0.9999, "rl": 0.0001}
    for name in ("sample", "judge", "reward", "rl"):
        del raw["stages"][name]
    raw["stages"]["evaluate"] = {"models": {"base": "base"}, "prompts": {"all": "asked.rl"}}
    steps = {step.name: step for step in plan(raw).steps}
    assert (
        steps["asked.rl"].notes[0].startswith("gets none of 3 rows where its share is 0.0003 (all parts: sl 3, rl 0)")
    )


def test_training_on_no_rows_is_an_error_that_names_the_data(raw):
    Path("prompts.jsonl").write_text('{"prompt": "one"}\n{"prompt": "two"}\n{"prompt": "three"}\n')
    raw["data"]["asked"]["splits"] = {"sl": 0.0001, "rl": 0.9999}
    with pytest.raises(SpecError) as error:
        plan(raw)
    (problem,) = error.value.problems
    assert problem.where == "stages.sft.data"
    assert problem.message == "would train on no rows: 'sl_mix' has none, since 'asked.sl' has none"
    assert "'asked.sl'" in problem.next


def test_a_mix_of_which_everything_is_held_out_is_refused(raw):
    raw["stages"]["sl_mix"]["held_out"] = ["revise", "asked.rl"]
    with pytest.raises(SpecError, match=r"stages\.sl_mix: held_out names every source, so no row would be left"):
        plan(raw)


def test_data_that_no_row_can_be_made_of_is_told_beside_everything_else(raw):
    Path("prompts.jsonl").write_text('{"question": "one", "answer": "two"}\n')
    raw["stages"]["judge"]["candidates"] = "smaple"
    with pytest.raises(SpecError) as error:
        plan(raw)
    places = {problem.where: problem for problem in error.value.problems}
    assert set(places) == {"data.asked", "stages.judge.candidates"}
    assert "columns question, answer" in places["data.asked"].message
    assert places["data.asked"].next == "write `options: {columns: {prompt: question}}`"


def test_a_small_share_of_many_rows_is_not_taken_for_none(raw):
    add_prompts(*(json.dumps({"prompt": f"{i} {'x' * 900}"}) for i in range(3000)))
    raw["data"]["asked"]["splits"] = {"sl": 0.0001, "rl": 0.9999}
    assert {step.name: step for step in plan(raw).steps}["asked.sl"].estimate.rows is None


def test_data_that_cannot_be_read_is_looked_at_once_by_all_parts_and_cells(raw, monkeypatch):
    from cai.planning import data_steps

    calls = []
    real = data_steps.look_at
    monkeypatch.setattr(data_steps, "look_at", lambda *args: calls.append(args) or real(*args))
    Path("prompts.jsonl").write_text("junk\n")
    looked = {}
    for seed in (0, 1):
        with pytest.raises(SpecError, match="no record makes a row"):
            resolve_data({**raw, "seed": seed}, Library((Path.cwd(), shipped_root())), looked=looked)
    assert len(calls) == 1
