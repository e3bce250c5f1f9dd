"""The journal: durable appends that count as a whole, repair of torn ends and of damage in the middle."""

import json
import os
import random
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cai.chat import Message, ToolCall
from cai.data.journal import Journal, Record
from cai.data.rows import Conversation, from_json, to_json
from cai.errors import Incomplete, StepFailed


def value(i: int) -> dict:
    return {"id": f"r{i}", "text": f"row {i} ünï\u2028" + "x" * (i % 7)}


def rows(count: int, start: int = 0) -> list[Record]:
    return [Record(i, value(i), out=1) for i in range(start, start + count)]


def call(row: int, i: int) -> Record:
    return Record(row, {"i": i, "result": "x" * i}, call=True)


@contextmanager
def opened(path: Path) -> Iterator[Journal]:
    journal = Journal(path)
    try:
        yield journal
    finally:
        journal.close()


def write(path: Path, *groups: list[Record]) -> bytes:
    with opened(path) as journal:
        for group in groups:
            journal.append(group)
    return path.read_bytes()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "work" / "journal.jsonl"


def test_rows_are_read_back_after_reopening(path: Path):
    write(path, rows(3), rows(2, start=3))
    with opened(path) as again:
        assert list(again) == [0, 1, 2, 3, 4]
        assert [again[i] for i in again] == [value(i) for i in range(5)]
        assert 5 not in again
        assert 10**9 not in again
        assert (again.torn, again.out, again.dropped) == (0, 5, 0)
        with pytest.raises(KeyError):
            again[5]


def test_rows_with_every_part_of_a_message_are_read_back_and_so_are_those_of_an_older_program(path: Path):
    calls = (ToolCall("find", '{"q":  "é"}', "c1"), ToolCall("stop"))
    messages = (
        Message("user", "Q?"),
        Message("assistant", "I look.", "hm", calls),
        Message("tool", "here", tool_call_id="c1", name="find"),
        Message("tool"),
        Message("assistant", "So.", "because"),
    )
    row = Conversation("r0", messages, "t", {"k": 1})
    older = {"id": "r1", "messages": [{"role": "user", "content": "Q?"}, {"role": "assistant", "content": "A"}]}
    write(path, [Record(0, to_json(row), out=1), Record(1, older, out=1)])
    with opened(path) as again:
        assert from_json(Conversation, again[0]) == row
        back = from_json(Conversation, again[1])
        assert back.messages == (Message("user", "Q?"), Message("assistant", "A"))
        assert to_json(back)["messages"] == older["messages"]


def test_rows_may_come_in_any_order(path: Path):
    order = random.Random(1).sample(range(5000), 5000)
    write(
        path,
        *([Record(n, value(n), out=n % 3, dropped=n % 2)] for n in order[:40]),
        [Record(n, value(n), out=n % 3, dropped=n % 2) for n in order[40:]],
    )
    with opened(path) as again:
        assert len(again) == 5000
        assert all(again[n] == value(n) for n in range(0, 5000, 7))
        assert again.out == sum(n % 3 for n in range(5000))
        assert again.dropped == 2500


def test_the_same_row_twice_is_ignored(path: Path):
    with opened(path) as journal:
        journal.append([Record(0, {"n": 1}, out=1), Record(0, {"n": 2}, out=5)])
        journal.append([Record(0, {"n": 3}, out=5), Record(1, {"n": 4}, out=1)])
        assert (len(journal), journal[0]["n"], journal.out) == (2, 1, 2)
    with opened(path) as again:
        assert (len(again), again[0]["n"], again.out) == (2, 1, 2)
    assert len(path.read_bytes().splitlines()) == 2


def test_calls_are_kept_until_their_row_is_finished(path: Path):
    write(path, [call(0, 0), call(1, 0)], [call(1, 1)], [call(2, 0), *rows(1)])
    with opened(path) as again:
        assert again.calls(0) == []
        assert [c["i"] for c in again.calls(1)] == [0, 1]
        assert [c["i"] for c in again.calls(2)] == [0]
        assert list(again) == [0]
        again.append([Record(1, {"id": "r1"})])
        assert again.calls(1) == []


