"""Which principles are violated, as a judge says: read from choices and from probabilities, by any kind of client."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from cai.clients.base import Client, Completion, Finish, Request, ScoreRequest
from cai.clients.scripted import ScriptedClient
from cai.data.rows import Prompt
from cai.errors import SpecError, StepFailed
from cai.experiment.model import parse
from cai.files.library import Library, shipped_root
from cai.planning.resolver import resolve
from cai.stages.base import Context
from cai.stages.evaluate.spec import EvaluateSpec
from cai.stages.evaluate.stage import run
from tests.support.stage_doubles import Memory, artifact, context, shipped, user

ASKED = [Prompt(f"q{i}", user(f"Question {i}?")) for i in range(6)]
SAFE = [Prompt(f"s{i}", user(f"Question {10 + i}?")) for i in range(3)]


def violates(prompt: str) -> bool:
    """The base model says something bad of even questions; only principle 1 sees it. All else is in order."""
    number = int(prompt.split("Question ")[1].split("?")[0])
    return "base says bad" in prompt and "Critique 1?" in prompt and number % 2 == 0


def choice_of(prompt: str) -> str:
    """What an honest judge writes: it reads which option says what."""
    first_violates = prompt.index("The answer violates the principle.") < prompt.index("The answer keeps to the")
    return "(A)" if violates(prompt) == first_violates else "(B)"


class Answering(Memory):
    """Models in this process, and a judge among them."""

    def complete(self, model: str, batch: str, request: Request) -> Completion:
        if model == "judge":
            return Completion(request.id, f"{choice_of(request.prompt)}", 9, 2, Finish.STOP)
        return Completion(request.id, f"{model} says bad things." if model == "base" else "I say nice things.", 5, 4,
                          Finish.STOP)  # fmt: skip

    def likelihood(self, request: ScoreRequest) -> Any:
        from cai.clients.base import Score

        return Score(request.id, -0.2 if request.continuation.strip() == choice_of(request.prompt) else -2.0, 1)


def evaluation(folder: Path, engine: Memory, ctx_of: Any = context, **fields: Any) -> tuple[dict[str, Any], Any]:
    inputs: dict[str, Any] = {
        "models": {name: artifact(folder / name, "model") for name in ("base", "sl", "rl")},
        "prompts": {
            "red": artifact(folder / "red", "prompts", ASKED),
            "safe": artifact(folder / "safe", "prompts", SAFE),
        },
        "adherence": artifact(folder / "judge", "model"),
    }
    raw = {"models": {"base": "b", "sl": "s", "rl": "r"}, "prompts": {"red": "p", "safe": "q"}, "adherence": "mixtral"}
    spec = EvaluateSpec.model_validate({"kind": "evaluate", **raw, "chunk": 2, **fields})
    outcome = run(spec, ctx_of(folder, engine, inputs, {"adherence_prompt": shipped("adherence.jinja")}))
    return json.loads((folder / "out/evaluation.json").read_text()), outcome


@pytest.mark.parametrize("scoring", ["choice", "logprob"])
def test_the_share_of_answers_that_violate_each_principle(scoring: str, tmp_path: Path) -> None:
    report, outcome = evaluation(tmp_path, Answering(), adherence_scoring=scoring)
    found = report["adherence"]
    assert (found["model"], found["asked"], found["unread"]) == ("mixtral", 9 * 3 * 4, 0)
    red, safe = found["sets"]["red"], found["sets"]["safe"]
    assert list(red) == ["base", "sl", "rl"]
    assert {p: figure["value"] for p, figure in red["base"].items()} == {"p0": 0, "p1": 0.5, "p2": 0, "p3": 0}
    assert {figure["value"] for model in ("sl", "rl") for figure in red[model].values()} == {0}
    assert (red["base"]["p1"]["n"], safe["base"]["p1"]["n"]) == (6, 3)
    assert red["base"]["p1"]["low"] < 0.5 < red["base"]["p1"]["high"]
    # Two models say the same, and the judge is asked once about it.
    assert outcome.calls == 9 * 3 + 9 * 2 * 4
    assert any("opinion of 'mixtral'" in c for c in report["caveats"])


def test_the_order_of_the_two_statements_is_drawn_and_the_same_for_every_model(tmp_path: Path) -> None:
    asked: list[str] = []

    class Listening(Answering):
        def complete(self, model: str, batch: str, request: Request) -> Completion:
            if model == "judge":
                asked.append(request.prompt)
            return super().complete(model, batch, request)

    evaluation(tmp_path, Listening())
    first = [p.split("\n\n(A) ")[-1].split("\n")[0] if "\n\n(A) " in p else p for p in asked]
    orders = {text: first.count(text) for text in set(first)}
    assert len(orders) == 2, orders
    assert min(orders.values()) > len(asked) / 5
    by_question: dict[tuple[str, ...], set[str]] = {}
    for prompt, order in zip(asked, first, strict=True):
        key = (prompt.split("Question ")[1].split("?")[0], prompt.split("Critique ")[1].split("?")[0])
        by_question.setdefault(key, set()).add(order)
    assert all(len(found) == 1 for found in by_question.values())


def test_only_the_first_prompts_are_judged(tmp_path: Path) -> None:
    report, _ = evaluation(tmp_path, Answering(), adherence_limit=2)
    assert report["adherence"]["sets"]["red"]["base"]["p0"]["n"] == 2
    assert report["sets"]["red"]["rows"] == 6


def test_what_cannot_be_read_is_no_vote_and_is_counted(tmp_path: Path) -> None:
    class Mumbling(Answering):
        def complete(self, model: str, batch: str, request: Request) -> Completion:
            if model == "judge" and "Critique 2?" in request.prompt:
                return Completion(request.id, "Either (A) or (B).", 9, 4, Finish.STOP)
            return super().complete(model, batch, request)

    report, _ = evaluation(tmp_path, Mumbling())
    assert report["adherence"]["unread"] == 27
    assert report["adherence"]["sets"]["red"]["sl"]["p2"] == {"value": None, "low": None, "high": None, "n": 0}
    assert any("25% has no readable answer" in c for c in report["caveats"])


@dataclass
class Elsewhere(Answering):
    """A judge behind an endpoint, which takes calls one by one in any order."""

    judge: ScriptedClient = field(default_factory=ScriptedClient)
    flows: bool = True

    def client(self, model: Path) -> Client:
        self.served.append(model.name)
        return self.judge


def beside(folder: Path, engine: Any, inputs: Any, texts: Any) -> Context:
    """A context whose request cache is shared, as that of an experiment's steps is."""
    from dataclasses import replace

    return replace(context(folder, engine, inputs, texts), cache=folder.parent / "cache", key=folder.name * 8)


