"""Training stages render what the engine reads; the evaluation is right on answers whose figures are known."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from cai.chat import ChatTemplate, Message
from cai.data.rows import Comparison, Conversation, Prompt, read_rows
from cai.errors import SpecError
from cai.figures import intervals
from cai.figures.answers import refuses
from cai.stages import KINDS
from cai.stages.base import StageSpec
from cai.stages.evaluate.spec import EvaluateSpec
from cai.stages.evaluate.stage import run
from tests.support.paths import ROOT
from tests.support.stage_doubles import Memory, Stopped, artifact, context, user

MODELS = {"model": "m", "reward": "r"}


def test_every_kind_names_itself_and_says_what_it_makes() -> None:
    for name, kind in KINDS.items():
        assert kind.spec.model_fields["kind"].default == name
        assert issubclass(kind.spec, StageSpec)
    assert {n: k.spec.MAKES for n, k in KINDS.items() if k.spec.MAKES} == {
        "fetch": "model",
        "respond": "responses",
        "revise": "revisions",
        "sft": "model",
        "sample": "candidates",
        "judge": "comparisons",
        "reward": "reward_model",
        "dpo": "model",
        "rl": "model",
        "snapshot": "model",
        "evaluate": "evaluation",
    }


def test_fetch_hands_the_source_to_the_engine(tmp_path: Path) -> None:
    spec = KINDS["fetch"].spec.model_validate({"kind": "fetch", "source": "hf:x", "sha256": "ab"})
    outcome = KINDS["fetch"].run(spec, context(tmp_path, Memory(), {}))
    assert outcome.metrics == {"source": "hf:x", "sha256": "ab"}
    assert (tmp_path / "out/config.json").exists()


def test_read_writes_the_part_and_counts_the_rest(tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text('{"prompt": "a?"}\n{"prompt": "b?"}\n{"question": "c?"}\nnot json\n')
    spec = KINDS["read"].spec.model_validate(
        {"kind": "read", "source": {"path": str(data), "makes": "prompts"}, "part": "all"}
    )
    assert spec.makes({}) == "prompts"
    ledger = KINDS["read"].run(spec, context(tmp_path, Memory(), {})).ledger
    assert [r.messages[0].content for r in read_rows(tmp_path / "out/rows.jsonl", Prompt)] == ["a?", "b?"]
    assert (ledger.rows_out, sum(ledger.dropped.values()), ledger.rows_in) == (2, 2, 4)


def two_turns(name: str) -> Conversation:
    return Conversation(
        name, (*user("One?"), Message("assistant", "First."), *user("Two?"), Message("assistant", "Second."))
    )


@pytest.mark.parametrize(("loss", "learnt"), [("last", ["Second."]), ("all", ["First.", "Second."])])
def test_sft_learns_the_answers_it_is_told_to(loss: str, learnt: list[str], tmp_path: Path) -> None:
    engine = Memory()
    data = artifact(tmp_path / "d", "conversations", train=[two_turns("a"), two_turns("b")], val=[two_turns("c")])
    spec = KINDS["sft"].spec.model_validate({"kind": "sft", "model": "m", "data": "d", "loss": loss})
    outcome = KINDS["sft"].run(
        spec, context(tmp_path, engine, {"model": artifact(tmp_path / "m", "model"), "data": data})
    )
    first = engine.seen["train"][0]
    assert [s.text.removesuffix("<|im_end|>") for s in first.spans if s.loss] == learnt
    assert "".join(s.text for s in first.spans).count("<|im_start|>") == 4
    assert [t.id for t in engine.seen["val"]] == ["c"]
    assert (outcome.ledger.rows_in, outcome.ledger.rows_out, outcome.ledger.dropped) == (3, 2, {"too long": 1})


@pytest.mark.parametrize(("thinking", "learnt"), [("drop", "4"), ("train", "<think>\nTwo and two.\n</think>\n\n4")])
def test_sft_learns_thinking_where_it_is_told_to(thinking: str, learnt: str, tmp_path: Path) -> None:
    engine = Memory()
    row = Conversation("a", (*user("2 + 2?"), Message("assistant", "4", "Two and two.")))
    data = artifact(tmp_path / "d", "conversations", train=[row], val=[])
    spec = KINDS["sft"].spec.model_validate({"kind": "sft", "model": "m", "data": "d", "thinking": thinking})
    ctx = context(tmp_path, engine, {"model": artifact(tmp_path / "m", "model"), "data": data})
    chat = ChatTemplate.from_file(ROOT / "prompt_templates" / "chatml_tools.jinja")
    KINDS["sft"].run(spec, replace(ctx, template=chat))
    (text,) = engine.seen["train"]
    assert [s.text for s in text.spans if s.loss] == [f"{learnt}<|im_end|>"]
    assert text.messages == (*user("2 + 2?"), Message("assistant", "4"))
    assert engine.seen["data"].answer_end == "<|im_end|>"
    if thinking == "train":
        with pytest.raises(SpecError, match="thinking: the template 'chatml' writes no thinking"):
            KINDS["sft"].run(spec, ctx)


def test_reward_reads_both_answers_after_the_same_prompt(tmp_path: Path) -> None:
    engine = Memory()
    data = artifact(tmp_path / "d", "comparisons", [Comparison("c", user("Q?"), "good", "bad", 0.8)])
    spec = KINDS["reward"].spec.model_validate({"kind": "reward", "model": "m", "data": "d"})
    KINDS["reward"].run(spec, context(tmp_path, engine, {"model": artifact(tmp_path / "m", "model"), "data": data}))
    (pair,) = engine.seen["train"]
    assert pair.prompt.endswith("<|im_start|>assistant\n")
    assert (pair.chosen, pair.rejected, pair.p_chosen) == ("good<|im_end|>", "bad<|im_end|>", 0.8)
    assert engine.seen["val"] == []


def test_rl_gets_prompts_and_stop_strings(tmp_path: Path) -> None:
    engine = Memory()
    inputs = {name: artifact(tmp_path / name, kind) for name, kind in (("model", "model"), ("reward", "reward_model"))}
    rows = [Prompt("a", user("Q?")), Prompt("a", user("Q?")), Prompt("b", user("R?"))]
    inputs["prompts"] = artifact(tmp_path / "p", "prompts", rows)
    spec = KINDS["rl"].spec.model_validate({"kind": "rl", **MODELS, "prompts": "p"})
    outcome = KINDS["rl"].run(spec, context(tmp_path, engine, inputs))
    assert [p.id for p in engine.seen["prompts"]] == ["a", "b"]
    assert engine.seen["prompts"][0].prompt.endswith("assistant\n")
    assert engine.seen["stop"] == ("<|im_end|>",)
    assert (engine.seen["policy"], engine.seen["reward"]) == ("model", "reward")
    assert outcome.ledger.dropped == {"repeated id": 1}


ASKED = [Prompt(f"q{i}", user(f"Question {i}?"), "even" if i % 2 == 0 else "odd") for i in range(12)]
PAIRS = [Comparison(f"c{i}", user("Which?"), "x" * (5 + i), "y" * 3, 1.0, "t", {"kind": "easy"}) for i in range(9)]
PAIRS += [Comparison("flip", user("Which?"), "y", "xx", 0.2, "t"), Comparison("tie", user("Which?"), "a", "b", 0.5)]


def evaluation(folder: Path, engine: Memory, **fields: Any) -> dict[str, Any]:
    inputs: dict[str, Any] = {
        "models": {name: artifact(folder / name, "model") for name in ("base", "tuned")},
        "reward": artifact(folder / "reward", "reward_model"),
        "prompts": {"red": artifact(folder / "red", "prompts", ASKED)},
        "comparisons": {"held_out": artifact(folder / "pairs", "comparisons", PAIRS)},
    }
    raw = {
        "models": {"base": "b", "tuned": "t"},
        "reward": "r",
        "prompts": {"red": "p"},
        "comparisons": {"held_out": "c"},
    }
    spec = EvaluateSpec.model_validate({"kind": "evaluate", **raw, "chunk": 5, **fields})
    outcome = run(spec, context(folder, engine, inputs))
    assert outcome.ledger.rows_in == outcome.ledger.rows_out + sum(outcome.ledger.dropped.values())
    found: dict[str, Any] = json.loads((folder / "out/evaluation.json").read_text())
    return found


class Known(Memory):
    """``tuned`` always declines in four words more; the reward is the length of the answer."""

    def complete(self, model: str, batch: str, request: Any) -> Any:
        from cai.clients.base import Completion, Finish

        number = request.prompt.split("Question ")[1].split("?")[0]
        text = f"I can't help with number {number}." if model == "tuned" else f"Sure {number}."
        return Completion(request.id, text, 5, len(text.split()), Finish.STOP if model == "tuned" else Finish.LENGTH)


def test_figures_of_known_answers(tmp_path: Path) -> None:
    report = evaluation(tmp_path, Known(), benign=["red"])
    red = report["sets"]["red"]
    base, tuned = red["models"]["base"], red["models"]["tuned"]
    assert (base["refusals"]["value"], tuned["refusals"]["value"]) == (0, 1)
    assert (base["ended"]["value"], tuned["ended"]["value"]) == (0, 1)
    assert (base["tokens"]["value"], tuned["tokens"]["value"]) == (2, 6)
    assert tuned["reward"]["value"] > base["reward"]["value"]
    assert set(tuned["reward_by_topic"]) == {"even", "odd"}
    assert red["wins"] == [
        {"model": "tuned", "against": "base", **asdict(intervals.share(12, 12)), "wins": 12, "ties": 0, "losses": 0}
    ]
    held = report["reward_model"]["held_out"]
    # Nine pairs whose better answer is longer, and one whose label says that the shorter 'rejected' one is better.
    assert held["accuracy"]["n"] == 10, "a tie has no right answer"
    assert held["accuracy"]["value"] == 1.0
    assert held["longer_is_better"]["value"] == 1.0
    assert held["by_kind"]["easy"]["n"] == 9
    assert len(report["examples"]) == 3
    assert set(report["examples"][0]["answers"]) == {"base", "tuned"}
    lines = (tmp_path / "out/answers.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == [row.id for row in ASKED]


def test_caveats_follow_the_figures(tmp_path: Path) -> None:
    said = " ".join(evaluation(tmp_path, Known(), benign=["red"])["caveats"])
    assert "'tuned' refuses 100% of harmless requests" in said
    assert "'base': only 0% of its answers end by themselves" in said
    assert "only 10 pairs" in said
    assert "only 12 prompts" in said
    assert "length alone does it" in said
    assert "'tuned': answers have 6 tokens on average, those of 'base' 2" in said
    quiet = " ".join(evaluation(tmp_path / "red", Known())["caveats"])
    assert "harmless requests" not in quiet, "on red-team prompts a refusal is no fault"


def test_a_reward_model_at_chance_is_called_that(tmp_path: Path) -> None:
    engine = Known(rewards=lambda prompt, answer: float(len(answer) % 2))
    report = evaluation(tmp_path, engine)
    accuracy = report["reward_model"]["held_out"]["accuracy"]
    assert accuracy["low"] < 0.5 < accuracy["high"]
    assert any("not clearly better than chance" in c for c in report["caveats"])


def test_an_evaluation_stopped_at_any_call_gives_the_same_bytes(tmp_path: Path) -> None:
    engine = Memory()
    evaluation(tmp_path / "whole", engine)
    whole = (tmp_path / "whole/out/evaluation.json").read_bytes()
    assert engine.open == 0
    assert engine.calls == 6
    for stop_at in range(1, 7):
        folder = tmp_path / str(stop_at)
        with pytest.raises(Stopped):
            evaluation(folder, Memory(stop_at=stop_at))
        again = Memory()
        evaluation(folder, again)
        assert (folder / "out/evaluation.json").read_bytes() == whole
        assert again.calls == 7 - stop_at, "what was answered is not asked again"


@pytest.mark.parametrize(
    ("fields", "match"),
    [({"benign": ["blue"]}, "no prompt set"), ({"reward": None, "comparisons": {"a": "b"}}, "give reward as well")],
)
def test_settings_that_make_no_sense(fields: dict[str, Any], match: str) -> None:
    with pytest.raises(ValidationError, match=match):
        EvaluateSpec.model_validate({"kind": "evaluate", "models": {"m": "m"}, "prompts": {"red": "p"}, **fields})


def test_wilsons_interval_is_the_textbooks() -> None:
    found = intervals.share(8, 10)
    assert (found.low, found.high) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))
    assert intervals.share(0, 5).low == 0
    assert intervals.share(0, 0).value is None


def test_the_bootstrap_holds_the_mean_and_does_not_move() -> None:
    values = [float(v % 7) for v in range(40)]
    found = intervals.mean(values, seed=3)
    assert found == intervals.mean(values, seed=3)
    assert found.value is not None
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.value < found.high
    spread = (sum((v - found.value) ** 2 for v in values) / 39) ** 0.5 / 40**0.5
    assert found.high - found.low == pytest.approx(2 * 1.96 * spread, rel=0.15)
    assert intervals.mean([2.0, 2.0, 2.0]).low == 2.0


def test_ties_count_half() -> None:
    found = intervals.wins([1.0, 2.0, 3.0, 3.0], [1.0, 1.0, 4.0, 2.0])
    assert (found.wins, found.ties, found.losses, found.value) == (2, 1, 1, 0.625)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I can't help with that.", True),
        ("I’m sorry, but no.", True),
        ("I won't explain how.", True),
        ("I'd rather not write that.", True),
        ("Here are the steps you can't miss.", False),
        ("Rinse the rice first.", False),
        ("I can show you how.", False),
    ],
)
def test_phrases_of_refusal(text: str, expected: bool) -> None:
    assert refuses(text) is expected


def test_variety() -> None:
    assert intervals.distinct_n(["a b c", "a b d"]) == 0.75
    assert intervals.distinct_n([]) is None
    assert intervals.correlation([1, 2, 3], [2, 4, 9]) == pytest.approx(1.0)
    assert intervals.correlation([1, 1, 1], [2, 4, 9]) is None
