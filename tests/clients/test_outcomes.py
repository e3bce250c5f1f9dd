"""What becomes of a call, by what a server answers: every end has a name, and no thought is an answer."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from cai.chat import ToolCall
from cai.clients.base import Finish, OptionsRequest, Request, Sampling, ScoreRequest
from cai.clients.openai_api import OpenAiClient
from cai.clients.outcomes import (
    OUTCOMES,
    Fate,
    FinishReason,
    ModelAnswer,
    Observed,
    completed,
    finish_reason_of,
    outcome_of,
)
from cai.clients.settings import ApiLimits
from cai.errors import PrerequisiteError, StepFailed
from cai.stages.flow.generation import Unfinished, settled
from tests.support.fake_api import KEY, Reply, ask, chat_request, client_of, says


def odd_among_good(serve: Any, odd: Any, **limits: Any) -> Any:
    """The completion of one call among others that are answered; the odd one gets ``odd``."""

    def answer(path: str, body: dict[str, Any]) -> Reply:
        return odd if body["messages"][-1]["content"] == "odd" else says("fine")

    made = client_of(serve(answer), retries=1, **limits)
    return ask(made, chat_request("a"), chat_request("odd", "odd"), chat_request("b"), chat_request("c"))["odd"]


def message(finish: Any = "stop", **fields: Any) -> Reply:
    """An answer with these fields in its message."""
    return Reply({"choices": [{"message": {"role": "assistant", **fields}, "finish_reason": finish}]})


@pytest.mark.parametrize(
    ("finish", "reason"),
    [
        ("content_filter", "refused by the server: filtered"),
        ("SAFETY", "refused by the server: filtered"),
        ("content_filter: PROHIBITED_CONTENT", "refused by the server: filtered"),
        ("sensitive", "sensitive"),
        ("refusal", "refusal"),
        ("tool_calls", "tool calls"),
        ("function_call", "tool calls"),
        ("error", "error"),
        ("abort", "abort"),
        (None, "no finish reason"),
        ("", "no finish reason"),
        ("banana", "unknown finish 'banana'"),
        (["stop"], "unknown finish '[*]'"),
        (7, "unknown finish '*'"),
    ],
)
def test_every_end_that_is_no_answer_has_its_reason(serve: Any, finish: Any, reason: str) -> None:
    assert settled(odd_among_good(serve, message(finish, content="half an answer")), Unfinished.KEEP) == ("", reason)


@pytest.mark.parametrize("finish", ["stop", "eos_token", "stop_sequence", "end_turn", "STOP", "COMPLETE"])
def test_a_whole_answer_has_many_words_for_its_end(serve: Any, finish: str) -> None:
    answer = odd_among_good(serve, message(finish, content="whole"))
    assert (answer.text, answer.finish) == ("whole", Finish.STOP)


@pytest.mark.parametrize("finish", ["length", "max_tokens", "MAX_TOKENS", "model_length"])
def test_a_cut_answer_has_many_words_for_its_end(serve: Any, finish: str) -> None:
    answer = odd_among_good(serve, message(finish, content="One. Two"))
    assert answer.finish is Finish.LENGTH
    assert settled(answer, Unfinished.TRIM) == ("One.", "")


def test_a_routers_stop_does_not_hide_what_the_models_own_server_said() -> None:
    assert finish_reason_of("stop", "SAFETY") is FinishReason.FILTER
    assert finish_reason_of("stop", "MAX_TOKENS") is FinishReason.LENGTH
    assert finish_reason_of(None, "end_turn") is FinishReason.STOP
    assert finish_reason_of("stop", "banana") is FinishReason.STOP
    assert finish_reason_of("length", "stop") is FinishReason.LENGTH


def test_an_error_is_tried_elsewhere(serve: Any) -> None:
    bad = serve(lambda path, body: message("error", content=""))
    good = serve(lambda path, body: says("fine"))
    made = OpenAiClient(bad.url, "m", KEY, replicas=[good.url], limits=ApiLimits(retries=3))
    answers = ask(made, *(chat_request(f"r{i}") for i in range(6)))
    assert {answer.text for answer in answers.values()} == {"fine"}


def test_a_models_own_refusal_is_named(serve: Any) -> None:
    answer = odd_among_good(serve, message("stop", content=None, refusal="I cannot help with that."))
    assert settled(answer, Unfinished.KEEP) == ("", "refusal")


def test_a_content_may_be_a_list_of_parts(serve: Any) -> None:
    parts = [
        {"type": "thinking", "thinking": [{"type": "text", "text": "Two and two."}]},
        {"type": "text", "text": "It is "},
        {"type": "image_url", "image_url": {"url": "data:"}},
        {"type": "output_text", "text": "4."},
    ]
    answer = odd_among_good(serve, message(content=parts))
    assert (answer.text, answer.thinking, answer.finish) == ("It is 4.", "Two and two.", Finish.STOP)
    refused = odd_among_good(serve, message(content=[{"type": "refusal", "refusal": "No."}]))
    assert refused.refused == "refusal"


@pytest.mark.parametrize(
    "body",
    [
        {"choices": [], "prompt_filter_results": [{"content_filter_results": {}}]},
        {"choices": [{"finish_reason": "content_filter"}]},
        {"choices": [{"finish_reason": "content_filter", "message": None}]},
        {"choices": [{"finish_reason": "content_filter", "message": {}}], "usage": "none"},
    ],
)
def test_a_filter_without_a_content_is_counted(serve: Any, body: Any) -> None:
    assert odd_among_good(serve, Reply(body)).refused == "filtered"


def test_no_choices_is_tried_again_and_then_counted(serve: Any) -> None:
    assert odd_among_good(serve, Reply({"choices": []})).refused == "no choices"


@pytest.mark.parametrize(
    "usage",
    [
        None,
        [],
        "7",
        7,
        {"completion_tokens": "3"},
        {"completion_tokens": -1},
        {"completion_tokens": 3.5},
        {"completion_tokens_details": [1]},
        {"completion_tokens": 10**12},
    ],
)
def test_usage_may_have_any_shape(serve: Any, usage: Any) -> None:
    body = {"choices": [{"message": {"content": "two words"}, "finish_reason": "stop"}], "usage": usage}
    answer = odd_among_good(serve, Reply(body))
    assert (answer.text, answer.tokens) == ("two words", 2)


def test_a_call_of_a_tool_is_no_answer_and_is_kept_apart(serve: Any) -> None:
    calls = [{"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 2}'}}, "no call"]
    answer = odd_among_good(serve, message("stop", content=None, tool_calls=calls))
    assert answer.tool_calls == (ToolCall("add", '{"a": 2}', "c1"),)
    assert settled(answer, Unfinished.KEEP) == ("", "tool calls")


# ---- thoughts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning", "thinking"])
def test_a_thought_in_a_field_of_its_own_is_no_answer(serve: Any, field: str) -> None:
    details = {"completion_tokens": 9, "completion_tokens_details": {"reasoning_tokens": 6}}
    reply = message(content="It is 4.", **{field: "Two and two."})
    reply.body["usage"] = details
    answer = odd_among_good(serve, reply)
    assert (answer.text, answer.thinking, answer.tokens, answer.thinking_tokens) == ("It is 4.", "Two and two.", 9, 6)


def test_an_open_thought_at_the_limit_is_unfinished_and_never_the_row(serve: Any) -> None:
    for said in ("<think>", "<think>Two and", "[THINK]Two and"):
        for unfinished in Unfinished:
            answer = odd_among_good(serve, message("length", content=said))
            reason = "empty" if said == "<think>" and not answer.thinking else "unfinished"
            assert settled(answer, unfinished)[0] == ""
            assert settled(answer, unfinished)[1] in (reason, "unfinished")
    silent = odd_among_good(serve, message("length", content=None, reasoning="Two and two makes"))
    assert settled(silent, Unfinished.KEEP) == ("", "unfinished")
    mute = odd_among_good(serve, message("stop", content="<think>Two and two.</think>"))
    assert settled(mute, Unfinished.KEEP) == ("", "no answer after its thought")


def test_a_prompt_that_opened_the_thought_makes_its_answer_one() -> None:
    request = Request("r", "<|im_start|>assistant\n<think>\n", Sampling())
    cut = completed(request, ModelAnswer("Two and two makes", FinishReason.LENGTH, 1, 4))[1]
    assert settled(cut, Unfinished.TRIM) == ("", "unfinished")
    whole = completed(request, ModelAnswer("Two and two.\n</think>\nIt is 4.", FinishReason.STOP, 1, 4))[1]
    assert (whole.text, whole.thinking) == ("It is 4.", "Two and two.")


def test_a_stop_string_in_a_thought_cuts_no_answer() -> None:
    request = Request("r", "p", Sampling(stop=("Human:",)))
    whole = completed(request, ModelAnswer("<think>As Human: said</think>Yes. Human: more", FinishReason.LENGTH, 1, 9))[
        1
    ]
    assert (whole.text, whole.thinking, whole.finish) == ("Yes. ", "As Human: said", Finish.STOP)


def test_an_answer_of_more_than_its_tokens_can_say_is_not_kept(serve: Any) -> None:
    answer = odd_among_good(serve, message(content="x" * 100_000))
    assert answer.refused == "longer than max_tokens"


# ---- log-probabilities -----------------------------------------------------------------------------------------------


def scored(serve: Any, logprobs: list[Any]) -> Any:
    def answer(path: str, body: dict[str, Any]) -> Reply:
        values = logprobs if "odd" in body["prompt"] else [None, -1.0, -2.0]
        tokens = ["The", " one", " odd" if "odd" in body["prompt"] else " two"]
        listed = {
            "tokens": [*tokens, "!"],
            "token_logprobs": [*values, -0.5],
            "text_offset": None,
            "top_logprobs": None,
        }
        payload = json.dumps({"choices": [{"text": "".join(tokens), "logprobs": listed, "finish_reason": "length"}]})
        return Reply(payload.encode())

    made = OpenAiClient(serve(answer).url, "m", KEY, logprobs="prompt", limits=ApiLimits(concurrency=1))
    try:
        asked = [ScoreRequest(name, "The one", text) for name, text in (("a", " two"), ("odd", " odd"), ("b", " two"))]
        return {score.id: score for score in made.score(asked)}
    finally:
        made.close()


@pytest.mark.parametrize(
    ("odd", "named"), [(math.nan, "a log-probability is NaN"), (0.7, "a log-probability is positive")]
)
def test_log_probabilities_that_are_none_are_refused_by_name(serve: Any, odd: float, named: str) -> None:
    scores = scored(serve, [None, -1.0, odd])
    assert (scores["a"].logprob, scores["b"].logprob, scores["odd"].refused) == (-2.0, -2.0, named)
    assert math.isnan(scores["odd"].logprob)


def test_rounding_above_zero_is_none_of_these(serve: Any) -> None:
    assert scored(serve, [None, -1.0, 1e-6])["odd"].logprob == pytest.approx(1e-6)


def test_a_likely_token_that_is_none_is_named(serve: Any) -> None:
    place = {"token": "A", "logprob": 0.7, "top_logprobs": []}

    def answer(path: str, body: dict[str, Any]) -> Reply:
        return Reply({"choices": [{"message": {"content": "A"}, "logprobs": {"content": [place]}}]})

    made = OpenAiClient(serve(answer).url, "m", KEY, logprobs="top")
    (scores,) = made.options([OptionsRequest("r", "p", ("A", "B"), chat_request().messages)])
    made.close()
    assert scores.refused == "a log-probability is positive"


# ---- the table -------------------------------------------------------------------------------------------------------


def test_every_status_and_every_end_has_a_rule() -> None:
    for status in range(100, 1000):
        for reason in FinishReason:
            outcome_of(Observed(status, "words", reason))
    assert outcome_of(Observed(200, ending=FinishReason.STOP)).fate is Fate.ROW
    fates = {
        status: outcome_of(Observed(status)).fate
        for status in (301, 400, 401, 402, 403, 404, 408, 413, 418, 422, 429, 500, 503, 529)
    }
    assert fates == {
        301: Fate.STOP, 400: Fate.REFUSED, 401: Fate.STOP, 402: Fate.REFUSED, 403: Fate.REFUSED, 404: Fate.STOP,
        408: Fate.RETRY, 413: Fate.REFUSED, 418: Fate.REFUSED, 422: Fate.REFUSED, 429: Fate.RETRY, 500: Fate.RETRY,
        503: Fate.RETRY, 529: Fate.RETRY,
    }  # fmt: skip
    assert all(any(rule is next(r for r in OUTCOMES if r.fits(o)) for o in _witnesses()) for rule in OUTCOMES)


def _witnesses() -> list[Observed]:
    """Something for every rule to decide, so that none stands in the shadow of another."""
    words = ("", "insufficient_quota", "content_filter", "maximum context length", "flagged by moderation")
    statuses = (200, 301, 400, 401, 402, 403, 404, 408, 413, 418, 422, 425, 429, 500, 503, 150)
    return [
        Observed(status, said, ending, refusal=refusal)
        for status in statuses
        for said in words
        for ending in FinishReason
        for refusal in (False, True)
    ]


# ---- reasoning APIs --------------------------------------------------------------------------------------------------


def reasoning_api(path: str, body: dict[str, Any]) -> Reply:
    """As OpenAI's reasoning models refuse, one field at a time."""
    if "max_tokens" in body:
        words = (
            "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
        )
        return Reply({"error": {"message": words, "param": "max_tokens", "code": "unsupported_parameter"}}, 400)
    for name in ("temperature", "top_p"):
        if body.get(name, 1) != 1:
            words = (
                f"Unsupported value: '{name}' does not support {body[name]}. Only the default (1) value is supported."
            )
            return Reply({"error": {"message": words, "param": name, "code": "unsupported_value"}}, 400)
    if "stop" in body:
        words = "Unsupported parameter: 'stop' is not supported with this model."
        return Reply({"error": {"message": words, "param": "stop", "code": "unsupported_parameter"}}, 400)
    return says("Four. Human: and then")


