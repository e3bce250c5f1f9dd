"""A budget for a model behind an API: it is never passed, it is added up over processes, and raising it goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from cai.clients.base import Request, Sampling
from cai.clients.budget import Amount, parse_budget
from cai.clients.openai_api import OpenAiClient
from cai.clients.settings import ApiLimits
from cai.clients.spending import Account, BudgetSpent, Spending, upper_bound
from cai.errors import Incomplete
from tests.support.api_experiment import verdict
from tests.support.fake_api import KEY, Answer, FakeServer, Reply, chat_request, says

PRICES = {"prompt": 1.0, "completion": 10.0, "currency": "USD"}
Serve = Callable[[Answer], FakeServer]


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [
        ("20 USD", 20, "USD"),
        (" 0.5  EUR ", 0.5, "EUR"),
        ("3M tokens", 3e6, "tokens"),
        ("3_000_000 tokens", 3e6, "tokens"),
        ("2.5k calls", 2500, "calls"),
    ],
)
def test_a_budget_is_read(text: str, value: float, unit: str) -> None:
    assert parse_budget(text) == Amount(value, unit, " ".join(text.split()))


@pytest.mark.parametrize(
    "text", ["20", "USD 20", "20USD", "1,000 calls", "20 usd", "3M USD", "-1 calls", "1e3 calls", "0 USD"]
)
def test_what_is_no_budget_is_said(text: str) -> None:
    with pytest.raises(ValidationError, match=r"is no budget; write 20 USD|buys nothing"):
        ApiLimits(budget=text, prices=PRICES)


def test_money_needs_prices_in_its_currency() -> None:
    with pytest.raises(ValidationError, match="needs the model's `prices`"):
        ApiLimits(budget="20 USD")
    with pytest.raises(ValidationError, match="not in the currency of the prices, USD"):
        ApiLimits(budget="20 EUR", prices=PRICES)
    assert ApiLimits(budget="20 EUR", prices={"prompt": 1.0}).currency == "EUR"
    assert ApiLimits(prices={"prompt": 1.0}).currency == "USD"
    assert ApiLimits(budget="20 calls").currency == ""


def ask_all(client: OpenAiClient, count: int) -> int:
    """Answers until the client has no more."""
    answers = 0
    try:
        for _ in client.generate([chat_request(f"r{i}", f"hello {i}", max_tokens=50) for i in range(count)]):
            answers += 1
    finally:
        client.close()
    return answers


def client_of(server: FakeServer, account: Account | None, **limits: Any) -> OpenAiClient:
    return OpenAiClient(server.url, "test/judge", KEY, limits=ApiLimits(**limits), account=account)


@pytest.mark.parametrize(("budget", "cap"), [("0.05 USD", 0.05), ("2000 tokens", 2000), ("9 calls", 9)])
def test_a_budget_is_not_passed_when_every_answer_is_as_long_as_it_may_be(
    serve: Serve, tmp_path: Path, budget: str, cap: float
) -> None:
    usage = {"prompt_tokens": 30, "completion_tokens": 50}
    server = serve(lambda path, body: says("long", "length", usage, delay=0.01))
    account = Account(tmp_path / "a" / "model.json", "s" * 64)
    prices = {"prompt": 10.0, "completion": 100.0}
    with pytest.raises(BudgetSpent, match=f"the budget of {budget} is used up: .* `limits.budget` and run the same"):
        ask_all(client_of(server, account, budget=budget, prices=prices), 300)
    spent = account.total()
    assert spent.calls == len(server.asked)
    assert (spent.prompt_tokens, spent.tokens) == (30 * spent.calls, 50 * spent.calls)
    unit = budget.split()[1]
    bound = upper_bound(chat_request("r", "hello 299", max_tokens=50), ApiLimits(prices=prices).prices).within(unit)
    assert cap - bound <= spent.within(unit) <= cap, "it ends where the next call might pass it, and not before"


def test_what_other_processes_of_the_plan_spent_counts_and_of_other_plans_not(serve: Serve, tmp_path: Path) -> None:
    server = serve(lambda path, body: says("yes"))
    path = tmp_path / "model.json"
    steps = ("a" * 64, "b" * 64)
    assert ask_all(client_of(server, Account(path, "a" * 64, steps), budget="9 calls"), 4) == 4
    assert ask_all(client_of(server, Account(path, "c" * 64), budget="9 calls"), 7) == 7
    with pytest.raises(BudgetSpent, match="9 of 9 calls are spent"):
        ask_all(client_of(server, Account(path, "b" * 64, steps), budget="9 calls"), 40)
    assert len(server.asked) == 4 + 7 + 5
    assert ask_all(client_of(server, Account(path, "b" * 64, steps), budget="12 calls"), 3) == 3


def test_attempts_without_an_answer_count_and_refusals_cost_no_tokens(serve: Serve, tmp_path: Path) -> None:
    replies = iter([Reply({"error": {}}, 429, {"Retry-After": "0"}), Reply(reset=True), says("yes")])
    server = serve(lambda path, body: next(replies))
    account = Account(tmp_path / "model.json", "s" * 64)
    client = client_of(server, account, budget="1M tokens")
    assert ask_all(client, 1) == 1
    lost = upper_bound(chat_request("r0", "hello 0", max_tokens=50), ApiLimits().prices)
    assert account.total().calls == 3
    assert account.total().prompt_tokens == 7 + lost.prompt_tokens
    assert account.total().tokens == 3 + 50


def test_two_clients_at_once_share_a_budget(serve: Serve, tmp_path: Path) -> None:
    server = serve(lambda path, body: says("yes", delay=0.002))
    path = tmp_path / "model.json"
    clients = [client_of(server, Account(path, "s" * 64), budget="60 calls", concurrency=8) for _ in range(2)]
    errors: list[Exception] = []

    def spend(client: OpenAiClient) -> None:
        try:
            ask_all(client, 200)
        except BudgetSpent as error:
            errors.append(error)

    threads = [threading.Thread(target=spend, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(errors) == 2
    assert 58 <= len(server.asked) <= 60


def test_the_bound_of_a_call_is_above_what_it_can_cost() -> None:
    text = "ünï 😀" * 40
    bound = upper_bound(Request("r", text, Sampling(max_tokens=70)), ApiLimits(prices=PRICES).prices)
    assert bound.prompt_tokens >= len(text.encode())
    assert bound.tokens == 70
    assert bound.cost == pytest.approx((bound.prompt_tokens * 1.0 + 70 * 10.0) / 1e6)


def test_an_account_that_cannot_be_read_ends_the_run_before_anything_is_sent(serve: Serve, tmp_path: Path) -> None:
    server = serve(lambda path, body: says("yes"))
    (tmp_path / "model.json").write_text('{"format": 1, "lines": [{"step": 1')
    with pytest.raises(Incomplete, match="cannot be read as an account"):
        ask_all(client_of(server, Account(tmp_path / "model.json", "s" * 64), budget="9 calls"), 3)
    assert not server.asked


def test_a_process_that_is_killed_counts_what_was_on_its_way(tmp_path: Path) -> None:
    account = Account(tmp_path / "model.json", "s" * 64)
    killed = Spending(ApiLimits(budget="10 calls"), account)
    for _ in range(4):
        assert killed.reserve(chat_request()) is not None
    later = Spending(ApiLimits(budget="10 calls"), Account(tmp_path / "model.json", "s" * 64))
    assert [later.reserve(chat_request()) is not None for _ in range(7)] == [True] * 6 + [False]


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
    limits: {concurrency: 4, prices: {prompt: 100.0, completion: 1000.0, currency: USD}}
data:
  asked: {path: prompts.jsonl, makes: prompts}
stages:
  sample: {model: mixtral, prompts: asked, n: 4, chunk: 8}
  judge: {model: mixtral, candidates: sample, scoring: choice, principles: whole, pairs: best_worst}
"""
TOTAL = 12 * 4 + 12 * 6 * 2
"""Calls of a whole run."""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "paid.yaml").write_text(EXPERIMENT)
    lines = (json.dumps({"prompt": f"question {i}", "topic": "t"}) + "\n" for i in range(12))
    (tmp_path / "prompts.jsonl").write_text("".join(lines))
    return tmp_path


