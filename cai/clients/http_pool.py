"""A caller's side of the calls on their way: what it submits and takes, each tag exactly once.

Whoever submits only puts calls into a queue and wakes the loop, once for many of them; the loop puts results here.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter, deque
from collections.abc import Hashable
from typing import Protocol

from cai.clients.base import Call, Result, Unanswered, Usage
from cai.clients.endpoints import Endpoint, Trouble
from cai.clients.limit_memory import EVERY
from cai.clients.pool_notes import PoolNote
from cai.clients.settings import ApiLimits
from cai.clients.speaker import Speaker
from cai.clients.spending import Spending
from cai.errors import StepFailed


class Carrier(Protocol):
    """Who takes a pool's calls to the servers: what a pool wants of the traffic that it is a part of."""

    speaker: Speaker
    limits: ApiLimits
    pools: list[HttpPool]

    @property
    def runs(self) -> bool:
        """Is anybody at work?"""
        ...

    def target_calls(self) -> int:
        """How many calls there should be in all, on their way or waiting."""
        ...

    def wake(self) -> None:
        """Something has been submitted."""
        ...

    def forget(self, pool: HttpPool) -> None:
        """Give up the calls of a pool, without waiting for them."""
        ...

    def nothing_else(self, pool: HttpPool) -> None:
        """A caller waits for calls that are held back, and has no others."""
        ...

    def keep_limits(self, every: float) -> None:
        """Remember the servers' limits for later runs, if that was not done in the last ``every`` seconds."""
        ...


class ClientFault(RuntimeError):
    """A fault of this program that came up while a call was under way; secrets are taken out of its words."""


class PendingCall:
    """A call as it was submitted."""

    __slots__ = ("call", "open_parts", "over", "pool", "results", "tag")

    def __init__(self, pool: HttpPool, tag: Hashable, call: Call, parts: int) -> None:
        self.pool = pool
        self.tag = tag
        self.call = call
        self.open_parts = parts
        self.over = False
        self.results: list[Result | None] = [None] * parts


class CallPart:
    """What a server is asked at once, and how often it has been."""

    __slots__ = (
        "avoid",
        "began",
        "call",
        "failures",
        "index",
        "job",
        "last",
        "over",
        "refusals",
        "refused_by",
        "since",
        "taken_over",
        "wrong",
    )

    def __init__(self, job: PendingCall, call: Call, index: int) -> None:
        self.job = job
        self.call = call
        self.index = index
        self.failures = 0
        self.refusals = 0
        # Whether it is settled, and whether a second server has been asked while the first was slow.
        self.over = False
        self.taken_over = False
        self.began: float | None = None
        # When it went wrong the last time, and the time before.
        self.wrong: float | None = None
        self.since: float | None = None
        self.avoid: Endpoint | None = None
        self.last: Trouble | None = None
        # The servers that will not take it.
        self.refused_by = set[Endpoint]()


