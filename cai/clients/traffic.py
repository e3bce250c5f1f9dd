"""Calls on their way over HTTP: kept as many as the servers can use, tried again elsewhere, and none of them lost.

One event loop in a daemon thread serves all pools of a client. In it each call goes to the server with the least to do;
what comes back is read by a ``Speaker``, who knows the protocol. What may pass is tried again, what cannot ends the
pool with an error, and a call that fails while others are answered comes out as ``Unanswered``: one row is not a run.
"""

from __future__ import annotations

import asyncio
import logging
import random
import threading
from collections import deque
from collections.abc import Sequence

from cai.clients.base import Finish, Unanswered
from cai.clients.concurrency import LimitPhase
from cai.clients.endpoints import (
    LONGEST_BACKOFF,
    Endpoint,
    Trouble,
    TroubleKind,
    dead_error,
    pause,
    rest_beside_others,
)
from cai.clients.event_loop import LoopThread
from cai.clients.flights import Flight, Flights
from cai.clients.http_exchange import HttpExchange
from cai.clients.http_pool import CallPart, ClientFault, HttpPool
from cai.clients.pool_notes import TAKEN_OVER, PoolNote
from cai.clients.refusals import HeldCall, Refusals, least_busy
from cai.clients.served_limits import ServedLimits
from cai.clients.settings import ApiLimits, GaveUp
from cai.clients.speaker import Answered, Refused, Speaker
from cai.clients.spending import Account, Spending, Spent, account_for
from cai.clients.takeover import takeovers
from cai.clients.waiting import Waiting
from cai.errors import CaiError, Incomplete, PrerequisiteError, StepFailed

FEW = 3
"""Calls that may fail at once before servers are thought dead: the last rows may be those that none can answer."""

GRACE = 1.0
"""Seconds that a pool which has failed waits for the answers on their way: they are paid for."""

_log = logging.getLogger(__name__)

REFUSED_PAUSE = 0.05
"""Seconds that a call waits at most after its first refusal, or its first failure beside answers."""


