"""Log-probabilities as servers send them: places that fit and that do not, and options that are decided on the way."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import pytest

from cai.chat import Message
from cai.clients.base import OptionScores, OptionsRequest, Score, ScoreRequest
from cai.clients.openai_api import OpenAiClient
from cai.clients.openai_logprobs import NoLogprobs, Position, continuation, options, positions
from cai.errors import PrerequisiteError, SpecError
from tests.support.api_server import ApiServer, Say

PROMPT, TEXT = "Is it kind? Answer:", " (A)"


def choice(tokens: list[str], logprobs: list[float | None], offsets: list[int] | None = None) -> dict[str, Any]:
    found: dict[str, Any] = {"tokens": tokens, "token_logprobs": logprobs}
    return {"logprobs": {**found, "text_offset": offsets} if offsets is not None else found}


def placed(tokens: list[str]) -> list[int]:
    return [len("".join(tokens[:i])) for i in range(len(tokens))]


EXACT = ["Is", " it", " kind", "?", " Answer", ":", " (", "A", ")", "\n"]
LOGPROBS: list[float | None] = [None, -9, -9, -9, -9, -9, -0.5, -0.25, -0.125, -7]


def test_places_that_fit_are_believed() -> None:
    assert continuation(choice(EXACT, LOGPROBS, placed(EXACT)), PROMPT, TEXT, 1) == (-0.875, 3)
    without = {"logprobs": {"token_logprobs": LOGPROBS, "text_offset": placed(EXACT)}}
    assert continuation(without, PROMPT, TEXT, 1) == (-0.875, 3)


def test_nothing_generated_leaves_the_last_token_to_the_text() -> None:
    assert continuation(choice(EXACT[:-1], LOGPROBS[:-1], placed(EXACT[:-1])), PROMPT, TEXT, 0) == (-0.875, 3)


def test_a_token_across_the_border_belongs_to_the_text() -> None:
    tokens = ["Is", " it", " kind", "?", " Answer", ": (", "A", ")", "\n"]
    logprobs: list[float | None] = [None, -9, -9, -9, -9, -1, -0.25, -0.125, -7]
    for offsets in (placed(tokens), None):
        assert continuation(choice(tokens, logprobs, offsets), PROMPT, TEXT, 1) == (-1.375, 3)


@pytest.mark.parametrize("offsets", ["counted", None, "minus one"])
def test_a_first_token_that_is_not_in_the_text_moves_nothing(offsets: str | None) -> None:
    # vLLM counts <s> as three characters of the text; SGLang gives -1 for every place.
    tokens = ["<s>", *EXACT]
    places = {"counted": placed(tokens), "minus one": [-1] * len(tokens), None: None}[offsets]
    logprobs = [None, -9.0, *LOGPROBS[1:]]
    assert continuation(choice(tokens, logprobs, places), PROMPT, TEXT, 1) == (-0.875, 3)


def test_tokens_that_lost_their_blanks_are_found_in_the_text() -> None:
    tokens = ["<s>", "Is", "it", "kind", "?", "Answer", ":", "(", "A", ")", ""]
    logprobs: list[float | None] = [None, -9, -9, -9, -9, -9, -9, -0.5, -0.25, -0.125, -7]
    assert continuation(choice(tokens, logprobs, placed(tokens)), PROMPT, TEXT, 1) == (-0.875, 3)


def test_pieces_of_characters_are_counted_with_the_text_they_are_in() -> None:
    tokens = ["Hi", ":", " so", "\ufffd", "\ufffd", "\ufffd", "\ufffd", " good", "\n"]
    logprobs: list[float | None] = [None, -9, -1, -1, -1, -1, -1, -1, -7]
    assert continuation(choice(tokens, logprobs, placed(tokens)), "Hi:", " so🙂 good", 1) == (-6.0, 6)


def test_blanks_that_are_tokens_of_their_own_count() -> None:
    tokens = ["Hi", ":", "\n\n", "Yes", "!"]
    assert continuation(choice(tokens, [None, -9, -1, -2, -7]), "Hi:", "\n\nYes", 1) == (-3.0, 2)


def test_vllms_list_for_the_prompt_is_read_where_the_other_is_missing() -> None:
    def place(token: str, p: float) -> dict[str, Any]:
        return {"17": {"logprob": p, "rank": 3, "decoded_token": token}, "4": {"logprob": -0.01, "decoded_token": "x"}}

    listed = [None, *(place(token, p or 0.0) for token, p in zip(EXACT[1:-1], LOGPROBS[1:-1], strict=True))]
    assert continuation({"logprobs": None, "prompt_logprobs": listed}, PROMPT, TEXT, 0) == (-0.875, 3)


@pytest.mark.parametrize(
    "bad",
    [
        {},
        {"logprobs": None},
        {"logprobs": {"token_logprobs": []}},
        {"logprobs": {"token_logprobs": [None, -1.0], "tokens": ["Sure", "!"], "text_offset": [0, 4]}},
        {"logprobs": {"token_logprobs": [-1.0, -2.0]}},
        {"prompt_logprobs": [None, 7]},
        choice(EXACT, ["x"] * 10),  # type: ignore[list-item]
    ],
)
def test_what_does_not_hold_the_text_is_no_answer(bad: dict[str, Any]) -> None:
    with pytest.raises(NoLogprobs):
        continuation(bad, PROMPT, TEXT, 1)


def p(*likely: tuple[str, float]) -> Position:
    """A place whose first token was generated."""
    return Position(likely[0][0], {token: math.log(p) for token, p in likely})


def shares(found: tuple[float | None, ...]) -> list[float | None]:
    return [None if logprob is None else round(math.exp(logprob), 6) for logprob in found]


AB = ("(A)", "(B)")


def test_options_that_are_single_tokens_are_read_at_the_first_place() -> None:
    assert shares(options([p(("A", 0.6), ("B", 0.3), ("C", 0.1))], AB)) == [0.6, 0.3]
    assert shares(options([p((" (A", 0.6), (" (B", 0.3))], AB)) == [0.6, 0.3]


def test_an_undecided_token_goes_on_to_the_next_place() -> None:
    found = options([p(("(", 0.8), ("A", 0.1), ("B", 0.05)), p(("B", 0.75), ("A", 0.25)), p((")", 1.0))], AB)
    assert shares(found) == [0.3, 0.65]


def test_blanks_in_front_are_ignored() -> None:
    found = options([p(("\n", 0.9), (" A", 0.1)), p((" ", 1.0)), p(("A", 0.5), ("B", 0.5))], AB)
    assert shares(found) == [0.55, 0.45]


def test_what_is_not_listed_is_none_and_other_words_decide_nothing() -> None:
    assert shares(options([p(("A", 0.9), ("C", 0.1))], AB)) == [0.9, None]
    assert options([p(("The", 0.9), ("Apart", 0.1)), p(("A", 1.0))], AB) == (None, None)


def test_options_with_the_same_beginning_are_told_apart_where_they_differ() -> None:
    found = options([p(("harm", 1.0)), p(("less", 0.7), ("ful", 0.3))], ("harmful", "harmless"))
    assert shares(found) == [0.3, 0.7]


def test_both_forms_of_the_protocol_are_read() -> None:
    place = {"token": "A", "logprob": -0.5, "top_logprobs": [{"token": "B", "logprob": -1.0}]}
    assert positions({"logprobs": {"content": [place]}}) == [Position("A", {"A": -0.5, "B": -1.0})]
    old = {"tokens": ["A"], "token_logprobs": [-0.5], "top_logprobs": [{"B": -1.0}]}
    assert positions({"logprobs": old}) == [Position("A", {"A": -0.5, "B": -1.0})]
    for bad in (None, {}, {"content": []}, {"content": [{}]}, {"tokens": ["A"]}, {"content": [7]}):
        with pytest.raises(NoLogprobs):
            positions({"logprobs": bad})


def scored(path: str, body: dict[str, Any]) -> Say:
    """A server with one token a character, each likelier the later it is in the alphabet."""
    if body.get("echo"):
        tokens = ["<s>", *body["prompt"], "!"]
        logprobs = [None, *(-1.0 / ord(c) for c in body["prompt"]), -7.0]
        text = body["prompt"] + "!"
        found: dict[str, Any] = {"tokens": tokens, "token_logprobs": logprobs, "text_offset": placed(tokens)}
        return Say({"choices": [{"text": text, "logprobs": found}], "usage": {"completion_tokens": 1}})
    likely = [{"token": "A", "logprob": -0.5}, {"token": "B", "logprob": -1.5}]
    made = {"token": "A", "logprob": -0.5, "top_logprobs": likely}
    if "messages" in body:
        said = {"message": {"content": "A"}, "logprobs": {"content": [made]}}
        return Say({"choices": [said]} if body["top_logprobs"] == 20 else {}, 200)
    old = {"tokens": ["A"], "token_logprobs": [-0.25], "top_logprobs": [{"A": -0.25, "B": -2.5}]}
    return Say({"choices": [{"text": "A", "logprobs": old}]})


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    made = ApiServer(scored)
    yield made
    made.close()


def client(server: ApiServer, logprobs: str) -> OpenAiClient:
    return OpenAiClient(server.url, "m", "", logprobs=logprobs)


def test_the_likelihood_of_a_text_comes_from_the_repeated_prompt(server: ApiServer) -> None:
    made = client(server, "prompt")
    (found,) = made.score([ScoreRequest("a", "Hi:", "xy")])
    assert found == Score("a", pytest.approx(-1 / ord("x") - 1 / ord("y")), 2)
    ((path, body),) = server.asked
    assert path == "/v1/completions"
    assert body == {"model": "m", "prompt": "Hi:xy", "max_tokens": 1, "temperature": 0, "echo": True, "logprobs": 1}
    (both,) = made.options([OptionsRequest("b", "Hi:", ("x", "yz"))])
    assert both == OptionScores("b", (pytest.approx(-1 / 120), pytest.approx(-1 / 121 - 1 / 122)), 3)
    assert len(server.asked) == 3, "one call for each option"
    made.close()


def test_options_come_from_the_likeliest_tokens(server: ApiServer) -> None:
    made = client(server, "top")
    asked = [OptionsRequest("turns", "", AB, (Message("user", "Which?"),)), OptionsRequest("raw", "Which?", AB)]
    found = {scores.id: scores.logprobs for scores in made.options(asked)}
    assert found["turns"] == pytest.approx((-0.5, -1.5))
    assert found["raw"] == pytest.approx((-0.25, -2.5))
    bodies = dict(server.asked)
    assert bodies["/v1/chat/completions"]["logprobs"] is True
    assert bodies["/v1/completions"]["logprobs"] == 5
    made.close()


def test_what_the_model_does_not_offer_is_refused_before_anything_is_asked(server: ApiServer) -> None:
    with pytest.raises(SpecError, match=r"`logprobs` is not set.*`scoring: choice`"):
        client(server, "").options([OptionsRequest("a", "b", AB)])
    with pytest.raises(SpecError, match="logprobs: top"):
        client(server, "top").score([ScoreRequest("a", "b", "c")])
    with pytest.raises(SpecError, match="use one of"):
        client(server, "all")
    assert not server.asked


@pytest.mark.parametrize("logprobs", ["prompt", "top"])
def test_a_server_that_sends_no_logprobs_says_what_to_change(server: ApiServer, logprobs: str) -> None:
    server.react = lambda path, body: Say({"choices": [{"text": "A", "message": {"content": "A"}, "logprobs": None}]})
    made = client(server, logprobs)
    with pytest.raises(PrerequisiteError, match=rf"logprobs: {logprobs}.*set the model's `logprobs` to"):
        list(made.options([OptionsRequest("a", "b", AB)]))
    made.close()


def test_a_prompt_that_is_not_read_has_no_likelihood(server: ApiServer) -> None:
    server.react = lambda path, body: Say({"error": "This model's maximum context length is 8"}, 400)
    for logprobs in ("prompt", "top"):
        made = client(server, logprobs)
        assert [each.logprobs for each in made.options([OptionsRequest("a", "b", AB)])] == [(None, None)]
        made.close()
    made = client(server, "prompt")
    (score,) = made.score([ScoreRequest("a", "b", "c")])
    assert (math.isnan(score.logprob), score.tokens) == (True, 0)
    made.close()
    assert json.dumps(server.asked[0][1])
