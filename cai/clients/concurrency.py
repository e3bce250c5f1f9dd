"""How many calls a server gets at once: as many as raise its throughput, and fewer when it says that it is too much.

The limit starts small and doubles as long as doubling pays. Where it no longer does, the limit goes to the knee of the
curve, stays, and now and then tries a little more: what raises throughput is kept, the rest is taken back. A refusal
(429, 503) takes away the slot of the call that was refused, down to half in one round trip, so that a server with a
fixed number of places is kept exactly full; a timeout takes a third.

Throughput is counted over windows of whole rounds, and only while there is more to ask than the limit lets through.
Nothing here reads a clock: all times are passed in.
"""

from __future__ import annotations

from dataclasses import dataclass

START = 8
"""Calls in flight before anything is known."""

PAYS = 0.2
"""The share of a rise in calls that must show up as a rise in throughput. A batch that grows makes each answer slower,
so it is far below 1; above 0, or noise alone would raise the limit."""

MARGIN = 1.1
"""Calls kept in flight for each one that the knee needs, so that the server finds the next one waiting."""

FULL = 0.8
"""The share of a window's answers that must have come while the limit was what held calls back."""

LEAST_WINDOW = 24
"""Answers that a window has at least."""

CHANCES = 3
"""Windows in which a doubling may show that it pays."""

LONGEST_HOLD = 32
"""Windows between two tries for more, at most."""


@dataclass
class _Rate:
    """The throughput at one limit: a mean over windows in which old ones fade."""

    limit: int
    rate: float = 0.0
    windows: int = 0

    def add(self, rate: float) -> None:
        self.windows += 1
        self.rate += (rate - self.rate) / min(self.windows, 8)

    def paid(self, before: _Rate) -> bool:
        """Was it worth going from ``before`` to here?"""
        return self.rate >= before.rate * (1 + PAYS * (self.limit / before.limit - 1))


class Limit:
    """The adaptive limit of one server, between 1 and ``most``."""

    def __init__(self, most: int, start: int = START) -> None:
        self._most = most
        self.value = min(start, most)
        self.rising = True
        """Is it still in the fast rise at the beginning?"""
        self._round_trip, self._last = 0.0, float("-inf")
        self._here = _Rate(self.value)
        self._below: _Rate | None = None
        self._above: _Rate | None = None
        self._trying, self._chances = False, CHANCES
        self._wait, self._hold, self._step = 2, 2, 0
        self._cut_at, self._cut_until, self._floor, self._ceiling = float("-inf"), float("-inf"), 1, 0
        self._window(0.0)

    def started(self, now: float, in_flight: int) -> None:
        """A call is sent while ``in_flight`` others are on their way."""
        if in_flight == 0 and now - self._last > 0.1 * self._round_trip:
            self._window(now)  # There was nothing to ask: what has been counted so far says nothing.

    def answered(self, now: float, sent: float, in_flight: int) -> None:
        """A call that was sent at ``sent`` is answered while ``in_flight`` others are on their way."""
        took, self._last = now - sent, now
        self._round_trip += (took - self._round_trip) * (0.1 if self._round_trip else 1.0)
        self._answers += 1
        # The next call goes out after this: at the limit, one place is free just now.
        self._full += in_flight + 1 >= 0.9 * self.value
        rounds = 1 if self.rising else 2
        if self._answers < self.value * max(rounds, -(-LEAST_WINDOW // self.value)):
            return  # Whole rounds only: answers come in bursts, and half a burst says nothing.
        rate = self._answers / max(now - self._since, 1e-9)
        meant = self._full >= FULL * self._answers
        self._window(now)
        if not meant:
            return
        if self.rising:
            self._rise(rate)
        else:
            self._climb(rate)

    def refused(self, now: float, sent: float) -> None:
        """The server says that a call is too much."""
        if now >= self._cut_until and sent >= self._cut_at:
            self._floor = max(1, self.value // 2)
            self._cut_at, self._cut_until = now, now + self._round_trip
            # A try that is refused is repeated ever more seldom; a storm says nothing about the time after it.
            self._wait = min(self._wait * 2, LONGEST_HOLD) if self._trying else 2
            self._ceiling = self.value
        if self.value > self._floor:
            self._ceiling = min(self._ceiling, self.value)
            self._settle(now, self.value - 1)

    def timed_out(self, now: float, sent: float) -> None:
        """A call got no answer in its time."""
        if sent >= self._cut_at and now >= self._cut_until:
            self._cut_at, self._cut_until = now, now + self._round_trip
            self._settle(now, max(1, int(self.value * 0.7)))

    def restart(self, now: float) -> None:
        """The server was away: begin small, and rise fast again."""
        self._settle(now, min(self.value, START, self._most))
        self.rising, self._below, self._chances = True, None, CHANCES

    def _window(self, now: float) -> None:
        self._since, self._answers, self._full = now, 0, 0

    def _go(self, limit: int) -> None:
        self.value = max(1, min(limit, self._most))
        self._here = _Rate(self.value)

    def _settle(self, now: float, limit: int) -> None:
        """Stay at ``limit``; what was measured before a cut says nothing about the time after it."""
        self.rising, self._trying, self._below, self._above = False, False, None, None
        self._hold, self._step = self._wait, 0
        self._go(limit)
        self._window(now)

    def _rise(self, rate: float) -> None:
        """One window of the fast rise: double, or find the knee."""
        # A window that was unlucky is not the end of the rise: the best of a few counts.
        self._here.rate = max(self._here.rate, rate)
        below = self._below
        if below is None or self._here.paid(below):
            self._chances = CHANCES
            if self.value >= self._most:
                self.rising = False
                return
            self._below = self._here
            self._go(self.value * 2)
            return
        self._chances -= 1
        if self._chances == 0:
            # Below the knee throughput is proportional to the calls in flight.
            knee = below.limit * max(1.0, self._here.rate / below.rate)
            self.rising, self._below = False, None
            self._go(min(self.value, int(knee * MARGIN) + 1))

    def _climb(self, rate: float) -> None:
        """One window at the knee: wait, try a little more, keep what pays."""
        if self._trying:
            self._tried(rate)
            return
        self._here.add(rate)
        below = self._below
        if below and self._here.windows in (2, 4, 8) and not self._here.paid(below):
            # Noise had made it look better than it is.
            self._above, self._here, self.value = self._here, below, below.limit
            self._below, self._hold, self._step = None, self._wait, 0
            return
        if self._here.windows > 8:
            self._below = None  # Too old to compare with.
        self._hold -= 1
        if self._hold <= 0 and self.value < self._most:
            at_ceiling = self._ceiling and self.value + 1 >= self._ceiling
            step = self._step or (1 if at_ceiling else max(2, self.value // 4))
            more = min(self.value + step, self._most)
            if self._above is None or self._above.limit != more:
                self._above = _Rate(more)
            self._trying, self.value = True, more

    def _tried(self, rate: float) -> None:
        above = self._above
        assert above is not None, "what is tried is kept in _above"
        above.add(rate)
        self._trying = False
        if above.paid(self._here):
            # Each step that pays is followed by one twice as wide: after a storm the way back is short.
            self._step = min(2 * (above.limit - self._here.limit), max(1, above.limit // 2))
            self._below, self._here, self._above = self._here, above, None
            self._wait, self._hold, self._ceiling = 2, 1, 0
        else:
            self.value, self._step = self._here.limit, 0
            self._wait = min(self._wait * 2, LONGEST_HOLD)
            self._hold = self._wait
