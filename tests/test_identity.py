from __future__ import annotations

from collections import Counter

import pytest

from cai.identity import canonical, counted, key_of, rendezvous, rendezvous_order, sampling_seed, uniform, unit


def test_the_order_of_keys_and_the_spelling_of_whole_numbers_do_not_count():
    assert key_of({"a": 1, "b": [1.0, 2]}) == key_of({"b": [1, 2.0], "a": 1.0})
    assert key_of({"a": 1}) != key_of({"a": True})
    assert key_of({"a": 0.1}) != key_of({"a": 0.10000001})


def test_lists_keep_their_order():
    assert key_of(["a", "b"]) != key_of(["b", "a"])


@pytest.mark.parametrize("value", [{1, 2}, object(), b"x", {1: "a"}, {"a": {"b": object()}}])
def test_what_has_no_stable_form_is_refused(value):
    with pytest.raises(TypeError, match=r"canonical form|must be strings"):
        canonical(value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"a": [float("-inf")]}])
def test_numbers_that_are_no_numbers_are_refused(value):
    with pytest.raises(ValueError, match="canonical form"):
        canonical(value)


def test_draws_are_pinned():
    # These numbers decide every sample ever drawn: a change of them is a change of every result.
    assert counted(0, "row", "purpose") == 7270674858012780096
    assert sampling_seed(7, "row", "respond") == counted(7, "row", "respond") & 0x7FFFFFFF
    assert key_of({"kind": "sft", "version": 1}) == "9a1ec2e1a5fed15ed1b371700f41c7b67bcaf944b5902ba47e3e15c10eb65b4b"


def test_uniform_is_uniform():
    draws = [uniform(0, str(i), "u") for i in range(20_000)]
    assert 0 < min(draws) < max(draws) < 1
    deciles = Counter(int(d * 10) for d in draws)
    assert all(1800 < deciles[d] < 2200 for d in range(10))


def test_rendezvous_follows_the_weights():
    drawn = Counter(rendezvous(0, str(i), "p", [("a", 1.0), ("b", 3.0), ("off", 0.0)]) for i in range(8000))
    assert drawn["off"] == 0
    assert 0.72 < drawn["b"] / 8000 < 0.78


def test_adding_one_principle_to_sixteen_moves_about_a_seventeenth_of_the_rows():
    sixteen = [(f"p{i}", 1.0) for i in range(16)]
    moved = 0
    for i in range(6000):
        before = rendezvous(3, str(i), "round", sixteen)
        after = rendezvous(3, str(i), "round", [*sixteen, ("p16", 1.0)])
        assert after in (before, "p16")
        moved += before != after
    assert 0.045 < moved / 6000 < 0.075


def test_the_order_of_the_candidates_does_not_matter():
    weights = [("a", 1.0), ("b", 2.0), ("c", 0.5)]
    for i in range(200):
        assert rendezvous(0, str(i), "p", weights) == rendezvous(0, str(i), "p", weights[::-1])
        assert rendezvous_order(0, str(i), "p", weights)[0] == rendezvous(0, str(i), "p", weights)


def test_nothing_to_draw_from_is_an_error():
    with pytest.raises(ValueError, match="every weight is zero"):
        rendezvous(0, "row", "p", [("a", 0.0)])


def test_parts_get_their_shares():
    parts = Counter(unit(0, str(i), "split", {"train": 0.8, "val": 0.2}) for i in range(5000))
    assert 0.77 < parts["train"] / 5000 < 0.83
