"""What a run says while nothing is answered, and how long it waits where a server only says that it is asked too much.

Times are passed in, in seconds.
"""

from __future__ import annotations

SAY_EVERY = 30.0
"""Seconds without an answer after which a line says what is waited for, and between two such lines."""


class Waiting:
    """The silence of one client's servers: since when nothing has been answered, and since when calls are refused as
    too many. ``patience``: for how long only that is waited for."""

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._silent_since: float | None = None
        self._limited_since: float | None = None
        self._said_at = float("-inf")
        self._why = ""

    def sent(self, now: float) -> None:
        """A call goes out."""
        if self._silent_since is None:
            self._silent_since = now

    def answered(self, now: float) -> None:
        """A call was answered."""
        self._silent_since = now
        self._limited_since = None
        self._why = ""

    def went_wrong(self, now: float, why: str, limited: bool) -> None:
        """An attempt came to nothing; ``limited``: because the server is asked too much."""
        self._why = why
        if limited and self._limited_since is None:
            self._limited_since = now

    def idle(self) -> None:
        """Nothing is waited for."""
        self._silent_since = None
        self._limited_since = None

    def line(self, now: float, calls: int, in_flight: int) -> str:
        """What a person should read now: what is waited for, and for how long; mostly nothing."""
        if self._silent_since is None or not calls:
            return ""
        silent = now - self._silent_since
        if silent < SAY_EVERY or now - self._said_at < SAY_EVERY:
            return ""
        self._said_at = now
        why = f"; the last said that it {self._why}" if self._why else ""
        until = ""
        if self._limited_since is not None:
            until = f"; waits {max(self._patience - (now - self._limited_since), 0):.0f} s more at most"
        wait = f"{calls} calls wait" if calls > 1 else "1 call waits"
        return f"nothing was answered for {silent:.0f} s: {wait}, {in_flight} on the way{why}{until}"

    def over(self, now: float) -> str:
        """Why nothing more is waited for, once patience is out; else nothing."""
        if self._limited_since is None or now - self._limited_since < self._patience:
            return ""
        return (
            f"{self._why}, and nothing else for {now - self._limited_since:.0f} s (`limits.patience`); all that was "
            "answered is kept, and the same command goes on"
        )
