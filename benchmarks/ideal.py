"""The client that knows everything: how long the same calls take at best, on servers whose places it keeps full.

It is list scheduling over simulated time: whenever a place is free, the next call goes there, those of rows on their
way before new rows, a failed one at once again. It knows how many places there are, when a server will be away, and
how long each call will take, so that it starts none that the server's end would cut off. ``longest_first`` uses what it
knows of the latencies for the order too; no client that sends calls before it knows them can do that.

What a call takes and whether it fails are drawn from the call's name and the number of the attempt alone, so that every
client, real or not, gets the same draws.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Draws:
    """Latencies, log-normal with mean ``latency`` seconds, and failures (a share) of attempts."""

    latency: float
    spread: float = 0.4
    failures: float = 0.02
    seed: int = 0

    def __call__(self, call: str, attempt: int) -> tuple[float, bool]:
        """Seconds that an attempt (from 1) takes, and whether it fails."""
        draw = random.Random(f"{self.seed}:{call}:{attempt}")
        seconds = self.latency * math.exp(draw.gauss(-self.spread * self.spread / 2, self.spread))
        return seconds, draw.random() < self.failures


@dataclass(frozen=True)
class Places:
    """One server: calls that it works on at a time, and from when to when it is away (seconds from the start)."""

    count: int
    away: tuple[float, float] = (math.inf, math.inf)

    def fits(self, begin: float, seconds: float) -> bool:
        """Whether a call that begins then comes to its end."""
        gone, back = self.away
        return begin + seconds <= gone or begin >= back


Row = Sequence[str]
"""The calls of one row, each of which needs the one before it."""


def ideal_seconds(
    rows: Sequence[Row], servers: Sequence[Places], draws: Draws, *, longest_first: bool = False
) -> float:
    """Seconds until the last row is done."""
    work = [sum(_seconds(draws, call) for call in row) for row in rows]
    order = sorted(range(len(rows)), key=lambda row: -work[row]) if longest_first else list(range(len(rows)))
    # What can be sent now, the first first: (rank, row, call of the row, attempt).
    ready = [(len(rows) + rank, row, 0, 1) for rank, row in enumerate(order)]
    if longest_first:
        ready = [(-work[row], row, 0, 1) for row in order]  # type: ignore[misc]
    heapq.heapify(ready)
    left = list(work)
    free = [server.count for server in servers]
    events: list[tuple[float, int, tuple[int, int, int, int, bool]]] = []
    for server in servers:
        if server.away[1] < math.inf:
            heapq.heappush(events, (server.away[1], len(events), (-1, 0, 0, 0, False)))
    now = end = 0.0
    number = len(servers)
    while True:
        for index, server in enumerate(servers):
            while free[index] and ready:
                rank, row, turn, attempt = ready[0]
                seconds, fails = draws(rows[row][turn], attempt)
                if not server.fits(now, seconds):
                    break
                heapq.heappop(ready)
                free[index] -= 1
                left[row] -= seconds
                heapq.heappush(events, (now + seconds, number, (index, row, turn, attempt, fails)))
                number += 1
        if not events:
            return end
        now, _, (index, row, turn, attempt, fails) = heapq.heappop(events)
        if index < 0:
            continue
        end = now
        free[index] += 1
        rank = -left[row] if longest_first else row - len(rows)
        if fails:
            heapq.heappush(ready, (rank, row, turn, attempt + 1))
        elif turn + 1 < len(rows[row]):
            heapq.heappush(ready, (rank, row, turn + 1, 1))


def _seconds(draws: Draws, call: str) -> float:
    """All attempts of a call, up to the one that is answered."""
    total = 0.0
    for attempt in range(1, 100):
        seconds, fails = draws(call, attempt)
        total += seconds
        if not fails:
            break
    return total
