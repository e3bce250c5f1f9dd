"""The adaptive limit against simulated servers, with a clock of its own: it fills them, and no more than that."""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable

import pytest

from benchmarks.ideal import Draws, Places, ideal_seconds
from cai.clients.concurrency import START, Limit, LimitPhase, LimitReason

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


def test_a_stated_limit_is_where_it_starts() -> None:
    assert Limit(64, 64, LimitReason.STATED).value == 64
    made = Simulation(64, fixed(0.1))
    made.limit = Limit(64, 64, LimitReason.STATED)
    made.run(30.0)
    assert made.limit.value == 64
    assert made.limit.reasons == [LimitReason.STATED]


def test_an_unknown_limit_grows_with_each_answer_and_not_with_whole_rounds() -> None:
    limit = Limit(256)
    for i in range(START):
        limit.started(0.0, i)
    for n in range(1, START // 2):
        limit.answered(1.0 + n * 0.001, 0.0, limit.value - 1)
        assert limit.value == START + n
    assert limit.reasons == [LimitReason.START, LimitReason.RISE]


def test_answers_while_there_is_nothing_more_to_send_raise_nothing() -> None:
    limit = Limit(256)
    for n in range(50):
        limit.answered(1.0, 0.0, n)
    assert limit.value == START
    assert not limit.was_full


def test_what_is_not_refused_at_the_beginning_is_how_many_places_there_are() -> None:
    made = Simulation(9, fixed(0.5), waits=False).run(0.4)
    assert made.limit.value == 9
    assert made.refused == START - 9


def test_a_remembered_limit_that_is_refused_is_cut_at_once() -> None:
    made = Simulation(9, fixed(0.5), waits=False)
    made.limit = Limit(256, 200, LimitReason.REMEMBERED)
    made.run(0.4)
    assert made.limit.value == 9


def test_a_remembered_limit_that_is_too_low_is_raised() -> None:
    made = Simulation(128, fixed(0.1), waits=False)
    made.limit = Limit(256, 32, LimitReason.REMEMBERED)
    assert made.run(20.0).throughput(15, 20) >= 0.9 * 1280


def test_timeouts_leave_no_more_in_flight_than_the_server_answers_in_that_time() -> None:
    # One place, 20 seconds a call, 300 for an answer: 15 answers, and all others wait in vain.
    limit = Limit(256)
    for i in range(START):
        limit.started(0.0, i)
    for n in range(1, 15):
        limit.answered(20.0 * n, 0.0, START - n)
    limit.timed_out(300.0, 0.0)
    assert limit.value == 7


def test_a_server_that_was_away_is_soon_full_again() -> None:
    made = Simulation(64, fixed(0.1), waits=False).run(10.0)
    made.limit.restart(made.now)
    assert made.limit.value <= 33
    made.run(11.0)
    assert made.limit.phase is not LimitPhase.RISING
    assert made.throughput(10.3, 11.0) >= 0.9 * 640


def simulated_seconds(calls: int, places: int, draws: Draws, limit: Limit, *, waits: bool) -> float:
    """What a client with this limit takes for calls with set draws; failed and refused ones are tried again soon."""
    ready = deque((n, 1) for n in range(calls))
    waiting = deque[tuple[int, int, float]]()
    events: list[tuple[float, int, str, int, int, float]] = []
    now, number, busy, in_flight, answered = 0.0, 0, 0, 0, 0

    def later(delay: float, kind: str, call: int, attempt: int, sent: float) -> None:
        nonlocal number
        number += 1
        heapq.heappush(events, (now + delay, number, kind, call, attempt, sent))

    def serve(call: int, attempt: int, sent: float) -> None:
        seconds, fails = draws(f"{call}", attempt)
        later(seconds, "failed" if fails else "answered", call, attempt, sent)

    while answered < calls:
        while ready and in_flight < limit.value:
            call, attempt = ready.popleft()
            limit.started(now, in_flight)
            in_flight += 1
            if busy < places:
                busy += 1
                serve(call, attempt, now)
            elif waits:
                waiting.append((call, attempt, now))
            else:
                later(0.003, "refused", call, attempt, now)
        now, _, kind, call, attempt, sent = heapq.heappop(events)
        if kind == "ready":
            ready.appendleft((call, attempt))
            continue
        in_flight -= 1
        if kind == "refused":
            limit.refused(now, sent, in_flight)
            later(0.05, "ready", call, attempt, now)
            continue
        if waiting:
            serve(*waiting.popleft())
        else:
            busy -= 1
        if kind == "failed":
            later(0.05, "ready", call, attempt + 1, now)
        else:
            limit.answered(now, sent, in_flight)
            answered += 1
    return now


@pytest.mark.parametrize("places", [64, 256])
@pytest.mark.parametrize("calls", [1000, 2000, 5000])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_limit_costs_little_against_a_client_that_knows_everything(places: int, calls: int, seed: int) -> None:
    draws = Draws(1.0, seed=seed)
    best = ideal_seconds([(f"{n}",) for n in range(calls)], [Places(places)], draws)
    stated = Limit(places, places, LimitReason.STATED)
    assert best / simulated_seconds(calls, places, draws, stated, waits=False) >= 0.97
    for waits in (True, False):
        assert best / simulated_seconds(calls, places, draws, Limit(256), waits=waits) >= 0.9


@pytest.mark.parametrize("places", [1, 4, 16])
def test_a_queue_that_the_first_calls_made_is_seen_and_waited_for(places: int) -> None:
    made = Simulation(places, fixed(1.0))
    drained: list[tuple[float, float]] = []
    answered = made.limit.answered

    def noted(now: float, sent_at: float, in_flight: int) -> None:
        answered(now, sent_at, in_flight)
        if made.limit.drained_at:
            drained.append((now, made.limit.drained_at))
            made.limit.drained_at = 0.0

    made.limit.answered = noted  # type: ignore[method-assign]
    made.run(START / places + 60)
    assert drained[0][0] <= 3.0, "soon enough for the first time limit"
    assert all(until >= START / places for _, until in drained), "their queue has its time"
    assert made.limit.value <= 4 * places + 4, "no such queue is made again"
    assert made.throughput(10, 50) >= 0.95 * places


@pytest.mark.parametrize("latency", [fixed, noisy, exponential])
def test_a_server_that_works_on_all_first_calls_is_not_taken_for_one_with_a_queue(
    latency: Callable[[float], Latency],
) -> None:
    for seed in range(8):
        made = Simulation(256, latency(1.0), seed=seed).run(20.0)
        assert made.highest >= 250
        assert made.throughput(6, 20) >= 0.9 * 256


def test_first_calls_that_are_refused_tell_the_places_whenever_the_first_answer_comes() -> None:
    limit = Limit(256)
    for i in range(START):
        limit.started(0.0, i)
    limit.answered(0.05, 0.0, START - 1)  # before the first refusal, on a busy machine
    for n in range(2, START - 14):
        limit.refused(0.06, 0.0, START - n)
    assert limit.value <= 20
