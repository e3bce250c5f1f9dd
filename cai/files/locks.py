"""Locks between processes. The kernel holds them (flock), so that a process that dies lets go of its own.

Not ``filelock``, which has no shared locks (a step's shards hold one together), does not say who holds one, and would
go on with a lock whose file another process has removed in the meantime.
"""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

SHARING = "a process that does a part of it"
"""The holder of a shared lock, as a person reads it."""

OnWait = Callable[[str], None]
_GLANCE = 0.05
"""Seconds that a lock may be taken by somebody who only looks (``holder``)."""


@contextmanager
def locked(path: Path, on_wait: OnWait | None = None, *, shared: bool = False) -> Iterator[None]:
    """Hold the lock at ``path``; wait where another holds it, after telling ``on_wait`` who that is.

    Several processes hold a ``shared`` lock at once, while nobody holds it alone.
    """
    fd = _acquire(path, fcntl.LOCK_SH if shared else fcntl.LOCK_EX, on_wait, wait=True)
    assert fd is not None
    try:
        yield
    finally:
        _release(fd)


@contextmanager
def locked_if_free(path: Path) -> Iterator[bool]:
    """Hold the lock if nobody does; gives whether it is held. Never waits."""
    fd = _acquire(path, fcntl.LOCK_EX, None, wait=False)
    try:
        yield fd is not None
    finally:
        if fd is not None:
            _release(fd)


def holder(path: Path) -> str:
    """Who holds the lock now (``process 12 on host``), or an empty text; creates nothing."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return ""
    try:
        return _holder(fd)
    finally:
        os.close(fd)


def _holder(fd: int) -> str:
    """Looks by taking the lock for a moment."""
    if not _try_lock(fd, fcntl.LOCK_SH):
        return os.pread(fd, 200, 0).decode(errors="replace").strip() or "another process"
    try:
        return "" if _try_lock(fd, fcntl.LOCK_EX) else SHARING
    except OSError:
        return ""  # a network folder wants a file that can be written for this
    finally:
        fcntl.flock(fd, fcntl.LOCK_UN)


def _try_lock(fd: int, mode: int) -> bool:
    try:
        fcntl.flock(fd, mode | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _acquire(path: Path, mode: int, on_wait: OnWait | None, *, wait: bool) -> int | None:
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            if not _try_lock(fd, mode):
                if not wait:
                    os.close(fd)
                    return None
                time.sleep(_GLANCE)
                if on_wait is not None and (who := _holder(fd)):
                    on_wait(who)
                    on_wait = None
                fcntl.flock(fd, mode)
            if _is_still(fd, path):
                if mode == fcntl.LOCK_EX:
                    # The name serves people only; on a full disk the lock holds without it.
                    with suppress(OSError):
                        os.ftruncate(fd, 0)
                        os.pwrite(fd, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
                return fd
        except BaseException:
            os.close(fd)
            raise
        # Whoever held the lock removed its file: what we hold is a name no longer there, so take the new one.
        os.close(fd)


def _is_still(fd: int, path: Path) -> bool:
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    ours = os.fstat(fd)
    return (ours.st_dev, ours.st_ino) == (there.st_dev, there.st_ino)


def _release(fd: int) -> None:
    # Unlock by name, not by closing alone: a forked child may still hold a copy of this descriptor.
    fcntl.flock(fd, fcntl.LOCK_UN)
    os.close(fd)
