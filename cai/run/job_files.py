"""The files of a run's jobs: where each lies, and how it is read and written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from urllib.parse import quote

from cai.files.durable import write_durably
from cai.identity import parse_json


def job_file(run_dir: Path, step: str, end: str) -> Path:
    """A step's file in a run's folder; ``end`` is ``.sbatch``, ``.json``, ``.out`` or ``.exit.json``."""
    return run_dir / "jobs" / f"{file_name(step)}{end}"


def file_name(step: str) -> str:
    """A step's name as part of a file's: whatever is in it, the file lies where it should."""
    return quote(step, safe=" ")


def word_file(run_dir: Path, step: str, shard: int | None = None) -> Path:
    """Where a step's process, or one of its shards, says how it ended."""
    return job_file(run_dir, step, ".exit.json" if shard is None else f".shard-{shard}.exit.json")


def read_json(path: Path) -> dict[str, Any]:
    """A file of a run that holds one object.

    Raises:
        OSError, ValueError: when it cannot be read or holds something else.
    """
    data = parse_json(path.read_text(encoding="utf-8"))
    if not isinstance(data, dict):
        raise ValueError(f"{path.name} holds no object")
    return data


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Replace such a file, whole or not at all."""
    write_durably(path, json.dumps(data, indent=1, ensure_ascii=False) + "\n")


def now() -> str:
    """This moment, as the files of a run hold it."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")
