"""Generation and scoring in this process: the same request gives the same answer, whoever runs beside it."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from cai.clients.base import Completion, Finish, Request, Sampling, ScoreRequest
from cai.engines.embedded.engine import EmbeddedClient, EmbeddedEngine
from cai.engines.embedded.settings import (
    EmbeddedSettings,
    GenerationPrecision,
    Generator,
    _cpu_has_bfloat16,
    choose,
    describe,
    installed,
)
from cai.errors import PrerequisiteError
from tests.support.training import tiny_folder

TORCH = EmbeddedSettings(device="cpu", generator="transformers", generation_precision="float32", generation_batch=3)
ASKS = ["Hi", "What is the capital of France?", "How do I bake bread?", "Mix flour", "Is it safe?"]


def chat(ask: str) -> str:
    return f"<|im_start|>user\n{ask}<|im_end|>\n<|im_start|>assistant\n"


def requests(sampling: Sampling, asks: list[str] = ASKS) -> list[Request]:
    return [Request(ask, chat(ask), sampling, seed=10 + i) for i, ask in enumerate(asks)]


def answers(client: EmbeddedClient, asked: list[Request]) -> dict[str, Completion]:
    found = {done.id: done for done in client.generate(asked)}
    assert len(found) == len(asked)
    return found


@pytest.fixture(scope="module")
def tiny(tiny_model: Path):
    client = EmbeddedClient(tiny_model, TORCH)
    yield client
    client.close()


def test_greedy_equals_transformers_generate(tiny, tiny_model):
    import torch

    from cai.engines.embedded.models import encode, load_model, load_tokenizer

    tokenizer, model = load_tokenizer(tiny_model), load_model(tiny_model)
    found = answers(tiny, requests(Sampling(max_tokens=12, temperature=0)))
    for ask in ASKS:
        ids = torch.tensor(encode(tokenizer, [chat(ask)]))
        whole = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
        made = whole[0, ids.shape[1] :]
        assert found[ask].text == tokenizer.decode(made, skip_special_tokens=True)
        assert (found[ask].prompt_tokens, found[ask].tokens) == (ids.shape[1], len(made))


def test_repetition_penalty_equals_transformers_generate(tiny, tiny_model):
    import torch

    from cai.engines.embedded.models import encode, load_model, load_tokenizer

    tokenizer, model = load_tokenizer(tiny_model), load_model(tiny_model)
    found = answers(tiny, requests(Sampling(max_tokens=12, temperature=0, repetition_penalty=1.4)))
    ids = torch.tensor(encode(tokenizer, [chat(ASKS[1])]))
    mask = torch.ones_like(ids)
    whole = model.generate(ids, attention_mask=mask, max_new_tokens=12, do_sample=False, repetition_penalty=1.4)
    assert found[ASKS[1]].text == tokenizer.decode(whole[0, ids.shape[1] :], skip_special_tokens=True)
    assert found[ASKS[1]].text != answers(tiny, requests(Sampling(max_tokens=12, temperature=0)))[ASKS[1]].text


def test_a_row_depends_on_its_own_seed_alone(tiny):
    asked = requests(Sampling(max_tokens=16, temperature=1.5, top_p=0.9))
    together = answers(tiny, asked)
    assert answers(tiny, asked) == together
    assert answers(tiny, asked[::-1]) == together
    assert answers(tiny, asked[2:3])[asked[2].id] == together[asked[2].id]
    moved = answers(tiny, [replace(asked[0], seed=99), *asked[1:]])
    assert moved[asked[0].id].text != together[asked[0].id].text
    assert all(moved[request.id] == together[request.id] for request in asked[1:])


def test_a_shared_beginning_changes_nothing(tiny):
    shots = chat("What is the capital of France?") * 3
    asked = [Request(ask, shots + chat(ask), Sampling(max_tokens=10, temperature=0)) for ask in ASKS]
    together = answers(tiny, asked)
    assert all(answers(tiny, [request])[request.id] == together[request.id] for request in asked)


def test_top_k_of_one_is_greedy(tiny):
    greedy = answers(tiny, requests(Sampling(max_tokens=8, temperature=0)))
    assert answers(tiny, requests(Sampling(max_tokens=8, temperature=2.0, top_k=1))) == greedy


def test_draws_follow_the_distribution():
    import torch

    from cai.engines.embedded.drawing import draw

    probs = torch.tensor([0.5, 0.25, 0.15, 0.1])
    count = 4000
    for sampling, expected in (
        (Sampling(), probs),
        (Sampling(top_k=2), torch.tensor([2 / 3, 1 / 3, 0, 0])),
        (Sampling(top_p=0.8), torch.tensor([5 / 9, 2.5 / 9, 1.5 / 9, 0])),
        (Sampling(temperature=0.5), probs**2 / (probs**2).sum()),
    ):
        logits = probs.log().repeat(count, 1)
        tokens = torch.tensor(draw(logits, [sampling] * count, seeds=range(count), steps=[0] * count))
        shares = torch.bincount(tokens, minlength=4) / count
        assert torch.all((shares - expected).abs() < 0.03), (sampling, shares)
        assert torch.all(shares[expected == 0] == 0)


def test_min_tokens_hold_the_end_back():
    import torch

    from cai.engines.embedded.drawing import draw

    logits = torch.tensor([[0.0, 1.0, 5.0]])
    greedy = Sampling(temperature=0, min_tokens=2)
    assert draw(logits.clone(), [greedy], seeds=[0], steps=[1], ends=[2]) == [1]
    assert draw(logits.clone(), [greedy], seeds=[0], steps=[2], ends=[2]) == [2]


def test_a_stop_string_is_cut_and_told(tiny):
    whole = answers(tiny, requests(Sampling(max_tokens=20, temperature=0)))[ASKS[1]]
    stop = whole.text[5:8]
    before = whole.text[: whole.text.index(stop)]
    cut = answers(tiny, requests(Sampling(max_tokens=20, temperature=0, stop=(stop,))))[ASKS[1]]
    assert (cut.text, cut.finish) == (before, Finish.STOP)
    assert cut.tokens < whole.tokens


def test_the_limit_is_told(tiny):
    cut = answers(tiny, requests(Sampling(max_tokens=2, min_tokens=2, temperature=0)))[ASKS[0]]
    assert (cut.tokens, cut.finish) == (2, Finish.LENGTH)


def test_scores_equal_a_direct_computation(tiny, tiny_model):
    import torch

    from cai.engines.embedded.models import encode, load_model, load_tokenizer

    tokenizer, model = load_tokenizer(tiny_model), load_model(tiny_model)
    shots = chat("What is the capital of France?") * 2
    asked = [ScoreRequest(f"{i}{tail}", shots + chat(ask), tail) for i, ask in enumerate(ASKS) for tail in ("A", "B")]
    asked += [ScoreRequest("long", shots + chat("Hi"), "The capital of France is Paris."), ScoreRequest("no", "A", "")]
    found = {score.id: score for score in tiny.score(asked)}
    for request in asked:
        prompt, tail = encode(tokenizer, [request.prompt, request.continuation])
        with torch.inference_mode():
            logprobs = model(torch.tensor([prompt + tail])).logits[0].log_softmax(-1)
        expected = sum(float(logprobs[len(prompt) - 1 + i, token]) for i, token in enumerate(tail))
        assert found[request.id].logprob == pytest.approx(expected, abs=1e-3)
        assert found[request.id].tokens == len(tail)


def test_a_text_that_cannot_be_scored_is_its_rows_own_fate(tiny):
    good = ScoreRequest("good", chat("Hi"), "A")
    found = {
        score.id: score for score in tiny.score([ScoreRequest("x", "", "A"), good, ScoreRequest("y", "A " * 9000, "A")])
    }
    (alone,) = tiny.score([good])
    assert found["good"].logprob == pytest.approx(alone.logprob, abs=1e-5)
    assert {id: score.refused for id, score in found.items()} == {
        "x": "empty prompt",
        "good": "",
        "y": "prompt too long",
    }
    assert all(score.logprob != score.logprob for id, score in found.items() if id != "good")


def test_a_prompt_that_cannot_be_read_stops_no_other(tiny):
    greedy = Sampling(max_tokens=8, temperature=0)
    asked = [Request("x", "", greedy), Request("good", chat("Hi"), greedy), Request("y", "A " * 9000, greedy)]
    found = {completion.id: completion for completion in tiny.generate(asked)}
    (alone,) = tiny.generate([asked[1]])
    assert found["good"].text == alone.text
    assert {id: (each.finish, each.refused) for id, each in found.items()} == {
        "x": (Finish.REFUSED, "empty prompt"),
        "good": (alone.finish, ""),
        "y": (Finish.REFUSED, "prompt too long"),
    }


def test_small_batches_score_alike(tiny, tiny_model):
    asked = [ScoreRequest(ask, chat(ask), "Paris, I think") for ask in ASKS]
    small = EmbeddedClient(tiny_model, TORCH.model_copy(update={"scoring_batch_tokens": 256}))
    for one, other in zip(tiny.score(asked), small.score(asked), strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=1e-3)


def test_a_closed_client_can_be_asked_again(tiny_model):
    client = EmbeddedEngine(TORCH).session(None).client(tiny_model)
    asked = requests(Sampling(max_tokens=4, temperature=0))
    first = list(client.generate(asked))
    client.close()
    assert list(client.generate(asked)) == first
    client.close()


def test_what_will_be_used_is_told_without_torch():
    code = (
        "import sys; from cai.engines.embedded.settings import EmbeddedSettings, describe; "
        "describe(EmbeddedSettings(device='cpu')); assert not {'torch', 'transformers', 'openvino'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    told = describe(EmbeddedSettings(device="cpu", generator="transformers"))
    assert told["generator"] == f"transformers {installed('transformers')}"
    assert told["device"] == "cpu"


def test_openvino_on_cuda_is_refused():
    with pytest.raises(PrerequisiteError, match="generator=transformers"):
        choose(EmbeddedSettings(device="cuda", generator="openvino"))


OPENVINO = EmbeddedSettings(device="cpu", generator="openvino")
needs_openvino = pytest.mark.skipif(not installed("openvino-genai"), reason="openvino-genai is not installed")


@pytest.fixture(scope="module")
def smol(smollm2_folder: Path):
    client = EmbeddedClient(smollm2_folder, OPENVINO)
    yield client
    client.close()


@needs_openvino
@pytest.mark.long
def test_openvino_answers_a_list_alike_whatever_was_asked_before(smol):
    asked = requests(Sampling(max_tokens=24, temperature=1.0), [*ASKS, "Write a haiku about rain."])
    together = answers(smol, asked)
    few = answers(smol, asked[1:4])
    for request in asked[:2]:
        answers(smol, [request])
    assert answers(smol, asked) == together
    assert answers(smol, asked[1:4]) == few


@needs_openvino
@pytest.mark.long
@pytest.mark.skipif(
    not _cpu_has_bfloat16(),
    reason="without bfloat16 the kernels are chosen by the number of rows, so a row's last digits depend on it",
)
def test_openvino_rows_do_not_depend_on_neighbours(smol):
    asked = requests(Sampling(max_tokens=24, temperature=1.0), [*ASKS, "Write a haiku about rain."])
    together = answers(smol, asked)
    assert answers(smol, asked[1:4]) == {request.id: together[request.id] for request in asked[1:4]}
    for request in asked[:3]:
        assert answers(smol, [request])[request.id] == together[request.id]
    same_seed = answers(smol, [replace(asked[1], seed=1), replace(asked[1], id="twin", seed=1)])
    assert same_seed[asked[1].id].text == same_seed["twin"].text
    assert same_seed["twin"].text != answers(smol, [replace(asked[1], seed=2)])[asked[1].id].text


@needs_openvino
@pytest.mark.long
def test_openvino_answers_alike_in_another_process(smol, smollm2_folder):
    asked = requests(Sampling(max_tokens=16, temperature=1.0))
    here = answers(smol, asked)
    code = (
        "import sys, json; from pathlib import Path; from cai.clients.base import *; "
        "from cai.engines.embedded.engine import EmbeddedClient; "
        "from cai.engines.embedded.settings import EmbeddedSettings; "
        "client = EmbeddedClient(Path(sys.argv[1]), EmbeddedSettings(device='cpu', generator='openvino')); "
        "asked = [Request(i, p, Sampling(max_tokens=16, temperature=1.0), s) for i, p, s in json.loads(sys.argv[2])]; "
        "print(json.dumps({done.id: done.text for done in client.generate(asked)}))"
    )
    import json

    given = json.dumps([[request.id, request.prompt, request.seed] for request in asked])
    done = subprocess.run(
        [sys.executable, "-c", code, str(smollm2_folder), given], capture_output=True, text=True, env={**os.environ}
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {ask: found.text for ask, found in here.items()}


@needs_openvino
@pytest.mark.long
def test_openvino_earlier_requests_change_nothing(smol):
    shots = chat("What is the capital of France?") + "The capital of France is Paris.<|im_end|>\n" + chat("And Rome?")
    sampling = Sampling(max_tokens=12, temperature=1.0)
    asked = [Request(ask, shots * 3 + chat(ask), sampling, seed=i) for i, ask in enumerate(ASKS)]
    first = answers(smol, asked[:1])[asked[0].id]
    # What all of them begin with, asked for by itself: a cache of prefixes would keep it.
    answers(smol, [Request("beginning", shots * 3, Sampling(max_tokens=1))])
    together = answers(smol, asked)
    assert together[asked[0].id] == first
    assert answers(smol, asked[::-1]) == together


@needs_openvino
@pytest.mark.long
def test_openvino_stops_limits_and_survives_a_caller_who_leaves(smol):
    asked = requests(Sampling(max_tokens=40, temperature=0, stop=("<|im_end|>", "Paris")))
    found = answers(smol, asked)[ASKS[1]]
    assert (found.text, found.finish) == ("The capital of France is ", Finish.STOP)
    for _ in smol.generate(asked):
        break
    assert answers(smol, asked)[ASKS[1]] == found
    short = answers(smol, requests(Sampling(max_tokens=3, temperature=0)))[ASKS[2]]
    assert (short.tokens, short.finish) == (3, Finish.LENGTH)


@needs_openvino
@pytest.mark.long
def test_openvino_answers_of_no_tokens_are_answers(smol):
    """What the model says after a whole answer is that it ends."""
    whole = chat(ASKS[1]) + "The capital of France is Paris."
    asked = [Request("ends", whole, Sampling(max_tokens=8, temperature=0), 0), *requests(Sampling(max_tokens=4))]
    found = answers(smol, asked)
    assert (found["ends"].text, found["ends"].finish) == ("", Finish.STOP)
    assert found[ASKS[1]].text


@needs_openvino
@pytest.mark.long
def test_openvino_greedy_follows_transformers(smollm2_folder):
    """float32 against float32: only float16 weights and cache lie between; most answers agree to the last token."""
    exact = OPENVINO.model_copy(update={"generation_precision": GenerationPrecision.FLOAT32})
    asked = requests(Sampling(max_tokens=24, temperature=0), ASKS[:4])
    theirs = answers(EmbeddedClient(smollm2_folder, exact), asked)
    ours = answers(
        EmbeddedClient(smollm2_folder, exact.model_copy(update={"generator": Generator.TRANSFORMERS})), asked
    )
    assert sum(theirs[request.id] == ours[request.id] for request in asked) >= 3


def test_prompts_that_begin_alike_are_grouped_whatever_their_order():
    from cai.engines.embedded.models import prefix_groups

    one, other = list(range(100)), list(range(200, 300))
    prompts = [[*one, 1], [*other, 2], [*one, 3, 4], [7] * 10, [*other, 5], [*one, 6]]
    assert prefix_groups(prompts) == [[0, 2, 5], [1, 4], [3]]
    turned = prompts[::-1]
    assert sorted(sorted(map(tuple, (turned[i] for i in g))) for g in prefix_groups(turned)) == sorted(
        sorted(map(tuple, (prompts[i] for i in g))) for g in prefix_groups(prompts)
    )
    assert prefix_groups([]) == []


def test_sharing_a_beginning_changes_no_greedy_answer(tiny_model):
    few_shots = "Person: hello there. Assistant: hello! " * 12
    requests = [
        Request(f"{kind}{i}", f"{few_shots}{kind} request {i}: ", Sampling(max_tokens=8, temperature=0))
        for kind in ("first", "second")
        for i in range(4)
    ]
    settings = EmbeddedSettings(device="cpu", generator="transformers", generation_precision="float32")
    client = EmbeddedClient(tiny_model, settings)
    together = {c.id: c.text for c in client.generate(requests)}
    alone = {c.id: c.text for request in requests for c in client.generate([request])}
    assert together == alone


def test_streamed_pieces_join_to_the_whole_answer(tiny_model):
    from cai.terminal.chat import StreamingClient

    settings = EmbeddedSettings(device="cpu", generator="transformers", generation_precision="float32")
    client = EmbeddedClient(tiny_model, settings)
    assert isinstance(client, StreamingClient)
    request = Request("a", "What is", Sampling(max_tokens=12, temperature=1.0), seed=5)
    [whole] = client.generate([request])
    pieces, stream = [], client.stream(request)
    while True:
        try:
            pieces.append(next(stream))
        except StopIteration as end:
            done = end.value
            break
    assert "".join(pieces) == whole.text
    assert done == whole


@pytest.mark.parametrize("family", ["mistral", "qwen2", "qwen3"])
def test_a_family_that_openvino_cannot_read_is_answered_by_transformers(tmp_path, family):
    folder = tiny_folder(tmp_path, family)
    client = EmbeddedClient(folder, EmbeddedSettings(device="cpu"))
    assert client.name.startswith("transformers ")
    request = Request("r", "[user] hello [bot] ", Sampling(max_tokens=5, temperature=0.0), seed=1)
    [answer] = client.generate([request])
    assert 0 < answer.tokens <= 5
    with pytest.raises(PrerequisiteError, match=f"has no '{family}'"):
        list(EmbeddedClient(folder, EmbeddedSettings(device="cpu", generator="openvino")).generate([request]))