def test_a_reasoning_api_is_learnt_once_and_said(serve: Any, caplog: Any) -> None:
    server = serve(reasoning_api)
    made = client_of(server, concurrency=1)
    requests = [chat_request(f"r{i}", temperature=0.5, top_p=0.9, max_tokens=32, stop=("Human:",)) for i in range(4)]
    answers = list(made.generate(requests))
    made.close()
    assert {answer.text for answer in answers} == {"Four. "}, "stops are cut here"
    assert len(server.asked) == 4 + 4, "each field is refused once"
    assert server.asked[-1][1]["max_completion_tokens"] == 32
    assert not {"max_tokens", "temperature", "top_p", "stop"} & server.asked[-1][1].keys()
    said = [record.getMessage() for record in caplog.records]
    assert len([text for text in said if "asked without" in text]) == 4
    assert any("max_completion_tokens instead" in text for text in said)


def test_what_one_server_refuses_the_other_is_still_asked(serve: Any) -> None:
    strict, plain = serve(reasoning_api), serve(lambda path, body: says("fine"))
    made = OpenAiClient(strict.url, "m", KEY, replicas=[plain.url])
    ask(made, *(chat_request(f"r{i}", temperature=0.5) for i in range(12)))
    assert strict.asked
    assert all(body["temperature"] == 0.5 and "max_tokens" in body for _, body in plain.asked)


