"""Rows flow in cohorts, for clients that answer lists: in-process models, NeMo's servers.

What is asked together may decide the last digits of what comes out, so the lists are fixed by the input and never by
time: a cohort is the same rows in every attempt, it keeps step, and what a step answered is written as a whole. Where a
client has several lanes, as many cohorts are on their way at once, so that the servers have work while one cohort waits
for its slowest answer.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from cai.clients.base import Call, Client, OptionScores, OptionsRequest, Request, Result, ScoreRequest
from cai.clients.cache import BEAT, Whereabouts
from cai.clients.calls import call_key, from_plain, to_plain
from cai.data.journal import Record
from cai.stages.flow.base import Chain, Flow
from cai.stages.flow.input_rows import Numbered

_POLL = 0.2
"""Seconds between two looks for an answer that another process is getting."""

Answers = Mapping[str, Result]


@dataclass
class _Step:
    """What a cohort needs to go on: results that are there, calls to ask, and calls that another process is asking."""

    cohort: list[Chain]
    waiting: list[tuple[Chain, int, Call]] = field(default_factory=list)
    results_by_id: dict[str, Result] = field(default_factory=dict)
    ours: dict[str, Call] = field(default_factory=dict)
    elsewhere: dict[bytes, list[Call]] = field(default_factory=dict)


class _CohortRun:
    def __init__(self, flow: Flow[Any], rows: Iterator[Numbered[Any]]) -> None:
        self.flow = flow
        self.cache = flow.open_cache(others_only=True)
        self.cohorts = (list(group) for _, group in groupby(rows, lambda row: row.number // flow.size))

    def run(self) -> None:
        lanes, going = 1, dict[Future[Answers], _Step]()
        workers: ThreadPoolExecutor | None = None
        try:
            while True:
                while len(going) < lanes and (step := self._next()) is not None:
                    client = self.flow.client()
                    lanes = max(1, int(getattr(client, "lanes", 1)))
                    if lanes == 1:
                        # In this thread, where in-process models live.
                        while step is not None:
                            step = self._settle(step, answers(client, list(step.ours.values())))
                    else:
                        workers = workers or ThreadPoolExecutor(lanes, "flow")
                        going[workers.submit(answers, client, list(step.ours.values()))] = step
                if not going or workers is None:
                    return
                if self.cache is not None:
                    self.cache.beat()
                for future in wait(going, BEAT, FIRST_COMPLETED).done:
                    more = self._settle(going.pop(future), future.result())
                    if more is not None:
                        going[workers.submit(answers, self.flow.client(), list(more.ours.values()))] = more
        finally:
            if workers is not None:
                workers.shutdown(wait=False, cancel_futures=True)

    def _next(self) -> _Step | None:
        """The next cohort with something to ask; what needs no model is done on the way."""
        for rows in self.cohorts:
            cohort = [self.flow.start(row) for row in rows]
            over = [chain for chain in cohort if chain.entry is not None]
            self.flow.commit([self.flow.record(chain) for chain in over], over)
            step = self._step([chain for chain in cohort if chain.entry is None])
            if step is not None:
                return step
        return None

    def _step(self, cohort: list[Chain]) -> _Step | None:
        """What a cohort asks now; None when it comes to its end with what the cache knows."""
        while cohort:
            step = _Step(cohort)
            for chain in cohort:
                missing = (i for i, result in enumerate(chain.results) if result is None)
                step.waiting += [(chain, i, chain.calls[i]) for i in missing]
            keys = [call_key(self.flow.scope, call) for _, _, call in step.waiting]
            places = self.cache.look(keys) if self.cache is not None else [Whereabouts.OURS] * len(keys)
            for key, (_, _, call), place in zip(keys, step.waiting, places, strict=True):
                if isinstance(place, Mapping):
                    step.results_by_id[call.id] = from_plain(call, place)
                elif place is Whereabouts.ELSEWHERE:
                    step.elsewhere.setdefault(key, []).append(call)
                else:
                    step.ours[call.id] = call
            self.flow.tally.from_cache += len(step.results_by_id)
            self.flow.tally.calls += len(step.ours)
            if step.ours or step.elsewhere:
                return step
            cohort = self._finish(step)
        return None

    def _settle(self, step: _Step, results_by_id: Answers) -> _Step | None:
        """Take the answers, as a whole; what the cohort asks next."""
        step.results_by_id |= results_by_id
        keep = [(call_key(self.flow.scope, call), to_plain(results_by_id[call.id])) for call in step.ours.values()]
        self._elsewhere(step)
        unfinished = self._finish(step)
        if self.cache is not None:
            self.cache.put(keep)
        return self._step(unfinished)

    def _finish(self, step: _Step) -> list[Chain]:
        """Give the answers to their rows and write; the rows that go on."""
        records: list[Record] = []
        for chain, i, call in step.waiting:
            self.flow.take(chain, i, step.results_by_id[call.id])
        for chain in step.cohort:
            self.flow.advance(chain, records)
        over = [chain for chain in step.cohort if chain.entry is not None]
        self.flow.commit(records, over)
        return [chain for chain in step.cohort if chain.entry is None]

    def _elsewhere(self, step: _Step) -> None:
        """Wait for the answers that another process is getting; what it gives up is asked here."""
        while step.elsewhere and self.cache is not None:
            self.cache.beat()
            places = dict(zip(step.elsewhere, self.cache.look(list(step.elsewhere)), strict=True))
            free: dict[bytes, list[Call]] = {}
            for key, place in places.items():
                if isinstance(place, Mapping):
                    calls = step.elsewhere.pop(key)
                    step.results_by_id |= {call.id: from_plain(call, place) for call in calls}
                    self.flow.tally.from_cache += len(calls)
                elif place is Whereabouts.OURS:
                    free[key] = step.elsewhere.pop(key)
            if free:
                results_by_id = answers(self.flow.client(), [call for calls in free.values() for call in calls])
                step.results_by_id |= results_by_id
                self.flow.tally.calls += len(results_by_id)
                self.cache.put([(key, to_plain(results_by_id[calls[0].id])) for key, calls in free.items()])
            elif step.elsewhere:
                time.sleep(_POLL)


def answers(client: Client, calls: Sequence[Call]) -> dict[str, Result]:
    """Results by call id, each kind of call as one list; options are scored as continuations of their prompt.

    Raises:
        RuntimeError: when the client leaves a call without an answer, or gives a score that is no number.
    """
    results_by_id: dict[str, Result] = {}
    requests = [call for call in calls if isinstance(call, Request)]
    texts = [call for call in calls if isinstance(call, ScoreRequest)]
    options = [call for call in calls if isinstance(call, OptionsRequest)]
    parts = [ScoreRequest(f"{c.id}/{o}", c.prompt, option) for c in options for o, option in enumerate(c.options)]
    if requests:
        results_by_id |= {completion.id: completion for completion in client.generate(requests)}
    scores = {score.id: score for score in client.score([*texts, *parts])} if texts or parts else {}
    for call in options:
        mine = [scores[f"{call.id}/{o}"] for o in range(len(call.options)) if f"{call.id}/{o}" in scores]
        if len(mine) == len(call.options):
            why = next((score.refused for score in mine if score.refused), "")
            logprobs = tuple(score.logprob for score in mine)
            results_by_id[call.id] = OptionScores(call.id, logprobs, sum(score.tokens for score in mine), why)
    results_by_id |= {call.id: scores[call.id] for call in texts if call.id in scores}
    if missing := [call.id for call in calls if call.id not in results_by_id]:
        raise RuntimeError(f"{client.name}: no answer for {len(missing)} calls, the first is {missing[0]!r}")
    return results_by_id


def run_lists(flow: Flow[Any], rows: Iterator[Numbered[Any]]) -> None:
    """Do the rows of a flow in cohorts."""
    _CohortRun(flow, rows).run()
