"""What a pool has to tell beside its answers: where a server's limit has gone and why, and calls that were taken over.

Moves of a limit are told at most once a second for each server, several of them as one, so that a night's log does not
drown in them.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from cai.clients.endpoints import Endpoint

LIMIT_MOVED = "limit.moved"
"""A server's limit has moved: ``endpoint``, ``from`` (null when the pool opens), ``to``, ``reason``."""

TAKEN_OVER = "calls.taken_over"
"""Calls that one server was slow with were sent to another too: ``from``, ``to``, ``calls``."""

EVERY = 1.0
"""Seconds between two events about the same limit, at least."""

KEPT = "kept"
"""The reason of a limit that a pool finds when it opens: another pool of the same client left it there."""


@dataclass(frozen=True, slots=True)
class PoolNote:
    """One event, as ``Progress.note`` takes it."""

    event: str
    fields: Mapping[str, Any]


@runtime_checkable
class Noting(Protocol):
    """A pool that has such events."""

    def notes(self) -> list[PoolNote]:
        """Those since the last time."""
        ...


@runtime_checkable
class Counting(Protocol):
    """A pool that tells what each call read and wrote, by tag, from when it is given a dict for it."""

    call_tokens: dict[Hashable, tuple[int, int]] | None


class LimitMoves:
    """The moves of one server's limit, gathered into events."""

    def __init__(self, endpoint: Endpoint, label: str) -> None:
        self._endpoint = endpoint
        self._label = label
        self._value = endpoint.limit.value
        self._told_at = float("-inf")
        self._origin = endpoint.limit.reasons[0].value
        endpoint.limit.reasons.clear()

    def opening(self) -> PoolNote:
        """Where the limit is when a pool opens."""
        reason = self._origin
        self._origin = KEPT
        return self._note(None, self._endpoint.limit.value, reason)

    def due(self, now: float, at_rest: bool) -> PoolNote | None:
        """The event to tell now, if any; ``at_rest``: nothing is on its way, so that none may come for long."""
        limit = self._endpoint.limit
        if not limit.reasons or (now < self._told_at + EVERY and not at_rest):
            return None
        reasons = ", ".join(reason.value for reason in limit.reasons)
        limit.reasons.clear()
        before = self._value
        self._value = limit.value
        if before == self._value:
            return None
        self._told_at = now
        return self._note(before, self._value, reasons)

    def _note(self, before: int | None, after: int, reason: str) -> PoolNote:
        return PoolNote(LIMIT_MOVED, {"endpoint": self._label, "from": before, "to": after, "reason": reason})
