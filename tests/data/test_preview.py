"""A look at data while planning: what no row can be made of is refused with the line to write, the rest is told."""

from __future__ import annotations

import gzip
import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from cai.data import preview
from cai.data.preview import look_at
from cai.data.readers import READERS
from cai.data.shares import balancing_seed
from cai.data.source import DataSource, part_rows
from cai.errors import SpecError

TRANSCRIPTS = {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"}


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(*records: Any, name: str = "rows.jsonl") -> None:
    lines = (record if isinstance(record, str) else json.dumps(record) for record in records)
    Path(name).write_text("".join(f"{line}\n" for line in lines))


def source(path: str | list[str] = "rows.jsonl", **fields: Any) -> DataSource:
    return DataSource.model_validate({"path": path, "makes": "prompts", **fields})


def refusal(**fields: Any) -> str:
    with pytest.raises(SpecError) as error:
        look_at(source(**fields))
    return str(error.value)


@pytest.mark.parametrize(
    ("record", "makes", "words"),
    [
        ({"question": "q", "answer": "a"}, "prompts", "columns question, answer; write `options: {columns: {prompt: q"),
        (
            {"question": "q", "response": "a"},
            "conversations",
            "write `options: {columns: {prompt: question, answer: response}}`",
        ),
        (
            {"instruction": "q", "preferred": "a", "dispreferred": "b"},
            "comparisons",
            "{prompt: instruction, chosen: preferred, rejected: dispreferred}",
        ),
        ({"q": "only one text", "n": 3}, "prompts", "write `options: {columns: {prompt: q}}`"),
        ({"foo": "x", "bar": "y"}, "prompts", "columns foo, bar; prompts want prompt or messages: write"),
        ({"conversations": [{"from": "human", "value": "x"}]}, "prompts", "write `reader: sft_datablend`"),
        (TRANSCRIPTS, "comparisons", "write `reader: hh_rlhf`"),
        ({"prompt": "q"}, "comparisons", "of these records only prompts can be made: write `makes: prompts`"),
    ],
)
def test_columns_that_make_no_row_come_with_the_line_to_write(record: Any, makes: str, words: str) -> None:
    write(*[record] * 9)
    refused = refusal(makes=makes)
    assert "'rows.jsonl': no record makes a row (missing_" in refused
    assert words in refused


def test_the_line_to_write_makes_rows() -> None:
    write(*({"question": f"q{i}", "response": "a"} for i in range(9)))
    assert "{prompt: question, answer: response}" in refusal(makes="conversations")
    columns = {"prompt": "question", "answer": "response"}
    assert look_at(source(makes="conversations", options={"columns": columns})).counts == {"all": 9}


def test_a_column_that_is_named_and_not_there_is_told() -> None:
    write(*({"ask": "a", "other": "b"} for _ in range(3)))
    assert "there is no column 'aks' for prompt; did you mean 'ask'?" in refusal(options={"columns": {"prompt": "aks"}})


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty: it holds no record"),
        (b"name,text\n1,hello\n", "(not_json 2); it looks like a table of text (CSV, TSV)"),
        (b"PAR1\x00\x00PAR1", "it is a parquet file: write `reader: parquet`"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
        (gzip.compress(b'{"prompt": "x"}\n' * 99, mtime=0)[:-20], "damaged"),
        (b'[{"prompt": "x"}] more', "goes on after the end of its JSON array"),
    ],
)
def test_what_is_no_data_is_refused(content: bytes, words: str) -> None:
    Path("rows.jsonl").write_bytes(content)
    assert words in refusal()


def test_rows_that_will_be_dropped_are_told_by_reason_and_duplicates_as_duplicates() -> None:
    write(*({"prompt": f"q{i % 5}"} for i in range(9)), {"x": 1}, "junk")
    look = look_at(source())
    assert look.counts == {"all": 5}
    assert look.notes == (
        "of 11 records 2 make no row: not_json 1, missing_prompt 1",
        "of 11 records 4 are duplicates of earlier ones, and read once",
    )


def test_where_most_is_dropped_the_line_to_write_is_told_too() -> None:
    write({"prompt": "a"}, *({"question": f"q{i}"} for i in range(9)))
    (note,) = look_at(source()).notes
    assert "9 make no row: missing_prompt 9; is that meant?" in note


def test_of_several_files_those_that_give_nothing_are_told() -> None:
    write({"prompt": "a"}, name="a.jsonl")
    write({"text": "b"}, name="b.jsonl")
    Path("c.jsonl").touch()
    notes = look_at(source(["a.jsonl", "b.jsonl", "c.jsonl"])).notes
    assert "'b.jsonl': no record makes a row (missing_prompt 1)" in notes
    assert "'c.jsonl': is empty" in notes


def test_a_file_that_equals_an_earlier_one_makes_rows_all_the_same() -> None:
    write(*({"prompt": f"q{i}"} for i in range(3)), name="a.jsonl")
    write(*({"prompt": f"q{i}"} for i in range(3)), "", name="b.jsonl")
    look = look_at(source(["a.jsonl", "b.jsonl"]))
    assert look.counts == {"all": 3}
    assert look.notes == ("of 6 records 3 are duplicates of earlier ones, and read once",)


# ---- large and hostile files ---------------------------------------------------------------------------------------


