"""The /generate client against a real HTTP server that has upstream's rules and quirks, and faults."""

from __future__ import annotations

import itertools
import json
import random
import re
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from cai.clients.base import Completion, Finish, Request, Sampling, ScoreRequest
from cai.clients.nemo_generate import NemoGenerateClient
from cai.data.nemo_tokens import Pieces, open_tokenizer
from cai.errors import SpecError, StepFailed
from tests.support.echoes import MANGLINGS, chat_prompt, squeezed
from tests.support.generate_server import EOD, fake, logprob_of, serving
from tests.support.nemo_rows import TURN
from tests.support.small_tokenizers import quickstart_lines, quickstart_spm

pytestmark = pytest.mark.long  # servers, programs and many small waits


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Pieces:
    path = tmp_path_factory.mktemp("sp") / "tokenizer.model"
    path.write_bytes(quickstart_spm(symbols=(TURN,)))
    return open_tokenizer(path)


def client(*urls: str, pieces: Pieces | None = None, **settings: Any) -> NemoGenerateClient:
    return NemoGenerateClient(urls, pieces, **{"backoff": 0.01, **settings})


def dead() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def requests(count: int, **sampling: Any) -> list[Request]:
    drawn = random.Random(1)
    texts = [" ".join(drawn.choices(quickstart_lines(), k=1 + n % 3)) for n in range(count)]
    return [Request(f"r{n}", chat_prompt(text), Sampling(**sampling), seed=n) for n, text in enumerate(texts)]


def by_id(found: Iterator[Completion]) -> dict[str, Completion]:
    every = list(found)
    assert len({c.id for c in every}) == len(every), "a request was answered twice"
    return {c.id: c for c in every}


def no_threads() -> None:
    assert not [thread for thread in threading.enumerate() if thread.name == "nemo-generate"]


def test_the_double_has_upstreams_rules() -> None:
    import httpx

    whole = {"sentences": ["Hi", "Hello there, you"], "tokens_to_generate": 3, "end_strings": [EOD], "greedy": True}
    with serving(fake()) as url, httpx.Client(base_url=url, trust_env=False) as http:

        def put(**changed: Any) -> tuple[int, Any]:
            answer = http.put("/generate", json={**whole, "top_k": 0, **changed})
            return answer.status_code, answer.json()

        assert put(sentences=["a"] * 129) == (400, "Maximum number of sentences is 128")
        assert put(temperature=0) == (200, "temperature must be a positive number less than or equal to 100.0")
        assert put(end_strings="</s>") == (200, "expect end_strings to be a list of strings")
        assert http.post("/generate", json=whole).status_code == 500
        assert http.put("/generate", json={}).status_code == 500
        status, told = put()
    assert status == 200
    assert told["logprob"] is None
    short, long = told["token_ids"]
    assert len(short) == len(long), "the shorter prompt got more tokens than it was to get"
    assert told["sentences"][0].startswith("Hi")


# What is asked


def test_a_completion_is_cut_at_its_own_budget_not_the_longest_prompts(pieces: Pieces) -> None:
    model = fake()
    asked = requests(40, max_tokens=9)
    with serving(model) as url:
        found = by_id(client(url, pieces=pieces).generate(asked))
    assert set(found) == {request.id for request in asked}
    lengths = pieces.counts([request.prompt for request in asked])
    assert len(set(lengths)) > 10
    for request, length in zip(asked, lengths, strict=True):
        answer = found[request.id]
        assert (answer.prompt_tokens, answer.tokens, answer.finish) == (length, 9, Finish.LENGTH)
        new = pieces.ids(request.prompt + answer.text)[length:]
        assert 1 <= len(new) <= 10, "its text is that of nine tokens"


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("mangling", [name for name in MANGLINGS if name != "all white space gone"])
def test_the_echo_goes_and_the_answer_stays(mangling: str, known: bool, pieces: Pieces) -> None:
    replies = {"first": "One, two: three!\nFour.", "second": "Naïve ① answer", "third": "x"}
    asked = [Request(name, chat_prompt(f"The {name}  question, isn't it?\n\n naïve ﬁle ½"), seed=1) for name in replies]
    with serving(fake(replies=replies, mangle=MANGLINGS[mangling])) as url:
        found = by_id(client(url, pieces=pieces if known else None).generate(asked))
    for name, reply in replies.items():
        if known:
            assert found[name].text == reply, "the tokenizer's own text, whatever the server's looks like"
        else:
            assert squeezed(found[name].text) == squeezed(MANGLINGS[mangling](reply))
        assert found[name].finish is Finish.STOP
        assert found[name].tokens == len(pieces.ids(f"\n{reply}")) - 1
        assert found[name].prompt_tokens == pieces.count(asked[0].prompt if name == "first" else chat_of(asked, name))


