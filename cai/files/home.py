"""Where the program keeps what it makes: ``$CAI_HOME``, by default ``~/.cache/cai``. Asking creates nothing."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from cai.errors import PrerequisiteError
from cai.files.durable import disk_space


def cai_home() -> Path:
    """The home folder, absolute; it may not exist yet.

    Raises:
        PrerequisiteError: when neither ``CAI_HOME`` nor the user's own home folder is known.
    """
    configured = os.environ.get("CAI_HOME", "").strip()
    try:
        return (Path(configured) if configured else Path("~/.cache/cai")).expanduser().absolute()
    except RuntimeError as error:
        raise PrerequisiteError(f"CAI_HOME: {error}; set CAI_HOME to a folder that you can write") from error


def request_cache(home: Path) -> Path | None:
    """The folder of the request cache under a home folder; None where ``CAI_REQUEST_CACHE=off`` says to do without."""
    off = os.environ.get("CAI_REQUEST_CACHE", "").strip().lower() in ("off", "0", "no", "false")
    return None if off else home / "cache" / "requests"


def accounts(home: Path) -> Path:
    """The folder under a home folder of what was spent on models behind an API, one file a model."""
    return home / "accounts"


def served_models(home: Path) -> Path:
    """The folder under a home folder of what servers first said they serve, one file a model."""
    return home / "served"


def make_writable(folder: Path) -> Path:
    """Create ``folder`` where it is missing and make sure that files can be written in it.

    Raises:
        PrerequisiteError: when it cannot be created or written, with the system's reason.
        Incomplete: when its disk is full.
    """
    try:
        with disk_space(folder):
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
    except OSError as error:
        raise PrerequisiteError(
            f"{folder}: cannot be written ({error.strerror or error}); set CAI_HOME to a folder that you can write"
        ) from error
    return folder