def test_of_a_large_file_the_beginning_is_looked_at_and_the_lines_are_counted() -> None:
    write(*({"prompt": f"{i} {'x' * 900}"} for i in range(6000)), *({"x": "y" * 900} for _ in range(3000)))
    look = look_at(source(splits={"a": 0.5, "b": 0.5}))
    assert look.counts == {"a": 4500, "b": 4500}
    assert not look.notes
    assert [len(rows) for rows in look.examples.values()] == [2, 2]
    first = [next(part_rows(source(splits={"a": 0.5, "b": 0.5}), part)) for part in ("a", "b")]
    assert [rows[0] for rows in look.examples.values()] == first


def test_a_large_file_is_refused_only_when_much_more_of_it_has_no_row_either() -> None:
    useless = [{"pompt": f"{i} {'x' * 900}"} for i in range(6000)]
    write(*useless)
    assert "no record makes a row (missing_prompt 6,000)" in refusal()
    write(*useless, {"prompt": "at last"})
    (note,) = look_at(source()).notes
    assert "of the first 6,001 records 6,000 make no row: missing_prompt 6,000; is that meant?" in note


def test_rows_that_the_options_leave_out_are_no_reason_to_refuse_a_large_file() -> None:
    record = {"transcript": "\n\nHuman: x\n\nAssistant: " + "y" * 900, "rating": 0, "tags": None}
    write(*[record] * 4000)
    look = look_at(source(reader="hh_red_team", options={"min_rating": 2}))
    assert "make no row: filtered" in look.notes[0]


@pytest.mark.parametrize("line", ['{"prompt": "%s"}\n' % ("x" * 999), "x" * 999 + "\n", "\n" * 999])
def test_what_unpacks_to_much_is_read_for_a_moment_only(line: str) -> None:
    Path("rows.jsonl").write_bytes(gzip.compress(line.encode() * 200_000, 1))  # 200 MB
    began = time.process_time()
    with suppress(SpecError):
        look_at(source())
    assert time.process_time() - began < 10


def test_an_endless_record_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preview, "MOST_WITHOUT_ROWS", 4 << 20)
    Path("rows.jsonl").write_bytes(b'[{"prompt": "' + b"x" * (12 << 20) + b'"}]')
    assert look_at(source(expect=3)).counts == {"all": None}


def test_every_reader_looks_at_the_beginning_only() -> None:
    for reader in READERS.values():
        assert "most" in reader.records.__code__.co_varnames  # type: ignore[attr-defined]


def test_a_large_table_is_looked_at_too() -> None:
    import pyarrow
    import pyarrow.parquet

    rows = {"question": [f"{i} {'x' * 400}" for i in range(9000)]}
    pyarrow.parquet.write_table(pyarrow.table(rows), "rows.parquet", compression="none")
    assert "write `options: {columns: {prompt: question}}`" in refusal(path="rows.parquet", reader="parquet")
    columns = {"columns": {"prompt": "question"}}
    look = look_at(source("rows.parquet", reader="parquet", options=columns))
    assert len(look.examples["all"]) == 2


# ---- parts ---------------------------------------------------------------------------------------------------------


def poor_split() -> DataSource:
    """24 prompts of which the parts get 21, 2 and 1 where their shares are 14, 6 and 4."""
    for text in range(5000):
        rows = [{"prompt": f"question {text} {i}"} for i in range(24)]
        write(*rows)
        candidate = source(splits={"train": 0.6, "val": 0.25, "test": 0.15})
        counts = {part: sum(1 for _ in part_rows(candidate, part)) for part in candidate.splits}
        if counts["val"] <= 2 and counts["test"] <= 1:
            return candidate
    raise AssertionError("no such rows")


def test_a_part_that_gets_far_fewer_rows_than_its_share_is_told_with_what_to_write() -> None:
    of = poor_split()
    look = look_at(of)
    assert set(look.part_notes) == {"val", "test"}
    (note,) = look.part_notes["val"]
    every = ", ".join(f"{part} {n}" for part, n in look.counts.items())
    assert note.startswith(
        f"gets {look.counts['val'] or 'none'} of 24 rows where its share is 6 (all parts: {every}); "
    )
    seed = int(note.split("`split_seed: ")[1].split("`")[0])
    mended = look_at(of.model_copy(update={"split_seed": seed}))
    assert not mended.part_notes
    assert all(abs((mended.counts[part] or 0) - want) <= 1 for part, want in (("val", 6), ("test", 3.6)))


def test_shares_that_are_kept_are_not_told() -> None:
    write(*({"prompt": f"question {i}"} for i in range(400)))
    assert not look_at(source(splits={"train": 0.6, "val": 0.25, "test": 0.15})).part_notes
    assert not look_at(source()).part_notes


def test_a_part_without_rows_is_told_when_no_seed_helps() -> None:
    write({"prompt": "only one"}, {"prompt": "only one", "system": "twice"})
    of = source(splits={"a": 0.5, "b": 0.5})
    (notes,) = look_at(of).part_notes.values()
    assert notes[0].startswith("gets none of 2 rows where its share is 1")
    assert notes[0].endswith("each prompt falls into a part by its hash: use other shares, or more rows")
    assert balancing_seed(of, list(part_rows(of, "a")) + list(part_rows(of, "b"))) is None
