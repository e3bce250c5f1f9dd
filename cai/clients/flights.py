"""The attempts that are on their way: each with the time at which it is given up, which may be put off.

Used in the loop alone; times are the loop's seconds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from typing import Any

from cai.clients.endpoints import Endpoint
from cai.clients.http_pool import CallPart
from cai.clients.settings import ApiLimits
from cai.clients.spending import Spent

NOTHING = Spent()


@dataclass(slots=True, eq=False)
class Flight:
    """One attempt on its way. ``reserved`` is what was set aside for it, ``first_try`` says that no limit has refused
    its call yet, and ``expired`` that its time was up."""

    part: CallPart
    endpoint: Endpoint
    sent_at: float
    reserved: Spent = NOTHING
    first_try: bool = True
    seconds: float = 0.0
    expired: bool = False
    _expires: asyncio.TimerHandle | None = None

    def expires_at(self, when: float, task: asyncio.Task[None]) -> None:
        """Give it up then."""
        if self._expires is not None:
            self._expires.cancel()
        self.seconds = when - self.sent_at
        self._expires = task.get_loop().call_at(when, self._expire, task)

    def landed(self) -> None:
        """It is over."""
        if self._expires is not None:
            self._expires.cancel()

    def _expire(self, task: asyncio.Task[None]) -> None:
        self.expired = True
        task.cancel()


class Flights:
    """All attempts of one client."""

    def __init__(self, limits: ApiLimits) -> None:
        self._limits = limits
        self._flights: dict[asyncio.Task[None], Flight] = {}

    def __len__(self) -> int:
        return len(self._flights)

    def __iter__(self) -> Iterator[Flight]:
        return iter(self._flights.values())

    def start(self, loop: asyncio.AbstractEventLoop, flight: Flight, attempt: Coroutine[Any, Any, None]) -> None:
        """Let an attempt begin."""
        task = loop.create_task(attempt)
        self._flights[task] = flight
        flight.part.job.pool.tasks.add(task)
        task.add_done_callback(self._landed)
        flight.expires_at(self._time_up(flight), task)

    def put_off(self, endpoint: Endpoint) -> None:
        """Wait for what a server has in its queue: its calls have their time from when the queue is over."""
        for task, flight in self._flights.items():
            if flight.endpoint is endpoint:
                flight.expires_at(self._time_up(flight), task)

    def twins(self, part: CallPart) -> list[asyncio.Task[None]]:
        """The other attempts of a call that are on their way: none, but where it has been taken over."""
        if not part.taken_over:
            return []
        return [t for t, f in self._flights.items() if f.part is part and t is not asyncio.current_task()]

    def _time_up(self, flight: Flight) -> float:
        began = flight.part.began if flight.part.began is not None else flight.sent_at
        last = max(began + self._limits.deadline, flight.sent_at + 0.001)
        return min(max(flight.sent_at, flight.endpoint.queue_until) + self._limits.timeout, last)

    def _landed(self, task: asyncio.Task[None]) -> None:
        flight = self._flights.pop(task, None)
        if flight is not None:
            flight.landed()
            flight.part.job.pool.tasks.discard(task)
