"""The row journal: durable appends, repair of torn ends, refusal of damage in the middle."""

import json
import os
import random
from pathlib import Path

import pytest

from cai.data.journal import Journal
from cai.errors import StepFailed


def rows(count: int, start: int = 0) -> list[dict]:
    return [{"id": f"r{i}", "text": f"row {i} ünï\u2028" + "x" * (i % 7)} for i in range(start, start + count)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "work" / "journal.jsonl"


def test_rows_are_read_back_after_reopening(path: Path):
    first = Journal(path)
    first.append(rows(3))
    first.append(rows(2, start=3))
    again = Journal(path)
    assert list(again) == ["r0", "r1", "r2", "r3", "r4"]
    assert [again[i] for i in again] == rows(5)
    assert "r5" not in again
    assert again.torn == 0


def test_the_same_id_twice_is_ignored(path: Path):
    journal = Journal(path)
    journal.append([{"id": "a", "n": 1}, {"id": "a", "n": 2}])
    journal.append([{"id": "a", "n": 3}, {"id": "b", "n": 4}])
    assert (len(journal), journal["a"]["n"], Journal(path)["a"]["n"]) == (2, 1, 1)
    assert len(path.read_bytes().splitlines()) == 2


def test_every_line_is_plain_json(path: Path):
    Journal(path).append(rows(2))
    assert [json.loads(line)["row"]["id"] for line in path.read_bytes().splitlines()] == ["r0", "r1"]


def test_half_a_character_from_a_model_survives(path: Path):
    Journal(path).append([{"id": "a", "text": "\ud83d"}])
    assert Journal(path)["a"]["text"] == "\ud83d"


def test_an_entry_without_id_is_refused_and_nothing_written(path: Path):
    journal = Journal(path)
    with pytest.raises(ValueError, match="no text 'id'"):
        journal.append([{"id": "a"}, {"n": 1}])
    assert path.read_bytes() == b""


@pytest.mark.parametrize("groups", [1, 3])
def test_a_file_cut_at_any_byte_keeps_all_earlier_appends(path: Path, groups: int):
    journal = Journal(path)
    sizes = [0]
    for group in range(groups):
        journal.append(rows(2, start=2 * group))
        sizes.append(path.stat().st_size)
    whole = path.read_bytes()
    for cut in range(sizes[-2], len(whole), 7):
        path.write_bytes(whole[:cut])
        opened = Journal(path)
        assert len(opened) >= 2 * (groups - 1)
        opened.append(rows(2 * groups))
        assert [opened[i] for i in opened] == rows(2 * groups)
        assert Journal(path).torn == 0
        opened.close()


@pytest.mark.parametrize("tail", [b"\0" * 5000, b"\0" * 50 + b"\n" + b"\0" * 9, b'{"crc":"', b"\xff\xfe\n", b"{}\n"])
def test_a_garbled_end_is_cut_off_and_counted(path: Path, tail: bytes):
    Journal(path).append(rows(4))
    whole = path.read_bytes()
    path.write_bytes(whole + tail)
    opened = Journal(path)
    assert (len(opened), opened.torn) == (4, len(tail))
    assert path.read_bytes() == whole


def test_blocks_of_the_last_append_lost_out_of_order_are_redone(path: Path):
    journal = Journal(path)
    journal.append(rows(2))
    first = path.stat().st_size
    journal.append(rows(20, start=2))
    data = bytearray(path.read_bytes())
    data[first + 100 : first + 300] = bytes(200)  # a page never reached the disk, later ones did
    path.write_bytes(data)
    opened = Journal(path)
    assert list(opened)[:2] == ["r0", "r1"]
    assert opened.torn > 0
    opened.append(rows(22))
    assert [opened[f"r{i}"] for i in range(22)] == rows(22)


def test_damage_before_the_last_append_is_an_error_that_says_where(path: Path):
    journal = Journal(path)
    for group in range(4):
        journal.append(rows(2, start=2 * group))
    whole = path.read_bytes()
    last = len(b"".join(whole.splitlines(keepends=True)[:6]))
    draw = random.Random(3)
    for at in draw.sample(range(last), 40):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x20 | 0x01 if whole[at] != 0x21 else 0x22]) + whole[at + 1 :])
        if path.read_bytes() == whole:
            continue
        number = whole[:at].count(b"\n") + 1
        with pytest.raises(StepFailed, match=rf"journal\.jsonl: line {number} .*damaged"):
            Journal(path)


def test_a_row_changed_on_the_disk_while_open_is_noticed(path: Path):
    journal = Journal(path)
    journal.append(rows(2))
    with path.open("r+b") as file:
        file.seek(40)
        file.write(b"#")
    with pytest.raises(StepFailed, match="changed on the disk"):
        journal["r0"]


def test_a_write_that_fails_leaves_the_journal_as_it_was(path: Path, monkeypatch: pytest.MonkeyPatch):
    journal = Journal(path)
    journal.append(rows(2))
    before = path.read_bytes()
    real = os.write

    def half(fd: int, data: memoryview) -> int:
        if len(data) < 200:
            raise OSError(5, "Input/output error")
        return real(fd, data[: len(data) // 2])

    monkeypatch.setattr(os, "write", half)
    with pytest.raises(OSError, match="Input/output"):
        journal.append(rows(20, start=2))
    monkeypatch.undo()
    assert path.read_bytes() == before
    journal.append(rows(22))
    assert list(Journal(path)) == [f"r{i}" for i in range(22)]
