"""Keeping the store: verify, list, and remove only what nobody refers to; and the home folder."""

import os
import time
from pathlib import Path

import pytest

from cai.errors import PrerequisiteError
from cai.files.home import cai_home, make_writable
from cai.identity import key_of
from cai.store import upkeep
from cai.store.artifacts import Store
from tests.support.small_artifacts import KEY, NAME, flip, make


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "home")


def test_verify_finds_a_flipped_byte_a_missing_and_an_extra_file_and_repairs(store: Store):
    made, other = make(store), make(store, key_of("two"))
    assert upkeep.verify(store) == []
    flip(made.path / "model.bin")
    (made.path / "deep" / "config.json").unlink()
    (made.path / "stray").write_text("x")
    (found,) = upkeep.verify(store, repair=True)
    assert found.name == NAME
    assert [p.split(":")[0:2] for p in found.problems] == [
        ["deep/config.json", " missing"],
        ["model.bin", " damaged"],
        ["stray", " extra"],
    ]
    assert upkeep.verify(store) == []
    assert store.look("sft", KEY).damage == ()
    assert store.find("sft", KEY) is None
    assert store.find("sft", other.key) is not None


def run_folder(tmp_path: Path, name: str) -> Path:
    folder = tmp_path / "runs" / name
    folder.mkdir(parents=True)
    return folder


def test_gc_keeps_what_a_living_run_refers_to(store: Store, tmp_path: Path):
    kept, named, loose = key_of("kept"), key_of("named"), key_of("loose")
    for key in (kept, named, loose):
        make(store, key)
    with store.building("sft", key_of("interrupted")) as build:
        (build.work / "rows").write_text("x")
    with store.building("sft", key_of("forgotten")) as build:
        (build.work / "rows").write_text("x")
    run = run_folder(tmp_path, "a")
    upkeep.register_run(store, run, "quickstart", [kept, key_of("interrupted")])
    would = upkeep.gc(store, keep={named}, dry_run=True)
    assert store.find("sft", loose) is not None
    removed = upkeep.gc(store, keep={named})
    assert would == removed
    assert [r.name for r in removed] == sorted([f"sft-{loose[:16]}", f"sft-{key_of('forgotten')[:16]}.partial"])
    assert removed[0].size > 0
    assert store.find("sft", kept)
    assert store.find("sft", named)
    assert store.begun("sft", key_of("interrupted"))
    assert not store.begun("sft", key_of("forgotten"))
    run.rmdir()
    assert len(upkeep.gc(store)) == 3
    assert [p.name for p in store.root.iterdir() if not p.name.startswith(".")] == []
    assert list((store.home / "runs").iterdir()) == []


def test_gc_leaves_what_somebody_is_making(store: Store):
    with store.building("sft", KEY) as build:
        (build.work / "rows").write_text("x")
        assert upkeep.gc(store) == []
        assert [row.state for row in upkeep.ls(store)] == [upkeep.ArtifactState.BUILDING]
    assert len(upkeep.gc(store)) == 1


def test_gc_spares_what_was_used_lately(store: Store):
    old, new = make(store), make(store, key_of("two"))
    long_ago = time.time() - 5 * 86400
    for path in (old.path, new.path, store.root / f"{NAME}.seen", store.root / f"sft-{new.key[:16]}.seen"):
        os.utime(path, (long_ago, long_ago))
    store.note_use(new)
    assert [r.name for r in upkeep.gc(store, older_than=86400.0)] == [NAME]
    assert store.find("sft", new.key)


def test_gc_stops_rather_than_guess_what_an_unreadable_run_refers_to(store: Store, tmp_path: Path):
    made = make(store)
    upkeep.register_run(store, run_folder(tmp_path, "a"), "quickstart", [made.key])
    next((store.home / "runs").iterdir()).write_text("{")
    with pytest.raises(PrerequisiteError, match="cannot be read as a run"):
        upkeep.gc(store)
    assert store.find("sft", KEY)


def test_ls_says_who_uses_what(store: Store, tmp_path: Path):
    make(store)
    make(store, key_of("two"), "mix", text="longer text")
    upkeep.register_run(store, run_folder(tmp_path, "a"), "quickstart", [KEY])
    rows = {row.kind: row for row in upkeep.ls(store)}
    assert (rows["sft"].key, rows["sft"].size, rows["sft"].experiments) == (KEY[:16], 9, ("quickstart",))
    assert (rows["mix"].state, rows["mix"].size, rows["mix"].experiments) == (upkeep.ArtifactState.DONE, 13, ())


# The home folder


def test_home_is_named_by_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("CAI_HOME", str(tmp_path / "x"))
    assert cai_home() == tmp_path / "x"
    monkeypatch.delenv("CAI_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cai_home() == tmp_path / ".cache" / "cai"
    assert list(tmp_path.iterdir()) == []


def test_a_home_that_cannot_be_made_says_so(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PrerequisiteError, match=r"cannot be written .*set CAI_HOME"):
        Store(tmp_path / "file" / "home").prepare()


def test_a_home_without_write_permission_says_so(tmp_path: Path):
    (tmp_path / "home").mkdir(mode=0o555)
    tmp_path.chmod(0o755)
    pid = os.fork()
    if pid == 0:
        try:
            if os.geteuid() == 0:
                os.setuid(65534)
            make_writable(tmp_path / "home")
            os._exit(1)
        except PrerequisiteError as error:
            os._exit(0 if "Permission denied" in str(error) else 2)
        finally:
            os._exit(3)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_request_caches_are_listed_and_removed_only_when_asked(tmp_path: Path) -> None:
    from cai.clients.cache import RequestCache

    cache = RequestCache(tmp_path / "cache" / "requests" / "model.sqlite", "step")
    cache.put([(b"k" * 16, {"text": "x" * 5000})])
    ((path, size, _),) = upkeep.request_caches(tmp_path)
    assert size > 5000
    assert upkeep.gc_requests(tmp_path, older_than=3600) == []
    assert [r.name for r in upkeep.gc_requests(tmp_path, dry_run=True)] == ["requests/model.sqlite"]
    assert path.exists()
    assert len(upkeep.gc_requests(tmp_path)) == 1
    assert upkeep.request_caches(tmp_path) == []
    cache.close()
