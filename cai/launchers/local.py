"""Commands as processes of this machine, each under a guard that takes it down whatever happens to this program.

A command runs in a session of its own, so that Ctrl-C in the terminal reaches this program alone, whose unwinding
stops the commands in order. When this program has no time to unwind (kill -9, power to the terminal gone), the guards
see their pipe close and do the same. The Slurm runner is this one with other hosts: ``host_of``.
"""

from __future__ import annotations

import os
import re
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime, timezone
from itertools import groupby
from pathlib import Path

from cai.errors import StepFailed
from cai.files.durable import disk_space, write_whole
from cai.launchers import guard
from cai.launchers.base import Command, Server
from cai.launchers.settings import Local
from cai.launchers.tail import tail
from cai.text import duration, one_line

HERE = "127.0.0.1"
TICK = 0.25
"""Seconds between two looks at the servers that a running command depends on."""
BLAME = 1.0
"""Seconds after a command's failure in which the end of a server beside it counts as the cause."""


class LocalRunner:
    """Starts commands on this machine and takes them down.

    ``host_of`` says where a command's ports can be reached. Not for use by several threads at once; the servers that it
    gives may be checked and stopped from any.
    """

    def __init__(
        self,
        settings: Local,
        *,
        host_of: Callable[[Command], str] = lambda command: HERE,
    ) -> None:
        self.settings = settings
        self.host_of = host_of
        self._running: list[_Process] = []

    def start(self, command: Command, log: Path) -> Server:
        """Start a background command; standard output and error are appended to ``log``.

        Raises:
            StepFailed: when its port is taken, its executable or folder is missing, or it needs the address of a
                server that does not run.
        """
        host = self.host_of(command)
        if command.ready and _accepts(host, command.ready.port):
            raise StepFailed(
                f"{command.role}: port {command.ready.port} on {_place(host)} is taken by another process; "
                f"stop that one (`ss -ltnp 'sport = :{command.ready.port}'` tells which) or set another port"
            )
        return self._launch(command, log, host)

    def run(self, command: Command, log: Path, beside: Sequence[Server] = ()) -> None:
        """Run a command to its end; whatever it left running is taken down.

        ``beside`` are servers it depends on: when one ends first the command is stopped and the error is the server's.
        Any exception that unwinds through here (Ctrl-C, SIGTERM) stops the command and waits until it is gone.

        Raises:
            StepFailed: when it exits with anything but 0, with the tail of its log; or as ``start`` does.
        """
        process = self._launch(command, log, self.host_of(command))
        try:
            while not process.ended(wait=TICK if beside else 60.0):
                for server in beside:
                    server.check()
            failed = time.monotonic()
            while process.outcome != "exit 0" and beside and time.monotonic() - failed < BLAME:
                for server in beside:
                    server.check()
                time.sleep(0.05)
            process.check(expected="exit 0")
        finally:
            process.stop()
            self._running.remove(process)

    def close(self) -> None:
        """Stop everything that was started here, newest first; servers of one kind together. Can be called again."""
        try:
            for _, group in groupby(reversed(self._running), key=lambda process: _kind(process.command.role)):
                together = list(group)
                for process in together:
                    process.ask()
                for process in together:
                    process.stop()
        finally:
            # Only an exception (a second Ctrl-C) leaves any: they are told, and their guards see it through.
            for process in self._running:
                process.ask()
        self._running.clear()

    def _launch(self, command: Command, log: Path, host: str) -> _Process:
        if sys.platform != "linux":
            raise StepFailed(f"{command.role}: commands are guarded by Linux's means; run this step on a Linux machine")
        argv = command.argv
        env = {**os.environ, **command.env, **self._addresses(command)}
        _check_executable(command, argv, env)
        process = _Process(command, host, log, self.settings.grace)
        self._running.append(process)
        try:
            process.launch(argv, env)
        except BaseException:
            self._running.remove(process)
            raise
        return process

    def _addresses(self, command: Command) -> dict[str, str]:
        hosts = {process.command.role: process.host for process in self._running if not process.ended()}
        for name, role in command.addresses.items():
            if role not in hosts:
                running = f"running: {', '.join(hosts)}" if hosts else "nothing else runs"
                raise StepFailed(f"{command.role}: {name} wants the address of {role!r}, which does not run; {running}")
        return {name: hosts[role] for name, role in command.addresses.items()}


