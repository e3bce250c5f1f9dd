"""The store: whole artifacts or none, whatever happens while they are made."""

import json
import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from cai.errors import PrerequisiteError, SpecError, StepFailed
from cai.files.locks import locked, locked_if_free
from cai.store import upkeep
from cai.store.artifacts import Store
from tests.support.paths import ROOT
from tests.support.small_artifacts import KEY, NAME, commit, flip, make


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "home")


def test_what_was_committed_is_found(store: Store):
    made = make(store)
    found = store.find("sft", KEY)
    assert found == made
    assert found.makes == "model"
    assert (found.path / "deep" / "config.json").read_text() == "{}"
    record = json.loads((store.root / f"{NAME}.json").read_text())
    assert (record["kind"], record["key"], record["seed"], record["seconds"]) == ("sft", KEY, 3, 1.5)
    assert record["files"]["model.bin"]["size"] == 7
    assert set(record["files"]) == {"deep/config.json", "model.bin"}
    assert record["versions"]["python"].startswith("3.")
    assert not (store.root / f"{NAME}.partial").exists()


def test_looking_into_a_store_that_is_not_there_creates_nothing(store: Store):
    assert store.find("sft", KEY) is None
    assert upkeep.ls(store) == [] == upkeep.gc(store) == upkeep.verify(store)
    assert not store.home.exists()


