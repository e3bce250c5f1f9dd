from __future__ import annotations

import random
import sys
import tracemalloc

import pytest

from cai.data import seen as module
from cai.data.seen import Seen


def test_a_text_is_new_once() -> None:
    seen = Seen()
    assert [seen.add(text) for text in ("a", "b", "a", "", "", "b")] == [True, True, False, True, False, False]
    assert len(seen) == 3
    assert "a" in seen
    assert "c" not in seen


def test_it_agrees_with_a_set_while_it_grows() -> None:
    draw, seen, plain = random.Random(0), Seen(), set()
    for _ in range(40_000):
        text = f"row {draw.randrange(20_000)}"
        assert seen.add(text) == (text not in plain)
        plain.add(text)
    assert len(seen) == len(plain)
    assert all(text in seen for text in plain)
    assert not any(f"other {i}" in seen for i in range(10_000))


def test_any_string_can_be_noted() -> None:
    seen = Seen()
    for text in ("\ud800", "\udfff", "é", "\0", "x" * 1_000_000):
        assert seen.add(text)
        assert not seen.add(text)


@pytest.mark.parametrize("all_at", [0, 1, 2**64 - 1])
def test_digests_that_meet_at_one_place_are_kept_apart(monkeypatch: pytest.MonkeyPatch, all_at: int) -> None:
    # From the last place on, probing goes on at the first.
    monkeypatch.setattr(module, "_digest", lambda text: ((all_at - int(text)) % 2**64) or 1)
    seen = Seen()
    numbers = range(2, 2_000)
    assert all(seen.add(str(i)) for i in numbers)
    assert not any(seen.add(str(i)) for i in numbers)


@pytest.mark.long
def test_it_takes_at_most_24_bytes_a_row() -> None:
    tracemalloc.start()
    seen = Seen()
    for i in range(100_000):
        seen.add(str(i))
    now, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert now <= 24 * len(seen) + sys.getsizeof(seen) + 4096
    assert most <= 48 * len(seen)
