from __future__ import annotations

import json
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from cai.data.locate import HubFile, hub_file
from cai.data.preview import look_at
from cai.data.source import DataSource, count_rows, part_makes, part_rows, source_identity
from cai.data.splits import OTHER_PART, OVER_LIMIT, nth_lowest, prompt_key, topic_parts
from cai.errors import PrerequisiteError, SpecError
from tests.support.paths import ROOT

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def prompts(path: Path, count: int, topics: int = 4) -> Path:
    rows = ({"prompt": f"Question {i}?", "topic": f"t{i % topics}"} for i in range(count))
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def source(path: Any, **more: Any) -> DataSource:
    return DataSource.model_validate({"path": path, "makes": "prompts", **more})


def texts(of: DataSource, part: str = "all", roots: tuple[Path, ...] = ()) -> list[str]:
    return [r.messages[0].content for r in part_rows(of, part, roots=roots)]


def test_topics_follow_the_shares_exactly() -> None:
    names = [f"topic {i}" for i in range(12)]
    dealt = topic_parts(names, {"a": 0.5, "b": 0.25, "c": 0.25})
    assert Counter(dealt.values()) == {"a": 6, "b": 3, "c": 3}
    assert dealt == topic_parts(reversed(names), {"a": 0.5, "b": 0.25, "c": 0.25})
    assert dealt != topic_parts(names, {"a": 0.5, "b": 0.25, "c": 0.25}, seed=1)
    assert Counter(topic_parts(names[:10], {"a": 0.7, "b": 0.2, "c": 0.1}).values()) == {"a": 7, "b": 2, "c": 1}
    with pytest.raises(SpecError, match="part 'c' would get none"):
        topic_parts(names[:2], {"a": 1, "b": 1, "c": 1})


@pytest.mark.parametrize("by", ["topic", "prompt"])
def test_parts_are_disjoint_and_complete(tmp_path: Path, by: str) -> None:
    of = source(str(prompts(tmp_path / "a.jsonl", 200)), splits={"a": 0.5, "b": 0.25, "c": 0.25}, split_by=by)
    parts = {p: list(part_rows(of, p)) for p in of.splits}
    key = (lambda r: r.topic) if by == "topic" else prompt_key
    keys = [{key(r) for r in rows} for rows in parts.values()]
    assert sum(map(len, parts.values())) == 200 == sum(look_at(of).counts[p] or 0 for p in parts)
    assert not (keys[0] & keys[1])
    assert not (keys[0] & keys[2])
    assert not (keys[1] & keys[2])
    if by == "topic":
        assert [len(rows) for rows in parts.values()] == [100, 50, 50]


def test_one_question_stays_on_one_side_however_it_is_written(tmp_path: Path) -> None:
    pairs = [
        {"prompt": q, "chosen": f"c{i}", "rejected": "r"}
        for i in range(30)
        for q in (f"What is {i}?", f"  what IS   {i}? ")
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(p) + "\n" for p in pairs))
    of = source(str(tmp_path / "a.jsonl"), makes="comparisons", splits={"a": 0.5, "b": 0.5})
    keys = [{prompt_key(r) for r in part_rows(of, p)} for p in of.splits]
    assert all(keys)
    assert not keys[0] & keys[1]


def test_a_row_keeps_its_part_when_others_come(tmp_path: Path) -> None:
    few = source(str(prompts(tmp_path / "few.jsonl", 50)), splits={"a": 0.5, "b": 0.5})
    many = source(str(prompts(tmp_path / "many.jsonl", 90)), splits={"a": 0.5, "b": 0.5})
    assert set(texts(few, "a")) <= set(texts(many, "a"))


def test_the_limit_is_drawn_and_counted(tmp_path: Path) -> None:
    of = source(str(prompts(tmp_path / "a.jsonl", 100)), limit=20)
    tally: Counter[str] = Counter()
    kept = [r.messages[0].content for r in part_rows(of, "all", tally)]
    assert len(kept) == 20 == look_at(of).counts["all"]
    assert tally == {OVER_LIMIT: 80}
    assert kept != [f"Question {i}?" for i in range(20)]
    assert kept == sorted(kept, key=lambda q: int(q.split()[1][:-1]))
    split = source(of.path, limit=20, splits={"a": 0.5, "b": 0.5})
    tally.clear()
    assert {*texts(split, "a"), *texts(split, "b")} == set(kept)
    rows = list(part_rows(split, "a", tally))
    assert tally == {OVER_LIMIT: 80, OTHER_PART: 20 - len(rows)}


@pytest.mark.parametrize("n", [1, 2, 500, 70_000, 100_000, 200_000])
def test_the_nth_lowest_is_that_of_the_sorted_numbers(n: int) -> None:
    draw = random.Random(n)
    numbers = [draw.getrandbits(64) for _ in range(150_000)] + [5, 5, 5, 0, 2**64 - 1]
    draw.shuffle(numbers)
    wanted = sorted(numbers)[n - 1] if n <= len(numbers) else 2**64 - 1
    assert nth_lowest(iter(numbers), n) == wanted


def test_dropped_rows_are_counted_once_though_the_file_is_read_twice(tmp_path: Path) -> None:
    file = prompts(tmp_path / "a.jsonl", 40)
    file.write_text(file.read_text() + "nonsense\n")
    tally: Counter[str] = Counter()
    rows = list(part_rows(source(str(file), splits={"a": 0.5, "b": 0.5}, split_by="topic"), "a", tally))
    assert tally == {"not_json": 1, OTHER_PART: 20}
    assert len(rows) == 20


