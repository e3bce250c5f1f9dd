"""How a model behind an API may be asked and what it tells: settings that change no answer, and one that does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cai.data.rows import Candidates, Comparison, read_rows
from cai.stages.base import serving
from cai.stages.judge.spec import judge_spec
from cai.stages.judge.stage import run as judge
from tests.support.api_experiment import edited, keys_by_step, plan_of, problems_of
from tests.support.fake_api import FakeServer, Reply, says
from tests.support.stage_doubles import Memory, artifact, context, shipped, user

MANY = {
    "replicas": ["https://b.example.com/v1", "https://c.example.com/v1/"],
    "limits": {"concurrency": 9, "timeout": 5, "prices": {"prompt": 2.0, "completion": 4.0}},
}


def with_many(raw: dict[str, Any]) -> dict[str, Any]:
    return edited(raw, "models", "mixtral", to={**raw["models"]["mixtral"], **MANY})


def test_replicas_and_limits_reach_the_step_and_count_for_nothing(raw: dict[str, Any]) -> None:
    assert keys_by_step(with_many(raw)) == keys_by_step(raw)
    compiled = plan_of(with_many(raw))
    assert compiled.step("judge").resources["servers"]["model"] == {
        "replicas": ["https://b.example.com/v1", "https://c.example.com/v1"],
        "limits": MANY["limits"],
    }
    assert "servers" not in compiled.step("sample").resources
    assert "servers" not in plan_of(raw).step("judge").resources
    assert "and 2 more" in compiled.step("mixtral").notes[0]


def test_prices_tell_what_a_step_will_cost(raw: dict[str, Any]) -> None:
    step = plan_of(with_many(raw)).step("judge")
    cost = (step.estimate.prompt_tokens * 2 + step.estimate.tokens * 4) / 1e6
    assert step.estimate.cost is not None
    assert step.estimate.cost.amounts == {"USD": pytest.approx(cost)}


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("replicas", ["https://user:secretpassword@b.example.com/v1"], "holds a user, a password or a query"),
        ("replicas", ["ftp://b.example.com"], "is no address"),
        ("limits", {"concurrency": 0}, "limits.concurrency"),
        ("limits", {"concurency": 4}, "did you mean 'concurrency'"),
        ("limits", {"unanswered": "lose"}, "limits.unanswered"),
        ("logprobs", "all", "logprobs"),
    ],
)
def test_wrong_settings_are_told_with_their_field(raw: dict[str, Any], field: str, value: Any, told: str) -> None:
    said = problems_of(edited(raw, "models", "mixtral", field, to=value))
    assert told in said
    assert "models.mixtral" in said
    assert "secretpassword" not in said


@pytest.mark.parametrize(
    ("logprobs", "scoring", "refused"),
    [
        ("", "choice", ""),
        ("", "best_worst", ""),
        ("prompt", "best_worst", ""),
        ("", "logprob", "logprobs: top"),
        ("", "contrast", "logprobs: prompt"),
        ("top", "logprob", ""),
        ("top", "contrast", "logprobs: prompt"),
        ("prompt", "logprob", ""),
        ("prompt", "contrast", ""),
    ],
)
def test_a_judge_reads_what_its_server_is_said_to_tell(
    raw: dict[str, Any],
    logprobs: str,
    scoring: str,
    refused: str,
) -> None:
    told = edited(raw, "models", "mixtral", "logprobs", to=logprobs)
    told["stages"]["judge"]["scoring"] = scoring
    if refused:
        assert refused in problems_of(told)
    else:
        assert plan_of(told).step("mixtral").spec["logprobs"] == logprobs


def test_what_the_server_tells_counts(raw: dict[str, Any]) -> None:
    before, after = keys_by_step(raw), keys_by_step(edited(raw, "models", "mixtral", "logprobs", to="top"))
    assert {name for name in before if before[name] != after[name]} == {"mixtral", "judge"}


def test_the_client_is_opened_with_replicas_and_limits(tmp_path: Path) -> None:
    model = artifact(tmp_path / "m", "model")
    (model.path / "endpoint.json").write_text('{"model": "m", "url": "http://127.0.0.1:1/v1", "api_key_env": ""}')
    asked = {"replicas": ["http://127.0.0.1:2/v1"], "limits": {"concurrency": 3}}
    with serving(Memory(), model.path, None, asked) as client:
        pool = client.open_pool()  # type: ignore[attr-defined]
        assert 0 < pool.room() <= 3 + 8
        pool.close()


def test_a_judge_reads_the_likeliest_tokens_of_a_chat_server(tmp_path: Path, server: FakeServer) -> None:
    def answer(path: str, body: dict[str, Any]) -> Reply:
        assert (path, body["logprobs"], body["top_logprobs"]) == ("/v1/chat/completions", True, 20)
        kind = body["messages"][-1]["content"].index("kind") < body["messages"][-1]["content"].index("rude")
        a, b = (-0.1, -2.4) if kind else (-2.4, -0.1)
        best = "A" if kind else "B"
        listed = [{"token": "A", "logprob": a}, {"token": "B", "logprob": b}, {"token": "(", "logprob": -6.0}]
        reply = says(best)
        reply.body["choices"][0]["logprobs"] = {"content": [{"token": best, "logprob": -0.1, "top_logprobs": listed}]}
        return reply

    server.answer = answer
    model = artifact(tmp_path / "m", "model")
    endpoint = f'{{"model": "m", "url": "{server.url}", "api_key_env": "TEST_KEY", "logprobs": "top"}}'
    (model.path / "endpoint.json").write_text(endpoint)
    rows = [Candidates(f"r{i}", user(f"What {i}?"), ("rude", "kind")) for i in range(5)]
    inputs = {"model": model, "candidates": artifact(tmp_path / "c", "candidates", rows)}
    texts = {"prompt": shipped("comparison.jinja")}
    judge(judge_spec(model="m", candidates="c"), context(tmp_path, Memory(), inputs, texts))
    found = list(read_rows(tmp_path / "out/rows.jsonl", Comparison))
    assert [row.chosen for row in found] == ["kind"] * 5  # type: ignore[union-attr]
    assert found[0].p_chosen == pytest.approx(1 / (1 + 2.718281828 ** (-2.3)), abs=1e-3)  # type: ignore[union-attr]
