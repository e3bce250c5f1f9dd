"""A row that is refused stops nothing; when every row is refused alike, it is the run's fault.

One refusal does not say which of the two it is, so it is held back until others tell. What a server answers to a call
that was sent after the refusal shows that it takes other rows: then the refusal was its row's own. A dozen refusals
that no such answer contradicts close the server until the calls on their way are over; if none of them was answered
either, the run ends with what is to be mended. A server that has answered before is then asked a dozen more, one at a
time. So a key whose credit ends in the middle of a night costs two dozen calls and no row, and a server that refuses
every other row at once and answers slowly is not taken for one that refuses all.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cai.clients.speaker import Refused
from cai.errors import CaiError, PrerequisiteError, StepFailed

if TYPE_CHECKING:
    from cai.clients.endpoints import Endpoint
    from cai.clients.http_pool import CallPart, HttpPool

DECIDE = 12
"""Refusals without an answer that decide about the run."""


@dataclass(frozen=True, slots=True)
class HeldCall:
    """A call whose refusal is held back: what was refused, and when."""

    part: CallPart
    refused: Refused
    at: float


class Refusals:
    """The refusals of one client's servers that nothing has decided about yet. Times are passed in."""

    def __init__(self) -> None:
        self._held: defaultdict[Endpoint, list[HeldCall]] = defaultdict(list)
        self._answering: set[Endpoint] = set()

    def hold(self, part: CallPart, refused: Refused, endpoint: Endpoint, now: float) -> None:
        """Keep a refusal back."""
        self._held[endpoint].append(HeldCall(part, refused, now))

    def answered(self, endpoint: Endpoint, sent_at: float) -> list[HeldCall]:
        """A call sent at ``sent_at`` was answered: the refusals that are decided by it, as their rows' own."""
        self._answering.add(endpoint)
        held = self._held.get(endpoint)
        if not held:
            return []
        decided = [each for each in held if each.at <= sent_at]
        self._held[endpoint] = [each for each in held if each.at > sent_at]
        return decided

    def closed(self, endpoint: Endpoint) -> bool:
        """Whether a server gets nothing more before the calls on their way have told."""
        count = len(self._held.get(endpoint, ()))
        return count >= DECIDE and (endpoint.in_flight > 0 or count >= self._enough(endpoint))

    def _enough(self, endpoint: Endpoint) -> int:
        return DECIDE * 2 if endpoint in self._answering else DECIDE

    def verdict(self, endpoint: Endpoint) -> CaiError | None:
        """Why the run ends, where a server has nothing on its way any more and has refused enough."""
        held = self._held.get(endpoint, [])
        if endpoint.in_flight or len(held) < self._enough(endpoint):
            return None
        return _said(held[0].refused.error, f"{len(held)} calls in a row")

    def last_of(self, pool: HttpPool) -> tuple[list[HeldCall], CaiError | None]:
        """What becomes of a pool's held calls when it has no others: rows' own where anything was answered, else the
        error that ends the pool."""
        mine = [each for held in self._held.values() for each in held if each.part.job.pool is pool]
        self.forget(pool)
        if mine and not self._answering and not pool.answered_before:
            return [], _said(mine[0].refused.error, f"{len(mine)} calls in a row" if len(mine) > 1 else "")
        return mine, None

    def forget(self, pool: HttpPool) -> None:
        """A pool is over."""
        for endpoint, held in self._held.items():
            self._held[endpoint] = [each for each in held if each.part.job.pool is not pool]


def _said(error: CaiError, how_often: str) -> CaiError:
    if not how_often or not isinstance(error, PrerequisiteError | StepFailed):
        return error
    return type(error)(f"{error}; so it was with {how_often}, and none was answered")


def least_busy(endpoints: Sequence[Endpoint], refusals: Refusals, part: CallPart, now: float) -> Endpoint | None:
    """The server with room that has the least to do; not the one where a call failed last, if there is another."""
    best, most = None, (False, False, float("-inf"))
    usual = max(endpoint.latency for endpoint in endpoints) or 1.0
    for endpoint in endpoints:
        # Whether a server is back is found out with a call that has not failed yet.
        probes = endpoint.rests > 0 and part.failures == 0
        if endpoint.free(now) > 0 and not refusals.closed(endpoint):
            # By the time that its calls take, and not by its limit: a server whose calls queue up has enough.
            better = (endpoint is not part.avoid, probes, -endpoint.in_flight * (endpoint.latency or usual))
            if better > most:
                best, most = endpoint, better
    return best
