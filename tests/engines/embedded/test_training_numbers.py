"""The arithmetic of training against plain formulas and against transformers' own forward."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from cai.chat import Span
from cai.engines.embedded.batches import Branches, batches_of, pack
from cai.engines.embedded.functions import gated, normed, rotated, token_entropies, token_logprobs, token_statistics
from cai.engines.embedded.lower import LowerStates
from cai.engines.embedded.models import load_tokenizer
from cai.engines.embedded.optim import rate_factor
from cai.engines.embedded.sft import Example, tokenized
from cai.engines.embedded.trunk import Trunk
from cai.engines.methods.base import Lora, Precision, Schedule, TrainText
from tests.support.training import tiny_folder

ROWS = [(5, 6, 7, 2, 8, 9), (2, 2, 10), (11, 12, 13, 14)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("tiny"))


def trunk_of(folder: Path, lora: Lora | None = None) -> Trunk:
    trunk = Trunk(folder, Precision.FLOAT32, "cpu")
    if lora is not None:
        trunk.adapt(lora, seed=3)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for tensor in trunk.parameters().values():
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.1)
        trunk.refresh()
    return trunk


def plain_logits(folder: Path, ids: tuple[int, ...]) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0]


@pytest.mark.parametrize(
    ("family", "changes"),
    [("llama", {}), ("llama", {"tie_word_embeddings": False}), ("mistral", {}), ("qwen2", {}), ("qwen3", {})],
)
def test_the_trunk_equals_transformers(tmp_path: Path, family: str, changes: dict[str, bool]) -> None:
    folder = tiny_folder(tmp_path, family, **changes)
    trunk = trunk_of(folder)
    with torch.no_grad():
        logits = trunk(pack([Branches((), (ids,)) for ids in ROWS])) @ trunk.head.t()
    expected = torch.cat([plain_logits(folder, ids) for ids in ROWS])
    torch.testing.assert_close(logits, expected, atol=2e-5, rtol=1e-4)


def test_a_shared_beginning_is_computed_once_and_changes_nothing(folder: Path) -> None:
    trunk = trunk_of(folder)
    batch = pack([Branches((5, 6, 7), ((8, 9), (10, 2, 2, 11))), Branches((), ((12, 13),))])
    assert batch.tokens == 3 + 2 + 4 + 2
    with torch.no_grad():
        finals = trunk(batch)[batch.last_B] @ trunk.head.t()
    rows = [(5, 6, 7, 8, 9), (5, 6, 7, 10, 2, 2, 11), (12, 13)]
    torch.testing.assert_close(finals, torch.stack([plain_logits(folder, r)[-1] for r in rows]), atol=2e-5, rtol=1e-4)


def test_gradients_flow_through_a_shared_beginning_as_through_copies(folder: Path) -> None:
    found = []
    for examples in (
        [Branches((5, 6, 7), ((8, 9), (10, 11, 12)))],
        [Branches((), ((5, 6, 7, 8, 9),)), Branches((), ((5, 6, 7, 10, 11, 12),))],
    ):
        trunk = trunk_of(folder, Lora(rank=2))
        batch = pack(examples)
        trunk(batch)[batch.last_B].square().sum().backward()
        found.append([p.grad for p in trunk.parameters().values()])
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, atol=1e-4, rtol=1e-4)


def test_what_stands_in_other_rows_and_in_padding_changes_nothing(folder: Path) -> None:
    trunk = trunk_of(folder)
    with torch.no_grad():
        alone = trunk(pack([Branches((), (ROWS[1],))]))
        among = trunk(pack([Branches((), (ids,)) for ids in ROWS]))[len(ROWS[0]) : len(ROWS[0]) + len(ROWS[1])]
    torch.testing.assert_close(alone, among, atol=1e-5, rtol=1e-4)


def test_the_fused_kernel_for_long_rows_agrees(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trunk = trunk_of(folder)
    batch = pack([Branches((), (ids,)) for ids in ROWS])
    with torch.no_grad():
        short = trunk(batch)
        monkeypatch.setattr("cai.engines.embedded.trunk._SHORT", 0)
        torch.testing.assert_close(trunk(batch), short, atol=1e-5, rtol=1e-4)


def test_loss_at_positions_equals_loss_from_all_logits() -> None:
    torch.manual_seed(0)
    states = torch.randn(300, 16, requires_grad=True)
    head, targets, weights = torch.randn(50, 16), torch.randint(0, 50, (300,)), torch.rand(300)
    (token_logprobs(states, head, targets, 0.7) * weights).sum().backward()
    again = states.detach().clone().requires_grad_()
    logs = functional.log_softmax(again @ head.t() / 0.7, dim=-1).gather(1, targets[:, None])[:, 0]
    (logs * weights).sum().backward()
    torch.testing.assert_close(token_logprobs(states, head, targets, 0.7), logs)
    torch.testing.assert_close(states.grad, again.grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("trained_head", [False, True])
def test_the_gradient_of_a_token_that_is_almost_sure_keeps_its_digits(trained_head: bool) -> None:
    """With p near 1 the gradient is little of the embeddings: a difference of two rounded vectors would lose it."""
    torch.manual_seed(0)
    head = torch.randn(50, 16).bfloat16()
    direction = head[7].float() / head[7].float().norm() ** 2
    states = (direction[None] * 20.0).bfloat16().requires_grad_()
    targets = torch.tensor([7])
    master = head.float().requires_grad_() if trained_head else None
    token_logprobs(states, head, targets, master=master).sum().backward()
    exact = states.detach().double().requires_grad_()
    logs = functional.log_softmax(exact @ head.double().t(), dim=-1)
    assert float(logs.detach()[0, 7].exp()) > 0.999
    logs[0, 7].backward()
    error = (states.grad.double() - exact.grad).norm() / exact.grad.norm()
    assert float(error) < 0.1, "what rounding the logits to bfloat16 does, and no more"


def test_a_trained_head_gets_its_gradient() -> None:
    torch.manual_seed(0)
    states, targets = torch.randn(9, 8, requires_grad=True), torch.randint(0, 20, (9,))
    master = torch.randn(20, 8, requires_grad=True)
    token_logprobs(states, master.detach(), targets, master=master).sum().backward()
    s, m = states.detach().clone().requires_grad_(), master.detach().clone().requires_grad_()
    functional.log_softmax(s @ m.t(), dim=-1).gather(1, targets[:, None]).sum().backward()
    torch.testing.assert_close(states.grad, s.grad)
    torch.testing.assert_close(master.grad, m.grad)


def test_statistics_are_bit_for_bit_the_training_logprobs() -> None:
    torch.manual_seed(0)
    states, head, targets = torch.randn(200, 16), torch.randn(40, 16), torch.randint(0, 40, (200,))
    logprobs, entropies = token_statistics(states, head, targets, 0.9)
    assert torch.equal(logprobs, token_logprobs(states, head, targets, 0.9))
    torch.testing.assert_close(entropies, token_entropies(states, head, 0.9))
    p = torch.softmax(states @ head.t() / 0.9, -1)
    torch.testing.assert_close(entropies, torch.special.entr(p).sum(-1))


def test_written_gradients_are_right() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 6, dtype=torch.float32, requires_grad=True)
    weight = torch.rand(6)
    upstream = torch.randn(4, 6)
    for ours, plain in (
        (lambda v: normed(v, weight, 1e-5, torch.float32), lambda v: functional.rms_norm(v, (6,), weight, 1e-5)),
        (
            lambda v: torch.cat((gated(v), gated(v * 2)), dim=1),
            lambda v: torch.cat(
                (functional.silu(v[:, :3]) * v[:, 3:], functional.silu(v[:, :3] * 2) * v[:, 3:] * 2), dim=1
            ),
        ),
    ):
        (one,) = torch.autograd.grad(ours(x), x, upstream)
        (two,) = torch.autograd.grad(plain(x), x, upstream)
        torch.testing.assert_close(ours(x), plain(x))
        torch.testing.assert_close(one, two, atol=1e-6, rtol=1e-5)
    y = torch.randn(3, 2, 4, dtype=torch.float32, requires_grad=True)
    angle = torch.rand(3, 1, 2)
    assert torch.autograd.gradcheck(
        lambda v: rotated(v, angle.double().cos(), angle.double().sin(), 1), y.detach().double().requires_grad_()
    )


def test_merged_weights_equal_the_adapters_forward(folder: Path, tmp_path: Path) -> None:
    trunk = trunk_of(
        folder, Lora(rank=4, alpha=6.0, last_layers=2, targets=("q_proj", "v_proj", "down_proj", "up_proj"))
    )
    batch = pack([Branches((), (ids,)) for ids in ROWS])
    trunk.save(tmp_path / "merged")
    with torch.no_grad():
        adapted, start = trunk(batch), trunk.above(trunk.below(batch), batch, adapted=False)
        merged = trunk_of(tmp_path / "merged")(batch)
        torch.testing.assert_close(start, trunk_of(folder)(batch), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(adapted, merged, atol=1e-5, rtol=1e-4)
    assert (adapted - start).abs().max() > 0.01
    before, after = (load_file(f / "model.safetensors") for f in (folder, tmp_path / "merged"))
    assert torch.equal(
        before["model.layers.0.self_attn.q_proj.weight"], after["model.layers.0.self_attn.q_proj.weight"]
    )


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_adapter_gradients_equal_plain_autograd(folder: Path, dropout: float) -> None:
    trunk = trunk_of(folder, Lora(rank=3, dropout=dropout))
    group = trunk.layers[0].groups["qkv"]
    x = torch.randn(5, 32, requires_grad=True)
    upstream = torch.randn(5, sum(group.sizes))
    inputs = (x, *group.parameters().values())
    ours = torch.autograd.grad(group(x, True, torch.Generator().manual_seed(9)), inputs, upstream)
    mask = 1.0
    if dropout:
        mask = (torch.rand(x.shape, generator=torch.Generator().manual_seed(9)) >= dropout) / (1 - dropout)
    low = [functional.linear(functional.linear(x * mask, a.a), a.b) * group.scale for a in group.adapters]
    plain = torch.autograd.grad(x @ group.weight.t() + torch.cat(low, 1), inputs, upstream)
    for one, two in zip(ours, plain, strict=True):
        torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-4)


def test_kept_lower_states_give_the_same_gradients(folder: Path) -> None:
    examples = [Branches((), (ids,)) for ids in ROWS]
    found = []
    for budget in (0, 1 << 30):
        trunk = trunk_of(folder, Lora(rank=2, last_layers=1))
        lower = LowerStates(trunk, examples, passes=2, budget=budget)
        assert lower.keeps == bool(budget)
        for order in ((2, 0, 1), (1, 2, 0)):
            batch = pack([examples[i] for i in order])
            trunk.above(lower(order, batch), batch).square().sum().backward()
        found.append([p.grad for p in trunk.parameters().values()])
    assert len(found[0]) == 14
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, atol=1e-4, rtol=1e-4)


def test_training_everything_gives_the_gradients_of_transformers(folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    trunk = trunk_of(folder)
    trunk.train_all()
    trunk.refresh()
    ids = ROWS[0]
    states = trunk(pack([Branches((), (ids[:-1],))]))
    token_logprobs(states, trunk.head, torch.tensor(ids[1:]), master=trunk.head_master).mean().neg().backward()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    # transformers takes the end token for padding where both share an id, and would not train its embedding.
    model.model.embed_tokens.padding_idx = None
    model(torch.tensor([ids]), labels=torch.tensor([ids])).loss.backward()
    plain = {n.removesuffix(".weight"): p.grad for n, p in model.named_parameters()}
    for name, tensor in trunk.parameters().items():
        expected = torch.cat([plain[n.removesuffix(".weight")] for n in name.split("|")])
        torch.testing.assert_close(tensor.grad, expected, atol=1e-4, rtol=1e-3)


def test_loss_tokens_are_those_that_start_in_a_loss_span(folder: Path) -> None:
    spans = (Span("[user] hello [bot] ", False), Span("yes thanks </s>", True), Span(" no", False), Span(" red", True))
    ids, loss = tokenized(load_tokenizer(folder), TrainText("x", spans))
    assert loss == [False, False, False, True, True, True, False, True]
    example = Example("x", ids, loss)
    assert example.targets == [ids[3], ids[4], ids[5], ids[7]]
    assert example.state_positions == [2, 3, 4, 6]
    assert example.branches.ends == (tuple(ids[:7]),)


def test_every_example_is_in_every_epoch_once() -> None:
    batches = batches_of([f"r{i}" for i in range(11)], 4, 2.0, seed=5)
    assert [len(b) for b in batches] == [4, 4, 3, 4, 4, 3]
    for epoch in (batches[:3], batches[3:]):
        assert sorted(i for batch in epoch for i in batch) == list(range(11))
    assert batches[:3] != batches[3:]
    assert batches_of([f"r{i}" for i in range(11)], 4, 1.3, seed=5) == batches[:4]
    assert len(batches_of(["a"], 4, 0.1, seed=5)) == 1


def test_learning_rate_warms_up_and_decays() -> None:
    linear = [rate_factor(s, 10, Schedule.LINEAR, 0.2) for s in range(10)]
    assert linear[0] == pytest.approx(1 / 3)
    assert linear[2] == 1.0
    assert linear[-1] == pytest.approx(1 / 8)
    assert rate_factor(6, 10, Schedule.COSINE, 0.2) == pytest.approx(0.5)
    assert rate_factor(9, 10, Schedule.CONSTANT, 0.0) == 1.0
    assert math.isclose(sum(rate_factor(s, 4, Schedule.CONSTANT, 0.0) for s in range(4)), 4.0)
