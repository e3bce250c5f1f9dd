"""A pilot: the first rows for real, what all rows will cost, and a run that does not ask these rows again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cai.cli import main
from tests.support.api_experiment import verdict
from tests.support.fake_api import KEY, FakeServer, Reply, says

EXPERIMENT = """
# python -m cai experiment=paid
defaults:
  - /constitution: quickstart
  - /template: chatml
  - _self_
engine: {kind: embedded, device: cpu, generator: transformers, generation_precision: float32}
models:
  mixtral:
    source: "api:org/judge-8x7b"
    url: "http://127.0.0.1:9/v1"
    api_key_env: TEST_KEY
    limits: {concurrency: 4, prices: {prompt: 100.0, completion: 1000.0, currency: EUR}}
data:
  asked: {path: prompts.jsonl, makes: prompts}
stages:
  sample: {model: mixtral, prompts: asked, n: 4, chunk: 8}
  judge: {model: mixtral, candidates: sample, scoring: choice, principles: whole, pairs: best_worst}
"""
CALL = (7 * 100 + 3 * 1000) / 1e6
"""What the server's usual answer costs."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("TEST_KEY", KEY)
    server = FakeServer(verdict)
    yield server
    server.close()


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "paid.yaml").write_text(EXPERIMENT)
    lines = (json.dumps({"prompt": f"question {i}", "topic": "t"}) + "\n" for i in range(12))
    (tmp_path / "prompts.jsonl").write_text("".join(lines))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CAI_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "300")
    return tmp_path


def pilot(server: FakeServer, capsys: Any, rows: int, *args: str) -> Any:
    argv = ["plan", "experiment=paid", f"models.mixtral.url={server.url}", "--pilot", str(rows), *args]
    code = main(argv)
    out = capsys.readouterr()
    assert code == 0, out.err
    return json.loads(out.out) if "json" in args else out.out


def questions(server: FakeServer) -> list[str]:
    return [json.dumps(body, sort_keys=True) for _, body in server.asked]


def test_a_pilot_asks_the_first_rows_and_extrapolates(project: Path, server: FakeServer, capsys: Any) -> None:
    data = pilot(server, capsys, 5, "--format", "json")
    sample, judge = data["steps"]
    assert (sample["step"], sample["rows"], sample["all_rows"], sample["calls"]) == ("sample", 5, 12, 20)
    assert sample["prompt_tokens"] == {"value": 7, "low": 7, "high": 7, "n": 20}
    assert sample["tokens"]["value"] == 3
    assert sample["cost"]["value"] == pytest.approx(12 * 4 * CALL)
    assert (judge["step"], judge["rows"], judge["all_rows"]) == ("judge", 5, 12)
    assert judge["cost"]["value"] == pytest.approx(12 / 5 * judge["calls"] * CALL)
    assert len(server.asked) == 20 + judge["calls"]
    assert data["totals"]["EUR"]["value"] == pytest.approx(sample["cost"]["value"] + judge["cost"]["value"])


def test_a_run_after_a_pilot_asks_nothing_for_its_rows(project: Path, server: FakeServer, capsys: Any) -> None:
    pilot(server, capsys, 5)
    tried = questions(server)
    server.asked.clear()
    assert main(["experiment=paid", f"models.mixtral.url={server.url}"]) == 0
    assert len(tried) == len(set(tried)) > 20
    assert set(tried).isdisjoint(questions(server))
    assert len(server.asked) + len(tried) == 12 * 4 + 12 * 6 * 2
    assert not any("question 4" in question for question in questions(server))


def test_a_pilot_leaves_nothing_but_what_was_asked_and_paid(project: Path, server: FakeServer, capsys: Any) -> None:
    pilot(server, capsys, 3)
    left = {path.relative_to(project).parts[:2] for path in project.rglob("*") if path.is_file()}
    assert left == {("experiments", "paid.yaml"), ("prompts.jsonl",), ("home", "cache"), ("home", "accounts")}


