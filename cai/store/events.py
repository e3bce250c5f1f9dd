"""A run's folder and its event log: what happened, in order, one JSON object a line.

``runs/<experiment>/<stamp>/`` holds ``plan.json`` (what was to be done), ``events.jsonl`` (what happened) and
``record.json`` (how it ended); ``runs/<experiment>/latest`` points to the newest.
"""

from __future__ import annotations

import fcntl
import json
import math
import numbers
import os
import re
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from cai.errors import PrerequisiteError, Problem, SpecError
from cai.files.durable import disk_space, write_whole
from cai.identity import parse_json

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,99}")


class EventLog:
    """Appends events to a file; each line is written in one piece and is there for readers at once.

    Every event has ``t`` (seconds since the epoch, UTC), ``event``, and ``step`` where it belongs to one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with disk_space(path):
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self.close = weakref.finalize(self, os.close, self._fd)

    def write(self, event: str, step: str = "", **fields: Any) -> None:
        """Append one event.

        Raises:
            Incomplete: when the disk is full.
        """
        head = {"t": round(time.time(), 3), "event": event} | ({"step": step} if step else {})
        line = json.dumps(plain_json({**fields, **head}), ensure_ascii=False, separators=(",", ":"))
        with disk_space(self.path):
            # Jobs on several nodes share a log, and appending is not atomic on every file system.
            fcntl.flock(self._fd, fcntl.LOCK_EX)
            try:
                torn = b"" if self._ends_whole() else b"\n"
                write_whole(self._fd, torn + line.encode("utf-8", "replace") + b"\n")
            finally:
                fcntl.flock(self._fd, fcntl.LOCK_UN)

    def _ends_whole(self) -> bool:
        """Whether the last line has its end; a process that died may have left half of one."""
        size = os.fstat(self._fd).st_size
        return size == 0 or os.pread(self._fd, 1, size - 1) == b"\n"


def read_events(path: Path) -> Iterator[dict[str, Any]]:
    """The events of a log; a line that a dying process left half-written is skipped, and so is what is no event."""
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n") and line.strip(b"\0\n"):
                try:
                    event = parse_json(line)
                except ValueError:
                    continue
                if isinstance(event, dict) and _is_event(event):
                    yield event


def _is_event(event: Mapping[str, Any]) -> bool:
    time_known = isinstance(event.get("t"), int | float) and math.isfinite(event["t"])
    return time_known and isinstance(event.get("event"), str) and isinstance(event.get("step", ""), str)


def new_run_folder(root: Path, experiment: str) -> Path:
    """Create ``root/<experiment>/<UTC stamp>``.

    Raises:
        SpecError: when the experiment's name cannot be a folder's.
        PrerequisiteError: when the folder cannot be created.
    """
    if not _NAME.fullmatch(experiment):
        raise SpecError(Problem("experiment", f"{experiment!r} cannot name a folder", "use letters, digits, _ . -"))
    home = root / experiment
    stamp = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H-%M-%SZ")
    try:
        home.mkdir(parents=True, exist_ok=True)
        for attempt in range(1, 10_000):
            folder = home / (stamp if attempt == 1 else f"{stamp}-{attempt}")
            try:
                folder.mkdir()
            except FileExistsError:
                continue
            return folder
    except OSError as error:
        raise PrerequisiteError(f"{home}: cannot be written ({error.strerror}); run where you can write") from error
    raise PrerequisiteError(f"{home}: too many runs within one second")


def point_latest(run_dir: Path) -> None:
    """Point ``latest`` beside a run folder to it, in one step."""
    link = run_dir.parent / f".latest.{os.getpid()}"
    link.unlink(missing_ok=True)
    link.symlink_to(run_dir.name)
    link.replace(run_dir.parent / "latest")


def plain_json(value: Any) -> Any:
    """Plain JSON of what stages note: NaN and infinities as null, numpy's numbers as numbers, other objects as text."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return plain_json(float(value))
    if isinstance(value, Mapping):
        return {str(k): plain_json(v) for k, v in value.items()}
    if isinstance(value, Sequence):
        return [plain_json(v) for v in value]
    return str(value)
