"""One server among those of a model: how many calls it may have, and when it is left alone.

A server is left alone for two reasons. It is *held* when it says that it is asked too often: for as long as it says,
or for growing pauses while nothing but refusals come. It *rests* when it fails many times in a row, or cannot be
reached: then one call at a time finds out whether it is back. All times are passed in.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from cai.clients.concurrency import Limit
from cai.errors import StepFailed

BACKOFF, LONGEST_BACKOFF = 0.5, 30.0
"""Seconds: the first pause (doubled each time), and the longest."""

IN_A_ROW = 5
"""Failures without an answer in between after which a server rests; more where many calls are in flight."""


class TroubleKind(str, Enum):
    """What went wrong with an attempt."""

    LIMIT = "limit"
    """The server is asked too often: the call did nothing wrong, and trying again is no attempt of its own."""
    OVERLOAD = "overload"
    TIMEOUT = "timeout"
    UNREACHABLE = "unreachable"
    FAULT = "fault"


@dataclass(frozen=True, slots=True)
class Trouble:
    """An attempt that may go better another time.

    ``why`` in a few words, the same for all calls; ``detail`` with the server's own; ``wait`` is how long the server
    asks to be left alone, in seconds. With ``final`` the call is dropped under that reason when no attempt is left:
    the server has answered it, and always with an end that is none.
    """

    kind: TroubleKind
    why: str
    detail: str
    wait: float | None = None
    final: str = ""

    @property
    def costs_nothing(self) -> bool:
        """Whether the server certainly wrote nothing: it could not be reached, or said that it does not answer."""
        refused = self.kind in (TroubleKind.LIMIT, TroubleKind.OVERLOAD, TroubleKind.UNREACHABLE)
        return refused or self.why.removeprefix("answers ").isdecimal()


def pause(times: int) -> float:
    """Seconds before the next try after ``times`` failures, without jitter."""
    return min(LONGEST_BACKOFF, BACKOFF * 2.0 ** min(times - 1, 30))


def rest_beside_others(trouble: Trouble) -> float:
    """Seconds that a server rests at most while others answer. Whether it is back costs one call to find out, and next
    to nothing where it cannot even be reached."""
    return 0.5 if trouble.kind is TroubleKind.UNREACHABLE else 2.0


class Endpoint:
    """The state of one server; ``url`` ends before ``/chat/completions``."""

    def __init__(self, url: str, limit: Limit) -> None:
        self.url = url
        self.limit = limit
        self.in_flight = 0
        self.queue_until = float("-inf")
        """When the queue that the first calls made in the server is over."""
        self.last_trouble = ""
        """What went wrong last."""
        self.answered_at = float("-inf")
        """When it last answered."""
        self.rests = 0
        """Pauses since the last answer because it failed."""
        # Failures and refusals since the last answer, and pauses since then because it refused.
        self._failed = 0
        self._refused = 0
        self._waves = 0
        # Until when the server wants to be left alone, and until when it rests because it failed.
        self._held_until = float("-inf")
        self._rests_until = float("-inf")
        # When the one call went out that finds out whether the server is back.
        self._probe: float | None = None

    @property
    def latency(self) -> float:
        """Seconds that its answers take, a mean in which old ones fade; 0 before the first."""
        return self.limit.round_trip

    def wakes(self) -> float:
        """When it may be asked again."""
        return max(self._held_until, self._rests_until)

    def free(self, now: float) -> int:
        """How many more calls it may have now."""
        if now < self._held_until or now < self._rests_until:
            return 0
        if self.rests:
            return 1 if self._probe is None else 0
        return self.limit.value - self.in_flight

    def started(self, now: float) -> None:
        """A call goes out."""
        self.limit.started(now, self.in_flight)
        self.in_flight += 1
        if self.rests:
            self._probe = now

    def queue_moved(self) -> bool:
        """Whether it has come to be known when the queue that the first calls made here will be over."""
        known = self.limit.drained_at
        self.limit.drained_at = 0.0
        self.queue_until = max(self.queue_until, known) if known else self.queue_until
        return bool(known)

    def ended(self, sent_at: float) -> None:
        """A call is over, however it went."""
        self.in_flight -= 1
        if sent_at == self._probe:
            self._probe = None

    def answered(self, now: float, sent_at: float) -> None:
        """A call was answered; ``ended`` has been told."""
        self._failed = self._refused = self._waves = 0
        self.answered_at = now
        if self.rests:
            self.rests = 0
            self._rests_until = float("-inf")
            self.limit.restart(now)
        self.limit.answered(now, sent_at, self.in_flight)

    def went_wrong(
        self, trouble: Trouble, now: float, sent_at: float, *, longest_rest: float = LONGEST_BACKOFF
    ) -> None:
        """A call came to nothing; ``ended`` has been told. ``longest_rest``: seconds that it rests at most."""
        self.last_trouble = trouble.detail
        took_its_place = False
        if trouble.wait is not None:
            self._held_until = max(self._held_until, now + trouble.wait)
        if trouble.kind in (TroubleKind.LIMIT, TroubleKind.OVERLOAD):
            places = self.limit.value
            self.limit.refused(now, sent_at, self.in_flight)
            took_its_place = self.limit.value < places
        elif trouble.kind is TroubleKind.TIMEOUT:
            self.limit.timed_out(now, sent_at)
        if trouble.kind is TroubleKind.LIMIT:
            # Refusals beside answers take places away; refusals alone mean that the server wants a pause.
            self._refused += 1 if self.in_flight == 0 or not took_its_place else 0
            if self._refused >= self.limit.value and now >= self._held_until:
                self._refused = 0
                self._waves += 1
                self._held_until = now + pause(self._waves) * random.uniform(0.5, 1.0)
            return
        self._failed += 1
        # One that cannot be reached rests at once; while it answers others, it only could not take so many together.
        away = trouble.kind is TroubleKind.UNREACHABLE and self.answered_at < sent_at
        enough = 1 if self.rests or away else max(IN_A_ROW, self.limit.value // 4)
        # What was sent before the pause began says nothing new.
        if self._failed >= enough and now >= self._rests_until and sent_at >= self._rests_until:
            self.rests += 1
            self._rests_until = now + min(pause(self.rests), longest_rest) * random.uniform(0.75, 1.25)


def dead_error(name: str, endpoints: Sequence[Endpoint], times: int) -> StepFailed:
    """That no server of a client answers any more; ``times`` is how often the last call was tried."""
    if len(endpoints) == 1:
        return StepFailed(f"{name}: {endpoints[0].last_trouble}, {times} times in a row")
    reasons = "; ".join(f"{each.url}: {each.last_trouble or 'nothing yet'}" for each in endpoints)
    return StepFailed(f"{name}: no server answers any more ({reasons})")
