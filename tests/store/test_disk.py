"""A disk that fills up: nothing finished is lost, and the same command goes on."""

import subprocess
from pathlib import Path

import pytest

from cai.data.journal import Journal, Record
from cai.errors import CaiError, Incomplete
from cai.files.durable import write_durably
from cai.store import upkeep
from cai.store.artifacts import Store
from tests.support.small_artifacts import KEY, NAME, commit, make


def fill(disk: Path) -> Path:
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError:
            return ballast


def append_many(journal: Journal) -> None:
    for i in range(1000):
        journal.append([Record(4 * i + j, {"text": "x" * 900}) for j in range(4)])


def make_while_full(store: Store, disk: Path) -> None:
    with store.building("sft", KEY) as build:
        (build.work / "journal.jsonl").write_text("rows")
        (build.out / "model.bin").write_text("weights")
        fill(disk)
        commit(build)


def test_a_journal_on_a_full_disk_keeps_its_rows_and_goes_on(small_disk: Path):
    path = small_disk / "journal.jsonl"
    journal = Journal(path)
    with pytest.raises(
        Incomplete, match=rf"no space is left on the disk at {small_disk} .*wanted.*run the same"
    ) as hit:
        append_many(journal)
    assert hit.value.exit_code == 3
    rows = len(journal)
    assert rows >= 200
    assert rows % 4 == 0
    journal.close()
    journal = Journal(path)
    assert (len(journal), journal.torn) == (rows, 0)
    subprocess.run(["mount", "-o", "remount,size=512k", small_disk], check=True)
    journal.append([Record(rows + j, {"text": "x" * 900}) for j in range(4)])
    journal.close()
    assert len(Journal(path)) == rows + 4


def test_a_commit_on_a_full_disk_keeps_the_work_and_goes_on(small_disk: Path):
    store = Store(small_disk / "home")
    with pytest.raises(Incomplete, match=r"no space is left .*store gc"):
        make_while_full(store, small_disk)
    assert store.find("sft", KEY) is None
    (small_disk / "ballast").unlink()
    with store.building("sft", KEY) as build:
        assert build.resumed
        (build.out / "model.bin").write_text("weights")
        commit(build)
    assert store.find("sft", KEY)
    assert upkeep.verify(store) == []


def test_gc_frees_space_on_a_full_disk(small_disk: Path):
    store = Store(small_disk / "home")
    make(store, text="w" * 50_000)
    fill(small_disk)
    assert [r.name for r in upkeep.gc(store)] == [NAME]
    (small_disk / "now there is space").write_bytes(b"x" * 40_000)


def test_replacing_a_file_on_a_full_disk_keeps_the_old_one(small_disk: Path):
    write_durably(small_disk / "plan.json", "old")
    fill(small_disk)
    with pytest.raises(CaiError, match="no space"):
        write_durably(small_disk / "plan.json", "new" * 10_000)
    assert (small_disk / "plan.json").read_text() == "old"
    assert sorted(p.name for p in small_disk.iterdir()) == ["ballast", "plan.json"]