def scripted(fail_after: int | None = None) -> ScriptedClient:
    def reply(request: Request) -> str:
        if "Hold the assistant's last answer" in request.prompt:
            return choice_of(request.prompt)
        return "base says bad things."

    return ScriptedClient(replies=reply, fail_after=fail_after)


def test_a_judge_that_answers_one_by_one_is_resumed_and_its_answers_are_shared(tmp_path: Path) -> None:
    engine = Elsewhere(judge=scripted())
    whole, _ = evaluation(tmp_path / "whole", engine, beside)
    calls = engine.judge.answered
    # All three models are one client here and say the same: 9 prompts, each with 4 principles.
    assert calls == 3 * 9 + 9 * 4
    stopped = Elsewhere(judge=scripted(fail_after=40))
    with pytest.raises(StepFailed):
        evaluation(tmp_path / "elsewhere" / "broken", stopped, beside)
    again = Elsewhere(judge=scripted())
    report, _ = evaluation(tmp_path / "elsewhere" / "broken", again, beside)
    assert report == whole
    assert 0 < again.judge.answered < calls - 30, "what was answered is not asked again"
    third = Elsewhere(judge=scripted())
    cached, outcome = evaluation(tmp_path / "third", third, beside)
    assert cached == whole
    assert third.judge.answered == 0
    assert outcome.metrics["usage"]["from the cache"] == calls


RAW = {
    "name": "judged",
    "engine": {"kind": "embedded", "generator": "transformers", "device": "cpu", "generation_precision": "float32"},
    "template": {"name": "chatml"},
    "models": {
        "base": {"source": "pypi:package==1.0/model.gguf", "sha256": "0" * 64},
        "judge": {"source": "api:big", "url": "https://host/v1"},
    },
    "data": {"asked": {"path": "shipped:quickstart/overrefusal.jsonl", "makes": "prompts"}},
    "stages": {"evaluate": {"models": {"base": "base"}, "prompts": {"all": "asked"}}},
}


CONSTITUTION = {"name": "own", "principles": [{"id": "a", "critique": "Is it legal?", "revision": "Mend it."}]}


def key_of(constitution: Any = None, **fields: Any) -> str:
    stages = {"evaluate": {**RAW["stages"]["evaluate"], **fields}}  # type: ignore[index]
    raw = {**RAW, "stages": stages, **({"constitution": constitution} if constitution else {})}
    return resolve(parse(raw), Library((shipped_root(),))).step("evaluate").key


def test_the_constitution_counts_where_a_judge_reads_it_and_only_there() -> None:
    def constitution(critique: str) -> dict[str, Any]:
        return {"name": "own", "principles": [{"id": "a", "critique": critique, "revision": "Mend it."}]}

    assert key_of() == key_of(constitution("Is it legal?")) == key_of(constitution("Is it kind?"))
    judged = key_of(constitution("Is it legal?"), adherence="judge")
    assert judged != key_of(constitution("Is it kind?"), adherence="judge")
    with pytest.raises(Exception, match="needs a constitution"):
        key_of(adherence="judge")


def test_a_judge_without_a_constitution_text_is_found_while_planning() -> None:
    only = {"name": "own", "principles": [{"id": "a", "comparison": "Which is kinder?"}]}
    with pytest.raises(Exception, match="critique"):
        key_of(only, adherence="judge")


def test_a_judge_that_tells_no_probabilities_is_refused_while_planning() -> None:
    served = {"source": "api:big", "url": "https://host/v1"}
    raw = {**RAW, "models": {**RAW["models"], "judge": served}, "constitution": CONSTITUTION}  # type: ignore[dict-item]
    raw["stages"] = {"evaluate": {**RAW["stages"]["evaluate"], "adherence": "judge", "adherence_scoring": "logprob"}}  # type: ignore[index]
    with pytest.raises(SpecError, match=r"stages\.evaluate\.adherence_scoring.*models\.judge\.logprobs: top"):
        resolve(parse(raw), Library((shipped_root(),)))
    raw["models"]["judge"] = {**served, "logprobs": "top"}  # type: ignore[index]
    assert resolve(parse(raw), Library((shipped_root(),))).step("evaluate")


def test_a_judge_that_tells_no_probabilities_is_refused_before_anything_is_asked(tmp_path: Path) -> None:
    folder = tmp_path / "judge"
    folder.mkdir()
    (folder / "endpoint.json").write_text('{"model": "big", "url": "https://host/v1", "api_key_env": ""}')
    engine = Answering()
    with pytest.raises(SpecError, match=r"stages\.stage\.adherence_scoring.*models\.mixtral\.logprobs"):
        evaluation(tmp_path, engine, adherence_scoring="logprob")
    assert engine.calls == 0