def test_no_secret_and_no_host_in_the_record(store: Store, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-do-not-write-me")
    make(store)
    text = (store.root / f"{NAME}.json").read_text()
    assert "sk-do-not" not in text
    assert os.uname().nodename not in text
    assert str(store.home) not in text


def test_leaving_without_commit_keeps_the_work_and_begins_out_anew(store: Store):
    with suppress(RuntimeError), store.building("sft", KEY) as build:
        assert not build.resumed
        (build.work / "journal.jsonl").write_text("rows")
        (build.out / "half").write_text("half")
        raise RuntimeError
    assert store.find("sft", KEY) is None
    assert store.begun("sft", KEY)
    assert not (store.root / f"{NAME}.partial" / "out").exists()
    with store.building("sft", KEY) as build:
        assert build.resumed
        assert (build.work / "journal.jsonl").read_text() == "rows"
        assert list(build.out.iterdir()) == []


@pytest.mark.parametrize("kind", ["", ".", "..", "../x", "a/b", "A", "a b", "a\0", "-", "a" * 41, "sft\n"])
def test_hostile_kinds_are_refused(store: Store, kind: str):
    with pytest.raises(SpecError, match="plain word"):
        store.find(kind, KEY)


@pytest.mark.parametrize("key", ["", "../../../etc/passwd", KEY[:63], KEY.upper(), KEY + "\n", "g" * 64])
def test_hostile_keys_are_refused(store: Store, key: str):
    with pytest.raises(SpecError, match="64 hexadecimal"), store.building("sft", key):
        pass


@pytest.mark.parametrize("path", ["/etc/passwd", "../other/model.bin", "deep/../../x"])
def test_a_record_that_names_files_outside_is_damage(store: Store, path: str):
    make(store)
    file = store.root / f"{NAME}.json"
    record = json.loads(file.read_text())
    record["files"][path] = {"size": 1, "sha256": "0"}
    file.write_text(json.dumps(record))
    look = store.look("sft", KEY)
    assert look.stored is None
    assert "outside" in look.damage[0]


def test_keys_with_the_same_beginning_are_not_confused(store: Store):
    make(store)
    twin = KEY[:16] + "0" * 48
    with pytest.raises(PrerequisiteError, match="begins like"):
        store.find("sft", twin)
    with pytest.raises(PrerequisiteError, match="begins like"), store.building("sft", twin):
        pass


def test_unfinished_work_of_a_key_with_the_same_beginning_is_not_taken(store: Store):
    with store.building("sft", KEY) as build:
        (build.work / "journal.jsonl").write_text("rows")
    with pytest.raises(PrerequisiteError, match="begins like"), store.building("sft", KEY[:16] + "0" * 48):
        pass


def test_links_cannot_enter_an_artifact(store: Store):
    with store.building("sft", KEY) as build:
        (build.out / "model.bin").symlink_to("/etc/hostname")
        with pytest.raises(StepFailed, match="plain files only"):
            commit(build)
    assert store.find("sft", KEY) is None


def damage_flip(folder: Path) -> None:
    flip(folder / "model.bin")


def damage_flip_and_hide(folder: Path) -> None:
    before = (folder / "model.bin").stat()
    flip(folder / "model.bin")
    os.utime(folder / "model.bin", ns=(before.st_atime_ns, before.st_mtime_ns))


def damage_grow(folder: Path) -> None:
    with (folder / "model.bin").open("a") as file:
        file.write("more")


def damage_remove(folder: Path) -> None:
    (folder / "model.bin").unlink()


def damage_link(folder: Path) -> None:
    (folder / "model.bin").rename(folder.parent.parent / "elsewhere")
    (folder / "model.bin").symlink_to(folder.parent.parent / "elsewhere")


@pytest.mark.parametrize("harm", [damage_flip, damage_flip_and_hide, damage_grow, damage_remove, damage_link])
def test_a_damaged_artifact_is_not_used_but_moved_aside_and_made_again(store: Store, harm):
    made = make(store)
    harm(made.path)
    assert store.find("sft", KEY) is None
    assert any("model.bin" in finding.problems[0] for finding in upkeep.verify(store))
    with store.building("sft", KEY) as build:
        assert build.stored is None
        assert (build.aside / "record.json").exists()
        (build.out / "model.bin").write_text("weights")
        commit(build)
    assert store.find("sft", KEY) is not None
    assert upkeep.verify(store) == []


def test_a_record_that_is_no_record_is_damage(store: Store):
    make(store)
    (store.root / f"{NAME}.json").write_text("{")
    assert "record" in upkeep.verify(store)[0].problems[0]
    assert store.look("sft", KEY).damage
    with store.building("sft", KEY) as build:
        assert build.aside is not None


def test_a_copied_store_is_read_through_once(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    make(store)
    subprocess.run(["cp", "-r", store.home, tmp_path / "copy"], check=True)
    read: list[str] = []
    import cai.store.artifacts

    real = cai.store.artifacts.file_digest
    monkeypatch.setattr(cai.store.artifacts, "file_digest", lambda path: read.append(path.name) or real(path))
    assert store.find("sft", KEY)
    assert read == []
    copy = Store(tmp_path / "copy")
    assert copy.find("sft", KEY)
    assert sorted(read) == ["config.json", "model.bin"]
    assert copy.find("sft", KEY)
    assert len(read) == 2


CRASH = """
import json, os, signal, sys
from pathlib import Path
from cai.store.artifacts import Store
sys.path.insert(0, sys.argv[4])
from tests.support.small_artifacts import commit
store, key, at = Store(Path(sys.argv[1])), sys.argv[2], int(sys.argv[3])
calls = 0
def dying(real):
    def call(*args, **kwargs):
        global calls
        calls += 1
        if calls > at:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)
    return call
with store.building("sft", key) as build:
    if build.stored is None:
        (build.out / "model.bin").write_text("weights")
        for name in ("rename", "replace", "fsync", "unlink", "rmdir", "pwrite"):
            setattr(os, name, dying(getattr(os, name)))
        Path.replace = lambda self, to: os.replace(self, to)
        commit(build)
print("done")
"""


def test_kill_at_every_system_call_of_a_commit_leaves_all_or_nothing(tmp_path: Path):
    here = str(ROOT)
    outcomes = []
    for at in range(40):
        home = tmp_path / f"home{at}"
        done = subprocess.run(
            [sys.executable, "-c", CRASH, home, KEY, str(at), here], capture_output=True, text=True, check=False
        )
        assert done.returncode in (0, -9), done.stderr
        store = Store(home)
        found = store.find("sft", KEY)
        begun = store.begun("sft", KEY)
        with store.building("sft", KEY) as build:
            recovered = build.stored is not None
            if not recovered:
                (build.out / "model.bin").write_text("weights")
                commit(build)
        final = store.find("sft", KEY)
        assert {p.name: p.read_text() for p in final.path.iterdir()} == {"model.bin": "weights"}
        assert upkeep.verify(store) == []
        assert not (store.root / f"{NAME}.partial").exists()
        outcomes.append("found" if found else "finished" if recovered and begun else "again")
        if done.returncode == 0:
            break
    assert outcomes[0] == "again"
    assert "finished" in outcomes, "no kill fell between the last two renames"
    assert outcomes[-1] == "found"
    assert outcomes == sorted(outcomes, key=["again", "finished", "found"].index)


def test_two_builders_take_turns_and_the_second_gets_the_result(store: Store):
    inside, waited, got = threading.Event(), [], []

    def second() -> None:
        inside.wait()
        with store.building("sft", KEY, waited.append) as build:
            got.append(build.stored)

    thread = threading.Thread(target=second)
    thread.start()
    with store.building("sft", KEY) as build:
        inside.set()
        while not waited:
            time.sleep(0.01)
        (build.out / "model.bin").write_text("weights")
        made = commit(build)
    thread.join(10)
    assert got == [made]
    assert waited == [f"process {os.getpid()} on {os.uname().nodename}"]


def test_a_removed_lock_file_does_not_let_two_in(tmp_path: Path):
    path = tmp_path / "lock"
    entered, done = [], []

    def second() -> None:
        with locked(path, lambda who: entered.append(who)):
            done.append(True)
            with locked_if_free(path) as free:
                done.append(free)

    with locked(path):
        thread = threading.Thread(target=second)
        thread.start()
        while not entered:
            time.sleep(0.01)
        path.unlink()
    thread.join(10)
    assert done == [True, False]
