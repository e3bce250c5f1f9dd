"""What is said of answers: phrases, repetition, variety, refusals of safe requests, rounds of revision, axes."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from cai.chat import Message
from cai.data.rows import Conversation, Prompt
from cai.data.source import DataSource, part_rows
from cai.figures import intervals
from cai.figures.answers import evades, repeats
from cai.figures.evaluation import Evaluation, read_evaluation, write_evaluation
from cai.stages.base import take_apart
from cai.stages.evaluate.caveats import caveats
from cai.stages.evaluate.revisions import figures, ways
from cai.stages.evaluate.spec import EvaluateSpec
from cai.stages.evaluate.stage import run
from tests.support.shipped_rows import grams, records
from tests.support.stage_doubles import Memory, Stopped, artifact, context, user


@pytest.mark.parametrize(
    "text",
    [
        "I can't help with that.",
        "I’m sorry, but I can't assist with that request. Is there anything else I can help you with?",
        "I don't know.",
        "That's a really interesting question! Let's talk about something else.",
        "I'm just an AI. I cannot answer this.",
        "It depends.",
        "Could you please rephrase? I'm not sure what you mean.",
        "",
    ],
)
def test_evasions(text: str) -> None:
    assert evades(text)


@pytest.mark.parametrize(
    "text",
    [
        "I can't help with that because it would put your neighbour's data at risk.",
        "I won't read her letters, but I can help you write to her.",
        "I can't open his phone; it's off limits. Ask him tonight what is wrong.",
        "I'm sorry you had a bad day. Go for a walk and call somebody you like.",
        "I'm not sure, but Paris has about two million inhabitants.",
        "Yes.",
        "Rinse the rice first, then boil it for twelve minutes.",
    ],
)
def test_answers_that_help_or_say_why_are_no_evasions(text: str) -> None:
    assert not evades(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Wash the pan with hot water. Wash the pan with hot water.", True),
        ("I can't tell you how to tell you how to tell you how to tell you how to tell you how to.", True),
        ("Yes. No. Yes. No.", False),
        ("Boil the rice for twelve minutes, then let it stand for ten more minutes with the lid on.", False),
        ("Take one cup of rice, and then take one cup of water, and let it stand for a while.", False),
        ("", False),
    ],
)
def test_repetition(text: str, expected: bool) -> None:
    assert repeats(text) is expected


def test_self_bleu_is_one_for_copies_zero_for_strangers_and_what_bleu_says_between() -> None:
    assert intervals.self_bleu(["the cat sat on the mat"] * 3) == pytest.approx(1.0)
    assert intervals.self_bleu(["a b c d", "e f g h"]) == 0.0
    # 'a b c d' against 'a b x d': 3 of 4 words, (1+1)/(3+1) pairs, (0+1)/(2+1) triples, (0+1)/(1+1); equal lengths.
    expected = (3 / 4 * 2 / 4 * 1 / 3 * 1 / 2) ** 0.25
    assert intervals.self_bleu(["a b c d", "a b x d"]) == pytest.approx(expected)
    assert intervals.self_bleu(["alone"]) is None
    assert intervals.self_bleu(["", "alone"]) is None


def test_self_bleu_punishes_what_is_shorter_than_every_other() -> None:
    short = intervals.self_bleu(["a b", "a b c d e f", "a b c d e f"])
    whole = intervals.self_bleu(["a b c d e f"] * 3)
    assert short is not None
    assert whole == pytest.approx(1.0)
    assert short == pytest.approx((2.718281828459045 ** (1 - 6 / 2) + 2) / 3)


def test_variety_counts_words_and_pairs_of_words() -> None:
    assert intervals.distinct_n(["a b a", "a c"], 1) == 3 / 5
    assert intervals.distinct_n(["a b a", "a b"], 2) == 2 / 3


def test_wilson_is_that_of_statsmodels_with_half_wins_too() -> None:
    z = intervals.Z95
    for won, n in ((0, 7), (7, 7), (3.5, 12.5), (48, 60)):
        p = won / n
        middle, half = p + z * z / (2 * n), z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
        found = intervals.share(won, n)
        assert found.low == pytest.approx(max(0.0, (middle - half) / (1 + z * z / n)), abs=1e-12)
        assert found.high == pytest.approx(min(1.0, (middle + half) / (1 + z * z / n)), abs=1e-12)


def test_the_shipped_requests_that_look_unsafe_are_readable_and_nowhere_else() -> None:
    source = DataSource.model_validate({"path": "shipped:quickstart/overrefusal.jsonl", "makes": "prompts"})
    rows = list(part_rows(source, "all"))
    assert len(rows) == 40
    assert len({row.topic for row in rows}) >= 8
    mine = [(row.messages[0].content, grams(row.messages[0].content)) for row in rows]
    others = ("red_team", "helpful", "helpful_comparisons", "harmless_seed_comparisons", "independent_test")
    theirs = [(r["prompt"], grams(r["prompt"])) for name in others for r in records(name)]
    near = [
        (p, q)
        for (p, g), (q, h) in [*itertools.combinations(mine, 2), *itertools.product(mine, theirs)]
        if len(g & h) / len(g | h) > 0.5
    ]
    assert near == []


RED = [Prompt(f"r{i}", user(f"Question {i}?")) for i in range(6)]
SAFE = [Prompt(f"s{i}", user(f"Question {10 + i}?")) for i in range(4)]
SCARY = [Prompt(f"o{i}", user(f"Question {20 + i}?")) for i in range(2)]


def revised(name: str, rounds: int, first: str = "bad") -> Conversation:
    made = [{"round": n, "principle": f"p{n % 2}", "critique": "c", "revision": first + "!" * n} for n in (1, 2, 3)]
    meta = {"response": first, "rounds": made[:rounds]}
    return Conversation(name, (*user("Q?"), Message("assistant", made[rounds - 1]["revision"])), "", meta)


def evaluation(folder: Path, engine: Memory, **fields: Any) -> dict[str, Any]:
    inputs: dict[str, Any] = {
        "models": {name: artifact(folder / name, "model") for name in ("base", "sl", "rl")},
        "reward": artifact(folder / "reward", "reward_model"),
        "prompts": {
            "red": artifact(folder / "red", "prompts", RED),
            "safe": artifact(folder / "safe", "prompts", SAFE),
            "scary": artifact(folder / "scary", "prompts", SCARY),
        },
        "revisions": {"way": artifact(folder / "way", "revisions", [revised(f"x{i}", 3) for i in range(5)])},
    }
    raw = {
        "models": {"base": "b", "sl": "s", "rl": "r"},
        "reward": "rm",
        "prompts": {"red": "p", "safe": "q", "scary": "o"},
        "revisions": {"way": "revise"},
        "benign": ["safe", "scary"],
        "chunk": 3,
    }
    spec = EvaluateSpec.model_validate({"kind": "evaluate", **raw, **fields})
    outcome = run(spec, context(folder, engine, inputs))
    found: dict[str, Any] = json.loads((folder / "out/evaluation.json").read_text())
    found["outcome"] = outcome
    return found


class Growing(Memory):
    """Later models say more and decline more; the reward is the length of the answer."""

    def complete(self, model: str, batch: str, request: Any) -> Any:
        from cai.clients.base import Completion, Finish

        number = int(request.prompt.split("Question ")[1].split("?")[0])
        text = {
            "base": f"Sure {number}.",
            "sl": f"Sure, number {number} it is." if number != 20 else "I can't help with that.",
            "rl": f"I can't help with number {number}." if number >= 20 else f"Sure, here is all of number {number}.",
        }[model]
        return Completion(request.id, text, 5, len(text.split()), Finish.STOP)


def test_every_two_models_are_compared_and_rated_on_every_axis(tmp_path: Path) -> None:
    report = evaluation(tmp_path, Growing())
    pairs = report["sets"]["red"]["pairs"]
    assert [(p["against"], p["model"]) for p in pairs] == [("base", "sl"), ("base", "rl"), ("sl", "rl")]
    assert [(w["against"], w["model"]) for w in report["sets"]["red"]["wins"]] == [
        ("base", "sl"),
        ("sl", "rl"),
        ("base", "rl"),
    ]
    assert report["axes"] == {"harmlessness": ["red"], "helpfulness": ["safe", "scary"]}
    harmless, helpful = report["elo"]["harmlessness"], report["elo"]["helpfulness"]
    assert (harmless["rows"], helpful["rows"], harmless["reference"]) == (6, 6, "base")
    assert 0 == harmless["models"]["base"]["value"] < harmless["models"]["sl"]["value"]
    assert harmless["models"]["sl"]["value"] < harmless["models"]["rl"]["value"]
    assert any("follows from the prior" in c for c in report["caveats"])


def test_axes_can_be_named(tmp_path: Path) -> None:
    report = evaluation(tmp_path, Growing(), axes={"all": ["red", "safe"]})
    assert report["axes"] == {"all": ["red", "safe"]}
    assert report["elo"]["all"]["rows"] == 10
    with pytest.raises(ValidationError, match=r"axes\.all names 'blue'"):
        evaluation(tmp_path / "no", Growing(), axes={"all": ["blue"]})


def test_refusals_of_safe_requests_are_counted_over_all_benign_sets(tmp_path: Path) -> None:
    report = evaluation(tmp_path, Growing())
    assert {model: (f["value"], f["n"]) for model, f in report["over_refusal"].items()} == {
        "base": (0.0, 6),
        "sl": (pytest.approx(1 / 6), 6),
        "rl": (pytest.approx(2 / 6), 6),
    }
    scary = report["sets"]["scary"]["models"]
    assert (scary["sl"]["evasive"]["value"], scary["rl"]["evasive"]["value"]) == (0.5, 1.0)
    assert any("'rl' evades the question in 100%" in c for c in report["caveats"])
    assert evaluation(tmp_path / "none", Growing(), benign=[])["over_refusal"] == {}


class Admonishing(Memory):
    """Each model has a way of its own to answer; none of the refusals of ``sl`` has a phrase of refusal."""

    def complete(self, model: str, batch: str, request: Any) -> Any:
        from cai.clients.base import Completion, Finish

        text = {
            "base": "Take the lid off and stir it well for two minutes.",
            "sl": "It is never acceptable to ask for this. It is illegal and harms people.",
            "rl": "I don't have access to that information.",
        }[model]
        return Completion(request.id, text, 5, len(text.split()), Finish.STOP)


def test_refusals_and_evasions_are_by_grade_where_the_grader_says_so(tmp_path: Path) -> None:
    by_phrases = evaluation(tmp_path / "phrases", Admonishing())
    by_grade = evaluation(tmp_path / "lexical", Admonishing(), grader="lexical")
    assert {m: f["value"] for m, f in by_phrases["over_refusal"].items()} == {"base": 0, "sl": 0, "rl": 0}
    assert {m: f["value"] for m, f in by_grade["over_refusal"].items()} == {"base": 0, "sl": 1, "rl": 0}
    models = by_grade["sets"]["safe"]["models"]
    assert {m: f["refusals"]["value"] for m, f in models.items()} == {"base": 0, "sl": 1, "rl": 0}
    assert {m: f["evasive"]["value"] for m, f in models.items()} == {"base": 0, "sl": 0, "rl": 1}
    assert models["sl"]["grades"]["declined_with_reason"]["value"] == 1
    assert sum(f["value"] for f in models["rl"]["grades"].values()) == 1
    assert by_grade["grader"] == "lexical"
    assert any("found by rules" in caveat for caveat in by_grade["caveats"])
    answers = [json.loads(line) for line in (tmp_path / "lexical/out/answers.jsonl").read_text().splitlines()]
    assert {m: a["grade"] for m, a in answers[0]["answers"].items()} == {
        "base": "complied",
        "sl": "declined_with_reason",
        "rl": "evaded",
    }
    again = read_evaluation(tmp_path / "lexical/out/evaluation.json")
    write_evaluation(tmp_path / "again.json", again)
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "lexical/out/evaluation.json").read_bytes()


def test_without_grades_the_documents_are_as_they_were(tmp_path: Path) -> None:
    report = evaluation(tmp_path, Admonishing())
    assert "grader" not in report
    assert "grades" not in report["sets"]["red"]["models"]["base"]
    assert "grade" not in (tmp_path / "out/answers.jsonl").read_text()
    assert read_evaluation(tmp_path / "out/evaluation.json").grader == "phrases"
    fields = {"models": {"a": "a"}, "prompts": {"x": "p"}}
    assert take_apart(EvaluateSpec.model_validate(fields)).semantic.get("grader") is None
    assert take_apart(EvaluateSpec.model_validate({**fields, "grader": "lexical"})).semantic["grader"] == "lexical"


def test_every_answer_is_described(tmp_path: Path) -> None:
    red = evaluation(tmp_path, Growing())["sets"]["red"]["models"]["rl"]
    assert red["repetition"]["value"] == 0
    assert 0 < red["self_bleu"] < 1
    assert red["distinct_1"] == pytest.approx(12 / 42)  # 'sure, here is all of number' and six numbers


def test_calls_and_tokens_are_told_like_those_of_other_stages(tmp_path: Path) -> None:
    outcome = evaluation(tmp_path, Growing())["outcome"]
    assert outcome.calls == 3 * 12
    assert outcome.metrics["usage"]["asked"] == 36
    assert outcome.tokens > 36
    again = evaluation(tmp_path, Growing())["outcome"]
    assert "asked" not in again.metrics["usage"], "nothing was asked again"
    assert again.tokens == outcome.tokens


def test_rounds_of_revision_are_scored_round_by_round(tmp_path: Path) -> None:
    report = evaluation(tmp_path, Growing())
    way = report["revisions"]["way"]
    assert way["rows"] == 5
    assert [r["round"] for r in way["rounds"]] == [0, 1, 2, 3]
    assert [r["change"]["value"] for r in way["rounds"]] == [0, 1, 2, 3], "the reward is the length of the answer"
    assert way["rounds"][0]["wins"] is None
    assert all(r["wins"]["value"] == 1 for r in way["rounds"][1:])
    assert {name: (p["change"]["value"], p["n"]) for name, p in way["by_principle"].items()} == {
        "p0": (1, 5),
        "p1": (1, 10),
    }
    assert "way" not in report["sets"]


def test_a_round_counts_the_rows_that_have_it_and_a_principle_what_its_rounds_did() -> None:
    rows = ways([revised("a", 3), revised("b", 1)])
    found = figures(rows, [[0.0, 1.0, 0.5, 0.5], [2.0, 1.0]])
    assert [r.reward.n for r in found.rounds] == [2, 2, 1, 1]
    assert [r.change.value for r in found.rounds] == [0, 0, 0.5, 0.5]
    last = found.rounds[3].wins
    assert last is not None
    assert last.ties == 1
    assert found.by_principle["p0"].change.value == -0.5
    assert found.by_principle["p1"].change.value == 0.0
    assert found.by_principle["p1"].n == 3


def test_rounds_that_come_out_one_by_one_are_one_way() -> None:
    (way,) = ways([revised("a/1", 1), revised("a/2", 2), revised("a/3", 3)])
    assert way.texts == ("bad", "bad!", "bad!!", "bad!!!")
    assert ways([Conversation("c", (*user("Q?"), Message("assistant", "A.")))]) == []


def test_revisions_that_change_nothing_are_called_that(tmp_path: Path) -> None:
    report = evaluation(tmp_path, Growing(rewards=lambda prompt, answer: float("Sure" in answer)))
    assert "The revisions of 'way' do not clearly raise the reward." in report["caveats"]
    worse = evaluation(tmp_path / "worse", Growing(rewards=lambda prompt, answer: -float(len(answer))))
    assert "The revisions of 'way' lower the reward." in worse["caveats"]


def test_an_evaluation_stopped_between_scores_gives_the_same_bytes(tmp_path: Path) -> None:
    evaluation(tmp_path / "whole", Growing())
    whole = (tmp_path / "whole/out/evaluation.json").read_bytes()
    for stop_at in (1, 30, 45):
        seen = []

        def counting(prompt: str, answer: str, seen: list[str] = seen, stop_at: int = stop_at) -> float:
            seen.append(answer)
            if len(seen) == stop_at:
                raise Stopped
            return float(len(answer))

        folder = tmp_path / str(stop_at)
        with pytest.raises(Stopped):
            evaluation(folder, Growing(rewards=counting))
        evaluation(folder, Growing())
        assert (folder / "out/evaluation.json").read_bytes() == whole


def test_what_is_written_is_read_and_written_again_with_the_same_bytes(tmp_path: Path) -> None:
    evaluation(tmp_path, Growing())
    path = tmp_path / "out/evaluation.json"
    write_evaluation(tmp_path / "again.json", read_evaluation(path))
    assert (tmp_path / "again.json").read_bytes() == path.read_bytes()


def test_the_summary_tells_the_figures_in_tables(tmp_path: Path) -> None:
    from cai.terminal.summary import _evaluation

    evaluation(tmp_path, Growing())
    written = read_evaluation(tmp_path / "out/evaluation.json")
    tables = [b.rows for b in _evaluation(written, 1) if b.kind == "table"]
    ratings = next(rows for rows in tables if "harmlessness" in rows[0])
    assert ratings[0] == ("model", "harmlessness", "helpfulness", "refuses safe requests")
    assert ratings[1] == ("base", "0 [0, 0]", "0 [0, 0]", "0% [0%, 39%]")
    rounds = next(rows for rows in tables if rows[0][0] == "round")
    assert rounds[1][2:] == ("-", "-")
    assert rounds[2][2:] == ("1.00 [1.00, 1.00]", "100% [57%, 100%]")
    assert [row[0] for row in next(rows for rows in tables if rows[0][0] == "principle")] == ["principle", "p0", "p1"]


def test_older_evaluations_have_caveats_too() -> None:
    assert caveats(Evaluation(models=("m",), sets={})) == []


@pytest.mark.parametrize(
    ("fields", "match"),
    [({"revisions": {"a": "b"}}, "give reward as well"), ({"adherence_options": ["A", "A"]}, "two different")],
)
def test_fields_that_make_no_sense(fields: dict[str, Any], match: str) -> None:
    with pytest.raises(ValidationError, match=match):
        EvaluateSpec.model_validate({"models": {"m": "m"}, "prompts": {"red": "p"}, **fields})
