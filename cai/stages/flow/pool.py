"""Rows flow through a pool: every row on its own, as many calls on their way as keep the servers full.

This thread alone decides: it starts rows, reads and writes the journal and the cache, and goes on with rows; the
pool's own thread talks to the servers. A call that was free to go while the disk wrote waits in the pool, not here, so
a server that becomes free never waits for the disk.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Hashable, Iterator, Mapping
from typing import Any, cast

from cai.clients.base import Completion, Flowing, Pool, Result, Unanswered
from cai.clients.cache import Lookup, RequestCache, Whereabouts
from cai.clients.calls import call_key, from_plain, to_plain
from cai.clients.metering import use_of_result
from cai.clients.pool_notes import Counting, Noting
from cai.clients.served_models import TellsServed
from cai.data.journal import Record
from cai.stages.flow.base import Chain, Flow
from cai.stages.flow.input_rows import Numbered
from cai.stages.flow.served import note_served

_MOST = 512
"""Answers from the cache that are taken before something is written."""
_FIRST = 64
"""Calls wanted of a pool that is not open yet, and those that are made ready before they are sent: the servers begin
while the next are made."""
_POLL = 0.1
"""Seconds between two looks for an answer that another process is getting."""

_LOOK = 1.0
"""Seconds that are waited for answers at a time."""

Waiting = tuple[Chain, int]


class _PoolRun:
    def __init__(self, flow: Flow[Any], rows: Iterator[Numbered[Any]]) -> None:
        self.flow = flow
        self.rows = rows
        self.cache = flow.open_cache(others_only=False)
        self.former = flow.open_former_caches() if self.cache is not None else []
        self.pool: Pool | None = None
        self.todo: deque[Waiting] = deque()
        self.pending: dict[bytes, list[Waiting]] = {}  # whom the result of a call goes to
        self.elsewhere: dict[bytes, list[Waiting]] = {}  # likewise, of calls that another process asks
        self.begun: list[Chain] = []  # rows that had their entry when they were started
        self.call_tokens: dict[Hashable, tuple[int, int]] = {}
        self.served = set[str]()  # models that have answered, by name
        self.ended = False  # no further row is to be started

    def run(self) -> None:
        while True:
            results = self._fill()
            if not results and not self.begun:
                if self.ended and not self.pending and not self.elsewhere and not self.todo:
                    break
                results = self._wait()
            self._settle(results)
            self._pass_on_notes()
        if self.pool is not None:
            self._pass_on_notes()
            self._count_usage(self.pool)

    def _pass_on_notes(self) -> None:
        """Tell what the pool has noted, and which models have answered, as events of the step."""
        if isinstance(self.pool, Noting):
            for note in self.pool.notes():
                self.flow.ctx.progress.note(note.event, **note.fields)
        client = self.flow.client() if self.pool is not None else None
        if isinstance(client, TellsServed) and len(client.served) > len(self.served):
            for name, served in list(client.served.items()):
                if name not in self.served:
                    self.served.add(name)
                    note_served(self.flow.ctx, self.flow.role, self.flow.label, served)

    def _fill(self) -> list[tuple[bytes, Result | Unanswered]]:
        """Send as many calls as the pool wants; returns what the cache knows already."""
        results: list[tuple[bytes, Result | Unanswered]] = []
        room = self.pool.room() if self.pool is not None else _FIRST
        while room > 0 and len(results) < _MOST and len(self.begun) < _MOST:
            part = self._next(min(room, _FIRST))
            if not part:
                break
            fresh: dict[bytes, list[Waiting]] = {}
            for chain, i in part:
                key = call_key(self.flow.scope, chain.calls[i])
                same = self.pending.get(key) or self.elsewhere.get(key)
                if same is not None:
                    same.append((chain, i))
                else:
                    fresh.setdefault(key, []).append((chain, i))
            places: list[Lookup] = [Whereabouts.OURS] * len(fresh)
            if self.cache is not None:
                places = self.cache.look(list(fresh))
            for scope, cache in self.former:
                places = self._from_former(scope, cache, fresh, places)
            closed = self.pool is None
            for (key, waiting), place in zip(fresh.items(), places, strict=True):
                room -= self._place(key, waiting, place, results)
            if closed and self.pool is not None:
                room = self.pool.room()  # Only now is known how many it wants.
        if self.cache is not None:
            self.cache.beat()
        return results

    def _from_former(
        self, scope: str, cache: RequestCache, fresh: Mapping[bytes, list[Waiting]], places: list[Lookup]
    ) -> list[Lookup]:
        """What is ours to ask and was asked already, under a key that the call had before."""
        calls = [chain.calls[i] for (chain, i), *_ in fresh.values()]
        stored = cache.stored([call_key(scope, call) for call in calls])
        return [
            plain if place is Whereabouts.OURS and plain is not None else place
            for place, plain in zip(places, stored, strict=True)
        ]

    def _place(self, key: bytes, waiting: list[Waiting], place: Any, results: list[Any]) -> int:
        """Ask a call, wait for another process to, or add its answer to ``results``; how many calls were sent."""
        chain, i = waiting[0]
        call = chain.calls[i]
        if isinstance(place, Mapping):
            self.flow.tally.from_cache += len(waiting)
            self.pending[key] = waiting
            results.append((key, from_plain(call, place)))
            return 0
        if place is Whereabouts.ELSEWHERE:
            self.elsewhere[key] = waiting
            return 0
        self.pending[key] = waiting
        if self.pool is None:
            self.pool = cast(Flowing, self.flow.client()).open_pool()
            self.flow.on_exit(self.pool)
            if self.flow.meter is not None and isinstance(self.pool, Counting):
                self.pool.call_tokens = self.call_tokens
            self.pool.answered_before = self.flow.journal.out > 0 or self.flow.tally.from_cache > 0
        self.pool.submit(key, call)
        self.flow.tally.calls += 1
        return 1

    def _next(self, most: int) -> list[Waiting]:
        """Calls to ask: first those of rows on their way, so that rows end and memory stays small, then of new rows."""
        part: list[Waiting] = []
        while len(part) < most:
            if self.todo:
                chain, i = self.todo.popleft()
                if not chain.lost:
                    part.append((chain, i))
            elif self.ended or len(self.begun) >= _MOST:
                break
            else:
                row = next(self.rows, None)
                if row is None:
                    self.ended = True
                    break
                self._enter(self.flow.start(row))
        return part

    def _enter(self, chain: Chain) -> None:
        if chain.entry is not None:
            self.begun.append(chain)  # it needed no call
        self.todo.extend((chain, i) for i, result in enumerate(chain.results) if result is None and chain.calls)

    def _wait(self) -> list[tuple[bytes, Result | Unanswered]]:
        """What has been answered, by the servers or by other processes."""
        results: list[tuple[bytes, Result | Unanswered]] = []
        if self.pool is not None and (self.pending or not self.elsewhere):
            # Not without end: others must see that we live, and whoever runs us may want us to stop.
            answered = self.pool.take(_POLL if self.elsewhere else _LOOK)
            if not answered:
                self.flow.ctx.progress.advance()
            results += [(cast(bytes, key), result) for key, result in answered]
        elif self.elsewhere:
            time.sleep(_POLL)
        if self.elsewhere and self.cache is not None and not results:
            keys = list(self.elsewhere)
            for key, place in zip(keys, self.cache.look(keys), strict=True):
                if place is not Whereabouts.ELSEWHERE:
                    self._place(key, self.elsewhere.pop(key), place, results)
        return results

    def _settle(self, results: list[tuple[bytes, Result | Unanswered]]) -> None:
        """Give results to their rows, write, and queue the rows' next calls."""
        records: list[Record] = [self.flow.record(chain) for chain in self.begun]
        finished = self.begun
        self.begun = []
        touched: dict[int, Chain] = {}
        keep: list[tuple[bytes, Mapping[str, Any]]] = []
        free: list[bytes] = []
        for key, result in results:
            waiting = self.pending.pop(key)
            if isinstance(result, Unanswered):
                free.append(key)
            elif _lasting(result):
                keep.append((key, to_plain(result)))
            else:
                free.append(key)
            if self.flow.meter is not None and not isinstance(result, Unanswered):
                # Asked once, whoever else wants the answer.
                self.flow.meter.add(waiting[0][0].number, use_of_result(result, self.call_tokens.pop(key, None)))
            for chain, i in waiting:
                if isinstance(result, Unanswered):
                    self.flow.lose(chain, result)
                else:
                    # Also of a row that will not end now: what it has is kept for the next run.
                    self.flow.take(chain, i, result)
                    touched[chain.number] = chain
        moved = [chain for chain in touched.values() if self.flow.advance(chain, records)]
        finished += [chain for chain in moved if chain.entry is not None]
        self.flow.commit(records, finished)
        for chain in reversed(moved):
            if chain.entry is None:
                self.todo.extendleft((chain, i) for i, r in reversed(list(enumerate(chain.results))) if r is None)
        if self.cache is not None:
            self.cache.put(keep)
            self.cache.release(free)

    def _count_usage(self, pool: Pool) -> None:
        usage, tally = pool.usage, self.flow.tally
        tally.attempts += usage.attempts
        for reason, count in usage.faults.items():
            tally.tried_again[reason] += count
        tally.cost += usage.cost
        tally.most_at_once = max(tally.most_at_once, usage.concurrency)


def _lasting(result: Result) -> bool:
    """Whether a result may be kept for other runs; what a server refuses now it may take tomorrow."""
    return result.answered if isinstance(result, Completion) else not result.refused


def run_pool(flow: Flow[Any], rows: Iterator[Numbered[Any]]) -> None:
    """Do the rows of a flow through its client's pool."""
    _PoolRun(flow, rows).run()
