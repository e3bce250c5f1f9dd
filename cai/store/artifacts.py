"""The store: what steps make, kept by key and shared by every experiment on this machine.

``<kind>-<key16>/`` holds the files and ``<kind>-<key16>.json`` beside it the record. The record is written last: it
means that the artifact is whole. Work in progress lies in ``<kind>-<key16>.partial/`` (``work`` is kept from
attempt to attempt, ``out`` is begun anew) under a lock that the kernel lets go when the process dies.

Nothing is trusted blindly. Before an artifact is used, each file's size is compared with the record; its digest too,
unless its change time and inode are still those noted when the digest was last found right (``<kind>-<key16>.seen``).
So a copied store is read through once and a bit that rots unseen is found by ``verify`` (cai.store.upkeep).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cache
from importlib import metadata
from pathlib import Path, PurePosixPath
from platform import python_version
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import NotRequired, TypedDict

from cai.errors import PrerequisiteError, Problem, SpecError, StepFailed
from cai.files.durable import disk_space, sync_file, sync_folder, write_durably
from cai.files.home import cai_home, make_writable
from cai.files.locks import OnWait, locked
from cai.identity import file_digest, odd_texts, parse_json

RECORD_FORMAT = 1
_KIND = re.compile(r"[a-z][a-z0-9_]{0,39}")
_KEY = re.compile(r"[0-9a-f]{64}")
_PACKAGES = ("torch", "transformers", "trl", "peft", "openvino-genai", "safetensors", "numpy")


@dataclass(frozen=True, slots=True)
class Stored:
    """A finished artifact: its folder and its record."""

    kind: str
    key: str
    path: Path
    record: Mapping[str, Any]

    @property
    def makes(self) -> str:
        """What kind of artifact it is: ``prompts``, ``model`` ..."""
        return str(self.record["makes"])


@dataclass(frozen=True, slots=True)
class Look:
    """What the store has under a key: the artifact, or what is wrong with it (empty where there is none)."""

    stored: Stored | None = None
    damage: tuple[str, ...] = ()


def artifact_name(kind: str, key: str) -> str:
    """The name under which the store keeps an artifact.

    Raises:
        SpecError: when the kind is no plain word or the key no SHA-256; so no name can leave the store.
    """
    if not _KIND.fullmatch(kind):
        raise SpecError(Problem("plan", f"kind {kind!r} is no plain word", "use a-z, 0-9 and _, at most 40"))
    if not _KEY.fullmatch(key):
        raise SpecError(Problem("plan", f"key {key!r} is not 64 hexadecimal digits", "make the plan again"))
    return f"{kind}-{key[:16]}"


class Store:
    """The artifacts under one home folder. Looking creates nothing; building creates what it needs."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.root = home / "store"
        self.locks = self.root / ".locks"
        self.damaged = self.root / ".damaged"

    def prepare(self) -> None:
        """Create the folders.

        Raises:
            PrerequisiteError: when they cannot be created or written.
        """
        make_writable(self.root)
        self.locks.mkdir(exist_ok=True)

    def look(self, kind: str, key: str) -> Look:
        """The artifact of that key, checked as the module says, or what is wrong with it.

        Raises:
            PrerequisiteError: when another key with the same first 16 digits is there.
        """
        name = artifact_name(kind, key)
        try:
            record = read_record(self.root / f"{name}.json")
        except FileNotFoundError:
            return Look()
        except ValueError as error:
            return Look(damage=(f"{name}.json: {error}",))
        except OSError as error:
            raise PrerequisiteError(f"{self.root}: cannot be read ({error.strerror}); see CAI_HOME") from error
        self._same_key(name, record["key"], key)
        damage = self._damage(name, record)
        return Look(damage=damage) if damage else Look(Stored(kind, key, self.root / name, record))

    def find(self, kind: str, key: str) -> Stored | None:
        """The artifact of that key when it is there and whole."""
        return self.look(kind, key).stored

    def begun(self, kind: str, key: str) -> bool:
        """Whether an earlier attempt left work to go on from."""
        partial = self.root / f"{artifact_name(kind, key)}.partial"
        return (partial / "record.json").exists() or any(partial.glob("work/*"))

    def lock_of(self, name: str) -> Path:
        """The lock file of an artifact's name."""
        return self.locks / f"{name}.lock"

    @contextmanager
    def building(self, kind: str, key: str, on_wait: OnWait | None = None) -> Iterator[Build]:
        """Hold the right to make an artifact, waiting where another process makes it.

        ``on_wait`` is told once whom we wait for. Look at ``build.stored`` first: it is the artifact where another
        process, or an attempt that died between its last two renames, has finished it. A damaged artifact is moved
        aside to ``.damaged``. Leaving without ``commit`` keeps the work.
        """
        name = artifact_name(kind, key)
        self.prepare()
        with disk_space(self.root), locked(self.lock_of(name), on_wait):
            build = Build(self, kind, key)
            build.begin()
            try:
                yield build
            finally:
                build.leave()

    @contextmanager
    def sharing(self, kind: str, key: str, on_wait: OnWait | None = None) -> Iterator[Build]:
        """Hold the ``work`` of an artifact together with others that do parts of it, while nobody makes it.

        Waits while somebody makes it, as ``building`` waits for those who share. Look at ``build.stored`` first. There
        is no ``out``: only who builds has one.
        """
        name = artifact_name(kind, key)
        self.prepare()
        with disk_space(self.root), locked(self.lock_of(name), on_wait, shared=True):
            build = Build(self, kind, key)
            build.stored = self.find(kind, key)
            if build.stored is None:
                build.partial.mkdir(exist_ok=True)
                # One after the other: each may find an attempt that died, or a damaged artifact.
                with locked(build.partial / ".sharing"):
                    build.join()
                    if build.stored is not None:
                        shutil.rmtree(build.work, ignore_errors=True)
            yield build

    def set_aside(self, name: str) -> Path:
        """Move a damaged artifact to ``.damaged`` so that its step runs again. Hold its lock."""
        self.damaged.mkdir(exist_ok=True)
        stamp = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%S.%f")
        to = self.damaged / f"{name}.{stamp}"
        to.mkdir()
        # The record first: without it nobody takes the folder for an artifact.
        for source, target in ((f"{name}.json", "record.json"), (name, "files")):
            if (self.root / source).exists():
                (self.root / source).rename(to / target)
        (self.root / f"{name}.seen").unlink(missing_ok=True)
        sync_folder(self.root)
        return to

    def note_seen(self, name: str, record: Mapping[str, Any]) -> None:
        """Remember that the files' digests have just been found right, and that the artifact was used now."""
        stamps = {path: _stamp((self.root / name / path).lstat()) for path in record["files"]}
        # A store that may only be read works too: its digests are computed at every use.
        with suppress(OSError):
            draft = self.root / f".{name}.{os.getpid()}.seen"
            draft.write_text(json.dumps(stamps), encoding="utf-8")
            draft.replace(self.root / f"{name}.seen")

    def note_use(self, stored: Stored) -> None:
        """Remember that an artifact was used now; ``gc --older-than`` counts from here."""
        with suppress(OSError):
            os.utime(self.root / f"{artifact_name(stored.kind, stored.key)}.seen")

    def _same_key(self, name: str, theirs: str, ours: str) -> None:
        if theirs != ours:
            raise PrerequisiteError(
                f"{self.root / name}: holds key {theirs}, which begins like {ours}; "
                "remove it or set CAI_HOME to another folder"
            )

    def _damage(self, name: str, record: Mapping[str, Any]) -> tuple[str, ...]:
        folder = self.root / name
        try:
            stamps = parse_json((self.root / f"{name}.seen").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            stamps = None
        stamps = stamps if isinstance(stamps, dict) else {}
        damage: list[str] = []
        unseen = False
        for path, facts in record["files"].items():
            try:
                file_stat = (folder / path).lstat()
            except OSError:
                damage.append(f"{path}: missing")
                continue
            if not stat.S_ISREG(file_stat.st_mode) or file_stat.st_size != facts["size"]:
                damage.append(f"{path}: {file_stat.st_size} bytes, recorded {facts['size']}")
            elif stamps.get(path) != _stamp(file_stat):
                unseen = True
                if file_digest(folder / path) != facts["sha256"]:
                    damage.append(f"{path}: its bytes are not those recorded")
        if unseen and not damage:
            self.note_seen(name, record)
        return tuple(damage)


class Build:
    """One attempt at making an artifact, under its lock; see ``Store.building``.

    ``out`` is where the files go; ``work`` keeps what the next attempt goes on from; ``resumed`` says that it holds
    something already; ``aside`` is where a damaged artifact was moved.
    """

    def __init__(self, store: Store, kind: str, key: str) -> None:
        self.kind = kind
        self.key = key
        self.stored: Stored | None = None
        self.resumed = False
        self.aside: Path | None = None
        self._store = store
        self._name = artifact_name(kind, key)
        self._final = store.root / self._name
        self.partial = store.root / f"{self._name}.partial"
        self.out = self.partial / "out"
        self.work = self.partial / "work"

    def begin(self) -> None:
        """Finish what a dead attempt had all but finished, else make the folders ready."""
        self.join()
        if self.stored:
            shutil.rmtree(self.partial, ignore_errors=True)
            return
        shutil.rmtree(self.out, ignore_errors=True)
        self.out.mkdir()

    def join(self) -> None:
        """As ``begin``, without the folders that others may be at work in."""
        look = self._store.look(self.kind, self.key)
        if look.stored is None and not look.damage:
            self._finish_dead_attempt()
        else:
            self.stored = look.stored
        if self.stored:
            return
        if look.damage or self._final.exists():
            self.aside = self._store.set_aside(self._name)
        self._claim()
        self.resumed = any(self.work.glob("*"))

    def leave(self) -> None:
        """Drop what was half-written: the next attempt begins ``out`` anew, and it may be what filled the disk."""
        if self.stored is None and not (self.partial / "record.json").exists():
            shutil.rmtree(self.out, ignore_errors=True)

    def commit(
        self, *, makes: str, seed: int, seconds: float, ingredients: Mapping[str, Any], outcome: Mapping[str, Any]
    ) -> Stored:
        """Flush and digest every file in ``out``, then publish them and, last, the record.

        ``outcome`` holds the ledger and the numbers; ``seconds`` is wall time. The record names no host and holds
        nothing of the environment.

        Raises:
            StepFailed: when ``out`` holds anything but plain files and folders.
            Incomplete: when the disk is full.
        """
        with disk_space(self.partial):
            files = {path: self._flush(path) for path in plain_files(self.out)}
            record = {
                "format": RECORD_FORMAT,
                "kind": self.kind,
                "key": self.key,
                "makes": makes,
                "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                "seconds": round(seconds, 3),
                "seed": seed,
                "ingredients": dict(ingredients),
                "outcome": dict(outcome),
                "files": files,
                "versions": versions(),
            }
            self._write_record(record)
            self._publish()
        return self._published()

    def take_over(self, stored: Stored, ingredients: Mapping[str, Any]) -> Stored:
        """Publish the files of the same work that is kept under another key; that artifact stays where it is.

        The record is that artifact's, with this key and its ingredients, and with ``former`` the other key.

        Raises:
            Incomplete: when the disk is full.
        """
        with disk_space(self.partial):
            for path in stored.record["files"]:
                to = self.out / path
                to.parent.mkdir(parents=True, exist_ok=True)
                try:
                    os.link(stored.path / path, to)
                except OSError:  # some file systems have no second names
                    shutil.copy2(stored.path / path, to)
                self._flush_file(path)
            self._write_record(
                {**stored.record, "key": self.key, "ingredients": dict(ingredients), "former": stored.key}
            )
            self._publish()
        return self._published()

    def _write_record(self, record: Mapping[str, Any]) -> None:
        write_durably(self.partial / "record.json", json.dumps(record, indent=1, ensure_ascii=False) + "\n")

    def _published(self) -> Stored:
        # Read back, so that what a run sees is what a later run will see.
        record = read_record(self._store.root / f"{self._name}.json")
        self._store.note_seen(self._name, record)
        shutil.rmtree(self.partial, ignore_errors=True)
        self.stored = Stored(self.kind, self.key, self._final, record)
        return self.stored

    def _flush_file(self, path: str) -> Path:
        file = self.out / path
        sync_file(file)
        sync_folder(file.parent)
        return file

    def _flush(self, path: str) -> dict[str, Any]:
        file = self._flush_file(path)
        return {"size": file.stat().st_size, "sha256": file_digest(file)}

    def _publish(self) -> None:
        root = self._store.root
        if not self._final.exists():
            os.rename(self.out, self._final)
            sync_folder(root)
        # Rename last: a record means that the artifact is whole.
        os.rename(self.partial / "record.json", root / f"{self._name}.json")
        sync_folder(root)

    def _finish_dead_attempt(self) -> None:
        ready = self.partial / "record.json"
        try:
            record = read_record(ready)
            self._store._same_key(self._name, record["key"], self.key)
            folder = self._final if self._final.exists() else self.out
            whole = all(file_digest(folder / path) == facts["sha256"] for path, facts in record["files"].items())
        except (OSError, ValueError):
            whole = False
        if whole:
            self._publish()
            self._store.note_seen(self._name, record)
            self.stored = Stored(self.kind, self.key, self._final, record)
        else:
            ready.unlink(missing_ok=True)

    def _claim(self) -> None:
        self.work.mkdir(parents=True, exist_ok=True)
        label = self.partial / "key"
        if label.exists():
            self._store._same_key(f"{self._name}.partial", label.read_text(encoding="utf-8") or self.key, self.key)
        else:
            label.write_text(self.key, encoding="utf-8")


def read_record(path: Path) -> dict[str, Any]:
    """A record, checked as far as the store relies on it.

    Raises:
        OSError: when the file cannot be read.
        ValueError: when it is no record, or names a file outside its folder.
    """
    record = parse_json(path.read_text(encoding="utf-8"))
    if not isinstance(record, dict) or record.get("format") != RECORD_FORMAT:
        raise ValueError(f"not a record of format {RECORD_FORMAT}")
    try:
        _record_file().validate_python(record, strict=True)  # looked at: what a newer program wrote stays in it
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    if odd := next(odd_texts(record), None):
        raise ValueError(": ".join(odd))
    for name in record["files"]:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or not PurePosixPath(name).name:
            raise ValueError(f"files: {name!r} lies outside the artifact")
    return record


class _Counts(TypedDict, total=False):
    rows_in: Annotated[int, Field(ge=0)]
    rows_out: Annotated[int, Field(ge=0)]
    dropped: dict[str, int]
    parts: dict[str, int]


class _OutcomeFile(TypedDict, total=False):
    ledger: _Counts
    metrics: dict[str, Any]


class _FileFacts(TypedDict):
    size: int
    sha256: str


class _RecordFile(TypedDict):
    """What is relied on of a record; more may stand there."""

    kind: str
    key: str
    makes: str
    created: str
    outcome: _OutcomeFile
    files: dict[str, _FileFacts]
    seconds: NotRequired[Annotated[float, Field(ge=0, allow_inf_nan=False)]]
    seed: NotRequired[int]
    ingredients: NotRequired[dict[str, Any]]
    versions: NotRequired[dict[str, str]]


@cache
def _record_file() -> TypeAdapter[_RecordFile]:
    return TypeAdapter(_RecordFile)


def plain_files(folder: Path) -> list[str]:
    """Paths of all files below ``folder``, relative, sorted, with ``/``.

    Raises:
        StepFailed: for a symbolic link or a device, which an artifact cannot vouch for.
    """
    paths: list[str] = []
    for path in folder.rglob("*"):
        mode = path.lstat().st_mode
        if stat.S_ISREG(mode):
            paths.append(path.relative_to(folder).as_posix())
        elif not stat.S_ISDIR(mode):
            raise StepFailed(f"{path}: an artifact holds plain files only; copy what this link points to")
    return sorted(paths)


@cache
def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide results; absent packages are left out."""
    version_of = {"python": python_version()}
    for label, package in (("cai", "constitution-as-code"), *((name, name) for name in _PACKAGES)):
        with suppress(metadata.PackageNotFoundError):
            version_of[label] = metadata.version(package)
    return version_of


def _stamp(file_stat: os.stat_result) -> list[int]:
    # The change time moves with every write and cannot be set back, unlike the modification time.
    return [file_stat.st_size, file_stat.st_ctime_ns, file_stat.st_ino]


def default_store() -> Store:
    """The store under ``$CAI_HOME``."""
    return Store(cai_home())
