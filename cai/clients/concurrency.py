"""How many calls a server gets at once: as many as raise its throughput, and fewer when it says that it is too much.

A limit that the user states is where it starts, and the most there is. One that is remembered of an earlier run is
where it starts too. One that nobody knows starts at ``START`` and grows by answers: each answer that comes while the
limit is what holds calls back adds one, so that it doubles in a round trip without waiting for the round's last answer.
Where growing no longer pays, the limit goes to the knee of the curve; where it never paid, the knee is looked for
below. There it stays, and now and then tries a little more: what raises throughput is kept, the rest is taken back.

A refusal (429, 503) takes away the slot of the call that was refused, so that a server with a fixed number of places is
kept exactly full: down to what the server has taken at the beginning, later down to half in one round trip. A timeout
takes a third, or more where the server answers fewer calls than that in the time of one.

Throughput is counted over windows of whole rounds, and only while there is more to ask than the limit lets through.
Nothing here reads a clock: all times are passed in.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import Enum

START = 128
"""Calls in flight before anything is known: a thousand calls are over before doubling from a few has ended."""

RESTART = 8
"""Calls in flight at least, when a server that was away is back."""

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

LOOK_AT = (3, 8, 16, 32)
"""Answers after which it is estimated how long the queue is that the first calls made in the server."""

PART, LONGER = 0.375, 2.2
"""A server that has answered this part of the first calls, and goes on for so many times the time that it took without
an answer to one that was sent later, answers them in their turn: they wait in a queue. One that works on all of them at
once has answered some of the later ones by then, however its latencies scatter."""

BASE = 16
"""Answers of which the mean latency is what later ones are held against."""

QUEUED = 4.0
"""How many times as long an answer takes that must have waited in a queue of the server: it does not raise the limit.
The quickest of many calls sent at once come first, so that plain answers take up to three times as long as those."""

FALL = 0.6
"""The part of a limit that is tried next while the knee is looked for below."""


class LimitPhase(Enum):
    """What the limit is doing."""

    RISING = "rising"
    """Growing with every answer."""
    FALLING = "falling"
    """Going down for as long as that costs no throughput: it began above the knee."""
    HOLDING = "holding"
    """Staying where it is, at the knee or after a cut."""
    TRYING = "trying"
    """Letting a little more through than where it held, for one window."""


class LimitReason(str, Enum):
    """Why the limit is where it is."""

    START = "start"
    """Nothing is known yet."""
    STATED = "stated"
    """The user says so."""
    REMEMBERED = "remembered"
    """An earlier step or run ended there."""
    RISE = "rise"
    """Answers came while it was full."""
    KNEE = "knee"
    """More calls in flight brought no more throughput."""
    REFUSED = "refused"
    """The server said that it was too much."""
    TIMEOUT = "timeout"
    """Calls got no answer in their time."""
    TRY = "try"
    """A little more is tried."""
    PAID = "paid"
    """What was tried raised throughput."""
    BACK = "back"
    """What was tried brought nothing, or seemed to for a while."""
    AWAY = "away"
    """The server was away, and has come back."""


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
    """The adaptive limit of one server, between 1 and ``most``.

    ``origin`` is ``START``, ``STATED`` or ``REMEMBERED``: what ``start`` is. ``reasons`` says why it has moved since
    whoever reads it last emptied it.
    """

    def __init__(self, most: int, start: int = START, origin: LimitReason = LimitReason.START) -> None:
        self._most = most
        self.value = max(1, min(start, most))
        self.phase = LimitPhase.RISING if origin is LimitReason.START else LimitPhase.HOLDING
        self.reasons: list[LimitReason] = [origin]
        self.was_full = False
        """Whether an answer has come while the limit was what held calls back: only then does it say something."""
        self.round_trip = 0.0
        """Seconds that answers take, a mean in which old ones fade; 0 before the first."""
        self._last_answer = float("-inf")
        # The rates where it is, where it came from, and at the limit that is tried or was tried last.
        self._here = _Rate(self.value)
        self._below: _Rate | None = None
        self._above: _Rate | None = None
        # Windows in which the growth so far may still show that it pays.
        self._chances = CHANCES
        # Where a rise ends, and whether that is a limit that was right before: then nothing is judged on the way.
        self._rise_to = most
        self._rises_back = False
        # The latencies that the first answers had, to see by later ones whether calls queue up in the server.
        self._base = 0.0
        # Of the first calls: how many, when they went out, and when the first answer came, after which latency.
        self._first_calls = self.value
        self._opened_at: float | None = None
        self._first_answer_at: float | None = None
        self._first_latency = 0.0
        self._part_took = 0.0
        self._in_turn = origin is LimitReason.START
        """Whether all answers so far are to first calls."""
        self._draining = False
        """Whether a queue that the first calls made is still to be over."""
        self.drained_at = 0.0
        """When that will be, as soon as it can be told; whoever reads it sets it back to 0."""
        # Whether growing has ever paid: if not, the knee may be below where it began.
        self._paid_once = origin is not LimitReason.START
        # Windows between two tries, windows left until the next, and by how much it tries (0: by the default).
        self._wait = 1 if origin is LimitReason.REMEMBERED else 2
        self._hold = self._wait
        self._step = 0
        # The last cut counts for all calls sent before it and for one round trip; refusals cut no lower than the floor.
        self._cut_at = float("-inf")
        self._cut_until = float("-inf")
        self._cut_from = self.value
        self._floor = 1
        # The limit at which calls were refused; 0: none is known.
        self._ceiling = 0
        # Answers in all, and how many there were at some times in the past.
        self._total = 0
        self._marks = deque[tuple[float, int]](maxlen=512)
        # The best rate of the windows in which a rise has not paid.
        self._best = 0.0
        # The window: since when, at which limit, answers in it, and those that came while the limit was full.
        self._window_start = 0.0
        self._window_limit = self.value
        self._answers = 0
        self._full_answers = 0

    @property
    def lasting(self) -> int:
        """The limit without what is only being tried: what another run should begin with."""
        match self.phase:
            case LimitPhase.TRYING:
                return self._here.limit
            case LimitPhase.FALLING:
                return self._above.limit if self._above is not None else self.value
            case LimitPhase.RISING if self._rises_back:
                return self._rise_to
            case _:
                return self.value

    def started(self, now: float, in_flight: int) -> None:
        """A call is sent while ``in_flight`` others are on their way."""
        self._opened_at = now if self._opened_at is None else self._opened_at
        if in_flight == 0 and now - self._last_answer > 0.1 * self.round_trip:
            self._begin_window(now)  # There was nothing to ask: what has been counted so far says nothing.

    def answered(self, now: float, sent_at: float, in_flight: int) -> None:
        """A call that was sent at ``sent_at`` is answered while ``in_flight`` others are on their way."""
        latency = now - sent_at
        self._last_answer = now
        self._total += 1
        if not self._marks or now >= self._marks[-1][0] + 1.0:
            self._marks.append((now, self._total))
        self.round_trip += (latency - self.round_trip) * (0.1 if self.round_trip else 1.0)
        self._draining = self._draining and in_flight > self.value
        if self._draining or (self.phase is LimitPhase.FALLING and in_flight > self.value):
            self._begin_window(now)  # What was sent before the fall is still with the server, and keeps it as busy.
            return
        self._answers += 1
        # The next call goes out after this: at the limit, one place is free just now.
        full = in_flight + 1 >= 0.9 * self.value
        self._full_answers += full
        self.was_full = self.was_full or full
        rising = self.phase is LimitPhase.RISING
        self._base += latency / BASE if self._total <= BASE else 0.0
        if self._opening_queues(now, sent_at, in_flight):
            return
        queues = self._total > BASE and latency > QUEUED * self._base
        if rising and full and not queues and self._chances == CHANCES and self.value < self._rise_to:
            self._move(self.value + 1, LimitReason.RISE)
        # The first window begins with a wait in which no answer can come: over two rounds that weighs less.
        rounds = 1 if rising and self._below is not None else 2
        if self._answers < self._window_limit * max(rounds, -(-LEAST_WINDOW // self._window_limit)):
            return  # Whole rounds only: answers come in bursts, and half a burst says nothing.
        window = _Rate(self._window_limit, self._answers / max(now - self._window_start, 1e-9))
        limited = self._full_answers >= FULL * self._answers
        self._begin_window(now)
        if not limited:
            return
        match self.phase:
            case LimitPhase.RISING:
                self._rise(window)
            case LimitPhase.FALLING:
                self._fall(window)
            case LimitPhase.HOLDING:
                self._climb(window.rate)
            case LimitPhase.TRYING:
                self._judge_try(window.rate)
        self._window_limit = self.value

    def _opening_queues(self, now: float, sent_at: float, in_flight: int) -> bool:
        """Go down at once where the first calls are more than a server works on at a time, and wait in a queue."""
        if self._first_answer_at is None:
            self._first_answer_at = now
            self._first_latency = now - sent_at
        self._in_turn = self._in_turn and sent_at < self._first_answer_at
        elapsed = now - (sent_at if self._opened_at is None else self._opened_at)
        rate = self._total / max(elapsed, 1e-9)
        if self._total in LOOK_AT:
            self.drained_at = now + 1.5 * in_flight / rate
        if not self._in_turn:
            return False
        if self._total >= PART * self._first_calls and not self._part_took:
            self._part_took = elapsed
        if not self._part_took or elapsed < LONGER * self._part_took:
            return False
        self._in_turn = False
        self._draining = True
        self._base = self._first_latency
        self.drained_at = now + 1.5 * in_flight / rate
        self._stay(round(rate * self._first_latency * MARGIN) + 1, LimitReason.KNEE)
        self._begin_window(now)
        return True

    def refused(self, now: float, sent_at: float, in_flight: int = 1) -> None:
        """The server says that a call is too much, while ``in_flight`` others are on their way."""
        if now >= self._cut_until and sent_at >= self._cut_at:
            # At the beginning the calls that are not refused tell how many places there are.
            first = self._first_answer_at is None or sent_at < self._first_answer_at
            opening = self._cut_at == float("-inf") and first
            self._floor = 1 if opening else max(1, self.value // 2)
            self._begin_cut(now)
            # A try that is refused is repeated ever more seldom; a storm says nothing about the time after it.
            self._wait = min(self._wait * 2, LONGEST_HOLD) if self.phase is LimitPhase.TRYING else 2
            self._ceiling = self.value
        if self.value > self._floor:
            self._ceiling = min(self._ceiling, self.value)
            self._settle(now, self.value - 1, LimitReason.REFUSED)
        if in_flight == 0:
            # Nothing was taken at all: that is no lack of places, and answers will show the way back.
            self._rise_back(now, max(1, self._cut_from // 2))

    def timed_out(self, now: float, sent_at: float) -> None:
        """A call got no answer in its time."""
        if sent_at >= self._cut_at and now >= self._cut_until:
            self._begin_cut(now)
            # What a server answers in the time of one call is the most it could have in flight; half of that is safe.
            answers = self._answers_since(sent_at)
            limit = int(self.value * 0.7)
            self._settle(now, min(limit, max(answers // 2, 1)) if answers else limit, LimitReason.TIMEOUT)

    def restart(self, now: float) -> None:
        """The server was away: begin with less, and rise fast to where it was."""
        before = self.value
        if before > RESTART:
            self._move(max(before // 2, RESTART), LimitReason.AWAY)
        self._rise_back(now, before)

    def _rise_back(self, now: float, limit: int) -> None:
        """Grow with every answer, up to a limit that was right before."""
        if self.phase is LimitPhase.RISING:
            limit = max(limit, self._rise_to)
        self._settle(now, self.value, None)
        self.phase = LimitPhase.RISING
        self._chances = CHANCES
        self._rise_to = max(limit, self.value)
        self._rises_back = True
        self._ceiling = 0

    def _answers_since(self, sent_at: float) -> int:
        """How many answers have come since about then."""
        before = [total for at, total in self._marks if at <= sent_at]
        return self._total - (before[-1] if before else 0)

    def _begin_window(self, now: float) -> None:
        self._window_start = now
        self._window_limit = self.value
        self._answers = 0
        self._full_answers = 0

    def _begin_cut(self, now: float) -> None:
        # A storm is one fall from where the last answer was.
        self._cut_from = max(self.value, self._cut_from if self._last_answer <= self._cut_at else 0)
        self._cut_at = now
        self._cut_until = now + self.round_trip

    def _move(self, limit: int, reason: LimitReason | None) -> None:
        limit = max(1, min(limit, self._most))
        if limit != self.value and reason is not None and reason not in self.reasons:
            self.reasons.append(reason)
        self.value = limit

    def _settle(self, now: float, limit: int, reason: LimitReason | None) -> None:
        """Stay at ``limit``; what was measured before a cut says nothing about the time after it."""
        self.phase = LimitPhase.HOLDING
        self._hold = self._wait
        self._stay(limit, reason)
        self._begin_window(now)

    def _stay(self, limit: int, reason: LimitReason | None) -> None:
        self.phase = LimitPhase.HOLDING
        self._below = None
        self._above = None
        self._step = 0
        self._move(limit, reason)
        self._here = _Rate(self.value)

    def _rise(self, window: _Rate) -> None:
        """One window of the fast rise: go on with it, or find the knee."""
        below = self._below
        if self._rises_back:
            if self.value >= self._rise_to:
                self._stay(self.value, None)
            return
        if below is None or window.paid(below):
            self._paid_once = self._paid_once or below is not None
            self._chances = CHANCES
            self._best = 0.0
            if window.limit >= self._rise_to:
                self._stay(self.value, None)
            else:
                self._below = window
            return
        # A window that was unlucky is not the end of the rise: the best of a few counts. Meanwhile nothing grows.
        self._best = max(self._best, window.rate)
        self._chances -= 1
        if self._chances:
            return
        if not self._paid_once:
            self._above = _Rate(below.limit, max(below.rate, self._best))
            self.phase = LimitPhase.FALLING
            self._move(int(below.limit * FALL), LimitReason.KNEE)
            return
        # Below the knee throughput is proportional to the calls in flight.
        knee = below.limit * max(1.0, self._best / below.rate)
        self._stay(min(self.value, int(knee * MARGIN) + 1), LimitReason.KNEE)

    def _fall(self, window: _Rate) -> None:
        """One window on the way down: go on for as long as nothing is lost, or go back to the knee."""
        above = self._above
        assert above is not None, "what it fell from is kept in _above"
        if above.paid(window):
            knee = window.limit * max(1.0, above.rate / window.rate)
            self._stay(min(above.limit, int(knee * MARGIN) + 1), LimitReason.KNEE)
        elif window.limit == 1:
            self._stay(1, None)
        else:
            self._above = _Rate(window.limit, max(above.rate, window.rate))
            self._move(int(window.limit * FALL), LimitReason.KNEE)

    def _climb(self, rate: float) -> None:
        """One window at the knee: wait, then try a little more."""
        self._here.add(rate)
        below = self._below
        if below and self._here.windows in (2, 4, 8) and not self._here.paid(below):
            # Noise had made it look better than it is.
            self._above = self._here
            self._here = below
            self._move(below.limit, LimitReason.BACK)
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
            self._move(more, LimitReason.TRY)

    def _judge_try(self, rate: float) -> None:
        """One window with a little more: keep it if it pays."""
        above = self._above
        assert above is not None, "what is tried is kept in _above"
        above.add(rate)
        self.phase = LimitPhase.HOLDING
        if above.paid(self._here):
            self.reasons.append(LimitReason.PAID)
            # Each step that pays is followed by one twice as wide: after a storm the way back is short.
            self._step = min(2 * (above.limit - self._here.limit), max(1, above.limit // 2))
            self._below = self._here
            self._here = above
            self._above = None
            self._wait = 2
            self._hold = 1
            self._ceiling = 0
        else:
            self._move(self._here.limit, LimitReason.BACK)
            self._step = 0
            self._wait = min(self._wait * 2, LONGEST_HOLD)
            self._hold = self._wait