class _Process:
    """A command under its guard."""

    def __init__(self, command: Command, host: str, log: Path, grace: float) -> None:
        self.command = command
        self.host = host
        self.log = log
        self.grace = grace
        self.mark = uuid.uuid4().hex
        self._stop: int | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._status = -1
        self._news = b""
        self._begins = 0
        self._gone = False
        self._swept = False
        self._lock = threading.RLock()

    @property
    def port(self) -> int:
        """The port it was to open; 0 when it opens none."""
        return self.command.ready.port if self.command.ready else 0

    @property
    def outcome(self) -> str:
        """``exit CODE`` or ``signal NUMBER`` when the command has ended; ``lost`` when its guard was killed."""
        return self._news.partition(b"\n")[0].decode() if b"\n" in self._news else "lost" if self._gone else ""

    def launch(self, argv: tuple[str, ...], env: dict[str, str]) -> None:
        """Start the guard, which starts ``argv``. The log gets the argv first and nothing of the environment."""
        out = self._open_log(argv)
        theirs, ours = os.pipe()
        self._stop = ours
        status_end, status = os.pipe()
        self._status = status_end
        os.set_blocking(self._status, False)
        guarded = [sys.executable, "-I", "-S", guard.__file__, str(theirs), str(status), str(self.grace), *argv]
        try:
            self._guard = subprocess.Popen(
                guarded,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env={**env, guard.MARK: self.mark},
                cwd=self.command.cwd or None,
                pass_fds=(theirs, status),
                start_new_session=True,
            )
        except BaseException as error:
            # Should the guard run already, its pipe closes here and it ends.
            self.ask()
            os.close(self._status)
            self._gone = True
            if isinstance(error, OSError):
                raise StepFailed(f"{self._name()} cannot be started: {error.strerror}; log {self.log}") from error
            raise
        finally:
            for fd in (out, theirs, status):
                os.close(fd)

    def ended(self, wait: float = 0.0) -> bool:
        """Whether the command has ended; looks for up to ``wait`` seconds."""
        if not self.outcome:
            self._look(wait)
        return bool(self.outcome)

    def wait_ready(self) -> None:
        """Return when the port accepts; at once when it has none.

        Raises:
            StepFailed: when it ends before or is not ready in time, with the tail of its log.
        """
        ready = self.command.ready
        if ready is None:
            return self.check()
        deadline, delay = time.monotonic() + ready.timeout, 0.1
        while not _accepts(self.host, ready.port):
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise self._failed(
                    f"did not open port {ready.port} on {_place(self.host)} within {duration(ready.timeout)}",
                    "raise its ready timeout if it only loads slowly",
                )
            if self.ended(wait=min(delay, remaining)):
                raise self._failed(
                    f"{_ending_words(self.outcome)} before it opened port {ready.port}", _hint(self.outcome)
                )
            delay = min(delay * 1.3, 1.0)
        # Another process may have taken the port since: then ours ends now.
        self.check()

    def check(self, expected: str = "") -> None:
        """Raise StepFailed, with the tail of its log, when it has ended otherwise than ``expected``."""
        if self.ended() and self.outcome != expected:
            raise self._failed(_ending_words(self.outcome), _hint(self.outcome))

    def ask(self) -> None:
        """Tell the guard to take everything down, and do not wait."""
        with self._lock:
            stop = self._stop
            self._stop = None
            if stop is not None:
                # The byte counts where a forked child of this process still holds the pipe open.
                with suppress(BrokenPipeError):
                    os.write(stop, b"x")
                os.close(stop)

    def stop(self) -> None:
        """Take it down with everything it started; returns when it is gone. Can be called again."""
        self.ask()
        deadline = time.monotonic() + self.grace + guard.PATIENCE + 5
        while not self._gone:
            if self._guard and time.monotonic() > deadline:
                self._guard.kill()
            self._look(1.0)
        if self.outcome == "lost" and not self._swept:
            guard.sweep(self.mark, self.grace)
            self._swept = True

    def _look(self, wait: float) -> None:
        """Take in what the guard tells, waiting for up to ``wait`` seconds."""
        if self._gone:
            return
        poller = select.poll()
        poller.register(self._status, select.POLLIN)
        poller.poll(wait * 1000)
        with self._lock, suppress(BlockingIOError):
            while not self._gone:
                news = os.read(self._status, 4096)
                self._news += news
                if not news:
                    self._gone = True
                    os.close(self._status)
                    if self._guard:
                        self._guard.wait()

    def _open_log(self, argv: tuple[str, ...]) -> int:
        """Open the log and write its header; from here on lies what this attempt wrote."""
        header = f"# {datetime.now(timezone.utc):%Y-%m-%dT%H:%M:%SZ}\n$ {shlex.join(argv)}\n"
        try:
            with disk_space(self.log, len(header)):
                self.log.parent.mkdir(parents=True, exist_ok=True)
                fd = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
                try:
                    write_whole(fd, header.encode("utf-8", "surrogateescape"))
                    self._begins = os.lseek(fd, 0, os.SEEK_END)
                except BaseException:
                    os.close(fd)
                    raise
        except OSError as error:
            raise StepFailed(f"{self.log}: cannot be written ({error.strerror})") from error
        return fd

    def _name(self) -> str:
        return f"{self.command.role} ({_program(self.command.argv)})"

    def _failed(self, problem: str, hint: str = "") -> StepFailed:
        problem += f" ({hint})" if hint else ""
        return StepFailed(f"{self._name()} {problem}; log {self.log}:\n{tail(self.log, self._begins)}")