def test_what_a_pilot_paid_counts_for_the_budget_of_the_run(project: Path, server: FakeServer, capsys: Any) -> None:
    pilot(server, capsys, 5)
    (account,) = (project / "home" / "accounts").glob("*.json")
    plan = project / "plan.json"
    assert main(["plan", "experiment=paid", f"models.mixtral.url={server.url}", "--out", str(plan)]) == 0
    keys = {step["key"] for step in json.loads(plan.read_text())["steps"]}
    assert {line["step"] for line in json.loads(account.read_text())["lines"]} <= keys


def test_a_second_pilot_asks_nothing_and_measures_the_same(project: Path, server: FakeServer, capsys: Any) -> None:
    first = pilot(server, capsys, 5, "--format", "json")
    server.asked.clear()
    assert pilot(server, capsys, 5, "--format", "json") == first
    assert server.asked == []


def test_the_interval_is_that_of_the_rows(project: Path, server: FakeServer, capsys: Any) -> None:
    def longer(path: str, body: dict[str, Any]) -> Reply:
        number = int("".join(filter(str.isdigit, body["messages"][-1]["content"])) or 0)
        return says(f"answer {body['seed']}", usage={"prompt_tokens": 10, "completion_tokens": 10 * (number + 1)})

    server.answer = longer
    data = pilot(server, capsys, 6, "--format", "json", "~stages.judge")
    (sample,) = data["steps"]
    assert sample["tokens"]["value"] == pytest.approx(35)
    assert sample["tokens"]["low"] < 35 < sample["tokens"]["high"]
    cost = sample["cost"]
    spent = 6 * 4 * (10 * 100 + 35 * 1000) / 1e6
    assert cost["value"] == pytest.approx(2 * spent)
    assert spent < cost["low"] < cost["value"] < cost["high"]
    whole = pilot(server, capsys, 12, "--format", "json", "~stages.judge")["steps"][0]["cost"]
    assert whole["low"] == whole["high"] == pytest.approx(12 * 4 * (1000 + 65 * 1000) / 1e6), "all rows were tried"


def test_text_and_markdown_show_it(project: Path, server: FakeServer, capsys: Any) -> None:
    text = pilot(server, capsys, 5)
    assert text.splitlines()[0].startswith("step ")
    assert "all rows cost about " in text
    assert "EUR" in text
    assert "| sample | mixtral | 5 | 20 | 7.0 | 3.0 | 12 | " in pilot(server, capsys, 5, "--format", "md")


def test_a_step_whose_input_a_model_here_makes_is_not_measured(project: Path, server: FakeServer, capsys: Any) -> None:
    raw = EXPERIMENT.replace("  sample: {model: mixtral", "  sample: {model: base")
    base = '  base: {source: "pypi:package==1.0/model.gguf", sha256: "%s"}\n' % ("0" * 64)
    (project / "experiments" / "paid.yaml").write_text(raw.replace("models:\n", f"models:\n{base}"))
    data = pilot(server, capsys, 5, "--format", "json")
    assert data["steps"] == []
    assert data["unmeasured"] == {"judge": "needs 'base', which a pilot does not make: run it first"}
    assert server.asked == []


EVALUATED = """
  evaluate:
    models: {one: mixtral, two: dear}
    adherence: dear
    adherence_limit: 8
    prompts: {all: asked}
"""
DEAR = """
  dear:
    source: "api:org/dear"
    url: "http://127.0.0.1:9/v1"
    limits: {concurrency: 4, prices: {prompt: 1000.0, currency: USD}}
"""


def test_models_of_an_evaluation_are_measured_each_by_its_prices(
    project: Path, server: FakeServer, capsys: Any
) -> None:
    raw = EXPERIMENT.partition("  sample:")[0].replace("data:\n", f"{DEAR.strip(chr(10))}\ndata:\n") + EVALUATED.strip(
        "\n"
    )
    (project / "experiments" / "paid.yaml").write_text(raw)
    data = pilot(server, capsys, 5, "--format", "json", f"models.dear.url={server.url}")
    figures = {step["model"]: step for step in data["steps"] if step["all_rows"] == 12}
    assert figures["mixtral"]["cost"]["value"] == pytest.approx(12 * CALL)
    assert figures["dear"]["cost"]["value"] == pytest.approx(12 * 7 * 1000 / 1e6)
    (judged,) = [step for step in data["steps"] if step["all_rows"] == 8]
    assert (judged["model"], judged["rows"]) == ("dear", 5)
    assert judged["cost"]["value"] == pytest.approx(8 / 5 * judged["calls"] * 7 * 1000 / 1e6)
    assert set(data["totals"]) == {"EUR", "USD"}


