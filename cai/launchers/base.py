"""What runs: commands as data, and the interface to whoever starts them.

A ``Command`` is the exact argv of one process (or of one ``srun`` that starts many). A plan shows it and a launcher
executes it unchanged. Hosts are known only when a step runs, so they travel in environment variables that the argv
refers to (OmegaConf reads ``${oc.env:CAI_CRITIC_HOST}``); everything else is fixed while planning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Ready:
    """When a background command counts as up: TCP ``port`` of its host accepts; at the latest after ``timeout`` s."""

    port: int
    timeout: float = 1800.0


@dataclass(frozen=True, slots=True)
class Resources:
    """What a command needs of a cluster. ``nodes`` 0 marks work that runs wherever the step's own process runs."""

    nodes: int = 0
    tasks_per_node: int = 1
    gpus_per_node: int = 0
    time: str = ""


@dataclass(frozen=True, slots=True)
class Command:
    """One process of a step.

    ``role``: ``download``, ``convert``, ``server``, ``train``, ``critic``, ``actor``, or ``work``, which is this
    program itself (the local launcher does ``work`` in its own process; ``argv`` does the same alone). Several
    servers of one step are ``server``, ``server-1``, ``server-2`` ... ``env`` holds no secret, ever. ``addresses``
    maps environment variables to roles: each is set to the host of that role's command. ``component`` is the part of
    a heterogeneous job that it runs in, ``relative`` the node of that component. Servers of another ``turn`` run at
    another time: ``evaluate`` serves one model after the other.
    """

    role: str
    argv: tuple[str, ...]
    env: dict[str, str] = field(default_factory=dict)
    cwd: str = ""
    background: bool = False
    ready: Ready | None = None
    resources: Resources = Resources()
    addresses: dict[str, str] = field(default_factory=dict)
    component: int = 0
    relative: int = 0
    turn: int = 0

    def data(self) -> dict[str, Any]:
        """As plain data, with stable keys."""
        return {**asdict(self), "argv": list(self.argv)}


class Server(Protocol):
    """A background command while it runs."""

    @property
    def host(self) -> str:
        """Where it can be reached."""
        ...

    @property
    def port(self) -> int:
        """The port it was to open."""
        ...

    def wait_ready(self) -> None:
        """Return when the port accepts.

        Raises:
            StepFailed: when it ends before or is not ready in time, with the tail of its log.
        """
        ...

    def check(self) -> None:
        """Raise StepFailed, with the tail of its log, when it has ended."""
        ...

    def stop(self) -> None:
        """Take it down with everything it started; returns when it is gone. Can be called again."""
        ...


class Runner(Protocol):
    """Starts commands and takes them down. ``close`` stops all that still runs."""

    def start(self, command: Command, log: Path) -> Server:
        """Start a background command; standard output and error go to ``log`` (appended)."""
        ...

    def run(self, command: Command, log: Path, beside: Sequence[Server] = ()) -> None:
        """Run a command to its end.

        ``beside`` are servers it depends on: when one ends first the command is stopped and the error is the server's.

        Raises:
            StepFailed: when it exits with anything but 0, with the tail of its log.
        """
        ...

    def close(self) -> None:
        """Stop everything that was started here."""
        ...
