"""A plan that trains on what it evaluates on is refused, by the text of the rows, with them and with what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cai.data import preview
from cai.errors import Problem, SpecError
from cai.files.library import Library, shipped_root
from cai.plan import Plan
from cai.planning.resolver import resolve_data
from tests.support.small_experiment import raw_experiment

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def question(n: int, end: str = "") -> str:
    return f"Tell me how thing number {n} of shelf {n * 7} may be taken down and put back unseen{end}"


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """``asked.sl`` and ``asked.rl`` are trained on, ``test`` is evaluated on: nobody's questions."""
    raw = raw_experiment(tmp_path, monkeypatch)
    write("prompts.jsonl", *(question(i) for i in range(20)))
    write("test.jsonl", *(question(i) for i in range(100, 110)))
    raw["data"]["test"] = {"path": "test.jsonl", "makes": "prompts"}
    raw["stages"]["evaluate"] |= {"prompts": {"held": "test"}, "seen": []}
    return raw


def write(name: str, *prompts: str) -> None:
    Path(name).write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))


def plan(raw: dict[str, Any]) -> Plan:
    return resolve_data(raw, Library((Path.cwd(), shipped_root())))


def problems(raw: dict[str, Any]) -> list[Problem]:
    with pytest.raises(SpecError) as error:
        plan(raw)
    return list(error.value.problems)


def read_by(raw: dict[str, Any], part: str) -> list[str]:
    """The prompts of a part of ``asked``, as a plan's read step has them."""
    source = preview.DataSource.model_validate(raw["data"]["asked"])
    return [row.messages[0].content for row in preview.rows_seen(source, part)]


def test_what_is_apart_is_planned(raw: dict[str, Any]) -> None:
    assert plan(raw).step("evaluate").sources("prompts") == ("test",)


def test_parts_of_one_source_are_held_apart_by_its_split(raw: dict[str, Any]) -> None:
    """People ask the same again in other words; the same part, or the same rows by another name, is no split."""
    write("prompts.jsonl", *(q for i in range(20) for q in (question(i), question(i, " on a Sunday"))))
    raw["data"]["asked"]["splits"] = {"sl": 0.4, "rl": 0.4, "held": 0.2}
    raw["stages"]["evaluate"] |= {"prompts": {"held": "asked.held"}}
    assert plan(raw).step("evaluate").sources("prompts") == ("asked.held",)
    raw["stages"]["evaluate"] |= {"prompts": {"held": "asked.sl"}}
    assert "of which" in problems(raw)[0].message
    raw["data"]["again"] = {"path": "prompts.jsonl", "makes": "prompts"}
    raw["stages"]["evaluate"] |= {"prompts": {"held": "again"}}
    assert "of which" in problems(raw)[0].message


def test_near_duplicates_are_refused_wherever_they_come_from_and_told_once(raw: dict[str, Any]) -> None:
    ours = read_by(raw, "sl")
    near = [f"Well. {ours[0].upper()}, on a Sunday?", ours[1].replace("unseen", "soon")]
    write("test.jsonl", *near, *(question(i) for i in range(100, 110)))
    (problem,) = problems(raw)
    assert problem.where == "stages.sft.data"
    assert problem.message.startswith(
        "trains on 'asked.sl' (by 'sl_mix'), of which 2 rows ask nearly what 'evaluate.prompts.held' asks: "
    )
    assert f"'{ours[0][:40]}" in problem.message
    assert "is like 'Well. TELL ME" in problem.message
    assert "`kind: decontaminate` with `data: asked.sl` and `against:`" in problem.next
    assert "`seen`" in problem.next


def test_each_training_is_looked_at(raw: dict[str, Any]) -> None:
    write("test.jsonl", read_by(raw, "rl")[0], read_by(raw, "sl")[0])
    assert [(p.where, p.message.split(", of which ")[0]) for p in problems(raw)] == [
        ("stages.sft.data", "trains on 'asked.sl' (by 'sl_mix')"),
        ("stages.reward.data", "trains on 'asked.rl' (by 'judge')"),
    ]
    assert "1 row asks nearly what" in problems(raw)[0].message
    for name in ("sl_mix", "sft", "respond", "revise", "sample", "judge", "reward", "rl"):
        del raw["stages"][name]
    raw["stages"]["evaluate"] = {"models": {"base": "base"}, "prompts": {"held": "test"}}
    assert plan(raw), "nothing is trained"


def test_only_the_rows_that_are_evaluated_count(raw: dict[str, Any]) -> None:
    write("test.jsonl", *(question(i) for i in range(100, 110)), read_by(raw, "sl")[0])
    assert problems(raw)
    raw["stages"]["evaluate"]["limit"] = 10
    assert plan(raw)


def test_comparisons_that_the_reward_model_is_checked_on_are_held_apart_too(raw: dict[str, Any]) -> None:
    pair = {"prompt": read_by(raw, "rl")[0], "chosen": "No.", "rejected": "Yes."}
    Path("pairs.jsonl").write_text(json.dumps(pair) + "\n")
    raw["data"]["pairs"] = {"path": "pairs.jsonl", "makes": "comparisons"}
    raw["stages"]["evaluate"]["comparisons"] = {"people": "pairs"}
    (problem,) = problems(raw)
    assert "'evaluate.comparisons.people'" in problem.message
    raw["stages"]["evaluate"]["seen"] = ["people"]
    assert plan(raw)


