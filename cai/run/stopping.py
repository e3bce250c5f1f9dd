"""Being told to stop: Ctrl-C and SIGTERM unwind the stack alike and end as errors that say how to go on."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from cai.errors import Incomplete


class Interrupted(Incomplete):
    """The user pressed Ctrl-C; the work done so far is kept."""

    exit_code = 130


class _Terminated(BaseException):
    """SIGTERM arrived; no ``except Exception`` of a stage may swallow it."""


class StopSign:
    """Asks steps that run in other threads to stop; they look at it whenever they tell of their progress."""

    def __init__(self) -> None:
        self._reason = ""

    def ask(self, reason: str) -> None:
        """Let them stop, for the first reason that is given."""
        self._reason = self._reason or reason

    def check(self, step: str) -> None:
        """Stop here if that is asked.

        Raises:
            Incomplete: with the reason; what the step has is kept.
        """
        if self._reason:
            raise Incomplete(f"{step}: {self._reason}; run the same command again to go on")


@contextmanager
def sigterm_raises() -> Iterator[None]:
    """Inside the block SIGTERM unwinds the stack as Ctrl-C does. Only the main thread can arrange this."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminate(signum: int, frame: FrameType | None) -> NoReturn:
        raise _Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def stopped_error(subject: str, error: BaseException) -> BaseException:
    """The error that tells a person why ``subject`` stopped: another one where the process was told to stop."""
    if isinstance(error, KeyboardInterrupt):
        return Interrupted(f"{subject}: interrupted; run the same command again to go on")
    if isinstance(error, _Terminated):
        return Incomplete(f"{subject}: stopped by SIGTERM; run the same command again to go on")
    return error
