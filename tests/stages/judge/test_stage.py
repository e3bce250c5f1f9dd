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
from cai.errors import SpecError
from cai.judging.reading import read_choice, read_options, sigmoid
from cai.stages.judge.spec import judge_spec
from cai.stages.judge.stage import run
from tests.support.stage_doubles import Memory, artifact, context, shipped, user

QUALITY = {"worse": -2.0, "best": 2.0, "good": 1.0, "poor": -1.0, "same": 1.0}
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
    spec = judge_spec(model="m", candidates="c", **{"max_drop_rate": 1.0, **fields})
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
        ("A better answer is (B).", 0),
        ('{"choice": "(A)"}', 1),
        ('```json\n{"choice": "B", "why": "(A) is rude"}\n```', 0),
        ('{"choice": "(A) or (B)"}', None),
        ('{"choice": 1}', None),
        ('{"choice": null, "why": "(A)"}', None),
        ('{"answer": "(A)"}', 1),
        ('{"choice": "(B)', 0),
        ("{]", None),
    ],
)
def test_parsing(text: str, expected: float | None) -> None:
    assert read_choice(text, ("(A)", "(B)"))[0] == expected


def test_an_ensemble_asks_several_principles_and_the_whole_asks_all(tmp_path: Path) -> None:
    outcome, (row,) = judge(tmp_path / "some", Opinion(), "poor", "best", principles="ensemble", ensemble=3)
    assert len(set(row.meta["principles"])) == 3
    assert outcome.calls == 3 * 2
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
        ({"samples": 3, "reasoning": True}, "temperature 0"),
        ({"samples": 3}, "nothing is drawn"),
        ({"tie_option": "(A)"}, "tie_option a third"),
        ({"clamp": (0.6, 0.9)}, "must hold 0.5"),
        ({"options": ("A", "A")}, "two different"),
        ({"scoring": "oracle"}, "logprob"),
    ],
)
def test_settings_that_make_no_sense(fields: dict[str, Any], match: str) -> None:
    with pytest.raises(ValidationError, match=match):
        judge_spec(model="m", candidates="c", **fields)


def test_bad_exemplars_name_every_problem(tmp_path: Path) -> None:
    broken = "exemplars:\n- {prompt: q, good: g, baad: b}\n- 3\n"
    with pytest.raises(SpecError) as caught:
        judge(tmp_path, Memory(), "a", "b", scoring="contrast", texts={**CONTRAST["texts"], "exemplars": broken})
    assert "exemplars[0].baad: unknown field; did you mean 'bad'?" in str(caught.value)
    assert "exemplars[0].bad: must be a text" in str(caught.value)
    assert "exemplars[1]: must be a mapping" in str(caught.value)


def test_a_revision_is_judged_against_the_first_answer():
    from cai.data.rows import Conversation
    from cai.stages.judge.labels import as_candidates

    asked = (Message("user", "q"), Message("assistant", "kind"))
    revised = Conversation("a", asked, "t", {"response": "rude", "rounds": [{"round": 1}]})
    found = as_candidates(revised, 7)
    assert (found.id, found.messages, found.answers, found.topic) == ("a", asked[:1], ("rude", "kind"), "t")
    assert as_candidates(Conversation("b", asked), 7) == "no first answer"


