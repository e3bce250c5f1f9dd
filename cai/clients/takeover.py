"""Calls that wait in a slow server's queue at the end of the work are sent to another server too.

As long as there is more to send, a slow server costs nothing: the others get the rest. At the end its last calls are
what everybody waits for, while others have places free. The first answer counts, and a call is sent so once at most.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cai.clients.endpoints import Endpoint
from cai.clients.flights import Flight

SLOW = 3.0
"""How many times as long as another server usually takes a call must have waited."""


@dataclass(frozen=True, slots=True)
class Takeovers:
    """The attempts to repeat now, each with the server that gets it, and when to look again (None: no need)."""

    now: Sequence[tuple[Flight, Endpoint]]
    look_at: float | None


def takeovers(flights: Iterable[Flight], endpoints: Sequence[Endpoint], now: float) -> Takeovers:
    """What may be taken over when nothing is left to send; those that wait longest go first."""
    if len(endpoints) < 2:
        return Takeovers((), None)
    places = {id(endpoint): endpoint.free(now) for endpoint in endpoints}
    chosen: list[tuple[Flight, Endpoint]] = []
    look_at: float | None = None
    for flight in sorted(flights, key=lambda flight: flight.sent_at):
        if flight.part.taken_over or flight.part.over:
            continue
        for other in sorted(endpoints, key=lambda endpoint: endpoint.latency):
            if other is flight.endpoint or not other.latency or other.rests or places[id(other)] <= 0:
                continue
            due = flight.sent_at + SLOW * other.latency
            if due <= now:
                places[id(other)] -= 1
                chosen.append((flight, other))
            else:
                look_at = due if look_at is None else min(look_at, due)
            break
    return Takeovers(chosen, look_at)
