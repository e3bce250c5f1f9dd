"""The request cache: the same model, prompt, sampling and seed are asked once, by all runs that share ``$CAI_HOME``.

One SQLite file for each model. Beside the results it holds claims: a call that somebody is asking right now, so that
two processes with the same call ask it once; the second waits for the first one's answer. A claim lapses when its
owner has died (on this machine: its process is gone) or its beat has stood still for ``LAPSE`` seconds of the waiting
one's own clock, so that no wall clock counts; then the call is asked twice at worst. The cache saves work and nothing
rests on it: whatever goes wrong with its file, it is left alone for the rest of the run, with one note, and everything
is asked.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from cai.files.locks import locked
from cai.identity import parse_json

LAPSE = 600.0
"""Seconds without a sign of life after which a claim is taken over; an in-process model may be silent for minutes."""
BEAT = 15.0
"""Seconds between two signs of life."""
_BUSY = 30.0  # seconds for which another process may hold the file
_MANY = 400  # keys in one question, below SQLite's limit on parameters
_SHARED = frozenset({"nfs", "nfs4", "lustre", "gpfs", "beegfs", "ceph", "cifs", "smb3", "fuse.sshfs", "9p", "wekafs"})
_OPEN: set[str] = set()  # owners in this process
_log = logging.getLogger(__name__)

_SCHEMA = """
CREATE TABLE IF NOT EXISTS results (key BLOB PRIMARY KEY, step TEXT NOT NULL, result TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS claims (key BLOB PRIMARY KEY, owner TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS owners (owner TEXT PRIMARY KEY, beat INTEGER NOT NULL) WITHOUT ROWID;
"""


class Whereabouts(Enum):
    """Where the answer to a call that is not in the cache comes from."""

    OURS = "ours"
    """We have claimed it and are to ask it."""
    ELSEWHERE = "elsewhere"
    """Another process is asking it; look again."""


Lookup = Mapping[str, Any] | Whereabouts


@dataclass
class RequestCache:
    """The results of one model at ``path``. Used by one thread.

    ``step`` marks what this step stores. With ``others_only`` results of the same step do not count: for clients whose
    answers depend on what is asked together, so that an interrupted step asks again in the same company.
    """

    path: Path
    step: str
    others_only: bool = False
    _db: sqlite3.Connection | None = field(default=None, init=False)
    _owner: str = field(default="", init=False)
    _beaten: float = field(default=0.0, init=False)
    _beats: dict[str, tuple[int, float]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self._owner = f"{socket.gethostname()} {os.getpid()} {_started(os.getpid())} {os.urandom(4).hex()}"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # One at a time: SQLite does not wait for others where it changes how it keeps its log.
            with locked(self.path.with_suffix(".lock")):
                self._db = sqlite3.connect(self.path, timeout=_BUSY, isolation_level=None)
                # Write-ahead logging needs memory that all processes share, which machines on a network folder do not.
                mode = "DELETE" if _on_network(self.path.parent) else "WAL"
                self._db.execute(f"PRAGMA journal_mode={mode}")
                # The step's journal is what must not be lost; what a power cut takes from here is asked again.
                self._db.execute("PRAGMA synchronous=NORMAL")
                self._db.executescript(_SCHEMA)
                self._db.execute("INSERT INTO owners VALUES (?, 0)", (self._owner,))
            _OPEN.add(self._owner)
            self._beaten = time.monotonic()
        except (sqlite3.Error, OSError) as error:
            self._give_up(error)

    def look(self, keys: Sequence[bytes]) -> list[Lookup]:
        """For each key its result, or who is to get it. What nobody has or asks is ours from now on."""
        lookups: list[Lookup] = self._do(lambda db: self._look(db, keys), [Whereabouts.OURS] * len(keys))
        return lookups

    def stored(self, keys: Sequence[bytes]) -> list[Mapping[str, Any] | None]:
        """For each key its result, None where there is none. Claims nothing."""

        def work(db: sqlite3.Connection) -> list[Mapping[str, Any] | None]:
            results = self._results(db, keys)
            return [parse_json(results[key]) if key in results else None for key in keys]

        stored: list[Mapping[str, Any] | None] = self._do(work, [None] * len(keys))
        return stored

    def put(self, results: Sequence[tuple[bytes, Mapping[str, Any]]]) -> None:
        """Keep results and give up the claims on them."""
        if results:
            self._do(lambda db: self._put(db, results), None)

    def release(self, keys: Sequence[bytes]) -> None:
        """Give up claims without a result."""

        def work(db: sqlite3.Connection) -> None:
            rows = ((key, self._owner) for key in keys)
            db.executemany("DELETE FROM claims WHERE key = ? AND owner = ?", rows)

        if keys:
            self._do(work, None)

    def beat(self) -> None:
        """Show that we are alive; cheap, to be called again and again."""
        if time.monotonic() - self._beaten > BEAT:
            self._beaten = time.monotonic()
            self._do(lambda db: db.execute("UPDATE owners SET beat = beat + 1 WHERE owner = ?", (self._owner,)), None)

    def close(self) -> None:
        """Give up all claims."""

        def work(db: sqlite3.Connection) -> None:
            db.execute("DELETE FROM claims WHERE owner = ?", (self._owner,))
            db.execute("DELETE FROM owners WHERE owner = ?", (self._owner,))

        self._do(work, None)
        _OPEN.discard(self._owner)
        if self._db is not None:
            # The last one to close tidies the file up, which others must not meet half-way.
            with suppress(OSError), locked(self.path.with_suffix(".lock")):
                self._db.close()
            self._db = None

    def _do(self, work: Any, otherwise: Any) -> Any:
        if self._db is None:
            return otherwise
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                transaction_result = work(self._db)
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
            return transaction_result
        except (sqlite3.Error, OSError) as error:
            self._give_up(error)
            return otherwise

    def _give_up(self, error: Exception) -> None:
        _OPEN.discard(self._owner)  # what we claimed stays in the file, and nobody must wait for it
        _log.warning("%s: the request cache cannot be used (%s); everything is asked", self.path, error)
        if self._db is not None:
            self._db.close()
        self._db = None

    def _look(self, db: sqlite3.Connection, keys: Sequence[bytes]) -> list[Lookup]:
        results = self._results(db, keys)
        claims: dict[bytes, str] = {}
        for part, marks in _portions(keys):
            claims |= dict(db.execute(f"SELECT key, owner FROM claims WHERE key IN ({marks})", part))
        alive = {owner: owner == self._owner or self._alive(db, owner) for owner in set(claims.values())}
        lookups: list[Lookup] = []
        ours = []
        for key in keys:
            if key in results:
                lookups.append(parse_json(results[key]))
            elif key in claims and claims[key] != self._owner and alive[claims[key]]:
                lookups.append(Whereabouts.ELSEWHERE)
            else:
                ours.append((key, self._owner))
                lookups.append(Whereabouts.OURS)
        db.executemany("INSERT OR REPLACE INTO claims VALUES (?, ?)", ours)
        return lookups

    def _results(self, db: sqlite3.Connection, keys: Sequence[bytes]) -> dict[bytes, Any]:
        results: dict[bytes, Any] = {}
        for part, marks in _portions(keys):
            own = "AND step != ?" if self.others_only else ""
            sql_parameters = [*part, *([self.step] if own else [])]
            results |= dict(db.execute(f"SELECT key, result FROM results WHERE key IN ({marks}) {own}", sql_parameters))
        return results

    def _put(self, db: sqlite3.Connection, results: Sequence[tuple[bytes, Mapping[str, Any]]]) -> None:
        # ASCII, so that half a character from a model can be kept.
        rows = [(key, self.step, json.dumps(result, separators=(",", ":"))) for key, result in results]
        db.executemany("INSERT OR IGNORE INTO results VALUES (?, ?, ?)", rows)
        db.executemany("DELETE FROM claims WHERE key = ? AND owner = ?", ((key, self._owner) for key, _, _ in rows))

    def _alive(self, db: sqlite3.Connection, owner: str) -> bool:
        host, pid, started, _ = owner.split(" ")
        if host == socket.gethostname():
            if int(pid) == os.getpid():
                return owner in _OPEN
            if _started(int(pid)) != started:
                return False
        row = db.execute("SELECT beat FROM owners WHERE owner = ?", (owner,)).fetchone()
        if row is None:
            return False
        beat, since = self._beats.get(owner, (-1, 0.0))
        if row[0] != beat:
            self._beats[owner] = (row[0], time.monotonic())
            return True
        return time.monotonic() - since < LAPSE


def _portions(keys: Sequence[bytes]) -> Iterator[tuple[Sequence[bytes], str]]:
    """Keys in portions that one question takes, each with its marks."""
    for start in range(0, len(keys), _MANY):
        part = keys[start : start + _MANY]
        yield part, ",".join("?" * len(part))


def _started(pid: int) -> str:
    """When a process of this machine began, in clock ticks since the boot; empty when there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        # Not Linux, or no such process: a signal that does nothing tells.
        try:
            os.kill(pid, 0)
        except OSError:
            return ""
        return "?"
    state, *rest = stat.rpartition(")")[2].split()
    return "" if state in "ZX" else rest[18]


def _on_network(folder: Path) -> bool:
    """Whether a folder lies on a file system that several machines share."""
    try:
        mounts = Path("/proc/mounts").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    nearest_mount, kind = "", ""
    for mount in mounts:
        _, where, fs_type, *_ = mount.split(" ")
        where = where.replace("\\040", " ")
        if folder.resolve().is_relative_to(where) and len(where) >= len(nearest_mount):
            nearest_mount, kind = where, fs_type
    return kind in _SHARED