@pytest.mark.parametrize(
    ("spec", "rows", "calls"),
    [
        ({"scoring": "choice"}, 60, 120),
        ({"scoring": "choice", "swap": False}, 60, 60),
        ({"scoring": "choice", "pairs": "best_worst"}, 10, 120),
        ({"scoring": "logprob"}, 60, 120),
        ({"scoring": "contrast"}, 60, 80),
        ({"scoring": "choice", "pairs": "neighbours"}, 30, 60),
        ({"scoring": "choice", "order": "random", "reasoning": True}, 60, 120),
        ({"scoring": "logprob", "reasoning": True, "samples": 3, "sampling": {"temperature": 1.0}}, 60, 720),
        ({"scoring": "best_worst"}, 10, 20),
        ({"scoring": "best_worst", "order": "given", "principles": "ensemble", "ensemble": 3}, 10, 30),
        ({"scoring": "best_worst", "reasoning": True, "samples": 2, "sampling": {"temperature": 1.0}}, 10, 80),
        ({"scoring": "best_worst", "labelled": "l"}, 10, 20 + 2 * 200),
        ({"scoring": "choice", "labelled": "l"}, 60, 120 + 2 * 200),
        ({"scoring": "contrast", "labelled": "l", "labelled_limit": None}, 60, 80 + 4 * 300),
    ],
)
def test_the_estimate_counts_every_pair_of_the_candidates(spec, rows, calls):
    estimate = judge_spec(model="m", candidates="c", **spec).estimate(
        {"candidates": 10, "candidates:width": 4, "labelled": 300}
    )
    assert (estimate.rows, estimate.calls) == (rows, calls)


def test_only_neighbours_are_asked(tmp_path: Path) -> None:
    outcome, rows = judge(tmp_path, Opinion(), "good", "poor", "best", "worse", pairs="neighbours", scoring="choice")
    assert [row.id for row in rows] == ["r/0-1", "r/1-2", "r/2-3"]
    assert [(row.chosen, row.rejected) for row in rows] == [("good", "poor"), ("best", "poor"), ("best", "worse")]
    assert outcome.calls == 3 * 2


TIE = shipped("comparison.jinja")


def test_a_tie_option_is_half_a_vote(tmp_path: Path) -> None:
    class Torn(Opinion):
        """Sees no difference between 'good' and 'same', and says so."""

        def complete(self, model: str, batch: str, request: Request) -> Completion:
            even = "same" in request.prompt
            return Completion(request.id, "(C)" if even else "(A)", 1, 1, Finish.STOP)

        def likelihood(self, request: ScoreRequest) -> Score:
            return Score(request.id, math.log({"(A)": 0.2, "(B)": 0.1, "(C)": 0.5}[request.continuation]), 1)

    fields: dict[str, Any] = {"tie_option": "(C)", "texts": {"prompt": TIE}}
    outcome, (row,) = judge(tmp_path / "said", Torn(), "good", "same", scoring="choice", **fields)
    assert (row.p_chosen, outcome.metrics["ties"]) == (0.5, 1)
    assert outcome.metrics["swap consistency"] == 1, "twice the tie is no contradiction"
    _, (soft,) = judge(tmp_path / "soft", Torn(), "good", "poor", order="given", **fields)
    assert soft.p_chosen == pytest.approx((0.2 + 0.25) / 0.8, abs=1e-6)
    with pytest.raises(SpecError, match="never shows tie_option"):
        judge(tmp_path / "unseen", Torn(), "good", "same", tie_option="(C)")


@pytest.mark.parametrize("name", ["comparison.jinja", "comparison_text.jinja"])
@pytest.mark.parametrize("more", [{}, {"think": True}, {"reasoning": "Because."}])
def test_the_shipped_prompts_offer_a_tie_only_when_there_is_one(name: str, more: dict[str, Any]) -> None:
    from cai.chat import PromptTemplate

    template = PromptTemplate.from_text("prompt", shipped(name))
    values = {
        "principle": "Which is kinder?",
        "messages": [{"role": "user", "content": "q"}],
        "first": "one",
        "second": "two",
        "options": ("(A)", "(B)"),
        "think": False,
        "reasoning": "",
        **more,
    }
    plain, offered = (template.render(**values, tie_option=option) for option in ("", "(C)"))
    assert "(C)" not in plain
    assert "neither" not in plain.lower()
    assert ("(C)" in offered) == (name == "comparison_text.jinja" or "think" not in more)
    assert "\n\n\n" not in offered