@pytest.mark.parametrize("words", [("kind", "rude"), ("rude", "kind")])
def test_a_labelled_set_is_extrapolated_by_its_own_size(
    project: Path, server: FakeServer, capsys: Any, words: tuple[str, str]
) -> None:
    """Whatever the few pairs of a pilot say of the judge: one of both orders of the words is against it."""
    chosen, rejected = (f"a {word} word" for word in words)
    lines = ({"prompt": f"pair {i}", "chosen": chosen, "rejected": rejected} for i in range(20))
    (project / "people.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    raw = EXPERIMENT.replace("data:\n", "data:\n  people: {path: people.jsonl, makes: comparisons}\n")
    raw = raw.replace("candidates: sample,", "candidates: sample, labelled: people, labelled_limit: 10,")
    (project / "experiments" / "paid.yaml").write_text(raw)
    judge = pilot(server, capsys, 5, "--format", "json")["steps"][1]
    assert (judge["rows"], judge["all_rows"]) == (5 + 5, 12 + 10)
    own, people = judge["calls"] - 5 * 2, 5 * 2
    assert judge["cost"]["value"] == pytest.approx((12 / 5 * own + 10 / 5 * people) * CALL)


def test_a_pilot_keeps_to_the_budget_and_ends_as_a_run_does(project: Path, server: FakeServer, capsys: Any) -> None:
    budget = ["models.mixtral.limits.budget=10 calls", f"models.mixtral.url={server.url}"]
    assert main(["plan", "experiment=paid", "--pilot", "5", *budget]) == 3
    assert "the budget of 10 calls is used up" in capsys.readouterr().err
    assert len(server.asked) == 10
    assert main(["experiment=paid", *budget]) == 3
    assert len(server.asked) == 10, "what the pilot asked counts"


def test_a_pilot_that_fails_names_no_folder_that_is_gone(project: Path, server: FakeServer, capsys: Any) -> None:
    server.answer = lambda path, body: Reply({"error": "broken"}, 400)
    assert main(["plan", "experiment=paid", "--pilot", "5", f"models.mixtral.url={server.url}"]) == 1
    told = capsys.readouterr().err
    assert "what was answered is kept, and the same command goes on from there" in told
    assert "cai-pilot-" not in told


def test_what_is_in_the_store_is_neither_asked_nor_paid(project: Path, server: FakeServer, capsys: Any) -> None:
    assert main(["experiment=paid", f"models.mixtral.url={server.url}"]) == 0
    before = len(server.asked)
    capsys.readouterr()
    data = pilot(server, capsys, 5, "--format", "json", "stages.judge.margin=0.1", "stages.judge.principles=one")
    (judge,) = data["steps"]
    assert (judge["step"], judge["rows"], judge["all_rows"]) == ("judge", 5, 12)
    assert len(server.asked) == before + judge["calls"]
    server.asked.clear()
    assert pilot(server, capsys, 5, "--format", "json") == {"format": 1, "steps": [], "unmeasured": {}, "totals": {}}
    assert "nothing was asked" in pilot(server, capsys, 5)
    assert server.asked == []


def test_a_key_that_is_not_there_is_told_before_anything_is_asked(
    project: Path, server: FakeServer, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TEST_KEY")
    assert main(["plan", "experiment=paid", f"models.mixtral.url={server.url}", "--pilot", "5"]) == 2
    assert "TEST_KEY is not set" in capsys.readouterr().err
    assert server.asked == []


@pytest.mark.parametrize("more", [["--pilot", "0"], ["--pilot", "5", "-m"], ["--pilot", "5", "--out", "x.json"]])
def test_what_a_pilot_is_not_for_is_told(project: Path, more: list[str], capsys: Any) -> None:
    assert main(["plan", "experiment=paid", *more]) == 2
    assert "--pilot" in capsys.readouterr().err
