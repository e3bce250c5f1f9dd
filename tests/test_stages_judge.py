"""The judge: symmetric in the order of the answers, honest about ties, soft labels on the right side."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from cai.chat import Message
from cai.clients.base import Completion, Finish, Request, Score, ScoreRequest
from cai.data.rows import Candidates, Comparison, read_rows
from cai.stages.judge import JudgeSpec, run
from cai.stages.judging import parse_choice, sigmoid
from tests.stage_doubles import Memory, artifact, context, shipped, user

QUALITY = {"best": 2.0, "good": 1.0, "poor": -1.0, "same": 1.0}
LETTERS = "{#---\ndescription: test\nkind: prompt\nformat: text\n---#}\n{{ first }}|{{ second }}|{{ principle }}|"
EXEMPLARS = "exemplars:\n- {prompt: q, good: kind words help, bad: rude words hurt}\n"


class Opinion(Memory):
    """A judge that likes answers by ``QUALITY`` and, by ``bias``, whichever is shown first."""

    def __init__(self, bias: float = 0.0, says: str = "") -> None:
        super().__init__()
        self.bias, self.says = bias, says

    def _leaning(self, prompt: str) -> float:
        first, second = prompt.split("|")[:2]
        return QUALITY[first] - QUALITY[second] + self.bias

    def likelihood(self, request: ScoreRequest) -> Score:
        wants_first = request.continuation.strip() == "(A)"
        leaning = self._leaning(request.prompt)
        return Score(request.id, math.log(sigmoid(leaning if wants_first else -leaning)), 1)

    def complete(self, model: str, batch: str, request: Request) -> Completion:
        text = self.says or ("I choose (A)." if self._leaning(request.prompt) > 0 else "Option B")
        return Completion(request.id, text, 1, 2, Finish.STOP)


def judge(
    folder: Path, engine: Memory, *answers: str, texts: Any = None, **fields: Any
) -> tuple[Any, list[Comparison]]:
    rows = [Candidates("r", user("What now?"), answers, "topic", {"kind": "harmless"})]
    inputs = {"model": artifact(folder / "m", "model"), "candidates": artifact(folder / "c", "candidates", rows)}
    spec = JudgeSpec(model="m", candidates="c", **fields)
    outcome = run(spec, context(folder, engine, inputs, texts or {"prompt": LETTERS}))
    ledger = outcome.ledger
    assert ledger.rows_in == ledger.rows_out + sum(ledger.dropped.values())
    return outcome, list(read_rows(folder / "out/rows.jsonl", Comparison))  # type: ignore[arg-type]


def test_the_better_answer_is_chosen_with_a_soft_label(tmp_path: Path) -> None:
    _, (row,) = judge(tmp_path, Opinion(), "poor", "best")
    assert (row.chosen, row.rejected) == ("best", "poor")
    assert row.p_chosen == pytest.approx(sigmoid(3), abs=1e-6)
    assert row.topic == "topic"
    assert row.meta["kind"] == "harmless"
    assert row.meta["principles"][0].startswith("p")


def test_the_order_of_the_answers_does_not_matter(tmp_path: Path) -> None:
    engine = Opinion(bias=1.7)
    _, (one,) = judge(tmp_path / "one", engine, "good", "best")
    _, (two,) = judge(tmp_path / "two", engine, "best", "good")
    assert (one.chosen, one.p_chosen) == (two.chosen, two.p_chosen) == ("best", one.p_chosen)
    assert one.p_chosen == pytest.approx((sigmoid(1 + 1.7) + sigmoid(1 - 1.7)) / 2, abs=1e-6)
    _, (biased,) = judge(tmp_path / "biased", engine, "good", "best", swap=False)
    assert biased.chosen == "good", "without swapping, the first answer wins by its place"


def test_a_judge_that_goes_by_the_place_alone_says_tie(tmp_path: Path) -> None:
    outcome, (row,) = judge(tmp_path, Opinion(bias=4), "good", "same")
    assert row.p_chosen == 0.5
    assert outcome.metrics["ties"] == 1
    assert outcome.metrics["agreement of the two orders"] == 0
    outcome, rows = judge(tmp_path / "drop", Opinion(bias=4), "good", "same", ties="drop")
    assert rows == []
    assert outcome.ledger.dropped == {"tie": 1}


def test_the_margin_makes_ties(tmp_path: Path) -> None:
    _, (near,) = judge(tmp_path / "near", Opinion(), "best", "good", margin=0.3)
    _, (far,) = judge(tmp_path / "far", Opinion(), "best", "poor", margin=0.3)
    assert (near.p_chosen, near.meta["judged"]) == (0.5, pytest.approx(sigmoid(1), abs=1e-6))
    assert far.p_chosen > 0.9


def test_all_pairs_or_the_best_and_worst(tmp_path: Path) -> None:
    _, everything = judge(tmp_path / "all", Opinion(), "good", "poor", "best")
    assert [(r.chosen, r.rejected) for r in everything] == [("good", "poor"), ("best", "good"), ("best", "poor")]
    assert len({r.id for r in everything}) == 3
    _, (pair,) = judge(tmp_path / "two", Opinion(), "good", "poor", "best", pairs="best_worst")
    assert (pair.chosen, pair.rejected) == ("best", "poor")


def test_identical_answers_are_counted_and_not_judged(tmp_path: Path) -> None:
    outcome, rows = judge(tmp_path, Opinion(), "good", "good", "poor")
    assert outcome.ledger.dropped == {"identical": 1}
    assert len(rows) == 2


def test_one_answer_is_no_pair(tmp_path: Path) -> None:
    outcome, _ = judge(tmp_path, Opinion(), "good")
    assert outcome.ledger.dropped == {"fewer than two answers": 1}


def test_labels_can_be_clamped_or_hard(tmp_path: Path) -> None:
    _, (clamped,) = judge(tmp_path / "clamped", Opinion(), "poor", "best", clamp=(0.4, 0.6))
    _, (hard,) = judge(tmp_path / "hard", Opinion(), "poor", "best", labels="hard")
    assert (clamped.chosen, clamped.p_chosen, hard.p_chosen) == ("best", 0.6, 1.0)
    _, (tie,) = judge(tmp_path / "tie", Opinion(), "good", "same", labels="hard")
    assert tie.p_chosen == 0.5


def test_a_written_choice_is_parsed_and_averaged(tmp_path: Path) -> None:
    _, (row,) = judge(tmp_path / "sure", Opinion(), "poor", "best", scoring="choice")
    assert (row.chosen, row.p_chosen) == ("best", 1.0)
    _, (torn,) = judge(tmp_path / "torn", Opinion(says="(A)"), "poor", "best", scoring="choice")
    assert torn.p_chosen == 0.5, "always the first: contradicts itself when the order is swapped"
    outcome, rows = judge(tmp_path / "mute", Opinion(says="Hard to say."), "poor", "best", scoring="choice")
    assert rows == []
    assert outcome.ledger.dropped == {"unparsed": 1}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("(A)", 1),
        ("(B) is better", 0),
        ("B", 0),
        ("Answer: A.", 1),
        ("(A) or (B)", None),
        ("neither", None),
        ("Apples", None),
    ],
)
def test_parsing(text: str, expected: float | None) -> None:
    assert parse_choice(text, ("(A)", "(B)")) == expected


def test_an_ensemble_asks_several_principles_and_the_whole_asks_all(tmp_path: Path) -> None:
    outcome, (row,) = judge(tmp_path / "some", Opinion(), "poor", "best", principles="ensemble", ensemble=3)
    assert len(set(row.meta["principles"])) == 3
    assert outcome.calls == 3 * 2 * 2
    seen = []

    class Listening(Opinion):
        def likelihood(self, request: ScoreRequest) -> Score:
            seen.append(request.prompt)
            return super().likelihood(request)

    judge(tmp_path / "whole", Listening(), "poor", "best", principles="whole")
    assert all(f"Which is {i}?" in seen[0] for i in range(4))


CONTRAST: dict[str, Any] = {
    "scoring": "contrast",
    "texts": {"prompt": shipped("judge_contrast.jinja"), "exemplars": EXEMPLARS},
}


def test_contrast_prefers_what_is_likelier_after_good_exemplars(tmp_path: Path) -> None:
    _, (row,) = judge(tmp_path, Memory(), "rude and hurt", "kind and help", **CONTRAST)
    assert row.chosen == "kind and help"
    assert row.p_chosen > 0.5


def test_contrast_is_blind_to_what_both_sides_find_likely(tmp_path: Path) -> None:
    # Both texts are as likely after the good exemplars as after the bad ones, whatever their length.
    _, (row,) = judge(tmp_path, Memory(), "What now?", "a b c d e f g h", **CONTRAST)
    assert row.p_chosen == 0.5


def test_contrast_per_token_does_not_count_length(tmp_path: Path) -> None:
    answers = ("kind", "kind kind kind kind")
    _, (even,) = judge(tmp_path / "even", Memory(), *answers, **CONTRAST)
    _, (longer,) = judge(tmp_path / "sum", Memory(), *answers, per_token=False, **CONTRAST)
    assert even.p_chosen == pytest.approx(0.5)
    assert longer.chosen == answers[1]
    _, (cool,) = judge(tmp_path / "cool", Memory(), *answers, per_token=False, temperature=4.0, **CONTRAST)
    assert 0.5 < cool.p_chosen < longer.p_chosen


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"exemplars": "x.yaml"}, "read by scoring 'contrast' only"),
        ({"reasoning": True, "scoring": "choice"}, "use scoring: logprob"),
        ({"clamp": (0.6, 0.9)}, "must hold 0.5"),
        ({"options": ("A", "A")}, "two different"),
        ({"scoring": "oracle"}, "logprob"),
    ],
)
def test_settings_that_make_no_sense(fields: dict[str, Any], match: str) -> None:
    with pytest.raises(ValidationError, match=match):
        JudgeSpec(model="m", candidates="c", **fields)


def test_bad_exemplars_name_every_problem(tmp_path: Path) -> None:
    from cai.errors import SpecError

    broken = "exemplars:\n- {prompt: q, good: g, baad: b}\n- 3\n"
    with pytest.raises(SpecError) as caught:
        judge(tmp_path, Memory(), "a", "b", scoring="contrast", texts={**CONTRAST["texts"], "exemplars": broken})
    assert "exemplars[0].baad: unknown field; did you mean 'bad'?" in str(caught.value)
    assert "exemplars[0].bad: must be a text" in str(caught.value)
    assert "exemplars[1]: must be a mapping" in str(caught.value)


def test_a_revision_is_judged_against_the_first_answer():
    from cai.data.rows import Conversation
    from cai.stages.judge import _candidates

    asked = (Message("user", "q"), Message("assistant", "kind"))
    revised = Conversation("a", asked, "t", {"response": "rude", "rounds": [{"round": 1}]})
    found = _candidates(revised)
    assert (found.id, found.messages, found.answers, found.topic) == ("a", asked[:1], ("rude", "kind"), "t")
    assert _candidates(Conversation("b", asked)) is None


@pytest.mark.parametrize(
    ("spec", "rows", "calls"),
    [
        ({"scoring": "choice"}, 60, 120),
        ({"scoring": "choice", "swap": False}, 60, 60),
        ({"scoring": "choice", "pairs": "best_worst"}, 10, 120),
        ({"scoring": "logprob"}, 60, 240),
        ({"scoring": "contrast"}, 60, 80),
    ],
)
def test_the_estimate_counts_every_pair_of_the_candidates(spec, rows, calls):
    estimate = JudgeSpec(model="m", candidates="c", **spec).estimate({"candidates": 10, "candidates:width": 4})
    assert (estimate.rows, estimate.calls) == (rows, calls)
