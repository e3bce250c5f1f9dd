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
from enum import Enum

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


class LimitPhase(Enum):
    """What the limit is doing."""

    RISING = "rising"
    """Doubling, in the fast rise at the beginning."""
    HOLDING = "holding"
    """Staying where it is, at the knee or after a cut."""
    TRYING = "trying"
    """Letting a little more through than where it held, for one window."""


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
        self.phase = LimitPhase.RISING
        self._round_trip = 0.0
        self._last_answer = float("-inf")
        # The rates where it is, where it came from, and at the limit that is tried or was tried last.
        self._here = _Rate(self.value)
        self._below: _Rate | None = None
        self._above: _Rate | None = None
        # Windows in which the doubling that is under way may still show that it pays.
        self._chances = CHANCES
        # Windows between two tries, windows left until the next, and by how much it tries (0: by the default).
        self._wait = 2
        self._hold = 2
        self._step = 0
        # The last cut counts for all calls sent before it and for one round trip; refusals cut no lower than the floor.
        self._cut_at = float("-inf")
        self._cut_until = float("-inf")
        self._floor = 1
        # The limit at which calls were refused; 0: none is known.
        self._ceiling = 0
        self._begin_window(0.0)

    def started(self, now: float, in_flight: int) -> None:
        """A call is sent while ``in_flight`` others are on their way."""
        if in_flight == 0 and now - self._last_answer > 0.1 * self._round_trip:
            self._begin_window(now)  # There was nothing to ask: what has been counted so far says nothing.

    def answered(self, now: float, sent_at: float, in_flight: int) -> None:
        """A call that was sent at ``sent_at`` is answered while ``in_flight`` others are on their way."""
        latency = now - sent_at
        self._last_answer = now
        self._round_trip += (latency - self._round_trip) * (0.1 if self._round_trip else 1.0)
        self._answers += 1
        # The next call goes out after this: at the limit, one place is free just now.
        self._full_answers += in_flight + 1 >= 0.9 * self.value
        rounds = 1 if self.phase is LimitPhase.RISING else 2
        if self._answers < self.value * max(rounds, -(-LEAST_WINDOW // self.value)):
            return  # Whole rounds only: answers come in bursts, and half a burst says nothing.
        rate = self._answers / max(now - self._window_start, 1e-9)
        limited = self._full_answers >= FULL * self._answers
        self._begin_window(now)
        if not limited:
            return
        match self.phase:
            case LimitPhase.RISING:
                self._rise(rate)
            case LimitPhase.HOLDING:
                self._climb(rate)
            case LimitPhase.TRYING:
                self._judge_try(rate)

    def refused(self, now: float, sent_at: float) -> None:
        """The server says that a call is too much."""
        if now >= self._cut_until and sent_at >= self._cut_at:
            self._floor = max(1, self.value // 2)
            self._begin_cut(now)
            # A try that is refused is repeated ever more seldom; a storm says nothing about the time after it.
            self._wait = min(self._wait * 2, LONGEST_HOLD) if self.phase is LimitPhase.TRYING else 2
            self._ceiling = self.value
        if self.value > self._floor:
            self._ceiling = min(self._ceiling, self.value)
            self._settle(now, self.value - 1)

    def timed_out(self, now: float, sent_at: float) -> None:
        """A call got no answer in its time."""
        if sent_at >= self._cut_at and now >= self._cut_until:
            self._begin_cut(now)
            self._settle(now, max(1, int(self.value * 0.7)))

    def restart(self, now: float) -> None:
        """The server was away: begin small, and rise fast again."""
        self._settle(now, min(self.value, START, self._most))
        self.phase = LimitPhase.RISING
        self._chances = CHANCES

    def _begin_window(self, now: float) -> None:
        self._window_start = now
        self._answers = 0
        self._full_answers = 0

    def _begin_cut(self, now: float) -> None:
        self._cut_at = now
        self._cut_until = now + self._round_trip

    def _go(self, limit: int) -> None:
        self.value = max(1, min(limit, self._most))
        self._here = _Rate(self.value)

    def _settle(self, now: float, limit: int) -> None:
        """Stay at ``limit``; what was measured before a cut says nothing about the time after it."""
        self.phase = LimitPhase.HOLDING
        self._below = None
        self._above = None
        self._hold = self._wait
        self._step = 0
        self._go(limit)
        self._begin_window(now)

    def _rise(self, rate: float) -> None:
        """One window of the fast rise: double, or find the knee."""
        # A window that was unlucky is not the end of the rise: the best of a few counts.
        self._here.rate = max(self._here.rate, rate)
        below = self._below
        if below is None or self._here.paid(below):
            self._chances = CHANCES
            if self.value >= self._most:
                self.phase = LimitPhase.HOLDING
                return
            self._below = self._here
            self._go(self.value * 2)
            return
        self._chances -= 1
        if self._chances == 0:
            # Below the knee throughput is proportional to the calls in flight.
            knee = below.limit * max(1.0, self._here.rate / below.rate)
            self.phase = LimitPhase.HOLDING
            self._below = None
            self._go(min(self.value, int(knee * MARGIN) + 1))

    def _climb(self, rate: float) -> None:
        """One window at the knee: wait, then try a little more."""
        self._here.add(rate)
        below = self._below
        if below and self._here.windows in (2, 4, 8) and not self._here.paid(below):
            # Noise had made it look better than it is.
            self._above = self._here
            self._here = below
            self.value = below.limit
            self._below = None
            self._hold = self._wait
            self._step = 0
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
            self.phase = LimitPhase.TRYING
            self.value = more

    def _judge_try(self, rate: float) -> None:
        """One window with a little more: keep it if it pays."""
        above = self._above
        assert above is not None, "what is tried is kept in _above"
        above.add(rate)
        self.phase = LimitPhase.HOLDING
        if above.paid(self._here):
            # Each step that pays is followed by one twice as wide: after a storm the way back is short.
            self._step = min(2 * (above.limit - self._here.limit), max(1, above.limit // 2))
            self._below = self._here
            self._here = above
            self._above = None
            self._wait = 2
            self._hold = 1
            self._ceiling = 0
        else:
            self.value = self._here.limit
            self._step = 0
            self._wait = min(self._wait * 2, LONGEST_HOLD)
            self._hold = self._wait
