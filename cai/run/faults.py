"""Faults of the program itself: an error that no code expected leaves its traceback in the run's folder."""

from __future__ import annotations

import json
import traceback
from datetime import datetime, timezone
from pathlib import Path

from cai.store.artifacts import versions

FILE = "traceback.txt"


def keep_traceback(run_dir: Path, name: str, error: BaseException) -> str:
    """Append the traceback of ``error``, which came up in ``name``, to the run's; returns where it is, in words."""
    path = run_dir / FILE
    head = f"{datetime.now(timezone.utc).isoformat(timespec='seconds')}  {name}  {json.dumps(versions())}"
    try:
        with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"{head}\n{''.join(traceback.format_exception(error))}\n")
    except OSError as cause:
        return f"the traceback could not be kept in {path} ({cause.strerror})"
    return f"the traceback is kept in {path}"
