"""Moves of a limit are events with their reason, and few of them however often it moves."""

from __future__ import annotations

import itertools

from cai.clients.concurrency import START, Limit, LimitReason
from cai.clients.endpoints import Endpoint
from cai.clients.pool_notes import LIMIT_MOVED, LimitMoves


def test_a_pool_that_opens_hears_where_the_limit_is_and_why() -> None:
    moves = LimitMoves(Endpoint("http://x", Limit(256, 64, LimitReason.REMEMBERED)), "x")
    first, second = moves.opening(), moves.opening()
    assert first.event == LIMIT_MOVED
    assert first.fields == {"endpoint": "x", "from": None, "to": 64, "reason": "remembered"}
    assert second.fields["reason"] == "kept"


def test_a_storm_of_moves_is_one_event_a_second() -> None:
    endpoint = Endpoint("http://x", Limit(256))
    moves = LimitMoves(endpoint, "x")
    notes = []
    for n in range(3000):
        now = n / 1000
        endpoint.limit.answered(now + 0.5, now, endpoint.limit.value - 1)
        if n % 7 == 0:
            endpoint.limit.refused(now + 0.5, now, 5)
        notes += [note for note in [moves.due(now, at_rest=False)] if note is not None]
    assert 1 <= len(notes) <= 4
    assert notes[0].fields["from"] == START
    for before, after in itertools.pairwise(notes):
        assert before.fields["to"] == after.fields["from"]


def test_the_last_move_is_told_when_nothing_is_on_its_way_any_more() -> None:
    endpoint = Endpoint("http://x", Limit(256))
    moves = LimitMoves(endpoint, "x")
    endpoint.limit.refused(1.0, 0.5)
    assert moves.due(1.0, at_rest=False) is not None
    endpoint.limit.refused(1.1, 0.5)
    assert moves.due(1.1, at_rest=False) is None
    last = moves.due(1.1, at_rest=True)
    assert last is not None
    assert last.fields == {"endpoint": "x", "from": START - 1, "to": START - 2, "reason": "refused"}


def test_a_limit_that_came_back_to_where_it_was_is_no_event() -> None:
    endpoint = Endpoint("http://x", Limit(256))
    moves = LimitMoves(endpoint, "x")
    endpoint.limit.reasons.append(LimitReason.BACK)
    assert moves.due(5.0, at_rest=True) is None
