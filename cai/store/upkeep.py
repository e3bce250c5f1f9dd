"""Keeping the store: what is in it, whether it is still whole, and removing what no run refers to.

Runs register here the keys they use. A registered run whose folder still exists keeps its artifacts, finished or not.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from enum import Enum
from functools import cache
from pathlib import Path

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from cai.errors import PrerequisiteError
from cai.files.durable import size_text, write_durably
from cai.files.locks import holder, locked, locked_if_free
from cai.files.paths import exists
from cai.identity import file_digest, odd_texts, parse_json, text_digest
from cai.store.artifacts import Store, read_record


class ArtifactState(str, Enum):
    """How far an artifact is."""

    DONE = "done"
    BUILDING = "building"
    PARTIAL = "partial"
    DAMAGED = "damaged"


@dataclass(frozen=True, slots=True)
class StoreEntry:
    """One artifact as a person lists it: ``size`` in bytes, ``used`` in seconds since the epoch."""

    name: str
    kind: str
    key: str
    state: ArtifactState
    size: int
    used: float
    experiments: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Damage:
    """What ``verify`` found wrong with one artifact; ``aside`` is where it was moved, if it was."""

    name: str
    problems: tuple[str, ...]
    aside: Path | None = None

    def __str__(self) -> str:
        moved_note = f" (moved to {self.aside}; its step will run again)" if self.aside else ""
        return "\n".join(f"{self.name}: {problem}" for problem in self.problems) + moved_note


@dataclass(frozen=True, slots=True)
class Removed:
    """One thing that ``gc`` removed, or would remove: ``size`` in bytes."""

    name: str
    size: int

    def __str__(self) -> str:
        return f"{self.name} ({size_text(self.size)})"


def register_run(store: Store, run_dir: Path, experiment: str, keys: Collection[str]) -> None:
    """Make known that a run refers to these keys, for as long as its folder exists. Waits for a running ``gc``."""
    store.prepare()
    runs = store.home / "runs"
    runs.mkdir(exist_ok=True)
    path = str(run_dir.absolute())
    entry = {"path": path, "experiment": experiment, "keys": sorted(set(keys))}
    with locked(store.locks / "gc.lock", shared=True):
        write_durably(runs / f"{text_digest(path)[:16]}.json", json.dumps(entry) + "\n")


def references(store: Store) -> dict[str, set[str]]:
    """For each key that a living run refers to, the experiments of those runs."""
    experiments_of: dict[str, set[str]] = {}
    for _, entry in _runs(store):
        if exists(Path(entry["path"])):
            for key in entry["keys"]:
                experiments_of.setdefault(key, set()).add(entry["experiment"])
    return experiments_of


def ls(store: Store) -> list[StoreEntry]:
    """Everything in the store, the most recently used first."""
    used_by = {key[:16]: names for key, names in references(store).items()}
    rows = [_entry(store, path, used_by) for path in _folders(store)]
    rows += [
        StoreEntry(
            path.name, path.name.partition("-")[0], "", ArtifactState.DAMAGED, _size(path), path.stat().st_mtime, ()
        )
        for path in sorted(store.damaged.glob("*"))
    ]
    return sorted(rows, key=lambda row: (-row.used, row.name))


def verify(store: Store, *, deep: bool = True, repair: bool = False) -> list[Damage]:
    """Compare every artifact with its record; ``deep`` reads every byte, else sizes only.

    ``repair`` moves what is damaged aside, so that its step runs again; an artifact somebody is making is left alone.
    """
    findings = []
    for record in sorted(store.root.glob("*.json")):
        name = record.stem
        problems = tuple(_problems(store, name, deep))
        if not problems:
            continue
        aside = None
        if repair:
            with locked_if_free(store.lock_of(name)) as free:
                aside = store.set_aside(name) if free else None
        findings.append(Damage(name, problems, aside))
    return findings


def gc(store: Store, *, keep: Collection[str] = (), older_than: float = 0.0, dry_run: bool = False) -> list[Removed]:
    """Remove artifacts, unfinished work and damaged leftovers that no living run refers to.

    ``keep`` names further keys to keep; ``older_than`` (seconds) spares what was used more recently. Never touches what
    a living process is making, nor what a run that begins meanwhile refers to.
    """
    if not store.root.exists():
        return []
    store.prepare()
    removed: list[Removed] = []
    oldest = time.time() - older_than if older_than > 0 else float("inf")
    with locked(store.locks / "gc.lock"):
        kept_keys = {key[:16] for key in (*references(store), *keep)}
        for path in _folders(store):
            name = path.name.removesuffix(".partial")
            if name.rpartition("-")[2] in kept_keys or _used(store, path) > oldest:
                continue
            with locked_if_free(store.lock_of(name)) as free:
                if free:
                    removed.append(Removed(path.name, _size(path)))
                    if not dry_run:
                        _remove(store, path)
        for path in sorted(store.damaged.glob("*")):
            if path.stat().st_mtime <= oldest:
                removed.append(Removed(f".damaged/{path.name}", _size(path)))
                if not dry_run:
                    shutil.rmtree(path)
        if not dry_run:
            for file, entry in _runs(store):
                if not exists(Path(entry["path"])):
                    file.unlink(missing_ok=True)
    return removed


def request_caches(home: Path) -> list[tuple[Path, int, float]]:
    """The request caches, one a model: file, size in bytes with its side files, and when it was last written."""
    caches = []
    for path in sorted((home / "cache" / "requests").glob("*.sqlite")):
        parts = [part for part in path.parent.glob(f"{path.name}*") if part.is_file()]
        caches.append((path, sum(p.stat().st_size for p in parts), max(p.stat().st_mtime for p in parts)))
    return caches


def gc_requests(home: Path, older_than: float = 0.0, dry_run: bool = False) -> list[Removed]:
    """Remove request caches not written for ``older_than`` seconds; a run that has one open goes on, and asks again."""
    removed = []
    for path, size, written in request_caches(home):
        if time.time() - written >= older_than:
            removed.append(Removed(f"requests/{path.name}", size))
            if not dry_run:
                for part in path.parent.glob(f"{path.name}*"):
                    part.unlink(missing_ok=True)
    return removed


def _remove(store: Store, path: Path) -> None:
    if not path.name.endswith(".partial"):
        # The record first: an artifact half removed must not look whole.
        (store.root / f"{path.name}.json").unlink(missing_ok=True)
        (store.root / f"{path.name}.seen").unlink(missing_ok=True)
    shutil.rmtree(path)
    store.lock_of(path.name.removesuffix(".partial")).unlink(missing_ok=True)


class RegisteredRun(TypedDict):
    """What the store knows of a run: its folder, its experiment, and the keys that it refers to."""

    path: str
    experiment: str
    keys: list[str]


@cache
def _registered() -> TypeAdapter[RegisteredRun]:
    return TypeAdapter(RegisteredRun)


def _runs(store: Store) -> Iterator[tuple[Path, RegisteredRun]]:
    for file in sorted((store.home / "runs").glob("*.json")):
        try:
            entry = _registered().validate_python(parse_json(file.read_text(encoding="utf-8")))
            if odd := next(odd_texts(entry), None):
                raise ValueError(": ".join(odd))
            yield file, entry
        except (OSError, ValueError) as error:
            # Removing artifacts while not knowing what a run refers to would be a guess.
            raise PrerequisiteError(f"{file}: cannot be read as a run ({error}); remove the file") from error


def _folders(store: Store) -> list[Path]:
    return sorted(p for p in store.root.glob("*-*") if p.is_dir() and not p.name.startswith("."))


def _size(folder: Path) -> int:
    return sum(p.lstat().st_size for p in folder.rglob("*") if not p.is_dir())


def _used(store: Store, path: Path) -> float:
    seen_file = store.root / f"{path.name}.seen"
    return max(p.stat().st_mtime for p in (seen_file, path) if p.exists())


def _entry(store: Store, path: Path, used_by: dict[str, set[str]]) -> StoreEntry:
    name = path.name.removesuffix(".partial")
    kind, _, key = name.rpartition("-")
    state = ArtifactState.DONE
    if path.name.endswith(".partial"):
        state = ArtifactState.BUILDING if holder(store.lock_of(name)) else ArtifactState.PARTIAL
    experiments = tuple(sorted(used_by.get(key, ())))
    return StoreEntry(path.name, kind, key, state, _size(path), _used(store, path), experiments)


def _problems(store: Store, name: str, deep: bool) -> Iterator[str]:
    folder = store.root / name
    try:
        files = read_record(store.root / f"{name}.json")["files"]
    except (OSError, ValueError) as error:
        yield f"record: {error}"
        return
    there = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if not p.is_dir()}
    for path, facts in files.items():
        file = there.pop(path, None)
        if file is None:
            yield f"{path}: missing"
        elif file.is_symlink() or file.lstat().st_size != facts["size"]:
            yield f"{path}: {file.lstat().st_size} bytes, recorded {facts['size']}"
        elif deep and file_digest(file) != facts["sha256"]:
            yield f"{path}: damaged: its bytes are not those recorded"
    for path in there:
        yield f"{path}: extra: not in the record"