def chat_of(asked: list[Request], name: str) -> str:
    return next(request.prompt for request in asked if request.id == name)


@pytest.mark.parametrize("known", [True, False])
def test_stop_strings_are_cut_off_and_sent_as_a_list(known: bool, pieces: Pieces) -> None:
    replies = {"a": f"Done.\n{TURN}User\nMore", "b": "Yes, Human: no Human: x", "c": "plain"}
    sampling = Sampling(stop=(TURN, "Human:", "</s>"))
    asked = [Request(name, chat_prompt(f"question {name}"), sampling) for name in replies]
    model = fake(replies={f"question {name}": text for name, text in replies.items()})
    with serving(model) as url:
        found = by_id(client(url, pieces=pieces if known else None).generate(asked))
    assert [found[name].text.strip() for name in "abc"] == ["Done.", "Yes,", "plain"]
    assert {c.finish for c in found.values()} == {Finish.STOP}
    # The end token ends by itself; as a string, upstream would look for it in every text at every step.
    assert model.calls[0]["end_strings"] == [EOD, TURN, "Human:", *(() if known else ("</s>",))]


def test_settings_are_translated(pieces: Pieces) -> None:
    model = fake()
    samplings = [
        Sampling(max_tokens=3, temperature=0),
        Sampling(max_tokens=4, temperature=0.5, top_p=0.9, top_k=7, min_tokens=2),
        Sampling(max_tokens=5, temperature=0, repetition_penalty=1.2),
    ]
    asked = [Request(str(n), chat_prompt("Hi"), sampling, seed=n) for n, sampling in enumerate(samplings)]
    with serving(model) as url:
        found = by_id(client(url, pieces=pieces, add_bos=True).generate(asked))
    assert [found[str(n)].tokens for n in range(3)] == [3, 4, 5]
    sent = {call["tokens_to_generate"]: call for call in model.calls}
    keys = ("greedy", "temperature", "top_k", "top_p", "min_tokens_to_generate", "repetition_penalty")
    assert [sent[3][key] for key in keys] == [True, 1.0, 0, 1.0, 0, 1.0]
    assert [sent[4][key] for key in keys] == [False, 0.5, 7, 0.9, 2, 1.0]
    assert [sent[5][key] for key in keys] == [False, 1.0, 1, 1.0, 0, 1.2], "upstream's greedy knows no penalty"
    assert [sent[n]["compute_logprob"] for n in (3, 4, 5)] == [False, False, True], "nor does it without logprobs"
    assert all(call["add_BOS"] for call in model.calls)
    assert found["0"].prompt_tokens == pieces.count(chat_prompt("Hi")) + 1
    assert model.methods == {"PUT /generate": 3}
    for call in model.calls:
        assert 0 <= call["random_seed"] < 2**24, "larger ones are not the same on every GPU"


