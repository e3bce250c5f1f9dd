"""A judge that names the best and the worst of a row: labels that say no more than it said, in a sixth of the calls."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from cai.chat import PromptTemplate
from cai.clients.base import Client, Completion, Finish, Request
from cai.clients.scripted import ScriptedClient
from cai.data.rows import Candidates, Comparison, read_rows
from cai.errors import SpecError, StepFailed
from cai.judging.reading import letters
from cai.judging.sets import Agreement, Reading, agreement, by_question, in_both_orders, pair_of, readings_of
from cai.stages.base import take_apart
from cai.stages.judge.spec import judge_spec
from cai.stages.judge.stage import run
from tests.support.fake_api import FakeServer, Reply, says
from tests.support.judges import SET, SHOWN, Naming, Say, by_quality, ends, liking, quality, rows, shown
from tests.support.stage_doubles import Memory, artifact, context, shipped, user


def orders(first: tuple[int, int], second: tuple[int, int], row: Sequence[str]) -> Say:
    """A judge that names these candidates, by number, in the one order and in the other."""

    def say(request: Request, answers: list[str]) -> str:
        best, worst = second if request.id.endswith("/1") else first
        return ends(answers, row[best], row[worst])

    return say


def judge(folder: Path, engine: Any, *answers: str, prompt: str = SET, **fields: Any) -> tuple[Any, list[Comparison]]:
    rows = [Candidates("r", user("What now?"), answers, "topic", {"kind": "harmless"})]
    inputs = {"model": artifact(folder / "m", "model"), "candidates": artifact(folder / "c", "candidates", rows)}
    spec = judge_spec(model="m", candidates="c", **{"scoring": "best_worst", "max_drop_rate": 1.0, **fields})
    outcome = run(spec, context(folder, engine, inputs, {"prompt": prompt}))
    assert outcome.ledger.rows_in == outcome.ledger.rows_out + sum(outcome.ledger.dropped.values())
    return outcome, list(read_rows(folder / "out/rows.jsonl", Comparison))  # type: ignore[arg-type]


FOUR = ("2 fair", "9 best", "5 good", "1 poor")


def test_one_question_in_both_orders_gives_the_best_and_the_worst(tmp_path: Path) -> None:
    engine = Naming()
    outcome, (row,) = judge(tmp_path, engine, *FOUR)
    assert (row.chosen, row.rejected, row.p_chosen) == ("9 best", "1 poor", 1.0)
    assert (row.id, row.topic, row.meta["kind"], row.meta["judged"]) == ("r/1-3", "topic", "harmless", 1.0)
    assert (outcome.calls, outcome.tokens) == (2, 4)
    one, other = (shown(request.prompt) for request in engine.asked)
    assert sorted(one) == sorted(FOUR)
    assert one == other[::-1]
    assert outcome.metrics["agreement of the two orders"] == 1


@pytest.mark.parametrize(
    ("first", "second", "pairs", "p", "kind"),
    [
        ((0, 3), (0, 3), {(0, 3)}, 1.0, Agreement.FULL),
        ((0, 3), (0, 2), {(0, 3), (0, 2)}, 0.875, Agreement.BEST),
        ((0, 3), (1, 3), {(0, 3), (1, 3)}, 0.875, Agreement.WORST),
        ((0, 3), (1, 2), {(0, 3), (0, 2), (1, 3), (1, 2)}, 0.75, Agreement.NEITHER),
        ((0, 3), (3, 2), {(0, 2)}, 0.75, Agreement.HALF),
        ((0, 3), (1, 0), {(1, 3)}, 0.75, Agreement.HALF),
        ((0, 3), (3, 0), {(0, 3), (3, 0)}, 0.5, Agreement.SWAPPED),
    ],
)
def test_the_more_the_orders_agree_the_surer_the_label(
    first: tuple[int, int],
    second: tuple[int, int],
    pairs: set[tuple[int, int]],
    p: float,
    kind: Agreement,
    tmp_path: Path,
) -> None:
    outcome, (row,) = judge(tmp_path / "kept", Naming(orders(first, second, FOUR)), *FOUR)
    assert (FOUR.index(row.chosen), FOUR.index(row.rejected)) in pairs
    assert row.p_chosen == row.meta["judged"] == p
    report = json.loads((tmp_path / "kept/out/judge_report.json").read_text())
    assert {name: share["value"] for name, share in report["sets"]["orders"].items()} == {
        one.value: float(one is kind) for one in Agreement
    }
    assert report["swap"]["consistency"]["value"] == float(kind is Agreement.FULL)
    # ``margin`` says how much they must agree; ``ties`` what becomes of the rest.
    strict: dict[str, Any] = {"margin": 0.25, "ties": "drop", "labels": "hard"}
    outcome, rows = judge(tmp_path / "strict", Naming(orders(first, second, FOUR)), *FOUR, **strict)
    assert [row.p_chosen for row in rows] == ([1.0] if p > 0.75 else [])
    assert outcome.ledger.dropped == ({} if p > 0.75 else {"tie": 1})


def test_a_judge_that_goes_by_the_place_alone_makes_a_tie_of_the_two_that_it_named(tmp_path: Path) -> None:
    outcome, (row,) = judge(tmp_path, Naming(lambda _, answers: ends(answers, answers[0], answers[-1])), *FOUR)
    engine = Naming(lambda _, answers: ends(answers, answers[0], answers[-1]))
    judge(tmp_path / "again", engine, *FOUR)
    places = shown(engine.asked[0].prompt)
    assert {row.chosen, row.rejected} == {places[0], places[-1]}
    assert (row.p_chosen, outcome.metrics["ties"], outcome.metrics["position bias"]) == (0.5, 1, 0.25)
    dropped, rows = judge(tmp_path / "drop", engine, *FOUR, ties="drop")
    assert (rows, dropped.ledger.dropped) == ([], {"tie": 1})


def test_one_order_alone_is_all_there_is(tmp_path: Path) -> None:
    for order in ("given", "random"):
        engine = Naming()
        outcome, (row,) = judge(tmp_path / order, engine, *FOUR, order=order)
        assert (row.chosen, row.rejected, row.p_chosen, outcome.calls) == ("9 best", "1 poor", 1.0, 1)
        assert (shown(engine.asked[0].prompt) == list(FOUR)) == (order == "given")
        assert "agreement of the two orders" not in outcome.metrics


def test_drawn_orders_show_every_answer_at_every_place_equally_often(tmp_path: Path) -> None:
    rows = [Candidates(f"r{i}", user(f"q{i}"), FOUR) for i in range(600)]
    inputs = {"model": artifact(tmp_path / "m", "model"), "candidates": artifact(tmp_path / "c", "candidates", rows)}
    for order in ("both", "random"):
        engine = Naming()
        spec = judge_spec(model="m", candidates="c", scoring="best_worst", order=order)
        run(spec, context(tmp_path / order, engine, inputs, {"prompt": SET}))
        first = [shown(request.prompt) for request in engine.asked if request.id.endswith("/0")]
        assert len(first) == 600
        for place in range(4):
            for answer in FOUR:
                assert abs(sum(row[place] == answer for row in first) / 600 - 0.25) < 4 * (0.25 * 0.75 / 600) ** 0.5


def test_what_cannot_be_read_is_no_vote_and_no_label_is_invented(tmp_path: Path) -> None:
    for text in ("Hard to say.", "Best: (A), worst: (A)", "Best: (E), worst: (F)", "Best: (B)", "(A) or (B)"):
        folder = tmp_path / text[:9].strip().replace(":", "") / str(len(text))
        outcome, rows = judge(folder, Naming(lambda *_, text=text: text), *FOUR)
        assert (rows, outcome.ledger.dropped) == ([], {"unparsed": 1}), text
    outcome, (row,) = judge(tmp_path / "tie", Naming(lambda *_: "Hm."), *FOUR, abstain="tie")
    assert (row.p_chosen, outcome.metrics["abstained"], outcome.metrics["ties"]) == (0.5, 1, 1)
    outcome, rows = judge(tmp_path / "refused", Naming(lambda *_: "refuse"), *FOUR)
    assert outcome.ledger.dropped == {"refused by the server": 1}
    outcome, rows = judge(tmp_path / "thinking", Naming(lambda *_: "refuse"), *FOUR, reasoning=True)
    assert (outcome.ledger.dropped, outcome.calls) == ({"refused by the server": 1}, 2)


def test_a_question_read_in_one_order_does_not_vote(tmp_path: Path) -> None:
    def half(request: Request, answers: list[str]) -> str:
        return "Hm." if request.id.endswith("/1") else by_quality(request, answers)

    outcome, rows = judge(tmp_path / "half", Naming(half), *FOUR)
    assert (rows, outcome.ledger.dropped) == ([], {"read in one order only": 1})
    report = json.loads((tmp_path / "half/out/judge_report.json").read_text())
    assert report["swap"]["read in one order only"] == 1
    assert report["pairs"] == {"asked": 1, "decided": 0, "ties": 0, "unreadable": 1, "identical": 0}
    assert "sets" not in report

    # Of several principles the others still do.
    def sometimes(request: Request, answers: list[str]) -> str:
        return "Hm." if request.id == "r/set/0/1" else by_quality(request, answers)

    _, (row,) = judge(tmp_path / "three", Naming(sometimes), *FOUR, principles="ensemble", ensemble=3)
    assert (row.chosen, row.p_chosen, len(row.meta["principles"])) == ("9 best", 1.0, 3)


def test_equal_answers_are_shown_once(tmp_path: Path) -> None:
    engine = Naming()
    outcome, (row,) = judge(tmp_path / "some", engine, "3 x", "3 x", "8 y", "3 x", "5 z")
    assert [sorted(shown(request.prompt)) for request in engine.asked] == [["3 x", "5 z", "8 y"]] * 2
    assert (row.id, row.chosen, row.rejected) == ("r/0-2", "8 y", "3 x")
    assert outcome.ledger.dropped == {}
    for n in (2, 3, 5):
        outcome, rows = judge(tmp_path / f"all{n}", engine, *["3 x"] * n)
        assert (rows, outcome.ledger.dropped, outcome.calls) == ([], {"identical": 1}, 0)
    outcome, _ = judge(tmp_path / "one", engine, "3 x")
    assert outcome.ledger.dropped == {"fewer than two answers": 1}
    outcome, (row,) = judge(tmp_path / "pair", engine, "3 x", "3 x", "8 y")
    assert (row.id, row.chosen, outcome.calls) == ("r/0-2", "8 y", 2)


def test_two_answers_are_judged_as_by_a_written_choice(tmp_path: Path) -> None:
    draw = random.Random(4)
    rows = [Candidates(f"r{i}", user("q"), (f"{draw.random()} a", f"{draw.random()} b")) for i in range(40)]
    inputs = {"model": artifact(tmp_path / "m", "model"), "candidates": artifact(tmp_path / "c", "candidates", rows)}

    def first(answers: Sequence[str], row: str) -> bool:
        """Wrong now and then, and fond of the first place."""
        noise = random.Random(row).gauss(0, 0.3)
        return quality(answers[0]) - quality(answers[1]) + noise > -0.2

    class Both(Naming):
        def complete(self, model: str, batch: str, request: Request) -> Completion:
            answers = shown(request.prompt)
            better = answers[0] if first(answers, request.id.split("/")[0]) else answers[1]
            other = answers[1] if better == answers[0] else answers[0]
            option = letters(2)[answers.index(better)]
            text = ends(answers, better, other) if "/set/" in request.id else option
            return Completion(request.id, text, 1, 1, Finish.STOP)

    labels, figures = [], []
    for scoring, prompt in (("choice", shipped("comparison.jinja")), ("best_worst", SET)):
        spec = judge_spec(model="m", candidates="c", scoring=scoring, pairs="best_worst")
        run(spec, context(tmp_path / scoring, Both(), inputs, {"prompt": prompt}))
        made = list(read_rows(tmp_path / scoring / "out/rows.jsonl", Comparison))  # type: ignore[arg-type]
        labels.append({row.id: row.p_chosen if row.chosen.endswith("a") else 1 - row.p_chosen for row in made})
        report = json.loads((tmp_path / scoring / "out/judge_report.json").read_text())
        figures.append({name: report[name] for name in ("swap", "position", "pairs", "length", "confidence")})
    assert labels[0] == labels[1]
    assert set(labels[0].values()) == {0.0, 0.5, 1.0}
    assert figures[0] == figures[1]


def test_samples_are_averaged_and_the_judge_may_think_first(tmp_path: Path) -> None:
    def wavering(request: Request, answers: list[str]) -> str:
        best = "5 good" if request.id.endswith("s1") else "9 best"
        return ends(answers, best, "1 poor")

    engine = Naming(wavering)
    drawn: dict[str, Any] = {"samples": 4, "sampling": {"temperature": 1.0}}
    outcome, (row,) = judge(tmp_path / "four", engine, *FOUR, **drawn)
    # Of four times two votes on the pair, one for the best goes to another: half a vote.
    assert (row.chosen, row.rejected, row.p_chosen) == ("9 best", "1 poor", (8 - 0.5) / 8)
    assert (outcome.calls, len({request.seed for request in engine.asked})) == (8, 8)

    def thinking(request: Request, answers: list[str]) -> str:
        return "(A) is rude." if "step by step" in request.prompt else by_quality(request, answers)

    engine = Naming(thinking)
    outcome, (row,) = judge(tmp_path / "thought", engine, *FOUR, reasoning=True, order="given")
    thought, chose = engine.asked
    assert (thought.choices, len(chose.choices)) == ((), 12)
    assert "(A) is rude." in chose.prompt
    assert (row.chosen, outcome.calls, outcome.tokens) == ("9 best", 2, 4)


def test_a_server_is_kept_to_two_different_options(tmp_path: Path) -> None:
    engine = Naming()
    judge(tmp_path / "four", engine, *FOUR)
    assert engine.asked[0].choices[:2] == ("Best: (A), worst: (B)", "Best: (A), worst: (C)")
    assert len(engine.asked[0].choices) == 12
    free = Naming()
    judge(tmp_path / "free", free, *FOUR, structured=False)
    many = Naming()
    _, (row,) = judge(tmp_path / "many", many, *(f"{i} x" for i in range(30)))
    assert (row.chosen, row.rejected) == ("29 x", "0 x")
    assert [request.choices for request in (*free.asked, *many.asked)] == [()] * 4, "too many for a server's schema"


def votes(readings: Sequence[Reading], i: int, j: int) -> float:
    """The share of votes that put ``i`` over ``j``, counted one by one."""
    shares = [
        share
        for reading in readings
        for share in (
            1.0 if reading.best == i else 0.0 if reading.best == j else 0.5,
            1.0 if reading.worst == j else 0.0 if reading.worst == i else 0.5,
        )
    ]
    return sum(shares) / len(shares)


def test_p_is_the_share_of_votes_and_no_other_pair_has_more() -> None:
    draw = random.Random(9)
    for _ in range(300):
        size = draw.randrange(2, 6)
        shown = tuple(draw.sample(range(size), size))
        readings = []
        for k in range(draw.randrange(1, 4)):
            for order, places in ((0, shown), (1, shown[::-1])):
                best, worst = draw.sample(shown, 2)
                readings.append(Reading(k, order, 0, places, best, worst))
        (i, j), p = pair_of(readings, both=True)
        assert i < j
        assert p == pytest.approx(votes(readings, i, j))
        most = max(max(votes(readings, a, b), votes(readings, b, a)) for a, b in combinations(range(size), 2))
        assert max(p or 0, 1 - (p or 0)) == pytest.approx(most)
        assert readings_of(json.loads(json.dumps([r.plain() for r in readings]))) == readings
        # Named the other way round, the same answers make the same pair with the opposite label.
        turned = [replace(r, best=r.worst, worst=r.best) for r in readings]
        assert votes(turned, i, j) == pytest.approx(1 - votes(readings, i, j))
    unread = [Reading(0, 0, 0, (2, 0, 1), why="no option named")]
    assert pair_of(unread, both=False) == ((1, 2), None)


def test_orders_that_even_out_over_samples_contradict_nothing() -> None:
    even = [Reading(0, 0, 0, (0, 1), 0, 1), Reading(0, 0, 1, (0, 1), 1, 0), Reading(0, 1, 0, (1, 0), 0, 1)]
    ((one, other),) = in_both_orders(by_question(even))
    assert agreement(one, other) is Agreement.NEITHER


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"pairs": "all"}, "says nothing of the answers between; use pairs: best_worst"),
        ({"pairs": "neighbours"}, "use pairs: best_worst"),
        ({"samples": 2}, "temperature 0"),
    ],
)
def test_settings_that_make_no_sense(fields: dict[str, Any], match: str) -> None:
    with pytest.raises(ValidationError, match=match):
        judge_spec(model="m", candidates="c", scoring="best_worst", **fields)


def test_the_pairs_and_the_prompt_go_without_saying_and_count_the_same() -> None:
    said = judge_spec(
        model="m", candidates="c", scoring="best_worst", pairs="best_worst", prompt="comparison_set.jinja"
    )
    assert take_apart(judge_spec(model="m", candidates="c", scoring="best_worst")) == take_apart(said)


def test_a_prompt_that_shows_no_answers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"never shows answers.*comparison_set\.jinja"):
        judge(tmp_path, Naming(), *FOUR, prompt=shipped("comparison.jinja"))


@pytest.mark.parametrize("more", [{}, {"think": True}, {"reasoning": "Because."}])
def test_the_shipped_prompt_shows_every_answer_and_the_principle(more: dict[str, Any]) -> None:
    values = {
        "principle": "Which is kinder?",
        "messages": [{"role": "user", "content": "q"}],
        "answers": ["one", "two", "three"],
        "options": letters(3),
        "think": False,
        "reasoning": "",
        **more,
    }
    text = PromptTemplate.from_text("prompt", SET).render(**values)
    assert SHOWN.findall(text) == [("(A)", "one"), ("(B)", "two"), ("(C)", "three")]
    assert "Which is kinder?" in text
    assert ("Because." in text) == ("reasoning" in more)
    assert text.endswith("Best: (?), worst: (?)\n") == ("think" not in more)
    assert "\n\n\n" not in text


def test_the_whole_constitution_is_in_one_question(tmp_path: Path) -> None:
    engine = Naming()
    outcome, (row,) = judge(tmp_path, engine, *FOUR, principles="whole")
    assert all(f"Which is {i}?" in engine.asked[0].prompt for i in range(4))
    assert (outcome.calls, row.meta["principles"]) == (2, ["whole"])


@dataclass
class Elsewhere(Memory):
    """Models that take calls one by one."""

    judge: ScriptedClient = field(default_factory=ScriptedClient)
    flows: bool = True

    def client(self, model: Path) -> Client:
        return self.judge


def scripted(fail_after: int | None = None) -> Elsewhere:
    say = liking(1, 0.5, noise=0.7)
    return Elsewhere(
        judge=ScriptedClient(
            replies=lambda request: say(request, shown(request.prompt)), fail_after=fail_after, backwards=True
        )
    )


def made(folder: Path) -> bytes:
    return (folder / "out/rows.jsonl").read_bytes() + (folder / "out/judge_report.json").read_bytes()


def judged(folder: Path, engine: Any, model: Any = None, **more: Any) -> Any:
    inputs = {
        "model": model or artifact(folder / "m", "model"),
        "candidates": artifact(folder / "c", "candidates", rows(12)),
    }
    spec = judge_spec(model="m", candidates="c", scoring="best_worst", chunk=5)
    return run(spec, replace(context(folder, engine, inputs, {"prompt": SET}), **more))


def test_a_judge_stopped_anywhere_ends_with_the_same_bytes(tmp_path: Path) -> None:
    whole = scripted()
    assert judged(tmp_path / "whole", whole).calls == 24
    for stop in range(0, 24, 3):
        folder = tmp_path / f"stopped{stop}"
        with pytest.raises(StepFailed):
            judged(folder, scripted(fail_after=stop))
        again = scripted()
        assert judged(folder, again).calls == 24
        assert made(folder) == made(tmp_path / "whole")
        assert again.judge.answered <= 24 - stop // 12 * 12, "what was answered is not asked again"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    def answer(path: str, body: dict[str, Any]) -> Reply:
        answers = shown(body["messages"][-1]["content"])
        named = ends(answers, max(answers, key=quality), min(answers, key=quality))
        enum = body["response_format"]["json_schema"]["schema"]["properties"]["choice"]["enum"]
        assert named in enum
        return says(json.dumps({"choice": named}))

    started = FakeServer(answer)
    yield started
    started.close()


def test_over_an_api_it_is_two_calls_a_row_and_an_enum(tmp_path: Path, server: FakeServer) -> None:
    model = artifact(tmp_path / "m", "model")
    endpoint = {"model": "org/judge", "url": server.url, "api_key_env": ""}
    (model.path / "endpoint.json").write_text(json.dumps(endpoint))
    outcome = judged(tmp_path, Memory(), model)
    assert outcome.calls == len(server.asked) == 24
    labels = list(read_rows(tmp_path / "out/rows.jsonl", Comparison))
    assert len(labels) == 12
    for label, row in zip(labels, rows(12), strict=True):
        assert isinstance(label, Comparison)
        assert (label.chosen, label.p_chosen) == (max(row.answers, key=quality), 1.0)
        assert label.rejected == min(row.answers, key=quality)


EXPERIMENT = """
defaults: [/constitution: short, /template: chatml, _self_]
models:
  served: {source: "api:small", url: "http://127.0.0.1:9/v1"}