def test_a_set_that_is_seen_by_intent_says_so_and_keeps_every_key(raw: dict[str, Any]) -> None:
    raw["stages"]["evaluate"]["prompts"] = {"held": "test", "own": "asked.rl"}
    assert "'evaluate.prompts.own'" in problems(raw)[0].message
    raw["stages"]["evaluate"]["seen"] = ["own"]
    seen = plan(raw).step("evaluate").key
    raw["stages"]["evaluate"]["seen"] = ["own", "held"]
    assert plan(raw).step("evaluate").key == seen
    raw["stages"]["evaluate"]["seen"] = ["mine"]
    with pytest.raises(SpecError, match=r"stages\.evaluate: seen names 'mine', which is no set"):
        plan(raw)


def test_rows_that_a_stage_leaves_out_are_no_problem(raw: dict[str, Any]) -> None:
    write("test.jsonl", read_by(raw, "sl")[0], read_by(raw, "rl")[0])
    stages = raw["stages"]
    stages["clean"] = {"kind": "decontaminate", "data": "asked.rl", "against": ["test"]}
    stages["sample"]["prompts"] = stages["rl"]["prompts"] = "clean"
    assert [p.where for p in problems(raw)] == ["stages.sft.data"], "asked.sl is not held apart"
    stages["clean_sl"] = {"kind": "decontaminate", "data": "revise", "against": ["test"]}
    stages["sl_mix"]["sources"] = [{"from": "clean_sl"}]
    steps = {step.name: step for step in plan(raw).steps}
    assert (steps["clean"].makes, steps["clean_sl"].makes) == ("prompts", "conversations")
    assert steps["clean"].estimate.rows == len(read_by(raw, "rl"))
    keys = {name: step.key for name, step in steps.items()}
    raw["seed"] = 5
    again = {step.name: step.key for step in plan(raw).steps}
    assert again["clean"] == keys["clean"], "nothing is drawn in it"
    # Held apart from something else it is as it was.
    write("other.jsonl", "Something else")
    raw["data"]["other"] = {"path": "other.jsonl", "makes": "prompts"}
    stages["clean"]["against"] = ["other"]
    assert [p.where for p in problems(raw)] == ["stages.reward.data"]


def test_equal_questions_that_a_mix_holds_out_are_no_problem_but_near_ones_are(raw: dict[str, Any]) -> None:
    raw["stages"]["sl_mix"]["held_out"] = ["test"]
    write("test.jsonl", read_by(raw, "sl")[0])
    assert plan(raw)
    write("test.jsonl", read_by(raw, "sl")[0] + ", please")
    assert [p.where for p in problems(raw)] == ["stages.sft.data"]


def test_a_stage_that_is_to_stay_apart_from_itself_is_refused(raw: dict[str, Any]) -> None:
    raw["stages"]["clean"] = {"kind": "decontaminate", "data": "asked.rl", "against": ["asked.rl"]}
    with pytest.raises(SpecError, match=r"stages\.clean: against names 'asked\.rl' itself, so no row would be left"):
        plan(raw)


@pytest.mark.parametrize("stage", ["sl_mix", "sample", "rl", "judge"])
def test_a_set_for_evaluation_only_is_never_trained_on(raw: dict[str, Any], stage: str) -> None:
    raw["data"]["strong"] = {"path": "public:strongreject", "revision": COMMIT}
    raw["data"]["safety"] = {"path": "public:rewardbench-2/safety", "revision": COMMIT}
    expected = {
        "sl_mix": ("respond", "prompts", "strong", "stages.sft.data", "(by 'sl_mix')"),
        "sample": ("sample", "prompts", "strong", "stages.reward.data", "(by 'judge')"),
        "rl": ("rl", "prompts", "strong", "stages.rl.prompts", ""),
        "judge": ("reward", "data", "safety", "stages.reward.data", ""),
    }
    name, field, data, where, way = expected[stage]
    raw["stages"][name][field] = data
    public = {"strong": "strongreject", "safety": "rewardbench-2/safety"}[data]
    told = {problem.where: problem for problem in problems(raw)}
    space = " " if way else ""
    assert told[where].message == f"trains on '{data}'{space}{way}, which is public:{public}: a set for evaluation only"
    assert "evaluate may read it" in told[where].next


def test_a_set_for_evaluation_only_may_be_evaluated_and_held_out(raw: dict[str, Any]) -> None:
    raw["data"]["strong"] = {"path": "public:strongreject", "revision": COMMIT}
    raw["data"]["safety"] = {"path": "public:rewardbench-2/safety", "revision": COMMIT}
    raw["stages"]["sl_mix"]["held_out"] = ["strong"]
    raw["stages"]["judge"]["labelled"] = "safety"
    raw["stages"]["evaluate"]["prompts"]["strong"] = "strong"
    raw["stages"]["evaluate"]["comparisons"] = {"safety": "safety"}
    assert plan(raw)


def test_of_large_files_only_what_is_sure_is_looked_at(raw: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preview, "SMALL", 1)
    monkeypatch.setattr(preview, "FIRST_RECORDS", 12)
    ours = read_by(raw, "sl")
    assert 0 < len(ours) < 12
    write("test.jsonl", ours[0])
    assert [p.where for p in problems(raw)] == ["stages.sft.data"]
    # Which rows are drawn is decided by all of them, so nothing can be said of the first.
    raw["data"]["asked"]["limit"] = 15
    assert plan(raw)