def test_the_identity_is_the_bytes_and_not_the_name(tmp_path: Path) -> None:
    one, two = prompts(tmp_path / "a.jsonl", 5), prompts(tmp_path / "b.jsonl", 6)
    before = source_identity(source([str(one), str(two)]))
    rows = texts(source([str(one), str(two)]))
    one.rename(tmp_path / "z.jsonl")
    assert source_identity(source(str(tmp_path))) == before
    assert texts(source(str(tmp_path))) == rows
    two.write_text(two.read_text() + "\n")
    assert source_identity(source(str(tmp_path))) != before


@pytest.mark.parametrize(
    "change",
    [{"limit": 3}, {"split_seed": 1}, {"splits": {"a": 0.4, "all": 0.6}}, {"makes": "conversations"}],
)
def test_whatever_decides_the_rows_is_in_the_identity(tmp_path: Path, change: dict[str, Any]) -> None:
    file = str(prompts(tmp_path / "a.jsonl", 5))
    assert source_identity(source(file, **change)) != source_identity(source(file))


def test_the_order_of_the_parts_counts(tmp_path: Path) -> None:
    file = str(prompts(tmp_path / "a.jsonl", 5))
    there, back = ({"a": 0.5, "b": 0.5}, {"b": 0.5, "a": 0.5})
    assert source_identity(source(file, splits=there)) != source_identity(source(file, splits=back))


def test_paths_are_looked_up_in_the_first_root_that_has_them(tmp_path: Path) -> None:
    for name, count in (("mine", 2), ("theirs", 3)):
        (tmp_path / name / "d").mkdir(parents=True)
        prompts(tmp_path / name / "d" / "a.jsonl", count)
    prompts(tmp_path / "theirs" / "d" / "only.jsonl", 4)
    roots = (tmp_path / "mine", tmp_path / "theirs")
    assert len(texts(source("d/a.jsonl"), roots=roots)) == 2
    assert len(texts(source("d/only.jsonl"), roots=roots)) == 4
    assert len(texts(source("d/o*.jsonl"), roots=roots)) == 4
    assert len(texts(source(str(tmp_path / "theirs" / "d" / "*.jsonl")))) == 4


def test_every_missing_path_is_named_with_its_nearest(tmp_path: Path) -> None:
    prompts(tmp_path / "prompts.jsonl", 1)
    with pytest.raises(SpecError) as caught:
        source_identity(source(["promts.jsonl", "hf:a/b:c.jsonl", "hf:a/b@main:c.jsonl"]), (tmp_path,))
    text = str(caught.value)
    assert len(caught.value.problems) == 3
    assert str(tmp_path) in text
    assert "did you mean 'prompts.jsonl'?" in text
    assert "no revision" in text
    assert "'main' can move" in text
    (tmp_path / "empty").mkdir()
    with pytest.raises(SpecError, match=r"that folder has no \.jsonl"):
        source_identity(source("empty"), (tmp_path,))
    with pytest.raises(SpecError, match="leaves the shipped data"):
        source_identity(source("shipped:../../pyproject.toml"))


def test_hub_paths_are_pinned_and_need_no_network_to_plan() -> None:
    assert hub_file(f"hf:org/set@{COMMIT}:d/train.jsonl.gz") == HubFile("org/set", COMMIT, "d/train.jsonl.gz")
    of = source("hf:org/set:x.jsonl", revision=COMMIT)
    assert source_identity(of)["hub"] == [{"name": "org/set", "revision": COMMIT, "file": "x.jsonl"}]
    assert look_at(of).counts["all"] is None


def test_an_unreachable_hub_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(PrerequisiteError, match="give its path instead"):
        texts(source(f"hf:org/set@{COMMIT}:x.jsonl"))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"reader": "hh_rlfh"}, "did you mean 'hh_rlhf'"),
        ({"makes": None}, "say which under `makes`"),
        ({"reader": "hh_red_team", "makes": "comparisons"}, "makes prompts or conversations"),
        ({"options": {"colums": {}}}, "did you mean 'columns'"),
        ({"reader": "hh_red_team", "options": {"min_rating": "high"}}, "must be int or float"),
        ({"reader": "hh_red_team", "options": {"min_rating": True}}, "must be int or float"),
        ({"splits": {"a": 0}}, "greater than 0"),
        ({"splits": {}}, "at least 1"),
        ({"path": []}, "names no file"),
        ({"pth": "x"}, "Extra inputs"),
    ],
)
def test_a_wrong_field_is_refused_with_its_reason(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        DataSource.model_validate({"path": "a.jsonl", "makes": "prompts", **fields})


def test_the_reader_decides_what_is_made_unless_asked() -> None:
    assert part_makes(DataSource(path="x", reader="hh_rlhf")) == "comparisons"
    assert part_makes(DataSource(path="x", reader="hh_rlhf", makes="prompts")) == "prompts"


def test_rows_are_counted_without_reading_them(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"a": 1}\n{"a": 2}')
    assert count_rows(file) == 2
    file.write_text('[{"a": 1}]')
    assert count_rows(file) is None


def test_an_unknown_part_is_refused(tmp_path: Path) -> None:
    of = source(str(prompts(tmp_path / "a.jsonl", 5)), splits={"train": 0.5, "test": 0.5})
    with pytest.raises(SpecError, match="did you mean 'train'"):
        list(part_rows(of, "trian"))


def test_nothing_heavy_is_imported() -> None:
    heavy = ("torch", "datasets", "pyarrow", "huggingface_hub")
    code = f"import sys, cai.data.source; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert out.stdout.strip() == "[]"