data:
  asked: {path: asked.jsonl, makes: prompts}
stages:
  sample: {model: served, prompts: asked, n: 4}
  judge: {model: served, candidates: sample, scoring: best_worst}
"""


def test_the_plan_counts_two_calls_a_prompt_and_refuses_other_pairs(tmp_path: Path) -> None:
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments/sets.yaml").write_text(EXPERIMENT)
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps({"prompt": f"What about {n}?"}) + "\n" for n in range(10)))

    def cai(*args: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "cai", "plan", "experiment=sets", *args]
        env = {**os.environ, "CAI_HOME": str(tmp_path / "home"), "NO_COLOR": "1"}
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)

    plan = json.loads(cai("--format", "json").stdout)
    (step,) = [step for step in plan["steps"] if step["name"] == "judge"]
    assert (step["estimate"]["rows"], step["estimate"]["calls"]) == (10, 20)
    pairwise = json.loads(cai("--format", "json", "stages.judge.scoring=choice").stdout)
    (step,) = [step for step in pairwise["steps"] if step["name"] == "judge"]
    assert step["estimate"]["calls"] == 120
    wrong = cai("stages.judge.pairs=all")
    assert wrong.returncode == 2
    assert "stages.judge" in wrong.stderr
    assert "use pairs: best_worst" in wrong.stderr
    assert "Traceback" not in wrong.stderr