class Traffic:
    """All calls of one client, on their way to its servers. Its private half runs in the loop alone."""

    def __init__(self, speaker: Speaker, urls: Sequence[str], limits: ApiLimits, model: str) -> None:
        self.speaker = speaker
        self.limits = limits
        self._served = ServedLimits(speaker, urls, limits, model)
        self.endpoints = self._served.endpoints
        # Steps that run side by side open their pools from threads of their own.
        self._opening = threading.Lock()
        self.pools: list[HttpPool] = []
        self._thread: LoopThread | None = None
        self._http = HttpExchange(speaker, urls, limits.connect)
        self._fresh = deque[CallPart]()
        self._again = deque[CallPart]()
        self._in_flight = 0
        self._flights = Flights(limits)
        self._timer: asyncio.TimerHandle | None = None
        self._takeover_timer: asyncio.TimerHandle | None = None
        self._answered = float("-inf")
        self._failing = set[CallPart]()
        self._refusals = Refusals()
        self._waiting = Waiting(limits.patience)
        self._first_tries = 0
        """Calls on their way that no limit has refused yet."""
        self._looks: asyncio.TimerHandle | None = None
        self._woken = False
        self._closed = False

    def open(self, account: Account | None = None) -> HttpPool:
        """A pool of its own, whose calls are paid from an account."""
        with self._opening:
            if self._closed:
                raise StepFailed(f"{self.speaker.name}: the client is closed")
            if self._thread is None:
                self._thread = LoopThread("http_pool")
            pool = HttpPool(self, Spending(self.limits, account))
            self._served.open(pool)
            self.pools.append(pool)
        return pool

    def target_calls(self) -> int:
        """How many calls there should be here, on their way or waiting, so that no server idles."""
        # While a limit doubles, the next doubling must find its calls here.
        values = [(e.limit.value, e.limit.phase is LimitPhase.RISING) for e in self.endpoints]
        most = self.limits.concurrency
        return min(sum(2 * v if rising else v + max(8, v // 2) for v, rising in values), most + max(8, most // 2))

    def wake(self) -> None:
        """Something has been submitted."""
        if not self._woken and self._thread is not None:
            self._woken = True
            self._thread.soon(self._collect)

    @property
    def runs(self) -> bool:
        """Is anybody at work?"""
        return self._thread is not None and self._thread.runs

    def forget(self, pool: HttpPool) -> None:
        """Give up the calls of a pool, without waiting for them."""
        if pool in self.pools:
            self.pools.remove(pool)
        if self._thread is not None:
            self._thread.soon(self._cancel, pool)
            self._thread.soon(self._pump)  # a server that its refusals had closed is open again

    def close(self) -> None:
        """Give up everything. Comes back soon."""
        self._closed = True
        for pool in list(self.pools):
            pool.close()
        if self._thread is not None:
            self._thread.close(self._end)
            self._thread = None
            self.keep_limits(0.0)

    def keep_limits(self, every: float) -> None:
        """Remember the servers' limits for later runs, if that was not done in the last ``every`` seconds."""
        self._served.keep(every)

    async def _end(self) -> None:
        for timer in (self._timer, self._takeover_timer, self._looks):
            if timer is not None:
                timer.cancel()
        await self._http.close()

    def _fail(self, pool: HttpPool, error: Exception) -> None:
        """Send nothing more of a pool, and end it as soon as the answers that are on their way are in."""
        if pool.ending is None:
            pool.ending = error
            self._drop(pool)
            if pool.in_flight == 0:
                self._end_of(pool)
            elif self._thread is not None:
                self._thread.loop.call_later(GRACE, self._end_of, pool)

    def _end_of(self, pool: HttpPool) -> None:
        if pool.ending is not None and not pool.over:
            pool.fail(pool.ending)
            self._cancel(pool)

    def _cancel(self, pool: HttpPool) -> None:
        for task in pool.tasks - {asyncio.current_task()}:
            task.cancel()
        self._drop(pool)

    def _drop(self, pool: HttpPool) -> None:
        self._refusals.forget(pool)
        self._failing = {part for part in self._failing if part.job.pool is not pool}
        for queue in (self._again, self._fresh):
            # In place: whoever goes through a queue may be the one who finds that the pool has failed.
            remaining = [part for part in queue if part.job.pool is not pool]
            queue.clear()
            queue.extend(remaining)

    def _collect(self) -> None:
        self._woken = False  # First: what is submitted from here on wakes the loop again.
        for pool in list(self.pools):
            while pool.inbox:
                self._fresh.append(pool.inbox.popleft())
        self._pump()
        if self._looks is None and self._thread is not None:
            self._looks = self._thread.loop.call_later(self._waiting.look_every, self._look)

    def _look(self) -> None:
        """Say what is waited for, and end a waiting that has no end."""
        self._looks = None
        calls = sum(pool.open_parts for pool in self.pools if not pool.over)
        if not calls or self._thread is None:
            self._waiting.idle()
            return
        now = self._now()
        if line := self._waiting.line(now, calls, self._in_flight):
            _log.warning("%s: %s", self.speaker.name, line)
        why = self._waiting.over(now)
        if why and not self._first_tries:
            for pool in list(self.pools):
                self._fail(pool, Incomplete(f"{self.speaker.name}: {why}"))
        self._looks = self._thread.loop.call_later(self._waiting.look_every, self._look)

    def _pump(self) -> None:
        """Send what can be sent."""
        now = self._now()
        for queue in (self._again, self._fresh):
            kept_back: list[CallPart] = []
            full = False
            while queue and not full:
                part = queue[0]
                if part.job.over or part.job.pool.over or part.job.pool.ending is not None:
                    part.job.pool.settled += 1
                    queue.popleft()
                    continue
                if self._late(part, now):
                    queue.popleft()
                    self._give_up(part)
                    continue
                endpoint = (
                    least_busy(self.endpoints, self._refusals, part, now)
                    if self._in_flight < self.limits.concurrency
                    else None
                )
                if endpoint is None:
                    full = True
                elif endpoint is part.avoid and self._others_are_well(endpoint, now):
                    kept_back.append(queue.popleft())  # for a place there: where it failed it would fail again
                elif (reserved := part.job.pool.spending.reserve(part.call)) is not None:
                    queue.popleft()
                    self._send(part, endpoint, now, reserved)
                elif part.job.pool.in_flight:
                    full = True  # what comes back may have cost less than was set aside
                else:
                    self._fail(part.job.pool, part.job.pool.spending.used_up(part.call))
            queue.extendleft(reversed(kept_back))
            if full or kept_back:
                self._look_again(now)
            if full:
                return
        if len(self._flights) and not self._again:
            self._take_over(now)

    def _take_over(self, now: float) -> None:
        """Nothing is left to send: let others do what waits in a slow server's queue."""
        found = takeovers(self._flights, self.endpoints, now)
        for flight, endpoint in found.now:
            if (reserved := flight.part.job.pool.spending.reserve(flight.part.call)) is None:
                break  # nobody pays for it twice
            flight.part.taken_over = True
            fields = {"from": flight.endpoint.url, "to": endpoint.url, "calls": 1}
            flight.part.job.pool.note(PoolNote(TAKEN_OVER, fields))
            self._send(flight.part, endpoint, now, reserved)
        if self._takeover_timer is not None:
            self._takeover_timer.cancel()
            self._takeover_timer = None
        if found.look_at is not None and self._thread is not None:
            self._takeover_timer = self._thread.loop.call_at(found.look_at + 0.001, self._pump)

    def _others_are_well(self, endpoint: Endpoint, now: float) -> bool:
        """Whether another server than this one answers, and is only busy."""
        return any(other.wakes() <= now and not other.rests for other in self.endpoints if other is not endpoint)

    def _look_again(self, now: float) -> None:
        """Wake up when a server may be asked again, and now and then for the calls whose time is up."""
        times = [wakes_at for wakes_at in (e.wakes() for e in self.endpoints) if wakes_at > now]
        if not times:
            return
        wakes_at = min(min(times) + 0.001, now + 1.0)
        if self._timer is not None:
            if self._timer.when() <= wakes_at:
                return
            self._timer.cancel()
        assert self._thread is not None, "the loop is what calls this"
        self._timer = self._thread.loop.call_at(wakes_at, self._tick)

    def _tick(self) -> None:
        self._timer = None
        now = self._now()
        for part in [p for p in self._again if self._late(p, now)]:
            self._again.remove(part)
            self._give_up(part)
            if part.job.pool.ending is not None:
                break  # The rest of the pool has gone with it.
        self._pump()

    def _late(self, part: CallPart, now: float) -> bool:
        """Has it failed, and its time is up?"""
        return part.last is not None and now - (part.began or now) >= self.limits.deadline

    def _send(self, part: CallPart, endpoint: Endpoint, now: float, reserved: Spent) -> None:
        pool = part.job.pool
        if part.began is None:
            part.began = now
        flight = Flight(part, endpoint, now, reserved, first_try=part.refusals == 0)
        self._first_tries += flight.first_try
        self._waiting.sent(now)
        endpoint.started(now)
        self._in_flight += 1
        pool.in_flight += 1
        pool.attempts += 1
        pool.peak = max(pool.peak, pool.in_flight)
        assert self._thread is not None, "the loop is what calls this"
        self._flights.start(self._thread.loop, flight, self._attempt(flight))

    async def _attempt(self, flight: Flight) -> None:
        """One attempt, from the first byte to what becomes of it."""
        part, endpoint, sent_at = flight.part, flight.endpoint, flight.sent_at
        outcome: Answered | Refused | Trouble | Exception | None = None
        try:
            outcome, requests = await self._http.ask(part.call, endpoint.url)
            part.job.pool.attempts += requests - 1
        except CaiError as error:
            where = f" ({endpoint.url})" if len(self.endpoints) > 1 else ""
            outcome = type(error)(f"{error}{where}") if isinstance(error, PrerequisiteError | StepFailed) else error
        except asyncio.CancelledError:
            if not flight.expired:
                asyncio.get_running_loop().call_soon(self._pump)  # Its place is free for the calls of others.
                raise
            words = f"timed out (no whole answer in {flight.seconds:.3g} seconds)"
            outcome = Trouble(TroubleKind.TIMEOUT, "timed out", words)
        except Exception as error:  # Whoever waits for this call must hear of it, whatever it is.
            error_text = self.speaker.hide(str(error))
            # A fault of ours: it comes out as it is, so that its traceback is kept, but without secrets.
            outcome = ClientFault(f"{self.speaker.name}: a call failed with {type(error).__name__} ({error_text})")
            outcome = outcome.with_traceback(error.__traceback__)
        finally:
            account_for(part.job.pool.spending, flight.reserved, outcome)
            endpoint.ended(sent_at)
            self._first_tries -= flight.first_try
            self._in_flight -= 1
            part.job.pool.in_flight -= 1
        now = self._now()
        if isinstance(outcome, Exception):
            self._fail(part.job.pool, outcome)
        elif isinstance(outcome, Answered):
            endpoint.answered(now, sent_at)
            if endpoint.queue_moved():
                self._flights.put_off(endpoint)
            self._answered = now
            self._waiting.answered(now)
            self._failing.clear()
            for twin in self._flights.twins(part):
                twin.cancel()
            self._finish(part, outcome)
            self._release(self._refusals.answered(endpoint, sent_at))
        elif isinstance(outcome, Refused):
            endpoint.answered(now, sent_at)  # it is there, and as quick as it is
            self._waiting.answered(now)
            self._refused(part, endpoint, outcome, now)
        else:
            others_are_well = self._others_are_well(endpoint, now)
            longest_rest = rest_beside_others(outcome) if others_are_well else LONGEST_BACKOFF
            endpoint.went_wrong(outcome, now, sent_at, longest_rest=longest_rest)
            self._went_wrong(part, endpoint, outcome, now)
        if (refused_all := self._refusals.verdict(endpoint)) is not None:
            for pool in list(self.pools):
                self._fail(pool, refused_all)
        self._served.tell(list(self.pools), now, self._in_flight == 0)
        if part.job.pool.ending is not None and part.job.pool.in_flight == 0:
            self._end_of(part.job.pool)
        self._pump()

    def _finish(self, part: CallPart, answer: Answered) -> None:
        job = part.job
        if part.over:
            return
        part.over = True
        job.pool.settled += 1
        job.pool.count(job.tag, answer.prompt_tokens, answer.tokens)
        if job.over:
            return
        job.results[part.index] = answer.result
        job.open_parts -= 1
        if job.open_parts == 0:
            job.over = True
            job.pool.calls += 1
            job.pool.put(
                job.tag, self.speaker.joined(job.call, [result for result in job.results if result is not None])
            )

    def _refused(self, part: CallPart, endpoint: Endpoint, refused: Refused, now: float) -> None:
        """Ask a call elsewhere that a server refuses; where all do, hold it back until others tell."""
        if part.over or self._flights.twins(part):
            return
        if part.job.over or part.job.pool.ending is not None:
            part.over = True
            part.job.pool.settled += 1
            return
        part.refused_by.add(endpoint)
        others = (e for e in self.endpoints if e not in part.refused_by)
        if any(other.wakes() <= now and not other.rests for other in others):
            part.avoid = endpoint
            self._again.append(part)
            return
        part.job.pool.settled += 1
        part.job.pool.hold()
        self._refusals.hold(part, refused, endpoint, now)

    def _release(self, held_calls: Sequence[HeldCall]) -> None:
        """Refusals that are their rows' own: these have their results."""
        for held in held_calls:
            held.part.job.pool.held -= 1
            if not held.part.job.over:
                held.part.job.pool.settled -= 1  # ``_finish`` counts it
                self._finish(held.part, Answered(held.refused.result))

    def nothing_else(self, pool: HttpPool) -> None:
        """A caller has nothing more to send: what is held back is decided by what is known now."""
        if self._thread is not None:
            self._thread.soon(self._decide, pool)

    def _decide(self, pool: HttpPool) -> None:
        if pool.over or pool.ending is not None or pool.held == 0 or pool.inbox:
            return
        held_calls, error = self._refusals.last_of(pool)
        if error is not None:
            self._fail(pool, error)
        else:
            leave = self.limits.unanswered is GaveUp.KEEP
            self._release([held for held in held_calls if not (leave and held.refused.may_pass)])
            self._leave([held for held in held_calls if leave and held.refused.may_pass])
        self._pump()

    def _leave(self, held_calls: Sequence[HeldCall]) -> None:
        """Calls that were refused after all that was answered, for what may pass: the next run asks them again."""
        for job, result in ((held.part.job, held.refused.result) for held in held_calls):
            job.pool.held -= 1
            if not job.over:
                job.over = True
                job.pool.put(job.tag, Unanswered(job.call.id, result.refused))

    def _went_wrong(self, part: CallPart, endpoint: Endpoint, trouble: Trouble, now: float) -> None:
        """Try again, where and when it may go better; or give up."""
        part.job.pool.faults[trouble.why] += 1
        self._waiting.went_wrong(now, trouble.detail, trouble.kind is TroubleKind.LIMIT)
        if part.over or self._flights.twins(part):
            return
        part.avoid = endpoint
        part.last = trouble
        part.since = part.wrong
        part.wrong = now
        if part.job.over:
            part.job.pool.settled += 1
            return
        if trouble.kind is TroubleKind.LIMIT:
            part.refusals += 1
            wait = random.uniform(0, min(pause(part.refusals), REFUSED_PAUSE * 2 ** min(part.refusals, 10)))
        else:
            part.failures += 1
            self._failing.add(part)
            awake = sum(1 for e in self.endpoints if e is not endpoint and not e.rests and e.wakes() <= now)
            # At once where another server may know better, or where all rest and the first to wake decides; nearly so
            # where the server answers others, and it was this call's bad luck.
            at_once = part.failures <= awake or all(e.wakes() > now for e in self.endpoints)
            unlucky = trouble.kind is TroubleKind.FAULT and endpoint.answered_at >= now - endpoint.latency
            times = part.failures - awake - unlucky
            wait = 0.0 if at_once else random.uniform(0, pause(times) if times else REFUSED_PAUSE)
        assert part.began is not None, "it has been sent"
        if part.failures > self.limits.retries or now + wait - part.began >= self.limits.deadline:
            self._give_up(part)
        elif all(e.rests > self.limits.retries for e in self.endpoints):
            error = dead_error(self.speaker.name, self.endpoints, part.failures + part.refusals)
            for pool in list(self.pools):
                self._fail(pool, error)
        elif wait > 0 and self._thread is not None:
            self._thread.loop.call_later(wait, self._once_more, part)
        else:
            self._again.append(part)

    def _once_more(self, part: CallPart) -> None:
        self._again.append(part)
        self._pump()

    def _give_up(self, part: CallPart) -> None:
        """No attempt is left: is it the call, or are the servers gone?"""
        job, trouble = part.job, part.last
        assert trouble is not None, "what is given up has failed"
        few = trouble.kind is not TroubleKind.UNREACHABLE and len(self._failing) <= FEW
        # Since its last but one failure: the calls that a dead server leaves must not count as rows without an answer.
        since = part.since if part.since is not None else part.began or 0.0
        alive = self._answered >= since or (self._answered > float("-inf") and few)
        if not alive:
            self._fail(job.pool, dead_error(self.speaker.name, self.endpoints, part.failures + part.refusals))
            return
        part.over = True
        job.pool.settled += 1
        if job.over:
            return
        job.over = True
        if trouble.final:
            job.pool.put(job.tag, self.speaker.unread(job.call, trouble.final, Finish.UNUSABLE))
        elif self.limits.unanswered is GaveUp.DROP:
            job.pool.put(job.tag, self.speaker.unread(job.call, f"gave up: {trouble.why}"))
        else:
            job.pool.put(job.tag, Unanswered(job.call.id, trouble.why))

    def _now(self) -> float:
        assert self._thread is not None, "the loop is what calls this"
        return self._thread.loop.time()