class HttpPool:
    """Calls of one caller (``Pool``). The caller's thread submits and takes, the loop fills in what is public here."""

    def __init__(self, traffic: Carrier, spending: Spending) -> None:
        self._traffic = traffic
        self.spending = spending
        self.inbox = deque[CallPart]()
        self.tasks = set[asyncio.Task[None]]()
        self.over = False
        self.attempts = 0
        self.calls = 0
        self.prompt_tokens = 0
        self.tokens = 0
        self.call_tokens: dict[Hashable, tuple[int, int]] | None = None
        """By tag what each call read and wrote, where somebody wants to know; whoever does takes them out."""
        self.in_flight = 0
        self.peak = 0
        self.settled = 0
        self.held = 0
        """Calls whose refusal is held back (``cai.clients.refusals``)."""
        self.answered_before = False
        self.faults = Counter[str]()
        self.ending: Exception | None = None
        """Why nothing more is sent; answers on their way still come."""
        self._error: Exception | None = None
        self._submitted = 0
        self._open_tags = 0
        self._more_wanted = False
        self._out: list[tuple[Hashable, Result | Unanswered]] = []
        self._news = threading.Condition()
        self._notes = deque[PoolNote]()

    def room(self) -> int:
        """How many more calls are wanted."""
        if self.over or self.ending is not None:
            return 0
        own = self.open_parts
        others = [p.open_parts for p in list(self._traffic.pools) if p is not self and not p.over]
        target = self._traffic.target_calls()
        # All that is free, and never less than an equal part: whoever came first must not keep the others out.
        sharing = 1 + sum(count > 0 for count in others)
        return max(target - own - sum(others), target // sharing - own)

    @property
    def open_parts(self) -> int:
        """Calls that nothing has become of yet."""
        return self._submitted - self.settled

    def submit(self, tag: Hashable, call: Call) -> None:
        """Send a call.

        Raises:
            SpecError: a call that this client cannot be asked.
        """
        parts = self._traffic.speaker.parts(call)
        job = PendingCall(self, tag, call, len(parts))
        self._submitted += len(parts)
        self._open_tags += 1
        if self._error is not None:
            return  # ``take`` tells it, after the results that are there.
        if not parts:
            self.put(tag, self._traffic.speaker.unread(call, ""))  # A choice among no options.
        self.inbox.extend(CallPart(job, part, i) for i, part in enumerate(parts))
        self._traffic.wake()

    def take(self, timeout: float | None = None) -> list[tuple[Hashable, Result | Unanswered]]:
        """What has been answered since; waits for the first."""
        with self._news:
            while not self._out:
                if self._error is not None:
                    raise self._error
                if self._open_tags == 0 or self.over:
                    return []
                if self._more_wanted:
                    self._more_wanted = False
                    return []
                if self.held and not self.open_parts and not self.inbox:
                    self._traffic.nothing_else(self)
                if not self._news.wait(timeout if timeout is not None else 5.0) and timeout is not None:
                    return []
                if not self.over and not self._traffic.runs and not self._out:
                    raise StepFailed(f"{self._traffic.speaker.name}: the thread that asks has ended")
            answers = self._out
            self._out = []
            self._open_tags -= len(answers)
            return answers

    def note(self, note: PoolNote) -> None:
        """Something to tell."""
        self._notes.append(note)

    def notes(self) -> list[PoolNote]:
        """What there is to tell since the last time."""
        self._traffic.keep_limits(EVERY)
        gathered = []
        while self._notes:
            gathered.append(self._notes.popleft())
        return gathered

    @property
    def usage(self) -> Usage:
        """What has been used so far."""
        prices = self._traffic.limits.prices
        cost = (self.prompt_tokens * prices.prompt + self.tokens * prices.completion) / 1e6
        return Usage(self.calls, self.attempts, self.prompt_tokens, self.tokens, cost, self.peak, dict(self.faults))

    def close(self) -> None:
        """Give up what is on its way."""
        with self._news:
            self.over = True
            self._news.notify()
        self._traffic.forget(self)
        self.spending.close()

    def count(self, tag: Hashable, prompt_tokens: int, tokens: int) -> None:
        """What a part of a call read and wrote."""
        self.prompt_tokens += prompt_tokens
        self.tokens += tokens
        if self.call_tokens is not None:
            before = self.call_tokens.get(tag, (0, 0))
            self.call_tokens[tag] = (before[0] + prompt_tokens, before[1] + tokens)

    def put(self, tag: Hashable, result: Result | Unanswered) -> None:
        """A result for the caller."""
        with self._news:
            self._out.append((tag, result))
            self._news.notify()

    def hold(self) -> None:
        """A call is held back: the caller may have others to send meanwhile."""
        with self._news:
            self.held += 1
            self._more_wanted = True
            self._news.notify()

    def fail(self, error: Exception) -> None:
        """The end: the caller hears of it after the results that are there."""
        with self._news:
            self._error = self._error or error
            self.over = True
            self._news.notify()