def start(project: Path, server: FakeServer, *args: str) -> subprocess.Popen[str]:
    settings = {"CAI_HOME": str(project / "home"), "NO_COLOR": "1", "TEST_KEY": KEY, "COLUMNS": "300"}
    argv = [sys.executable, "-m", "cai", *args, f"models.mixtral.url={server.url}"]
    pipe = subprocess.PIPE
    return subprocess.Popen(argv, cwd=project, env={**os.environ, **settings}, text=True, stdout=pipe, stderr=pipe)


def run(project: Path, server: FakeServer, *args: str) -> tuple[int, str]:
    process = start(project, server, *args)
    out, err = process.communicate(timeout=120)
    return process.returncode, out + err


@pytest.mark.long
def test_a_run_ends_at_its_budget_and_goes_on_when_it_is_raised(project: Path, serve: Serve) -> None:
    server = serve(verdict)
    code, told = run(project, server, "experiment=paid", "models.mixtral.limits.budget=100 calls")
    assert code == 3, told
    assert len(server.asked) == 100
    assert "judge: " in told
    assert "of 12 rows are left; the budget of 100 calls is used up: 100 of 100 calls are spent" in told
    assert "raise the model's `limits.budget` and run the same command again" in told
    code, told = run(project, server, "experiment=paid", "models.mixtral.limits.budget=100 calls")
    assert code == 3, "it is added up over processes"
    assert len(server.asked) == 100
    code, told = run(project, server, "experiment=paid", f"models.mixtral.limits.budget={TOTAL} calls")
    assert code == 0, told
    assert len(server.asked) == TOTAL


