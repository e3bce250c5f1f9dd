"""Files that survive a power cut, and what to say when the disk is full.

A file that must be whole or absent is written beside its place, flushed to the disk, and renamed; then the folder is
flushed too, because a rename is a change of the folder.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cai.errors import Incomplete

_FULL = (errno.ENOSPC, errno.EDQUOT)
_STUCK = (*_FULL, errno.EROFS)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries (created, renamed and removed names) to the disk."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_file(path: Path) -> None:
    """Flush a file's bytes to the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_whole(fd: int, data: bytes) -> None:
    """Write all of ``data``, however small the pieces that the system takes."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def write_durably(path: Path, text: str) -> None:
    """Replace ``path`` by ``text`` so that after a crash it holds the old text or the new one, never a part.

    Raises:
        Incomplete: when the disk is full; the old text stays.
    """
    data = text.encode()
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with disk_space(path, needed=len(data)):
        try:
            fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            try:
                write_whole(fd, data)
                os.fsync(fd)
            finally:
                os.close(fd)
            draft.replace(path)
            sync_folder(path.parent)
        except BaseException:
            with suppress(FileNotFoundError):
                draft.unlink()
            raise


@contextmanager
def disk_space(path: Path, needed: int = 0) -> Iterator[None]:
    """Turn "no space left" inside the block into an error that says which disk, how much, and what to do.

    ``needed`` is the bytes about to be written, 0 where they are not known. Other errors pass unchanged.

    Raises:
        Incomplete: when the disk is full, the quota is used up, or the disk may only be read.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _STUCK:
            raise
        raise disk_full(path, error, needed) from error


def is_disk_full(error: BaseException, folder: Path) -> bool:
    """Whether an error means that the disk of ``folder`` is full.

    Libraries that write models hide the system's error in their own, so an all but full disk (below 1 MiB) counts.
    """
    if isinstance(error, OSError) and error.errno in _STUCK:
        return True
    return "No space left on device" in str(error) or shutil.disk_usage(folder).free < 2**20


def disk_full(path: Path, error: BaseException, needed: int = 0) -> Incomplete:
    """The error for a full disk at ``path``, or one that may only be read; ``needed`` in bytes, 0 if not known."""
    nearest = path.absolute()
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    disk = nearest
    while not os.path.ismount(disk) and disk != disk.parent:
        disk = disk.parent
    if isinstance(error, OSError) and error.errno == errno.EROFS:
        return Incomplete(
            f"{path}: the disk at {disk} may only be read; everything finished so far is kept. "
            "Make it writable again (`mount` tells), or set CAI_HOME elsewhere, then run the same command again"
        )
    quota = isinstance(error, OSError) and error.errno == errno.EDQUOT
    reason = "your quota is used up" if quota else "no space is left"
    wants = f", {size_text(needed)} wanted" if needed else ""
    free = size_text(shutil.disk_usage(nearest).free)
    return Incomplete(
        f"{path}: {reason} on the disk at {disk} ({free} free{wants}); everything finished so far is kept. "
        "Free some space (`python -m cai store gc` removes what no run refers to), then run the same command again"
    )


def size_text(count: int) -> str:
    """Bytes as a person reads them: ``12.3 MiB``."""
    amount = float(count)
    for suffix in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{count} B" if suffix == "B" else f"{amount:.1f} {suffix}"
        amount /= 1024
    return f"{amount:.1f} TiB"
