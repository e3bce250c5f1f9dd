"""Our ``/generate`` client against NeMo's own MegatronServer, with a real (random, tiny) model behind it on the CPU."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import httpx
import pytest

from cai.clients.base import Finish, Request, Sampling, ScoreRequest
from cai.clients.nemo_generate import NemoGenerateClient
from cai.data.nemo_tokens import Pieces, open_tokenizer
from tests.lab.building import built_server
from tests.lab.planned import planned
from tests.lab.validated import Validated

PROMPTS = (
    "<extra_id_0>System\n\n<extra_id_1>User\nHow do I bake bread?\n<extra_id_1>Assistant\n",
    "<extra_id_0>System\n\n<extra_id_1>User\nWhat is it?\n<extra_id_1>Assistant\nIt is\n<extra_id_1>User\nNo.\n"
    "<extra_id_1>Assistant\n",
    "Hot",
)


@pytest.fixture(scope="module")
def server(converted: Path, configs: dict[str, Path]) -> Iterator[str]:
    """The address of a server of the planned command's model."""
    with pytest.MonkeyPatch.context() as patch:
        _without_cuda(patch)
        import torch
        from megatron.core import parallel_state, tensor_parallel

        command = planned("mistral_rl_cai")["respond.server.helpful"]
        made = built_server(configs[command.config], command, converted)
        torch.distributed.init_process_group("gloo", rank=0, world_size=1, store=torch.distributed.HashStore())
        parallel_state.destroy_model_parallel()
        parallel_state.initialize_model_parallel(1, 1)
        patch.setattr(tensor_parallel.random.CudaRNGStatesTracker, "fork", lambda self, name="": nullcontext())
        made.model.freeze()
        port = _free_port()
        from nemo.collections.nlp.modules.common import text_generation_strategy, text_generation_utils
        from nemo.collections.nlp.modules.common.text_generation_server import MegatronServer

        # Upstream chooses among strategies of models whose modules need Transformer Engine; for GPT it is this one.
        strategy = text_generation_strategy.GPTModelTextGenerationStrategy
        choose = "model_inference_strategy_dispatcher"
        patch.setattr(text_generation_utils, choose, lambda model, **options: strategy(model))

        thread = threading.Thread(
            target=MegatronServer(made.model).run, args=("127.0.0.1",), kwargs={"port": port}, daemon=True
        )
        thread.start()
        _wait(port)
        yield f"http://127.0.0.1:{port}"
        torch.distributed.destroy_process_group()


def _without_cuda(patch: pytest.MonkeyPatch) -> None:
    """Upstream moves tensors to a GPU by hand; here they stay where they are."""
    import torch

    patch.setattr(torch.Tensor, "cuda", lambda self, *a, **k: self)
    patch.setattr(torch.nn.Module, "cuda", lambda self, *a, **k: self)
    patch.setattr(torch.cuda, "current_device", lambda: torch.device("cpu"))
    for name in ("arange", "empty", "full", "ones", "tensor", "zeros"):
        patch.setattr(torch, name, _on_the_cpu(getattr(torch, name)))
    for name in ("LongTensor", "FloatTensor", "ByteTensor"):
        patch.setattr(torch.cuda, name, getattr(torch, name), raising=False)


def _on_the_cpu(make: Callable[..., Any]) -> Callable[..., Any]:
    def made(*values: Any, device: Any = None, **options: Any) -> Any:
        return make(*values, device="cpu" if "cuda" in str(device) else device, **options)

    return made


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(port: int) -> None:
    for _ in range(200):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise AssertionError("the server never opened its port")


@pytest.fixture(scope="module")
def pieces(converted: Path) -> Pieces:
    return open_tokenizer(converted)


def ask(server: str, pieces: Pieces, **sampling: Any) -> dict[str, Any]:
    """Every prompt's completion by its number."""
    client = NemoGenerateClient([server], pieces)
    requests = [Request(str(i), text, Sampling(**sampling), seed=i) for i, text in enumerate(PROMPTS)]
    made = {completion.id: completion for completion in client.generate(requests)}
    client.close()
    return made