@pytest.mark.long
def test_what_was_asked_and_paid_is_added_up_over_killed_and_stopped_processes(project: Path, serve: Serve) -> None:
    server = serve(lambda path, body: verdict(path, body))
    assert run(project, server, "experiment=paid", "models.mixtral.limits.budget=80 calls")[0] == 3
    process = start(project, server, "experiment=paid")
    deadline = time.monotonic() + 60
    while len(server.asked) < 120 and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    code, told = run(project, server, "experiment=paid")
    assert code == 0, told
    usages: dict[str, Any] = {}
    for path in (project / "home" / "store").glob("*.json"):
        record = json.loads(path.read_text())
        usages[record["kind"]] = record["outcome"]["metrics"].get("usage")
    assert usages["sample"]["asked"] == 48
    assert usages["sample"]["cost"] == pytest.approx(48 * (7 * 100 + 3 * 1000) / 1e6)
    answered = usages["judge"]["asked"]
    assert 0 <= len(server.asked) - 48 - answered <= 4, "all but those that SIGTERM cut off were answered"
    assert usages["judge"]["attempts"] == len(server.asked) - 48
    assert usages["judge"]["cost"] >= 144 * (7 * 100 + 3 * 1000) / 1e6


@pytest.mark.parametrize("usage", [{}, {"completion_tokens": 3}, {"prompt_tokens": 0, "completion_tokens": 0}, "none"])
def test_an_answer_that_says_nothing_of_its_tokens_is_counted_at_its_bound(
    serve: Serve, tmp_path: Path, usage: object
) -> None:
    choice = {"message": {"content": "two words"}, "finish_reason": "stop"}
    server = serve(lambda path, body: Reply({"choices": [choice], "usage": usage}))
    account = Account(tmp_path / "model.json", "s" * 64)
    assert ask_all(client_of(server, account, budget="1M tokens"), 3) == 3
    bound = upper_bound(chat_request("r0", "hello 0", max_tokens=50), ApiLimits().prices)
    assert (account.total().prompt_tokens, account.total().tokens) == (3 * bound.prompt_tokens, 150)


def test_a_prompt_that_is_not_read_costs_no_tokens(serve: Serve, tmp_path: Path) -> None:
    def react(path: str, body: dict[str, Any]) -> Reply:
        long = body["messages"][-1]["content"] == "hello 1"
        return Reply({"error": {"message": "maximum context length is 8 tokens"}}, 400) if long else says("yes")

    account = Account(tmp_path / "model.json", "s" * 64)
    assert ask_all(client_of(serve(react), account, budget="1M tokens"), 3) == 3
    assert (account.total().calls, account.total().prompt_tokens, account.total().tokens) == (3, 14, 6)
