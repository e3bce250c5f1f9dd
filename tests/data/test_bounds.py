"""Files that are small and become large: told at once, and read never."""

from __future__ import annotations

import gzip
import json
import time
from collections import Counter

import pyarrow
import pyarrow.parquet
import pytest

from cai.cli import main
from cai.data import bounds
from cai.data.readers import READERS
from cai.data.readers.tables import parquet_records
from cai.data.records import json_records
from cai.errors import PrerequisiteError

pytestmark = pytest.mark.long


@pytest.fixture
def bomb(tmp_path):
    """Five million rows in twelve thousand bytes."""
    path = tmp_path / "bomb.parquet"
    column = pyarrow.array(["x"]).take(pyarrow.array([0] * 1_000_000, pyarrow.int32()))
    schema = pyarrow.schema([("prompt", pyarrow.string())])
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        for _ in range(5):
            writer.write_table(pyarrow.table([column], schema))
    assert path.stat().st_size < 20_000
    return path


def read_until_refused(records):
    """How many records came before the file was refused."""
    read = []
    with pytest.raises(PrerequisiteError, match="unpacks to more than 200 times"):
        read.extend(None for _ in records)
    return len(read)


def test_a_table_of_more_rows_than_fit_is_refused_before_it_is_read(bomb):
    with pytest.raises(PrerequisiteError, match=r"says that it has 5,000,000 rows in 1\d,\d\d\d bytes"):
        next(parquet_records(bomb, Counter()))


def test_validate_says_so_and_ends_with_two(bomb, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "big.yaml").write_text(
        "defaults:\n  - quickstart\n  - _self_\n"
        "data: {red_team: {path: bomb.parquet, reader: parquet, makes: prompts, split_by: prompt}}\n"
    )
    began = time.process_time()
    assert main(["validate", "experiment=big"]) == 2
    assert time.process_time() - began < 10
    assert "5,000,000 rows" in capsys.readouterr().err


def test_one_large_value_in_every_row_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "wide.parquet"
    column = pyarrow.array(["y" * 1_000_000]).take(pyarrow.array([0] * 2_000, pyarrow.int32()))
    pyarrow.parquet.write_table(pyarrow.table({"prompt": column}), path)
    assert read_until_refused(parquet_records(path, Counter())) < 200


@pytest.mark.parametrize("array", [False, True])
def test_a_gzip_bomb_is_refused(tmp_path, array):
    path = tmp_path / "bomb.jsonl.gz"
    line = json.dumps({"prompt": "x" * 1_000_000})
    with gzip.open(path, "wt", compresslevel=9) as file:
        file.write("[" if array else "")
        for number in range(150):
            file.write(("," if array and number else "") + line + "\n")
        file.write("]" if array else "")
    read = read_until_refused(json_records(path, Counter()))
    assert read * 1_000_000 < bounds.FREE_BYTES + 2_000_000


def test_texts_that_pack_well_are_read(tmp_path):
    path = tmp_path / "texts.jsonl.gz"
    with gzip.open(path, "wt") as file:
        for number in range(50_000):
            file.write(json.dumps({"prompt": f"Question {number}: how is it done?", "topic": "t"}) + "\n")
    assert sum(1 for _ in json_records(path, Counter())) == 50_000


def test_a_table_of_short_texts_is_read(tmp_path):
    path = tmp_path / "texts.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"prompt": [f"q{n}" for n in range(150_000)]}), path)
    assert sum(1 for _ in parquet_records(path, Counter())) == 150_000


@pytest.mark.parametrize(("text", "count"), [("1\n", 50_000), ("{}\n", 50_000), ("\n", 50_000), ('{"a":}\n', 50_000)])
def test_a_file_of_nothing_is_not_read_to_its_end(tmp_path, monkeypatch, text, count):
    monkeypatch.setattr(bounds, "MOST_USELESS", 10_000)
    path = tmp_path / "nothing.jsonl"
    path.write_text(text * count)
    tally = Counter()
    with pytest.raises(PrerequisiteError, match="of its first 10,000 records 0 make a row"):
        next(READERS["jsonl"].rows([path], "prompts", {}, tally))
    path.write_text("[" + ",".join([text.strip() or "1"] * 50_000) + "]")
    with pytest.raises(PrerequisiteError, match="of its first 10,000 records 0 make a row"):
        next(READERS["jsonl"].rows([path], "prompts", {}, tally))


@pytest.mark.parametrize("kind", [pyarrow.int8(), pyarrow.bool_(), pyarrow.string()])
def test_a_list_of_nothing_without_end_is_refused_before_it_is_read(tmp_path, kind):
    path = tmp_path / "list.parquet"
    offsets = pyarrow.array([0, 30_000_000], pyarrow.int32())
    column = pyarrow.ListArray.from_arrays(offsets, pyarrow.nulls(30_000_000, kind))
    pyarrow.parquet.write_table(pyarrow.table({"prompt": ["a"], "more": column}), path)
    assert path.stat().st_size < 100_000
    with pytest.raises(PrerequisiteError, match="says that it has 30,000,001 values in"):
        next(parquet_records(path, Counter()))


def test_filtered_records_are_no_reason_to_stop(tmp_path, monkeypatch):
    monkeypatch.setattr(bounds, "MOST_USELESS", 100)
    attempt = {"transcript": "\n\nHuman: hello\n\nAssistant: no", "tags": []}
    rows = [{**attempt, "rating": 0.0}] * 500 + [{**attempt, "rating": 4.0}]
    path = tmp_path / "attempts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tally = Counter()
    (row,) = READERS["hh_red_team"].rows([path], "prompts", {"min_rating": 3}, tally)
    assert row.messages[0].content == "hello"
    assert tally == {"filtered": 500}


@pytest.mark.parametrize("merge", [False, True])
def test_conversations_of_more_turns_than_any_model_reads_are_counted(tmp_path, merge):
    path = tmp_path / "turns.jsonl"
    path.write_text(json.dumps({"chosen": "\n\nHuman: " + "word " * 20 + "\n\nHuman: a" * 400_000}) + "\n")
    tally = Counter()
    assert list(READERS["hh_rlhf"].rows([path], "conversations", {"merge_turns": merge}, tally)) == []
    assert tally == {"too_many_turns": 1}
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    path.write_text(json.dumps({"messages": turns * 5_001}) + "\n" + json.dumps({"messages": turns * 5_000}) + "\n")
    (row,) = READERS["openai_messages"].rows([path], "conversations", {}, tally)
    assert len(row.messages) == 10_000
    assert tally == {"too_many_turns": 2}


def test_brackets_that_cannot_be_read_on_are_an_error(tmp_path):
    path = tmp_path / "open.json"
    path.write_text('[{"prompt": "a"}, {"b": ' + "[],{}" * 2_000_000)
    with pytest.raises(PrerequisiteError, match="damaged: the JSON array cannot be read on"):
        list(json_records(path, Counter()))