def test_every_line_is_plain_json(path: Path):
    lines = write(path, [*rows(2), call(7, 3)]).splitlines()
    assert [json.loads(line)["v"].get("id") for line in lines] == ["r0", "r1", None]
    assert [(json.loads(line)["kind"], json.loads(line)["left"]) for line in lines] == [
        ("row", 2),
        ("row", 1),
        ("call", 0),
    ]


def test_half_a_character_from_a_model_survives(path: Path):
    write(path, [Record(0, {"text": "\ud83d"})])
    with opened(path) as again:
        assert again[0]["text"] == "\ud83d"


@pytest.mark.parametrize("groups", [1, 3])
def test_a_file_cut_at_any_byte_keeps_all_earlier_appends_and_none_in_part(path: Path, groups: int):
    whole = write(path, *(rows(3, start=3 * group) for group in range(groups)))
    before = len(b"".join(whole.splitlines(keepends=True)[: 3 * (groups - 1)]))
    for cut in range(before, len(whole), 5):
        path.write_bytes(whole[:cut])
        with opened(path) as journal:
            assert len(journal) == 3 * (groups - 1)
            assert journal.torn == cut - before
            journal.append(rows(3 * groups))
            assert [journal[i] for i in journal] == [value(i) for i in range(3 * groups)]
        assert path.read_bytes()[:before] == whole[:before]


@pytest.mark.parametrize("tail", [b"\0" * 5000, b"\0" * 50 + b"\n" + b"\0" * 9, b'{"crc":"', b"\xff\xfe\n", b"{}\n"])
def test_a_garbled_end_is_cut_off_and_counted(path: Path, tail: bytes):
    whole = write(path, rows(4))
    path.write_bytes(whole + tail)
    with opened(path) as journal:
        assert (len(journal), journal.torn) == (4, len(tail))
    assert path.read_bytes() == whole


def test_blocks_of_the_last_append_lost_out_of_order_are_redone(path: Path):
    first = len(write(path, rows(2)))
    data = bytearray(write(path, rows(20, start=2)))
    data[first + 300 : first + 500] = bytes(200)  # a page never reached the disk, later ones did
    path.write_bytes(data)
    with opened(path) as journal:
        assert list(journal) == [0, 1], "an append counts as a whole"
        assert journal.torn == len(data) - first
        journal.append(rows(22))
        assert [journal[i] for i in range(22)] == [value(i) for i in range(22)]


def test_damage_before_the_last_append_costs_the_rows_behind_it_and_says_so(
    path: Path, caplog: pytest.LogCaptureFixture
):
    whole = write(path, *(rows(2, start=2 * group) for group in range(4)))
    lines = whole.splitlines(keepends=True)
    for n, at in enumerate(random.Random(3).sample(range(len(b"".join(lines[:6]))), 60), 1):
        flipped = whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
        path.write_bytes(flipped)
        caplog.clear()
        number = whole[:at].count(b"\n") + 1
        before = (number - 1) // 2 * 2
        with opened(path) as journal:
            assert list(journal) == list(range(before)), "the appends before the damaged one"
            (told,) = journal.damaged
            assert f"journal.jsonl: line {number} (byte {len(b''.join(lines[: number - 1]))}) is damaged" in told
            assert "to 7 (" in told
            assert caplog.messages == [told]
            kept = path.with_name(f"journal.jsonl.damaged-{n}")
            assert str(kept) in told
            assert kept.read_bytes() == flipped
            journal.append(rows(8))
            assert [journal[i] for i in range(8)] == [value(i) for i in range(8)]
        with opened(path) as again:
            assert (len(again), again.torn, again.damaged) == (8, 0, [])


def test_a_damaged_journal_that_one_only_looks_at_is_left_as_it_is(tmp_path: Path, path: Path):
    whole = write(path, *(rows(2, start=2 * group) for group in range(4)))
    flipped = whole.replace(b"row 3", b"row 9")
    path.write_bytes(flipped)
    own = Journal(tmp_path / "own.jsonl", [path], look=True)
    assert list(own) == [0, 1]
    assert "done again" in own.damaged[0]
    own.close()
    assert path.read_bytes() == flipped
    assert [each.name for each in path.parent.iterdir()] == ["journal.jsonl"]


