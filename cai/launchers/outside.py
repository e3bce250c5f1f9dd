"""Commands that somebody else runs: a script of ``plan --script``, or a person.

A step is then two calls of this program. ``--prepare`` goes as far as the step's first command and stops there, with
everything that the command reads written; ``--finish`` takes it as done and goes on from what it left. Servers are
asked where they run, and neither started nor stopped.
"""

from __future__ import annotations

import os
import shlex
import socket
import time
from collections.abc import Sequence
from enum import Enum
from pathlib import Path

from cai.errors import Incomplete, StepFailed
from cai.launchers.base import Command, Ready, Server

COMMANDS = "CAI_COMMANDS"
"""The environment variable that says which half of a step is meant; unset, commands are run."""

_PATIENCE = 5.0  # Seconds for one attempt to connect.


class Half(str, Enum):
    """The half of a step on either side of its commands."""

    PREPARE = "prepare"
    FINISH = "finish"


class Prepared(Incomplete):
    """Everything that the step's commands read is written; they are to be run now."""


def host_variable(role: str) -> str:
    """The environment variable that says where the server of a role runs: ``CAI_CRITIC_HOST``."""
    return f"CAI_{role.upper().replace('-', '_')}_HOST"


class OutsideRunner:
    """A Runner that starts nothing."""

    def __init__(self, half: Half) -> None:
        self._half = half

    def start(self, command: Command, log: Path) -> Server:
        """The server that runs somewhere already.

        Raises:
            Prepared: in the first half.
            StepFailed: when the command opens no port, so that it cannot be found.
        """
        self._stop_before(command)
        if command.ready is None:
            raise StepFailed(f"{command.role}: opens no port, so it cannot be run outside of this program")
        return OutsideServer(command.role, os.environ.get(host_variable(command.role), "127.0.0.1"), command.ready)

    def run(self, command: Command, log: Path, beside: Sequence[Server] = ()) -> None:
        """Return at once: the command has been run.

        Raises:
            Prepared: in the first half.
        """
        self._stop_before(command)

    def close(self) -> None:
        """Nothing to stop."""

    def _stop_before(self, command: Command) -> None:
        if self._half is Half.PREPARE:
            raise Prepared(
                f"{command.role}: everything it reads is written; run it now, then this step with --finish:\n"
                f"{shlex.join(command.argv)}"
            )


class OutsideServer:
    """A server that somebody else started."""

    def __init__(self, role: str, host: str, ready: Ready) -> None:
        self._role = role
        self.host = host
        self.port = ready.port
        self._timeout = ready.timeout

    def wait_ready(self) -> None:
        """Return when the port accepts.

        Raises:
            StepFailed: when it does not in time.
        """
        deadline, pause = time.monotonic() + self._timeout, 0.1
        while error := self._refusal():
            if time.monotonic() + pause > deadline:
                raise StepFailed(
                    f"{self._role}: {self.host}:{self.port} was not ready within {self._timeout:g} s ({error}); "
                    f"{host_variable(self._role)} says where it runs"
                )
            time.sleep(pause)
            pause = min(2 * pause, 1.0)

    def check(self) -> None:
        """Nothing is known of its process but whether the port accepts.

        Raises:
            StepFailed: when it does not.
        """
        if error := self._refusal():
            raise StepFailed(
                f"{self._role}: {self.host}:{self.port} no longer answers ({error}); start it again, then this step "
                "with --finish"
            )

    def stop(self) -> None:
        """Leave it to whoever started it."""

    def _refusal(self) -> str:
        """Why the port does not accept; empty when it does."""
        try:
            with socket.create_connection((self.host, self.port), timeout=_PATIENCE):
                return ""
        except OSError as error:
            return error.strerror or str(error) or type(error).__name__
