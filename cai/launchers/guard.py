"""Runs one command and leaves nothing behind, whatever becomes of whoever asked for it.

``python -I -S guard.py STOP STATUS GRACE ARGV...`` stands between the driver and the command. ``STOP`` is the reading
end of a pipe that the driver holds: a byte asks for the end, and so does the silence after the driver's death (kill -9
included). The guard is the subreaper of all that the command starts, so that a process which leaves its session or
loses its parent is still found. What it knows goes to ``STATUS`` as lines: ``exit CODE`` or ``signal NUMBER`` when the
command ends; the pipe closes when everything is gone. The guard's own exit code is the command's, 128 + n for a signal.

Run as a file, without site-packages and without the rest of this package: it starts in 20 ms beside programs that use
another interpreter. No library does this without a daemon or cgroups, which users of a cluster cannot make.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys
import time
from contextlib import suppress

PATIENCE = 30.0
"""Seconds after SIGKILL in which a process must be gone; one that waits for a dead disk or driver never goes."""
MARK = "CAI_COMMAND"
"""Environment variable of a command and of all it starts: by it they are found when the guard itself was killed."""

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_ASKS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_IGNORED_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)


class Process:
    """A line of the process table."""

    __slots__ = ("group", "parent")

    def __init__(self, parent: int, group: int) -> None:
        self.parent = parent
        self.group = group


def processes() -> dict[int, Process]:
    """All living processes of this machine by pid; zombies are left out."""
    table = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with suppress(OSError):
                with open(f"/proc/{name}/stat", "rb") as file:
                    # The command's name comes in parentheses and may hold anything, parentheses too.
                    state, parent, group = file.read().rpartition(b")")[2].split()[:3]
                if state not in (b"Z", b"X"):
                    table[int(name)] = Process(int(parent), int(group))
    return table


def descendants(roots: set[int], table: dict[int, Process]) -> set[int]:
    """The living processes below ``roots``, without them."""
    children: dict[int, list[int]] = {}
    for pid, process in table.items():
        children.setdefault(process.parent, []).append(pid)
    below: set[int] = set()
    todo = list(roots)
    while todo:
        for child in children.get(todo.pop(), ()):
            if child not in below:
                below.add(child)
                todo.append(child)
    return below - roots


def sweep(mark: str, grace: float) -> None:
    """Take down every process whose environment holds ``mark``, and what is below it, when no guard does it any more.

    SIGTERM first, SIGKILL after ``grace`` seconds. Returns when they are gone.
    """
    began = time.monotonic()
    signalled = set[int]()
    while marked := _marked(mark):
        passed = time.monotonic() - began
        if passed > grace + PATIENCE:
            return
        killing = passed >= grace
        for pid in marked if killing else marked - signalled:
            _send(pid, signal.SIGKILL if killing else signal.SIGTERM)
        signalled |= marked
        time.sleep(0.05)


def _marked(mark: str) -> set[int]:
    table, environ_entry = processes(), f"{MARK}={mark}".encode()
    marked = set()
    for pid in table:
        with suppress(OSError), open(f"/proc/{pid}/environ", "rb") as file:
            if environ_entry in file.read().split(b"\0"):
                marked.add(pid)
    return marked | descendants(marked, table)


def _send(pid: int, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)
        if number == signal.SIGTERM:
            os.kill(pid, signal.SIGCONT)  # a stopped process would not hear it


class _Guard:
    def __init__(self, stop: int, status: int, grace: float) -> None:
        self.stop = stop
        self.status = status
        self.grace = grace
        self.driver = os.getppid()
        self.code: int | None = None
        self.stop_requested = False
        self.signalled: set[int] = set()
        for fd in (stop, status):
            os.set_inheritable(fd, False)

    def run(self, argv: list[str]) -> int:
        """Run ``argv`` to its end; returns the exit code."""
        if ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
            raise OSError("this system has no child subreapers")
        woken, wake = os.pipe()
        os.set_blocking(woken, False)
        os.set_blocking(wake, False)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        # Blocked until the child has its own handlers, or a signal that came at once would be lost in it.
        signal.pthread_sigmask(signal.SIG_SETMASK, (*_ASKS, signal.SIGCHLD))
        for number in _ASKS:
            signal.signal(number, self._ask)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self.main = _start(argv)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        poller = select.poll()
        poller.register(woken, select.POLLIN)
        poller.register(self.stop, select.POLLIN)
        ending: float | None = None
        while not self._reap():
            now = time.monotonic()
            if ending is None and (self.stop_requested or self.code is not None or os.getppid() != self.driver):
                ending = now
                with suppress(OSError):
                    poller.unregister(self.stop)
            if ending is not None and not self._take_down(now - ending):
                break
            for fd, _ in poller.poll(1000 if ending is None else 50):
                if fd == woken:
                    with suppress(BlockingIOError):
                        os.read(woken, 4096)
                else:
                    self.stop_requested = True
        return 1 if self.code is None else self.code

    def _ask(self, *_: object) -> None:
        self.stop_requested = True

    def _reap(self) -> bool:
        """Collect the dead; whether nobody is left. As everyone below is or becomes a child, that is all."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return True
            if not pid:
                return False
            if pid == self.main:
                self.code = os.waitstatus_to_exitcode(status)
                line = f"exit {self.code}\n" if self.code >= 0 else f"signal {-self.code}\n"
                with suppress(BrokenPipeError):
                    os.write(self.status, line.encode())
                self.code = self.code if self.code >= 0 else 128 - self.code

    def _take_down(self, passed: float) -> bool:
        """One round, ``passed`` seconds after the first; False when there is nothing more to try."""
        if passed > self.grace + PATIENCE:
            stuck = ", ".join(map(str, sorted(descendants({os.getpid()}, processes()))))
            os.write(2, f"guard: processes {stuck} do not die, not even by SIGKILL; giving them up\n".encode())
            return False
        if passed >= self.grace:
            for pid in descendants({os.getpid()}, processes()):
                _send(pid, signal.SIGKILL)
        elif not self.signalled or self.code is not None:
            # While the command lives, what it starts after SIGTERM is its own way of cleaning up.
            table = processes()
            below = descendants({os.getpid()}, table)
            group = {pid for pid in below if table[pid].group == self.main}
            if group and not self.signalled:
                # The group at once, so that none forks away meanwhile. Once to each: some take a second for haste.
                with suppress(ProcessLookupError):
                    os.killpg(self.main, signal.SIGTERM)
                    os.killpg(self.main, signal.SIGCONT)
                self.signalled |= group
            for pid in below - self.signalled:
                _send(pid, signal.SIGTERM)
            self.signalled |= below
        return True


def _start(argv: list[str]) -> int:
    guard = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != guard:
            os._exit(1)
        for number in (*_ASKS, *_IGNORED_BY_PYTHON, signal.SIGCHLD, signal.SIGQUIT):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.execvp(argv[0], argv)
    except OSError as error:
        os.write(2, f"guard: cannot start {argv[0]}: {error.strerror}\n".encode())
    finally:
        os._exit(127)


if __name__ == "__main__":
    code = _Guard(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])).run(sys.argv[4:])
    os._exit(code)
