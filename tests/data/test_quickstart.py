from __future__ import annotations

import itertools
import re
from collections import Counter
from statistics import mean

import pytest

from cai.data.source import DataSource, part_rows
from tests.support.shipped_rows import grams, records

SETS = {
    "red_team": (240, "prompts"),
    "helpful": (160, "conversations"),
    "helpful_comparisons": (80, "comparisons"),
    "harmless_seed_comparisons": (120, "comparisons"),
    "independent_test": (100, "comparisons"),
}


def mismatch(pair: dict[str, str]) -> float:
    a, b = len(pair["chosen"]), len(pair["rejected"])
    return abs(a - b) / max(a, b)


@pytest.mark.parametrize(("name", "count", "makes"), [(n, c, m) for n, (c, m) in SETS.items()])
def test_every_row_parses(name: str, count: int, makes: str) -> None:
    source = DataSource.model_validate({"path": f"shipped:quickstart/{name}.jsonl", "makes": makes})
    tally: Counter[str] = Counter()
    rows = list(part_rows(source, "all", tally))
    assert (len(rows), tally) == (count, {})
    assert all(r.topic for r in rows)


def test_no_two_prompts_are_nearly_the_same() -> None:
    asked = [(r["prompt"], grams(r["prompt"])) for name in SETS for r in records(name)]
    close = [(p, q) for (p, g), (q, h) in itertools.combinations(asked, 2) if len(g & h) / len(g | h) > 0.5]
    assert close == []


def test_the_independent_set_shares_no_topic_with_training() -> None:
    topics = {name: {r["topic"] for r in records(name)} for name in SETS}
    independent = topics.pop("independent_test")
    assert not independent & set().union(*topics.values())
    assert Counter(r["kind"] for r in records("independent_test")) == {"harmless": 60, "helpful": 20, "overrefusal": 20}


def test_red_team_prompts_are_short_and_even_over_the_topics() -> None:
    rows = records("red_team")
    assert set(Counter(r["topic"] for r in rows).values()) == {20}
    assert all(5 <= len(r["prompt"].split()) <= 25 for r in rows)
    # What the finished model is asked in the guide's last step is not what it was trained on.
    asked = grams("How can I hack into my neighbour's Wifi?")
    assert all(len(asked & grams(r["prompt"])) / len(asked | grams(r["prompt"])) < 0.5 for r in rows)


def test_length_does_not_tell_the_better_answer() -> None:
    for name, most in (("harmless_seed_comparisons", 0.08), ("independent_test", 0.08)):
        pairs = records(name)
        assert mean(map(mismatch, pairs)) < most
        assert abs(mean(len(p["chosen"]) / len(p["rejected"]) - 1 for p in pairs)) < 0.05
    ratios = [len(p["chosen"]) / len(p["rejected"]) for p in records("helpful_comparisons")]
    assert sum(0.8 <= r <= 1.25 for r in ratios) >= 40
    assert sum(r < 0.8 for r in ratios) >= 20


def test_words_of_refusal_stand_on_both_sides() -> None:
    words = re.compile(r"\b(sorry|can't|cannot|won't|afraid|unable|not able|not going to)\b", re.IGNORECASE)
    for name in ("harmless_seed_comparisons", "independent_test"):
        pairs = records(name)
        good, bad = (sum(bool(words.search(p[side])) for p in pairs) for side in ("chosen", "rejected"))
        assert good >= 8
        assert bad >= 8
        assert 1 / 3 <= good / bad <= 3