def _check_executable(command: Command, argv: Sequence[str], env: dict[str, str]) -> None:
    if command.cwd and not Path(command.cwd).is_dir():
        raise StepFailed(f"{command.role}: its folder {command.cwd} does not exist on this machine")
    name = argv[0]
    # A path is relative to the folder that the command runs in; a bare name is looked up in its PATH.
    executable = shutil.which(os.path.join(command.cwd, name) if os.sep in name else name, path=env.get("PATH"))
    if not executable:
        where = "is no executable file" if os.sep in name else "is not on the PATH"
        raise StepFailed(
            f"{command.role}: {name!r} {where} of this machine; install it, or name the right one in the "
            "settings of the experiment's engine"
        )


def _accepts(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=1.0):
            return True
    except OSError:
        return False


def _place(host: str) -> str:
    return "this machine" if host in (HERE, "localhost") else host


def _kind(role: str) -> str:
    return re.sub(r"-\d+$", "", role)


def _program(argv: Sequence[str]) -> str:
    """What a person calls the command: the script among the words, else the executable."""
    script = next((word for word in argv[1:] if word.endswith((".py", ".sh"))), argv[0])
    return one_line(os.path.basename(script), 60)


def _ending_words(outcome: str) -> str:
    how, _, number = outcome.partition(" ")
    if how == "exit":
        by = f" ({_signal(int(number) - 128)})" if int(number) > 128 else ""
        return f"exited with code {number}{by}"
    if how == "signal":
        return f"was killed by {_signal(int(number))}"
    return "was lost: the guard process that watched it has gone first"


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _hint(outcome: str) -> str:
    if outcome in ("exit 137", "signal 9"):
        return "the kernel or the cluster does this when memory runs out; `dmesg` tells"
    if outcome == "exit 127":
        return "the shell's code for a command that was not found"
    return ""