@pytest.mark.parametrize(
    ("logprobs", "expected"),
    [
        ((math.log(0.6), math.log(0.2)), 0.75),
        ((math.log(0.9), None), 1.0),
        ((None, math.log(0.51)), 0.0),
        ((math.log(0.5), None), None),
        ((None, None), None),
        ((math.nan, math.log(0.9)), None),
        ((math.log(0.9), -math.inf), 1.0),
        ((-math.inf, -math.inf), None),
        ((math.log(0.4), None, math.log(0.4)), 0.75),
        ((math.log(0.1), math.log(0.3), math.log(0.4)), 0.375),
    ],
)
def test_options_that_a_server_does_not_list(logprobs: tuple[float | None, ...], expected: float | None) -> None:
    p, why = read_options(logprobs)
    assert p == (expected if expected is None else pytest.approx(expected))
    assert bool(why) == (expected is None)


class Listening(Opinion):
    """Remembers what it was asked, and what it drew with which seed."""

    def __init__(self, **fields: Any) -> None:
        super().__init__(**fields)
        self.asked: list[Any] = []

    def complete(self, model: str, batch: str, request: Request) -> Completion:
        self.asked.append(request)
        return super().complete(model, batch, request)

    def likelihood(self, request: ScoreRequest) -> Score:
        self.asked.append(request)
        return super().likelihood(request)


def test_a_server_is_told_the_options_where_that_is_wanted(tmp_path: Path) -> None:
    for wanted, choices in ((True, ("(A)", "(B)")), (False, ())):
        engine = Listening(says='{"choice": "(A)"}')
        judge(tmp_path / str(wanted), engine, "poor", "best", scoring="choice", structured=wanted)
        assert [request.choices for request in engine.asked] == [choices, choices]


def test_several_samples_are_drawn_with_seeds_of_their_own_and_averaged(tmp_path: Path) -> None:
    class Wavering(Listening):
        def complete(self, model: str, batch: str, request: Request) -> Completion:
            self.asked.append(request)
            return Completion(request.id, "(A)" if request.id.endswith("s1") else "(B)", 1, 1, Finish.STOP)

    drawn: dict[str, Any] = {"scoring": "choice", "order": "given", "sampling": {"temperature": 1.0}}
    engine = Wavering()
    outcome, (row,) = judge(tmp_path / "four", engine, "one", "two", samples=4, **drawn)
    assert (row.chosen, row.p_chosen, outcome.calls) == ("two", 0.75, 4)
    assert len({request.seed for request in engine.asked}) == 4
    once = Wavering()
    judge(tmp_path / "one", once, "one", "two", **drawn)
    assert once.asked[0].seed in {request.seed for request in engine.asked}, "the first sample is the only one of one"


def test_the_judge_may_think_before_it_chooses(tmp_path: Path) -> None:
    class Thinking(Listening):
        def complete(self, model: str, batch: str, request: Request) -> Completion:
            self.asked.append(request)
            text = "One is kinder." if "step by step" in request.prompt else "(A)"
            return Completion(request.id, text, 1, 3, Finish.STOP)

    engine = Thinking()
    fields: dict[str, Any] = {"scoring": "choice", "order": "given", "reasoning": True, "texts": {"prompt": TIE}}
    outcome, (row,) = judge(tmp_path, engine, "one", "two", **fields)
    thought, chose = engine.asked
    assert (thought.choices, chose.choices) == ((), ("(A)", "(B)"))
    assert "One is kinder." in chose.prompt
    assert thought.seed != chose.seed
    assert (row.p_chosen, outcome.calls, outcome.tokens) == (1.0, 2, 6)