def test_calls_are_few_full_and_of_like_length(pieces: Pieces) -> None:
    model = fake()
    asked = requests(300, max_tokens=2)
    with serving(model) as url:
        by_id(client(url, pieces=pieces).generate(asked))
    sizes = [len(call["sentences"]) for call in model.calls]
    assert sorted(sizes, reverse=True) == [128, 128, 44]
    ranges = sorted((min(found), max(found)) for found in (pieces.counts(c["sentences"]) for c in model.calls))
    assert all(one[1] <= other[0] for one, other in itertools.pairwise(ranges))


def test_the_same_list_has_the_same_results_in_any_order(pieces: Pieces) -> None:
    asked = [*requests(30, max_tokens=6), Request("twin", requests(1)[0].prompt, Sampling(max_tokens=6), seed=0)]
    slow, quick = fake(seconds=0.05), fake()
    with serving(slow) as one, serving(quick) as two:
        first = by_id(client(one, two, pieces=pieces).generate(asked))
        shuffled = random.Random(3).sample(asked, len(asked))
        again = by_id(client(two, one, pieces=pieces).generate(shuffled))
        assert first == again
        other = by_id(client(one, two, pieces=pieces).generate([replace(r, seed=r.seed + 1) for r in asked]))
    assert sum(first[name].text != other[name].text for name in first) > 25, "the seed decides"
    assert first["r0"].text != first["twin"].text, "twins are drawn apart"


def test_nothing_to_do_asks_nobody() -> None:
    assert list(client(dead()).generate([])) == []
    assert list(client(dead()).score([])) == []


# Several servers


def test_each_server_has_one_call_at_a_time_and_the_free_one_the_next(pieces: Pieces) -> None:
    slow, quick = fake(seconds=0.6), fake(seconds=0.02)
    asked = requests(96, max_tokens=2)
    with serving(slow) as one, serving(quick) as two:
        start = time.monotonic()
        found = by_id(client(one, two, pieces=pieces, batch=8).generate(asked))
        took = time.monotonic() - start
    assert len(found) == 96
    assert (slow.most_busy, quick.most_busy) == (1, 1)
    assert len(slow.calls) + len(quick.calls) == 12
    assert len(quick.calls) > len(slow.calls)
    assert took < 12 * 0.6 / 2


def test_a_small_list_is_spread_over_the_servers(pieces: Pieces) -> None:
    models = [fake(seconds=0.1), fake(seconds=0.1)]
    with serving(models[0]) as one, serving(models[1]) as two:
        by_id(client(one, two, pieces=pieces).generate(requests(32, max_tokens=2)))
        assert [[len(call["sentences"]) for call in model.calls] for model in models] == [[16], [16]]
        for model in models:
            model.calls.clear()
        by_id(client(one, two, pieces=pieces).generate(requests(6, max_tokens=2)))
    assert sum(len(model.calls) for model in models) == 1, "six rows take as long as three"


def test_what_a_lost_server_had_is_done_by_another(pieces: Pieces) -> None:
    asked = requests(48, max_tokens=3)
    with serving(fake()) as url:
        expected = by_id(client(url, url + "/", pieces=pieces, batch=8).generate(asked))
    broken, whole = fake(always="reset"), fake(seconds=0.02)
    with serving(broken) as one, serving(whole) as two:
        own = client(one, dead(), two, pieces=pieces, batch=8, retries=1)
        assert by_id(own.generate(asked)) == expected
        assert len(broken.calls) == 2, "asked twice, then left alone"
        assert by_id(own.generate(asked)) == expected
        assert len(broken.calls) == 2, "still left alone"
    assert len(whole.calls) == 12


def test_a_server_that_dies_in_the_middle_loses_nothing(pieces: Pieces) -> None:
    asked = requests(64, max_tokens=3)
    dies, lives = fake(dies_after=2, seconds=0.02), fake(seconds=0.05)
    with serving(dies) as one, serving(lives) as two:
        found = by_id(client(one, two, pieces=pieces, batch=8, retries=2).generate(asked))
        assert found == by_id(client(two, two + "/generate/", pieces=pieces, batch=8).generate(asked))
    assert [call["fault"] for call in dies.calls] == ["", "", "reset", "reset", "reset"]


