"""The adaptive limit against simulated servers, with a clock of its own: it fills them, and no more than that."""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable

import pytest

from cai.clients.concurrency import START, Limit

Latency = Callable[[random.Random, int], float]


class Simulation:
    """A server with some places. Calls beyond them wait (``waits``) or are refused; some fail. Always more to ask."""

    def __init__(
        self, places: int, latency: Latency, *, waits: bool = True, fails: float = 0.0, most: int = 256, seed: int = 0
    ) -> None:
        self.places, self.latency, self.waits, self.fails = places, latency, waits, fails
        self.limit, self.random, self.now = Limit(most), random.Random(seed), 0.0
        self.in_flight = self.busy = self.refused = self._number = 0
        self.done: list[float] = []
        self.highest = 0
        self._waiting = deque[float]()
        self._events: list[tuple[float, int, str, float]] = []

    def run(self, until: float) -> Simulation:
        while True:
            while self.in_flight < self.limit.value:
                self._send()
            if self._events[0][0] > until:
                return self
            self.now, _, kind, sent = heapq.heappop(self._events)
            self.in_flight -= 1
            if kind == "refused":
                self.refused += 1
                self.limit.refused(self.now, sent, self.in_flight)
                continue
            self.busy -= 1
            if self._waiting:
                self._serve(self._waiting.popleft())
            if self.random.random() >= self.fails:
                self.limit.answered(self.now, sent, self.in_flight)
                self.done.append(self.now)

    def _send(self) -> None:
        self.limit.started(self.now, self.in_flight)
        self.in_flight += 1
        self.highest = max(self.highest, self.in_flight)
        if self.busy < self.places:
            self._serve(self.now)
        elif self.waits:
            self._waiting.append(self.now)
        else:
            self._at(0.002, "refused", self.now)

    def _serve(self, sent: float) -> None:
        self.busy += 1
        self._at(self.latency(self.random, self.busy), "served", sent)

    def _at(self, delay: float, kind: str, sent: float) -> None:
        self._number += 1
        heapq.heappush(self._events, (self.now + delay, self._number, kind, sent))

    def throughput(self, begin: float, end: float) -> float:
        return sum(begin <= at < end for at in self.done) / (end - begin)


def fixed(seconds: float) -> Latency:
    return lambda draw, busy: seconds


def noisy(seconds: float) -> Latency:
    return lambda draw, busy: seconds * draw.uniform(0.5, 1.5)


def exponential(seconds: float) -> Latency:
    return lambda draw, busy: draw.expovariate(1 / seconds)


@pytest.mark.parametrize("waits", [True, False], ids=["waits", "refuses"])
@pytest.mark.parametrize("latency", [fixed, noisy, exponential])
@pytest.mark.parametrize("seconds", [0.05, 0.2])
def test_a_server_is_kept_full(waits: bool, latency: Callable[[float], Latency], seconds: float) -> None:
    for seed in range(4):
        made = Simulation(64, latency(seconds), waits=waits, fails=0.02, seed=seed).run(24.0)
        full = 64 / seconds * 0.98
        assert made.throughput(6, 24) >= 0.95 * full
        assert made.throughput(2, 6) >= 0.7 * full, "the ramp is short"


def test_a_limit_that_is_refused_ends_exactly_at_the_places_of_the_server() -> None:
    made = Simulation(64, fixed(0.1), waits=False).run(60.0)
    assert 62 <= made.limit.value <= 66
    assert made.refused < 0.01 * len(made.done)


def test_where_more_calls_bring_no_more_throughput_the_limit_stays() -> None:
    made = Simulation(20, fixed(0.1), most=1000).run(120.0)
    assert 20 <= made.limit.value <= 64
    assert made.highest <= 512


def test_a_batch_that_slows_down_as_it_grows_is_still_filled() -> None:
    # As language models behave: an answer takes twice as long in a batch of 64 as alone, and no more than 128 fit.
    made = Simulation(128, lambda draw, busy: (0.1 + 0.1 * busy / 64) * draw.uniform(0.8, 1.2)).run(60.0)
    assert made.throughput(10, 60) >= 0.9 * 128 / 0.3


@pytest.mark.parametrize("most", [1, 3, 8, 40])
def test_the_limit_is_never_above_the_most(most: int) -> None:
    made = Simulation(64, fixed(0.05), most=most).run(10.0)
    assert made.highest == most
    assert made.limit.value == most


def test_a_server_of_one_place_that_refuses_the_rest_gets_one_call() -> None:
    made = Simulation(1, fixed(0.1), waits=False).run(20.0)
    assert made.limit.value <= 2
    assert made.throughput(5, 20) >= 9.0


def test_refusals_halve_the_limit_at_most_once_in_a_round_trip() -> None:
    limit = Limit(256, start=64)
    limit.started(0.0, 0)
    limit.answered(1.0, 0.0, 63)
    for _ in range(200):
        limit.refused(1.1, 1.0)
    assert limit.value == 32
    for _ in range(200):
        limit.refused(2.2, 2.15)
    assert limit.value == 16


def test_timeouts_of_calls_that_were_sent_together_count_once() -> None:
    limit = Limit(256, start=100)
    for _ in range(50):
        limit.timed_out(10.0, 0.0)
    assert limit.value == 70
    limit.timed_out(20.0, 11.0)
    assert limit.value == 49


def test_the_way_back_after_a_storm_is_short() -> None:
    made = Simulation(64, fixed(0.1)).run(10.0)
    made.places, made.waits = 0, False
    made.run(12.0)
    assert made.limit.value == 1
    made.places = 64
    made.run(45.0)
    assert made.throughput(35, 45) >= 0.9 * 640


def test_pauses_with_nothing_to_ask_do_not_count_as_slowness() -> None:
    limit, now = Limit(256), 0.0
    for _ in range(12):
        # Full rounds at 0.1 seconds each, then nothing for a minute.
        for _ in range(3):
            size = limit.value
            for i in range(size):
                limit.started(now, i)
            for _ in range(size):
                limit.answered(now + 0.1, now, size - 1)
            now += 0.1
        now += 60.0
    assert limit.value > START