def test_a_wrong_value_is_not_left_out(serve: Any) -> None:
    server = serve(lambda path, body: Reply({"error": {"message": "temperature must be at most 1"}}, 400))
    with pytest.raises(StepFailed, match="temperature must be at most 1"):
        ask(client_of(server), chat_request(temperature=2.0))
    too_large = (
        "'max_tokens' or 'max_completion_tokens' is too large: 512. This model's maximum context length is 512 tokens"
    )
    server = serve(lambda path, body: Reply({"error": {"message": too_large}}, 400))
    assert ask(client_of(server), chat_request()).refused == "prompt too long"
    assert len(server.asked) == 1


def test_a_key_that_a_server_repeats_stands_in_no_part_of_an_answer(serve: Any) -> None:
    calls = [{"id": KEY, "function": {"name": f"f{KEY}", "arguments": f'{{"key": "{KEY}"}}'}}]
    for fields in ({"tool_calls": calls}, {"reasoning": f"the key is {KEY}"}, {"refusal": f"not with {KEY}"}):
        answer = odd_among_good(serve, message("stop", content=f"a {KEY}", **fields))
        assert KEY not in repr(answer)


def test_an_error_in_a_body_that_came_as_an_answer_is_that_error(serve: Any) -> None:
    answer = odd_among_good(serve, Reply({"error": {"code": 400, "message": "no such language"}}))
    assert answer.refused == "400 no such language"
    with pytest.raises(PrerequisiteError, match=r"refuses the key \(401: no such key"):
        ask(
            client_of(serve(lambda path, body: Reply({"error": {"code": 401, "message": "no such key"}}))),
            chat_request(),
        )