def test_when_no_server_is_left_each_is_named(pieces: Pieces) -> None:
    gone = dead()
    with serving(fake(always="500")) as url:
        own = client(url, gone, pieces=pieces, retries=1, name="helpful")
        for _ in range(2):
            with pytest.raises(StepFailed, match=r"helpful: no server is left, 2 of 2 calls") as caught:
                list(own.generate(requests(16)))
            told = str(caught.value)
            assert f"{url}/generate: status 500: CUDA out of memory (asked 2 times)" in told
            assert f"{gone}/generate: ConnectError" in told
    no_threads()


# Faults


@pytest.mark.parametrize("faults", [["500"], ["503", "502"], ["reset"], ["torn"], ["reset", "500", "torn"]])
@pytest.mark.parametrize("known", [True, False])
def test_what_may_pass_is_asked_again(faults: list[str], known: bool, pieces: Pieces) -> None:
    model = fake(faults=deque(faults))
    asked = requests(3, max_tokens=4, temperature=0.0)
    with serving(model) as url:
        found = by_id(client(url, pieces=pieces if known else None, retries=3).generate(asked))
    assert len(found) == 3
    assert len(model.calls) == len(faults) + 1
    assert len({json.dumps({**call, "fault": ""}) for call in model.calls}) == 1, "the same call again"


def test_a_call_that_takes_too_long_is_asked_again_and_given_more_time(pieces: Pieces) -> None:
    model = fake(faults=deque(["hang"]))
    with serving(model) as url:
        # What is left is half a second for the token, then a second.
        found = by_id(client(url, pieces=pieces, timeout=0.0, retries=2).generate([Request("a", "Hi", Sampling(1))]))
    assert found["a"].tokens == 1
    assert len(model.calls) == 2


def test_a_server_that_is_stuck_is_given_up_soon(pieces: Pieces) -> None:
    model = fake(always="hang")
    with serving(model) as url, pytest.raises(StepFailed, match=r"did not answer within 1 s \(asked 2 times\)"):
        list(client(url, pieces=pieces, timeout=0.0, retries=9).generate([Request("a", "Hi", Sampling(1))]))
    no_threads()


def test_a_resting_server_is_asked_when_nobody_else_is_left(pieces: Pieces) -> None:
    back, gone = fake(faults=deque(["500", "500"])), fake()
    with serving(back) as one:
        with serving(gone) as two:
            own = client(one, two, pieces=pieces, batch=8, retries=1)
            first = by_id(own.generate(requests(16, max_tokens=2)))
        assert by_id(own.generate(requests(16, max_tokens=2))) == first
    assert [call["fault"] for call in back.calls] == ["500", "500", "", ""]


@pytest.mark.parametrize(
    ("sampling", "words"),
    [
        (Sampling(max_tokens=0), "tokens_to_generate must be an integer greater than 0"),
        (Sampling(temperature=101), "temperature must be a positive number"),
        (Sampling(repetition_penalty=0.5), "repetition_penalty must be a positive number no less than 1.0"),
    ],
)
def test_a_string_with_status_200_is_an_error_and_not_asked_again(
    sampling: Sampling, words: str, pieces: Pieces
) -> None:
    model = fake()
    with serving(model) as url, pytest.raises(StepFailed, match=re.escape(words)) as caught:
        list(client(url, pieces=pieces).generate([Request("a", "Hi", sampling)]))
    assert "refused a call, status 200" in str(caught.value)
    assert len(model.calls) == 1
    no_threads()


def test_a_refusal_is_not_asked_again(pieces: Pieces) -> None:
    model = fake(always="400")
    with serving(model) as url, pytest.raises(StepFailed, match="refused a call, status 400: CUDA out of memory"):
        list(client(url, pieces=pieces).generate(requests(1)))
    assert len(model.calls) == 1


