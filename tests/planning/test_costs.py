"""What a plan says that models behind an API will cost."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cai.plan import Plan, plan_from_json
from cai.run.status import Action, StepStatus
from cai.terminal.plan_view import plan_data, print_plan
from tests.support.api_experiment import API_MODEL, edited, plan_of, raw_api_experiment

PRICES = {"prompt": 100.0, "completion": 1000.0}


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    return raw_api_experiment(tmp_path, monkeypatch)


def limited(raw: dict[str, Any], **limits: Any) -> dict[str, Any]:
    return edited(raw, "models", "mixtral", "limits", to=limits)


def shown(plan: Plan, format: Any = "text", width: int = 200, reused: tuple[str, ...] = ()) -> str:
    statuses = [StepStatus(s, Action.REUSE if s.name in reused else Action.RUN, "new") for s in plan.steps]
    out = io.StringIO()
    print_plan(plan, statuses, format=format, console=Console(file=out, width=width))
    return out.getvalue()


def cell(text: str, step: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(step)).split("  ")[-1].strip()


def cost_of(plan: Plan, name: str) -> Any:
    return plan.step(name).estimate.cost


def test_a_step_costs_what_it_reads_and_writes_by_the_prices(raw: dict[str, Any]) -> None:
    plan = plan_of(limited(raw, prices={**PRICES, "currency": "EUR"}))
    judge = plan.step("judge").estimate
    amount = (judge.prompt_tokens * 100 + judge.tokens * 1000) / 1e6
    assert cost_of(plan, "judge").amounts == {"EUR": pytest.approx(amount)}
    assert cost_of(plan, "judge").unknown == {}
    assert cost_of(plan, "sample") is None
    text = shown(plan)
    assert cell(text, "judge") == f"{amount:.2f} EUR"
    assert cell(text, "sample") == "", "its model is here"
    assert f"about {amount:.2f} EUR if nothing is cached" in text


def test_only_prices_and_budgets_bring_a_column(raw: dict[str, Any]) -> None:
    for format in ("text", "md", "json"):
        assert "cost" not in shown(plan_of(raw), format).replace("costs", "")
    assert '"cost"' not in plan_of(limited(raw, concurrency=9)).to_json()
    assert cell(shown(plan_of(limited(raw, budget="3M tokens"))), "judge") == "?"


def test_the_cost_stays_where_the_terminal_is_narrow(raw: dict[str, Any]) -> None:
    text = shown(plan_of(limited(raw, prices=PRICES)), width=50)
    assert "read" not in text.splitlines()[3]
    assert cell(text, "judge").endswith("USD")


def test_markdown_and_json_have_the_cost(raw: dict[str, Any]) -> None:
    plan = plan_of(limited(raw, prices=PRICES))
    amount = cost_of(plan, "judge").amounts["USD"]
    lines = shown(plan, "md", width=500).splitlines()
    assert next(line for line in lines if line.startswith("| step")).endswith("| time | cost |")
    assert next(line for line in lines if line.startswith("| judge")).endswith(f"| {amount:.2f} USD |")
    data = json.loads(shown(plan, "json", width=500))
    costs = {step["name"]: step.get("cost") for step in data["steps"]}
    assert costs["judge"] == {"amounts": {"USD": amount}, "unknown": {}}
    assert costs["sample"] is costs["mixtral"] is None
    assert data["totals"]["cost"] == {"amounts": {"USD": amount}, "unknown": []}


def test_a_model_without_prices_and_rows_that_are_not_known_are_unknown(raw: dict[str, Any]) -> None:
    raw["models"]["mixtral"]["limits"] = {"prices": PRICES}
    raw["models"]["other"] = {**API_MODEL, "source": "api:org/other"}
    raw["stages"]["second"] = {**raw["stages"]["judge"], "kind": "judge", "model": "other"}
    plan = plan_of(raw)
    assert cost_of(plan, "second").unknown == {"other": "it has no `prices`"}
    text = shown(plan)
    assert cell(text, "second") == "?"
    assert "cost of 'other' not known: it has no `prices`" in text
    assert (
        f"at least {cost_of(plan, 'judge').amounts['USD']:.2f} USD if nothing is cached (not known of second)" in text
    )


def test_a_judge_whose_labelled_set_is_of_unknown_size_has_an_unknown_cost() -> None:
    from cai.stages.judge.spec import JudgeSpec

    spec = JudgeSpec.model_validate(
        {"model": "m", "candidates": "c", "labelled": "people", "scoring": "choice", "principles": "whole"}
    )
    rows = {"candidates": 8, "candidates:width": 2}
    assert spec.estimate(rows).use_of("model") is None
    use = spec.estimate({**rows, "labelled": 4}).use_of("model")
    assert use is not None
    assert use.calls == (8 + 4) * 2


def test_each_model_of_an_evaluation_is_paid_by_its_own_prices(raw: dict[str, Any]) -> None:
    raw["models"]["mixtral"]["limits"] = {"prices": {"completion": 1000.0}}
    other = {**API_MODEL, "source": "api:org/other", "limits": {"prices": {"prompt": 2.0, "currency": "EUR"}}}
    raw["models"]["other"] = other
    raw["constitution"]["principles"].append(
        {"id": "b", "critique": "Is it short?", "revision": "Make it short.", "comparison": "Which one is shorter?"}
    )
    raw["stages"]["evaluate"] = {
        "models": {"m": "mixtral", "here": "base"},
        "adherence": "other",
        "prompts": {"all": "asked"},
        "sampling": {"max_tokens": 50},
    }
    plan = plan_of(raw)
    judged = 8 * 2 * 2  # prompts, models, principles
    assert cost_of(plan, "evaluate").amounts == {
        "USD": pytest.approx(8 * 50 * 1000 / 1e6),
        "EUR": pytest.approx(judged * 200 * 2 / 1e6),
    }
    assert plan.step("evaluate").estimate.calls == 8 * 2 + judged


def test_prices_of_nothing_are_prices(raw: dict[str, Any]) -> None:
    plan = plan_of(limited(raw, prices={"prompt": 0, "completion": 0}))
    assert cell(shown(plan), "judge") == "0"


@pytest.mark.parametrize(
    ("budget", "told"),
    [
        ("1 USD", "may take 8.192 USD of 'mixtral'"),
        ("5k tokens", "may take 11,136 tokens of 'mixtral'"),
        ("15 calls", "may take 16 calls of 'mixtral'"),
        ("16 calls", ""),
    ],
)
def test_a_step_that_may_pass_the_budget_is_told(raw: dict[str, Any], budget: str, told: str) -> None:
    raw["stages"]["judge"]["sampling"] = {"max_tokens": 500}
    step = plan_of(limited(raw, prices=PRICES, budget=budget)).step("judge")
    tokens = (step.estimate.prompt_tokens, step.estimate.tokens)
    told = told.replace("8.192", f"{(tokens[0] * 100 + tokens[1] * 1000) / 1e6:.4g}").replace(
        "11,136", f"{sum(tokens):,}"
    )
    assert step.notes == ([f"{told}: more than its budget of {budget}"] if told else [])


def test_a_budget_is_over_all_steps_of_its_model(raw: dict[str, Any]) -> None:
    raw["stages"]["second"] = {**raw["stages"]["judge"], "kind": "judge", "pairs": "best_worst"}
    plan = plan_of(limited(raw, budget="20 calls"))
    assert plan.step("judge").notes == []
    (note,) = plan.step("second").notes
    assert note == "may take 32 calls of 'mixtral', with the steps before it: more than its budget of 20 calls"


def test_what_is_there_already_costs_nothing(raw: dict[str, Any]) -> None:
    text = shown(plan_of(limited(raw, prices=PRICES)), reused=("judge",))
    assert cell(text, "judge") == "-"
    assert "USD" not in text


def test_a_plan_s_file_keeps_the_cost_and_no_key_has_it(raw: dict[str, Any]) -> None:
    plan = plan_of(limited(raw, prices=PRICES))
    assert plan_from_json(plan.to_json()) == plan
    assert [step.key for step in plan.steps] == [step.key for step in plan_of(raw).steps]
    statuses = [StepStatus(step, Action.RUN, "") for step in plan.steps]
    assert plan_data(plan, statuses)["totals"]["cost"]["amounts"].keys() == {"USD"}
