"""Paths that a file or a person names: whatever their text is, asking what lies there is no fault of the program."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path


def user_path(path: str | Path) -> Path:
    """The path with ``~`` as a home folder; as it stands where there is no such user."""
    with suppress(RuntimeError):
        return Path(path).expanduser()
    return Path(path)


def exists(path: Path) -> bool:
    """Whether something lies there; nothing does under a name that no file system takes."""
    with suppress(OSError, ValueError):
        return path.exists()
    return False


def is_file(path: Path) -> bool:
    """Whether it is a file; see ``exists``."""
    with suppress(OSError, ValueError):
        return path.is_file()
    return False


def is_dir(path: Path) -> bool:
    """Whether it is a folder; see ``exists``."""
    with suppress(OSError, ValueError):
        return path.is_dir()
    return False