def put(server: str, **body: Any) -> Any:
    return httpx.put(f"{server}/generate", json=body, timeout=120, trust_env=False).json()


def test_every_prompt_gets_its_own_budget(server: str, pieces: Pieces, validated: Validated) -> None:
    made = ask(server, pieces, max_tokens=6, temperature=0.0)
    assert [made[str(i)].tokens for i in range(3)] == [6, 6, 6]
    assert {completion.finish for completion in made.values()} == {Finish.LENGTH}
    assert [made[str(i)].prompt_tokens for i in range(3)] == pieces.counts(PROMPTS)
    validated.lines.append("MegatronServer and our client: budgets, ends, penalties, log-probabilities")


def test_the_answer_is_what_follows_the_prompt(server: str, pieces: Pieces) -> None:
    made = ask(server, pieces, max_tokens=6, temperature=0.0)
    body = {"tokens_to_generate": 6, "greedy": True, "end_strings": ["<|endoftext|>"]}
    for i, text in enumerate(PROMPTS):
        told = put(server, sentences=[text], **body)
        ids = told["token_ids"][0][len(pieces.ids(text)) :][:6]
        assert pieces.ids(text) == told["token_ids"][0][: len(pieces.ids(text))]
        # A last character whose bytes are cut by the budget is left out.
        assert made[str(i)].text.split() == pieces.text(ids).rstrip("\ufffd").split()


def test_an_end_string_ends_an_answer(server: str, pieces: Pieces) -> None:
    whole = ask(server, pieces, max_tokens=24, temperature=1.0)
    letter = next(c for c in whole["0"].text if c.isalpha())
    cut = ask(server, pieces, max_tokens=24, temperature=1.0, stop=(letter,))
    assert all(letter not in completion.text for completion in cut.values())


def test_greedy_with_a_penalty_is_not_what_upstream_calls_greedy(server: str, pieces: Pieces) -> None:
    """Upstream ignores the penalty when greedy; the client asks for top_k 1, under which it counts."""
    body = {"sentences": [PROMPTS[0]], "tokens_to_generate": 24, "end_strings": ["<|endoftext|>"]}
    plain, ignored = (put(server, greedy=True, repetition_penalty=p, **body)["token_ids"] for p in (1.0, 5.0))
    assert plain == ignored
    free, penalised = (ask(server, pieces, max_tokens=24, temperature=0.0, repetition_penalty=p) for p in (1.0, 5.0))
    assert free["0"].text != penalised["0"].text


def test_log_probabilities_are_the_models_own(server: str, pieces: Pieces) -> None:
    client = NemoGenerateClient([server], pieces)
    wanted = [ScoreRequest(str(i), PROMPTS[0], text) for i, text in enumerate(("Yes", "No, it is not."))]
    scores = {score.id: score for score in client.score(wanted)}
    client.close()
    told = put(
        server,
        sentences=[PROMPTS[0] + "Yes"],
        tokens_to_generate=1,
        greedy=True,
        compute_logprob=True,
        end_strings=["<|endoftext|>"],
    )
    whole, start = len(pieces.ids(PROMPTS[0] + "Yes")), len(pieces.ids(PROMPTS[0]))
    expected = sum(told["logprob"][0][start - 1 : whole - 1])
    assert scores["0"].logprob == pytest.approx(expected, abs=0.05)
    assert scores["1"].tokens > scores["0"].tokens
    assert all(score.logprob < 0 for score in scores.values())


def test_what_upstream_answers_to_a_wrong_call(server: str) -> None:
    assert put(server, sentences=["a"] * 129) == "Maximum number of sentences is 128"
    assert "temperature must be" in put(server, sentences=["a"], temperature=0.0)
    assert put(server, sentences=["a"], end_strings="</s>") == "expect end_strings to be a list of strings"