def test_a_row_that_is_refused_costs_no_other(pieces: Pieces) -> None:
    asked = requests(16, max_tokens=2)
    asked[5] = replace(asked[5], prompt=f"FORBIDDEN {asked[5].prompt}")
    model = fake(refuses="FORBIDDEN")
    with serving(model) as url:
        own = client(url, pieces=pieces)
        completions = by_id(own.generate(asked))
        scores = {s.id: s for s in own.score([ScoreRequest(r.id, r.prompt, " yes") for r in asked])}
    assert len(model.calls) <= 2 * (1 + 2 * 4), "asked again in halves"
    assert {name for name, each in completions.items() if not each.answered} == {"r5"}
    assert (completions["r5"].finish, completions["r5"].refused) == (Finish.REFUSED, "400 a prompt is refused")
    assert {name for name, each in scores.items() if each.refused} == {"r5"}


def test_when_every_row_is_refused_the_first_dozen_decide(pieces: Pieces) -> None:
    model = fake(always="400")
    with serving(model) as url, pytest.raises(StepFailed, match=r"refused a call.*none of 12 was answered"):
        list(client(url, pieces=pieces).generate(requests(64)))
    no_threads()


def test_too_few_sentences_are_an_error(pieces: Pieces) -> None:
    with serving(fake(always="short")) as url, pytest.raises(StepFailed, match="asked 3 prompts and was not answered"):
        list(client(url, pieces=pieces).generate(requests(3)))


@pytest.mark.parametrize("known", [True, False])
def test_an_answer_without_its_prompt_is_counted_and_never_guessed(known: bool, pieces: Pieces) -> None:
    with serving(fake(always="foreign")) as url, pytest.raises(StepFailed, match="1 of 3 answers do not") as caught:
        list(client(url, pieces=pieces if known else None).generate(requests(3)))
    told = str(caught.value)
    assert "the prompt goes on with '<extra_id_0>System" in told
    assert "where the answer has 'Something else altogether.'" in told
    assert ("is it the tokenizer of the model" if known else "give the model's tokenizer") in told


def test_the_client_checks_what_it_is_given(pieces: Pieces) -> None:
    for urls, batch, words in (
        ((), 8, "none is given"),
        (("host:5555",), 8, "is not the address of a server"),
        (("http://h:port",), 8, "is not the address of a server"),
        (("http://h:1",), 129, "takes 1 to 128"),
    ):
        with pytest.raises(SpecError, match=words):
            client(*urls, batch=batch)
    with pytest.raises(ValueError, match="no tokens"):
        list(client("http://h:1", pieces=pieces).generate([Request("a", "")]))


# Leaving early


def test_whoever_leaves_early_leaves_nothing_behind(pieces: Pieces) -> None:
    model = fake(seconds=1.0)
    with serving(model) as url:
        found = client(url, pieces=pieces, batch=8).generate(requests(80, max_tokens=2))
        next(found)
        start = time.monotonic()
        found.close()
        assert time.monotonic() - start < 0.8, "it does not wait for the call in flight"
        no_threads()
    assert len(model.calls) <= 3