def test_a_damaged_journal_is_kept_before_anything_of_it_is_cut(path: Path, monkeypatch: pytest.MonkeyPatch):
    whole = write(path, *(rows(2, start=2 * group) for group in range(4)))
    flipped = whole.replace(b"row 3", b"row 9")
    path.write_bytes(flipped)

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfile", full)
    with pytest.raises(Incomplete, match="no space is left"):
        Journal(path)
    assert path.read_bytes() == flipped


def test_a_row_changed_on_the_disk_while_open_is_noticed(path: Path):
    write(path, rows(2))
    with opened(path) as journal:
        with path.open("r+b") as file:
            file.seek(90)
            file.write(b"#")
        with pytest.raises(StepFailed, match="changed on the disk"):
            journal[0]


def test_two_writers_are_one_too_many(path: Path):
    with opened(path), pytest.raises(Incomplete, match="another process is writing it"):
        Journal(path)
    with opened(path) as free:
        free.append(rows(1))


def test_a_write_that_fails_leaves_the_journal_as_it_was(path: Path, monkeypatch: pytest.MonkeyPatch):
    before = write(path, rows(2))
    real = os.write

    def half(fd: int, data: memoryview) -> int:
        if len(data) < 200:
            raise OSError(5, "Input/output error")
        return real(fd, data[: len(data) // 2])

    with opened(path) as journal:
        monkeypatch.setattr(os, "write", half)
        with pytest.raises(OSError, match="Input/output"):
            journal.append(rows(20, start=2))
        monkeypatch.undo()
        assert path.read_bytes() == before
        journal.append(rows(22))
    with opened(path) as again:
        assert list(again) == list(range(22))


def test_an_old_journal_of_another_form_is_done_again(path: Path):
    path.parent.mkdir()
    path.write_bytes(b'{"crc":"1f0c2b7a","at":0,"row":{"id":"a"}}\n')
    with opened(path) as journal:
        assert len(journal) == 0
        assert journal.torn > 0


def test_many_may_look_while_one_writes_and_a_torn_end_is_passed_over(tmp_path: Path, path: Path):
    whole = write(path, rows(2), [*rows(2, start=2), call(9, 0)])
    path.write_bytes(whole + b'{"crc":"00')
    before = path.read_bytes()
    one, two = (Journal(tmp_path / name, [path], look=True) for name in ("one", "two"))
    assert list(one) == list(two) == [0, 1, 2, 3]
    assert (one[3], one.torn, one.out) == (value(3), len(before) - len(whole), 4)
    assert [c["i"] for c in one.calls(9)] == [0]
    assert path.read_bytes() == before
    with opened(path) as writer:
        writer.append(rows(1, start=4))
    assert 4 not in one
    one.append(rows(2, start=3))
    assert [one[i] for i in one] == [value(i) for i in range(5)]
    one.close()
    two.close()
    assert len((tmp_path / "one").read_bytes().splitlines()) == 1, "what the other has is not written again"


def test_several_files_are_one_journal_however_few_the_system_gives(tmp_path: Path):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        _several(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _several(tmp_path: Path) -> None:
    paths = [tmp_path / f"j{i}" for i in range(300)]
    for i, each in enumerate(paths):
        write(each, [Record(row, value(row), out=1, dropped=i % 2) for row in range(i, 3000, 300)])
    with paths[7].open("ab") as file:
        file.write(b"torn")
    whole = Journal(tmp_path / "own", paths)
    assert len(whole) == whole.out == 3000
    assert (whole.torn, whole.dropped) == (4, 1500)
    assert [whole[i] for i in range(0, 3000, 11)] == [value(i) for i in range(0, 3000, 11)]
    assert not paths[7].read_bytes().endswith(b"torn")
    with pytest.raises(Incomplete, match="j299: another process"):
        Journal(paths[299])
    whole.close()
    Journal(paths[299]).close()
