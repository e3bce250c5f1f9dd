"""Dialects: what is sent in each, what plans and runs tell of one, and that keys made before have stayed.

CAI_WRITE_GOLDEN=1 pytest tests/clients/test_dialects.py writes the table in docs/servers.md anew.
"""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any, get_args

import pytest

from cai.clients.base import Request, Sampling
from cai.clients.dialect_table import DIALECTS, FIELDS, DialectName
from cai.clients.dialects import recognised, spoken, unheard
from cai.clients.openai_api import OpenAiClient, open_endpoint
from cai.stages.fetch import FetchSpec
from cai.stages.fetch import run as fetch
from tests.support.api_experiment import edited, keys_by_step, plan_of, problems_of
from tests.support.dialect_docs import BEGIN, END, table
from tests.support.fake_api import Reply, ask, chat_request, says
from tests.support.stage_doubles import Memory, context

DOCS = Path(__file__).parents[2] / "docs" / "servers.md"
BODY: dict[str, Any] = {"model": "m", "max_tokens": 9, "temperature": 0.7, "top_p": 0.9, "seed": 3}


def test_a_dialect_that_a_model_can_name_has_a_row_and_no_other() -> None:
    assert set(get_args(DialectName)) == {"", *DIALECTS}


def test_a_row_that_was_tried_knows_all_fields_and_another_claims_nothing() -> None:
    for name, dialect in DIALECTS.items():
        assert set(dialect.plain) == (set(FIELDS) if dialect.tried else set()), name
        assert set(dialect.named) <= set(dialect.plain)
        if not dialect.tried:
            assert unheard(name, dict.fromkeys(FIELDS, 1), named=True) == []
            assert spoken(name, BODY) == BODY


def test_without_a_dialect_nothing_changes() -> None:
    assert spoken("", {**BODY, "repetition_penalty": 1.2}) == {**BODY, "repetition_penalty": 1.2}


def test_llamacpp_gets_its_own_name_of_the_penalty_and_no_limits_that_nobody_asked_for() -> None:
    assert spoken("llamacpp", BODY) == {**BODY, "top_k": 0, "min_p": 0.0}
    sent = spoken("llamacpp", {**BODY, "repetition_penalty": 1.2, "top_k": 40})
    assert sent == {**BODY, "repeat_penalty": 1.2, "top_k": 40, "min_p": 0.0}


