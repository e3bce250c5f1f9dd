"""A model as a folder: a ``.nemo`` unpacked once, where all ranks and all later steps read it as it lies.

Upstream's loaders take either. Given the archive, every rank unpacks it into its own temporary folder: eight times the
model on each node, at every start.
"""

from __future__ import annotations

import tarfile
from pathlib import Path

from cai.errors import PrerequisiteError

MODEL = "model"
ARCHIVE = "model.nemo"
"""What artifacts of older stores hold in place of the folder; they are used as they are."""


def model_in(artifact: Path) -> Path:
    """The model that an artifact holds, or will hold: the folder, or an older store's archive."""
    archive = artifact / ARCHIVE
    return archive if archive.is_file() else artifact / MODEL


def unpack(archive: Path, folder: Path) -> int:
    """Unpack a ``.nemo`` into ``folder``; returns the bytes of its files.

    Raises:
        PrerequisiteError: it is no archive, or has members outside of the folder, links out of it, or devices.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with tarfile.open(archive) as members:
            members.extractall(folder, filter="data")
    except tarfile.TarError as error:
        raise PrerequisiteError(f"{archive} is no .nemo that can be unpacked: {error}") from error
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