def test_an_interrupt_in_the_consumer_ends_the_run(pieces: Pieces) -> None:
    model = fake(seconds=5.0)
    start = time.monotonic()
    with serving(model) as url:
        own = client(url, pieces=pieces)
        main = threading.main_thread().ident
        assert main is not None
        timer = threading.Timer(0.2, signal.pthread_kill, (main, signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            list(own.generate(requests(2)))
        timer.join()
        no_threads()
        assert time.monotonic() - start < 2
        model.seconds = 0


def test_closing_frees_whoever_waits(pieces: Pieces) -> None:
    model = fake(seconds=5.0)
    with serving(model) as url:
        own = client(url, pieces=pieces)
        timer = threading.Timer(0.2, own.close)
        timer.start()
        start = time.monotonic()
        with pytest.raises(StepFailed, match="the client was closed"):
            list(own.generate(requests(2)))
        assert time.monotonic() - start < 2
        timer.join()
        own.close()
        with pytest.raises(StepFailed, match="the client is closed"):
            list(own.generate(requests(2)))
    no_threads()


# Scores


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("bos", [True, False])
def test_scores_sum_over_the_continuation(known: bool, bos: bool, pieces: Pieces) -> None:
    texts = [(f"Question {n}? " * (n + 1) + "Answer:", f" the {n} way, of {n}.") for n in range(9)]
    asked = [ScoreRequest(str(n), prompt, rest) for n, (prompt, rest) in enumerate(texts)]
    asked.append(ScoreRequest("letter", "Which one? The answer is (", "B"))
    model = fake()
    with serving(model) as url:
        own = client(url, pieces=pieces if known else None, add_bos=bos, batch=4)
        found = {score.id: score for score in own.score(asked)}
    assert set(found) == {request.id for request in asked}
    for request in asked:
        whole, head = pieces.ids(request.prompt + request.continuation), pieces.ids(request.prompt)
        assert whole[: len(head)] == head, "these texts are cut at the border"
        rest = whole[len(head) :]
        assert found[request.id].tokens == len(rest)
        assert found[request.id].logprob == pytest.approx(sum(map(logprob_of, rest)))
    for call in model.calls:
        assert (call["tokens_to_generate"], call["greedy"], call["compute_logprob"]) == (1, True, True)


@pytest.mark.parametrize("known", [True, False])
def test_the_token_that_opens_a_text_is_asked_for_and_not_written_out(known: bool, pieces: Pieces) -> None:
    model = fake()
    asked = [Request("opened", "<s>[INST] Hi [/INST]", Sampling(max_tokens=4)), Request("bare", "Hi", Sampling(4))]
    scored = [ScoreRequest("opened", "<s>[INST] Hi [/INST]", " yes"), ScoreRequest("bare", "Hi", " yes")]
    with serving(model) as url:
        own = client(url, pieces=pieces if known else None)
        found = by_id(own.generate(asked))
        scores = {score.id: score.logprob for score in own.score(scored)}
    assert set(found) == set(scores) == {"opened", "bare"}
    sent = {(call["sentences"][0].split()[0], call["add_BOS"]) for call in model.calls}
    assert sent == {("[INST]", True), ("Hi", False)}


@pytest.mark.parametrize("known", [True, False])
def test_a_token_over_the_border_counts(known: bool, pieces: Pieces) -> None:
    whole = pieces.ids("I think the")
    joint = next(n for n in range(1, 11) if pieces.ids("I think the"[:n]) != whole[: pieces.count("I think the"[:n])])
    with serving(fake()) as url:
        own = client(url, pieces=pieces if known else None)
        request = ScoreRequest("a", "I think the"[:joint], "I think the"[joint:])
        [score] = own.score([request])
        [empty] = own.score([ScoreRequest("a", "I think", "")])
    assert score.tokens >= len(whole) - pieces.count(request.prompt) + 1
    assert score.logprob == pytest.approx(sum(map(logprob_of, whole[-score.tokens :])))
    assert (empty.logprob, empty.tokens) == (0, 0)


def test_long_texts_are_scored_a_few_at_a_time(pieces: Pieces, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cai.clients.nemo_generate._LOGPROBS", 100 * pieces.vocab)
    model = fake()
    asked = [ScoreRequest(str(n), "word " * (2 + n), "end") for n in range(24)]
    with serving(model) as url:
        assert len(list(client(url, pieces=pieces).score(asked))) == 24
    for call in model.calls:
        counts = pieces.counts(call["sentences"])
        assert len(counts) == 1 or max(counts) * len(counts) <= 100
    assert len(model.calls) > 3
