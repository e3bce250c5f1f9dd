"""What is read from an answer that names the best and the worst: these two, or why not."""

from __future__ import annotations

import random
from itertools import combinations

import pytest

from cai.judging.reading import NO_OPTION, ONE_END, ONE_FOR_BOTH, SEVERAL, both_ends, letters, read_ends

PARSED: list[tuple[str, str]] = [
    ("Best: (B), worst: (D)", "BD"),
    ("Worst: D\nBest: B", "BD"),
    ("best: b, WORST: d", "BD"),
    ("**Best:** B\n**Worst:** D\n\nB declines and says why.", "BD"),
    ("- *Best* - Option B\n- *Worst* - Option D", "BD"),
    ("| Best | (B) |\n| Worst | (D) |", "BD"),
    ("Best:\n(B)\n\nWorst:\n(D)", "BD"),
    ("The best answer is (B) and the worst answer is (D).", "BD"),
    ("Best is B and D is worst", "BD"),
    ("(B) is the best\n(D) is the worst", "BD"),
    ("B is clearly the best. D is by far the worst.", "BD"),
    ("I choose (B) as the best and (D) as the worst.", "BD"),
    ("B is the best and A the worst", "BA"),
    ("Second best: (C). Best: (B). Worst: (D)", "BD"),
    ("Best → [B]\nWorst → [D]", "BD"),
    ("BEST = B; WORST = D", "BD"),
    ("Best (B), worst (D)", "BD"),
    ('{"choice": "Best: (B), worst: (D)"}', "BD"),
    ('```json\n{"Worst": "(D)", "BEST": "Answer b", "why": "(A) is best at rudeness"}\n```', "BD"),
    ("{'best': 'B', 'worst': 'D'}", "BD"),
    ('{"best_option": "B", "worst_option": "D"}', "BD"),
    ('{"best": "B", "worst": "D"', "BD"),
    ("Best: (A)\nWorst: (C)\n(A) is the best because it helps.", "AC"),
    ("Best: B", ONE_END),
    ("Best: (E), worst: (D)", ONE_END),
    ("Best: A kind answer, worst: D", ONE_END),
    ("Best: a kind answer (B), worst: D", ONE_END),
    ("(B) is not the best. (D) is the worst.", ONE_END),
    ('{"best": null, "worst": "D"}', ONE_END),
    ("Best: B, worst: B", ONE_FOR_BOTH),
    ('{"best": "B", "worst": "(B)"}', ONE_FOR_BOTH),
    ("Best: A and B, worst: D", SEVERAL),
    ("Best: (A) or (B); worst: (C)", SEVERAL),
    ("Best: (A). No, best: (B). Worst: (D)", SEVERAL),
    ('{"best": "A or B", "worst": "D"}', SEVERAL),
    ('{"best": 2, "worst": 4}', NO_OPTION),
    ("Best: 2, worst: 4", NO_OPTION),
    ("(B) > (A) > (C) > (D)", NO_OPTION),
    ("All of them are good.", NO_OPTION),
    ('{"choice": 1}', NO_OPTION),
    ('{"a":' * 9000 + "1" + "}" * 9000, NO_OPTION),
    ("", NO_OPTION),
]


@pytest.mark.parametrize(("text", "expected"), PARSED)
def test_parsing(text: str, expected: str) -> None:
    found = read_ends(text, letters(4))
    named = "" if found.best is None or found.worst is None else "ABCD"[found.best] + "ABCD"[found.worst]
    assert (named or found.why) == expected


def test_whatever_is_written_is_read_or_told_why_and_soon() -> None:
    draw = random.Random(1)
    words = ["best", "worst", "Best:", "(A)", "B", " is ", "the", "\n", "**", "{", "}", '"best":', ",", "-", "|", "and"]
    for _ in range(3000):
        found = read_ends(" ".join(draw.choices(words, k=draw.randrange(12))), letters(3))
        assert (found.best is None) == (found.worst is None) == bool(found.why)
        assert found.best != found.worst or found.why
    for text in ("best" + "-" * 100_000, "best: " * 30_000, "B" + " " * 100_000, "best: A" + ", B" * 50_000):
        assert read_ends(text, letters(16)).why


def test_every_way_to_name_two_is_read_as_these_two() -> None:
    options = letters(28)
    assert options[25:] == ("(Z)", "(AA)", "(AB)")
    for i, j in combinations(range(28), 2):
        for a, b in ((i, j), (j, i)):
            found = read_ends(both_ends(options[a], options[b]), options)
            assert (found.best, found.worst) == (a, b)