def test_vllm_does_not_fall_back_to_the_models_own_settings() -> None:
    assert spoken("vllm", BODY) == {**BODY, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
    assert spoken("vllm", {**BODY, "repetition_penalty": 1.2})["repetition_penalty"] == 1.2


def test_transformers_gets_its_settings_as_the_text_of_one_field() -> None:
    sent = spoken("transformers", {**BODY, "repetition_penalty": 1.2, "min_tokens": 4})
    settings = json.loads(sent.pop("generation_config"))
    assert sent == BODY
    assert settings == {"do_sample": True, "top_k": 0, "repetition_penalty": 1.2, "min_new_tokens": 4}
    assert json.loads(spoken("transformers", BODY)["generation_config"])["repetition_penalty"] == 1.0


def test_a_server_is_known_by_what_it_sends_along_and_by_nothing_else() -> None:
    assert recognised({"Server": "llama.cpp"}, b"{}") == "llamacpp"
    assert recognised({"server": "uvicorn"}, b'{"system_fingerprint": "vllm-0.32.0-39714747"}') == "vllm"
    assert recognised({"server": "uvicorn"}, b'{"system_fingerprint": null}') == ""
    for odd in (b"", b"[]", b"\xff", b'{"system_fingerprint": 7}'):
        assert recognised({}, odd) == ""


def told_of(serve: Any, caplog: Any, dialect: str = "", **sampling: Any) -> tuple[list[str], list[dict[str, Any]]]:
    """What is logged of a server that says it is llama.cpp, and what it was sent."""
    server = serve(lambda path, body: says("hello", headers={"Server": "llama.cpp"}))
    caplog.set_level(logging.WARNING)
    requests = [chat_request(f"r{i}", "hello", **sampling) for i in (1, 2)]
    ask(OpenAiClient(server.url, "m", "", dialect=dialect), *requests)
    return [record.message for record in caplog.records], [body for _, body in server.asked]


def test_a_run_tells_once_what_a_server_that_gave_itself_away_ignores(serve: Any, caplog: Any) -> None:
    messages, bodies = told_of(serve, caplog, repetition_penalty=1.3)
    assert len(messages) == 1
    assert "is a llama.cpp server by its answers, which ignores repetition_penalty without a word" in messages[0]
    assert "limits its draws by top_k 40 and min_p 0.05" in messages[0]
    assert "`dialect: llamacpp`" in messages[0]
    assert all("repeat_penalty" not in body for body in bodies), "what is recognised changes nothing that is sent"


def test_a_run_tells_nothing_where_all_is_kept_to(serve: Any, caplog: Any) -> None:
    assert told_of(serve, caplog, temperature=0.0)[0] == []


def test_a_named_dialect_is_spoken_and_not_told_of(serve: Any, caplog: Any) -> None:
    messages, bodies = told_of(serve, caplog, dialect="llamacpp", repetition_penalty=1.3)
    assert messages == []
    assert all(body["repeat_penalty"] == 1.3 and "repetition_penalty" not in body for body in bodies)


def test_a_field_that_was_refused_is_left_out_in_a_dialect_too(serve: Any) -> None:
    def answer(path: str, body: dict[str, Any]) -> Reply:
        if "response_format" in body:
            return Reply({"error": {"message": "response_format is not known"}}, 400)
        return says("hello")

    server = serve(answer)
    request = Request("r", "x", Sampling(repetition_penalty=1.3), 1, chat_request().messages, choices=("(A)", "(B)"))
    assert ask(OpenAiClient(server.url, "m", "", dialect="llamacpp"), request).text == "hello"
    assert server.asked[-1][1]["repeat_penalty"] == 1.3


def test_the_endpoints_file_carries_the_dialect_to_the_client(tmp_path: Path, serve: Any) -> None:
    server = serve(lambda path, body: says("hello"))
    ctx = context(tmp_path, Memory(), {})
    fetch(FetchSpec(source="api:m", url=server.url, dialect="llamacpp"), ctx)
    ask(open_endpoint(ctx.out / "endpoint.json"), chat_request("r", "hello", repetition_penalty=1.3))
    assert server.asked[0][1]["repeat_penalty"] == 1.3


def test_naming_a_dialect_counts_for_the_model_and_leaving_it_out_keeps_every_key(raw: dict[str, Any]) -> None:
    before = keys_by_step(raw)
    assert keys_by_step(edited(raw, "models", "mixtral", "dialect", to="")) == before
    after = keys_by_step(edited(raw, "models", "mixtral", "dialect", to="vllm"))
    assert {name for name in before if after[name] != before[name]} == {"mixtral", "judge"}
    assert "dialect" not in plan_of(raw).step("mixtral").ingredients.model


def test_an_unknown_dialect_is_a_problem_of_the_model(raw: dict[str, Any]) -> None:
    assert "models.mixtral.dialect" in problems_of(edited(raw, "models", "mixtral", "dialect", to="llama.cpp"))
    assert "dialect" in problems_of(edited(raw, "models", "base", "dialect", to="vllm"))


def notes_of(raw: dict[str, Any], step: str, **model: Any) -> list[str]:
    return (
        plan_of({**raw, "models": {**raw["models"], "mixtral": {**raw["models"]["mixtral"], **model}}}).step(step).notes
    )


def test_the_plan_says_what_a_named_server_ignores(raw: dict[str, Any]) -> None:
    assert notes_of(raw, "judge") == []
    assert notes_of(raw, "judge", dialect="vllm") == []
    assert notes_of(raw, "mixtral", dialect="vllm")[0].endswith("with the key in TEST_KEY, asked as vLLM")
    assert notes_of(raw, "judge", dialect="ollama") == [], "nothing is said of what was not tried"
    assert notes_of(raw, "judge", dialect="transformers") == [
        "'mixtral' (transformers serve) ignores: `structured`",
    ]


def test_the_plan_says_that_seeds_hold_one_call_at_a_time(raw: dict[str, Any]) -> None:
    drawn = edited(raw, "stages", "sample", "model", to="mixtral")
    (note,) = notes_of(drawn, "sample", dialect="transformers")
    assert "keeps to seeds one call at a time" in note
    assert notes_of(drawn, "sample", dialect="transformers", limits={"concurrency": 1}) == []
    assert notes_of(drawn, "sample", dialect="llamacpp") == []


def test_the_plan_doubts_log_probabilities_that_a_named_server_did_not_tell(raw: dict[str, Any]) -> None:
    judged = edited(raw, "stages", "judge", to={"model": "mixtral", "candidates": "sample", "scoring": "contrast"})
    told = "'mixtral' (llama.cpp server) told nothing for `logprobs: prompt` when xllamacpp 2026.10.11549 was tried"
    assert notes_of(judged, "judge", dialect="llamacpp", logprobs="prompt") == [told]
    assert notes_of(judged, "judge", dialect="vllm", logprobs="prompt") == []


def test_the_docs_show_the_table() -> None:
    text = DOCS.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    shown, end, after = rest.partition(END)
    assert begin
    assert end
    if os.environ.get("CAI_WRITE_GOLDEN"):
        DOCS.write_text(f"{before}{BEGIN}\n{table()}{END}{after}", encoding="utf-8")
        pytest.skip("written")
    assert shown.strip() == table().strip(), "run CAI_WRITE_GOLDEN=1 pytest tests/clients/test_dialects.py"