def test_a_pair_that_cannot_be_read_is_dropped_or_a_tie(tmp_path: Path) -> None:
    mute = Opinion(says="Hard to say.")
    outcome, (row,) = judge(tmp_path / "tie", mute, "poor", "best", scoring="choice", abstain="tie")
    assert (row.p_chosen, outcome.metrics["abstained"], outcome.metrics["ties"]) == (0.5, 1, 1)

    class Refusing(Opinion):
        def complete(self, model: str, batch: str, request: Request) -> Completion:
            return Completion(request.id, "", 1, 0, Finish.REFUSED, "prompt too long")

        def likelihood(self, request: ScoreRequest) -> Score:
            return Score(request.id, math.nan, 0)

    outcome, _ = judge(tmp_path / "refused", Refusing(), "poor", "best", scoring="choice")
    assert outcome.ledger.dropped == {"refused by the server": 1}
    outcome, _ = judge(tmp_path / "thought", Refusing(), "poor", "best", reasoning=True)
    assert (outcome.ledger.dropped, outcome.calls) == ({"refused by the server": 1}, 2)
    outcome, _ = judge(tmp_path / "nan", Refusing(), "poor", "best")
    assert outcome.ledger.dropped == {"unparsed": 1}
    outcome, _ = judge(tmp_path / "contrast", Refusing(), "poor", "best", **CONTRAST)
    assert outcome.ledger.dropped == {"unparsed": 1}


def test_the_older_name_of_the_order_still_works() -> None:
    for swap, order in ((True, "both"), (False, "given")):
        assert judge_spec(model="m", candidates="c", swap=swap).order == order  # type: ignore[attr-defined]
    with pytest.raises(ValidationError, match="give order alone"):
        judge_spec(model="m", candidates="c", swap=True, order="both")


def orders(folder: Path, n: int) -> dict[str, bool]:
    """Whether each row's pair was shown the other way round, with the order drawn."""
    engine = Listening(says="(A)")
    rows = [Candidates(f"row{i}", user("q"), ("good", "poor")) for i in range(n)]
    inputs = {"model": artifact(folder / "m", "model"), "candidates": artifact(folder / "c", "candidates", rows)}
    spec = judge_spec(model="m", candidates="c", scoring="choice", order="random")
    outcome = run(spec, context(folder, engine, inputs, {"prompt": LETTERS}))
    assert outcome.calls == n
    return {request.id.partition("/")[0]: request.prompt.startswith("poor") for request in engine.asked}


def test_a_drawn_order_is_fair_and_does_not_depend_on_the_other_rows(tmp_path: Path) -> None:
    many, few = orders(tmp_path / "many", 600), orders(tmp_path / "few", 20)
    assert abs(sum(many.values()) / 600 - 0.5) < 3 * 0.5 / math.sqrt(600)
    assert few == {name: many[name] for name in few}


def test_comparisons_by_people_are_judged_anew_in_an_order_that_tells_nothing(tmp_path: Path) -> None:
    rows = [Comparison(f"row{i}", user("q"), "good", "poor", 1.0, "t", {"kind": "harmless"}) for i in range(400)]
    inputs = {"model": artifact(tmp_path / "m", "model"), "candidates": artifact(tmp_path / "c", "comparisons", rows)}

    def judged(name: str, engine: Memory, **fields: Any) -> tuple[Any, list[Comparison]]:
        spec = judge_spec(model="m", candidates="c", **fields)
        outcome = run(spec, context(tmp_path / name, engine, inputs, {"prompt": LETTERS}))
        return outcome, list(read_rows(tmp_path / name / "out/rows.jsonl", Comparison))  # type: ignore[arg-type]

    _, right = judged("right", Opinion())
    assert {(row.chosen, row.meta["human"], row.meta["kind"]) for row in right} == {("good", 1.0, "harmless")}
    _, first = judged("first", Opinion(says="(A)"), scoring="choice", order="given")
    agreed = [row.meta["human"] for row in first]
    assert set(agreed) == {0.0, 1.0}
    assert all((row.chosen == "good") == (row.meta["human"] == 1) for row in first)
    assert abs(sum(agreed) / 400 - 0.5) < 3 * 0.5 / math.sqrt(400)
