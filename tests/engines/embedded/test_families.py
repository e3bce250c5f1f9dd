"""Every family of models that is trained here, by its properties, judged by transformers and TRL.

For each: random tiny weights, ragged batches, float32. Logits, token log-probabilities, the losses and gradients of
SFT, reward, DPO and a PPO step, and what transformers reads of a saved folder, are equal to 1e-5.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from cai.chat import Span
from cai.clients.base import Sampling
from cai.engines.embedded.batches import Branches, pack
from cai.engines.embedded.dpo import answer_logprobs, dpo_loss, laid_out, reference_logprobs
from cai.engines.embedded.dpo import pairs_of as preference_pairs
from cai.engines.embedded.functions import token_logprobs
from cai.engines.embedded.models import load_tokenizer
from cai.engines.embedded.ppo_update import VALUE_GRADIENT, Critic, OldPolicyView, cut_microbatches, learn
from cai.engines.embedded.reward import pair_loss, pairs_of, rewards_of
from cai.engines.embedded.reward_head import RewardHead, free_padding
from cai.engines.embedded.rollouts import EndRules, RolloutPrompt, sample
from cai.engines.embedded.sft import examples_of
from cai.engines.embedded.sft import packed as packed_examples
from cai.engines.embedded.trunk import Trunk
from cai.engines.methods.base import Precision, TrainText
from cai.engines.methods.ppo import RlSettings
from cai.models.families import FAMILIES
from tests.support.training import comparisons, tiny_folder

TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}
ROWS = [(5, 6, 7, 2, 8, 9, 14, 21, 3), (2, 2, 10), (11, 12, 13, 14, 4, 20)]
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
    "rope_theta": 500.0,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 10000.0}


@dataclass(frozen=True)
class FamilyCase:
    """A model of a family that has a property, by the fields of its configuration that give it."""

    family: str
    has: str
    changes: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.family}: {self.has}"


CASES = [
    FamilyCase("llama", "tied embeddings"),
    FamilyCase("llama", "a head of its own", {"tie_word_embeddings": False}),
    FamilyCase("llama", "biases", {"attention_bias": True, "mlp_bias": True}),
    FamilyCase("llama", "no grouped heads", {"num_key_value_heads": 4}),
    FamilyCase("llama", "one key and value head", {"num_key_value_heads": 1}),
    FamilyCase("llama", "heads wider than the model", {"head_dim": 16}),
    FamilyCase("llama", "rope scaling: llama3", {"rope_parameters": LLAMA3}),
    FamilyCase(
        "llama",
        "rope scaling: linear",
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}},
    ),
    FamilyCase("llama", "rope scaling: yarn", {"rope_parameters": YARN}),
    FamilyCase("mistral", "tied embeddings", {"sliding_window": None}),
    FamilyCase("mistral", "a head of its own", {"tie_word_embeddings": False, "sliding_window": None}),
    FamilyCase("mistral", "a sliding window", {"tie_word_embeddings": False, "sliding_window": 4}),
    FamilyCase("qwen2", "tied embeddings, biases"),
    FamilyCase("qwen2", "a head of its own", {"tie_word_embeddings": False}),
    FamilyCase("qwen2", "rope scaling: yarn", {"rope_parameters": YARN}),
    FamilyCase("qwen2", "a sliding window", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}),
    FamilyCase("qwen3", "tied embeddings, norms of heads"),
    FamilyCase("qwen3", "a head of its own, biases", {"tie_word_embeddings": False, "attention_bias": True}),
    FamilyCase("qwen3", "rope scaling: yarn", {"rope_parameters": YARN}),
    FamilyCase("qwen3", "a sliding window", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}),
]


@pytest.fixture(scope="module", params=CASES, ids=str)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    case: FamilyCase = request.param
    return tiny_folder(tmp_path_factory.mktemp(case.family), case.family, **case.changes)


def theirs(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    # transformers takes the end token for padding where both share an id, and would not train its embedding.
    model.model.embed_tokens.padding_idx = None
    return model


def trained_whole(folder: Path, head: bool = True) -> Trunk:
    trunk = Trunk(folder, Precision.FLOAT32, "cpu")
    trunk.train_all(head)
    trunk.refresh()
    return trunk


def ragged(rows: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """Rows padded on the right, as transformers takes them."""
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return {"input_ids": ids, "attention_mask": mask}


def assert_gradients_agree(ours: dict[str, Tensor], model: Any) -> None:
    """Every parameter that transformers' model trains is trained here, with the same gradient."""
    plain = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    named: dict[str, Tensor] = {}
    for name, tensor in ours.items():
        stacked, _, kind = name.rpartition(".") if name.endswith((".bias", ".weight")) else (name, "", "weight")
        parts = [f"{part}.{kind}" for part in stacked.split("|")]
        assert tensor.grad is not None, name
        pieces = tensor.grad.split([plain[part].shape[0] for part in parts])
        named |= dict(zip(parts, pieces, strict=True))
    assert named.keys() == plain.keys()
    scale = max(1.0, *(float(gradient.abs().max()) for gradient in plain.values()))
    for name, gradient in named.items():
        assert torch.allclose(gradient / scale, plain[name] / scale, **TOLERANCE), name


def token_logprobs_of(logits: Tensor, rows: Sequence[Sequence[int]], temperature: float = 1.0) -> list[Tensor]:
    """log p of each row's tokens but the first, from padded logits."""
    logs = functional.log_softmax(logits / temperature, dim=-1)
    return [logs[i, : len(row) - 1].gather(1, torch.tensor(row[1:])[:, None])[:, 0] for i, row in enumerate(rows)]


def test_logits_and_log_probabilities(folder: Path) -> None:
    trunk, model = Trunk(folder, Precision.FLOAT32, "cpu"), theirs(folder)
    with torch.no_grad():
        states = trunk(pack([Branches((), (ids,)) for ids in ROWS]))
        logits = model(**ragged(ROWS)).logits
        expected = torch.cat([logits[i, : len(row)] for i, row in enumerate(ROWS)])
        torch.testing.assert_close(states @ trunk.head.t(), expected, **TOLERANCE)
        before = [start + t for start, row in zip((0, 9, 12), ROWS, strict=True) for t in range(len(row) - 1)]
        targets = torch.tensor([token for row in ROWS for token in row[1:]])
        ours = token_logprobs(states[before], trunk.head, targets)
        torch.testing.assert_close(ours, torch.cat(token_logprobs_of(logits, ROWS)), **TOLERANCE)


def test_the_loss_and_gradients_of_sft(folder: Path) -> None:
    trunk, model = trained_whole(folder), theirs(folder)
    batch = pack([Branches((), (row[:-1],)) for row in ROWS])
    targets = torch.tensor([token for row in ROWS for token in row[1:]])
    loss = -token_logprobs(trunk(batch), trunk.head, targets, master=trunk.head_master).mean()
    loss.backward()
    padded = ragged(ROWS)
    expected = model(**padded, labels=padded["input_ids"].masked_fill(padded["attention_mask"] == 0, -100)).loss
    expected.backward()
    torch.testing.assert_close(loss, expected, **TOLERANCE)
    assert_gradients_agree(trunk.parameters(), model)


def test_the_loss_and_gradients_of_reward(folder: Path, tmp_path: Path) -> None:
    """The judge is transformers' own sequence classification, reading the folder that a reward training writes."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    texts = comparisons(5)
    tokenizer = load_tokenizer(folder)
    trunk = trained_whole(folder, head=False)
    pairs = pairs_of(tokenizer, texts, 64, Counter())
    head = (torch.randn(trunk.hidden, generator=torch.Generator().manual_seed(4)) * 0.2).requires_grad_()
    batch = pack([pair.branches for pair in pairs])
    rewards = rewards_of(trunk(batch), batch, head).view(-1, 2)
    loss = pair_loss(rewards, torch.ones(len(pairs)), 0.0) / len(pairs)
    loss.backward()
    trunk.save(tmp_path, RewardHead(head, free_padding(tokenizer, {2})))

    model = AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.float32)
    model.model.embed_tokens.padding_idx = None
    theirs_tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert theirs_tokenizer.pad_token_id == model.config.pad_token_id != 2
    both = [text.prompt + answer for text in texts for answer in (text.chosen, text.rejected)]
    scored = model(**theirs_tokenizer(both, return_tensors="pt", padding=True)).logits.view(-1, 2)
    expected = -functional.logsigmoid(scored[:, 0] - scored[:, 1]).mean()
    expected.backward()
    torch.testing.assert_close(rewards, scored, **TOLERANCE)
    torch.testing.assert_close(loss, expected, **TOLERANCE)
    torch.testing.assert_close(head.grad, model.score.weight.grad[0], **TOLERANCE)
    model.score.weight.grad = None
    assert_gradients_agree(trunk.parameters(), model)


def test_the_loss_and_gradients_of_dpo(folder: Path, tmp_path: Path) -> None:
    """Against the plain formula on transformers' model; TRL's trainer itself judges in test_dpo.py and below."""
    texts = comparisons(4)
    reference_folder = tmp_path / "reference"
    noisy = Trunk(folder, Precision.FLOAT32, "cpu")
    noisy.norm.mul_(1.1)
    noisy.all_trained = True
    noisy.save(reference_folder)
    pairs = preference_pairs(load_tokenizer(folder), texts, 64, Counter())
    constants = reference_logprobs(Trunk(reference_folder, Precision.FLOAT32, "cpu"), pairs, "cpu")
    trunk, model, frozen = trained_whole(folder), theirs(folder), theirs(reference_folder)
    answers = laid_out(pairs, "cpu")
    logprobs = answer_logprobs(trunk, trunk(answers.batch), answers)
    loss = dpo_loss(0.3 * (logprobs - constants), torch.ones(len(pairs))) / len(pairs)
    loss.backward()

    rows = [[*pair.branches.shared, *answer] for pair in pairs for answer in pair.answers]
    lengths = [len(answer) for pair in pairs for answer in pair.answers]

    def sums(judge: Any) -> Tensor:
        logs = token_logprobs_of(judge(**ragged(rows)).logits, rows)
        return torch.stack([log[-n:].sum() for log, n in zip(logs, lengths, strict=True)]).view(-1, 2)

    with torch.no_grad():
        expected_constants = sums(frozen)
    torch.testing.assert_close(constants, expected_constants, **TOLERANCE)
    ratios = 0.3 * (sums(model) - expected_constants)
    expected = -functional.logsigmoid(ratios[:, 0] - ratios[:, 1]).mean()
    expected.backward()
    torch.testing.assert_close(loss, expected, **TOLERANCE)
    assert_gradients_agree(trunk.parameters(), model)


class Gradients:
    """Stands in the place of the optimizer: the gradients stay."""

    def step(self) -> float:
        return 0.0


def test_the_loss_and_gradients_of_a_ppo_step(folder: Path) -> None:
    settings = RlSettings(rollouts=3, batch_size=3, micro_batch_size=2, ppo_epochs=1, temperature=0.7, lora=None)
    prompts, answers = [(5, 6, 7), (8, 9), (10, 11, 12, 13)], [(14, 15, 2), (16, 17, 18, 19, 20, 2), (21,)]
    generator = torch.Generator().manual_seed(2)
    noise, advantages, returns, old_values = (torch.randn((3, 6), generator=generator) for _ in range(4))
    trunk, model = trained_whole(folder), theirs(folder)
    rows = [[*p, *a] for p, a in zip(prompts, answers, strict=True)]
    hidden = model.model(**ragged(rows)).last_hidden_state
    logs = token_logprobs_of(model.lm_head(hidden), rows, settings.temperature)
    old = 0.3 * noise
    for i, answer in enumerate(answers):
        old[i, : len(answer)] += logs[i][-len(answer) :].detach()
    weight = (torch.randn(trunk.hidden, generator=generator) * 0.2).requires_grad_()
    bias = torch.zeros((), requires_grad=True)
    view = OldPolicyView(old, old, old_values, old, torch.ones((3, 6), dtype=torch.bool))
    told = learn(
        trunk,
        Critic(weight, bias, None),
        Gradients(),  # type: ignore[arg-type]
        cut_microbatches(prompts, answers, settings, "cpu"),
        old_policy=view,
        advantages_BT=advantages,
        returns_BT=returns,
        settings=settings,
        seed=0,
        iteration=0,
    )

    their_weight = weight.detach().clone().requires_grad_()
    policy_loss, value_loss = torch.zeros(()), torch.zeros(())
    for i, answer in enumerate(answers):
        n = len(answer)
        ratio = (logs[i][-n:] - old[i, :n]).exp()
        clipped = ratio.clamp(1 - settings.clip, 1 + settings.clip)
        policy_loss = policy_loss - torch.minimum(ratio * advantages[i, :n], clipped * advantages[i, :n]).sum()
        states = hidden[i, len(prompts[i]) - 1 : len(rows[i]) - 1]
        values = (states * VALUE_GRADIENT + states.detach() * (1 - VALUE_GRADIENT)) @ their_weight
        near = old_values[i, :n] + (values - old_values[i, :n]).clamp(-settings.value_clip, settings.value_clip)
        worst = torch.maximum((values - returns[i, :n]).square(), (near - returns[i, :n]).square())
        value_loss = value_loss + 0.5 * worst.sum()
    tokens = sum(map(len, answers))
    ((policy_loss + value_loss) / tokens).backward()
    assert told["policy_loss"] == pytest.approx(float(policy_loss.detach()) / tokens, abs=1e-5, rel=1e-5)
    assert told["value_loss"] == pytest.approx(float(value_loss.detach()) / tokens, abs=1e-5, rel=1e-5)
    assert 0 < told["clip_fraction"] < 1
    torch.testing.assert_close(weight.grad, their_weight.grad, **TOLERANCE)
    assert_gradients_agree(trunk.parameters(), model)


def test_what_was_learnt_is_what_transformers_reads(folder: Path, tmp_path: Path) -> None:
    trunk = trained_whole(folder)
    with torch.no_grad():
        for i, tensor in enumerate(trunk.parameters().values()):
            tensor.add_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(i)) * 0.05)
    trunk.refresh()
    trunk.save(tmp_path / "out")
    with torch.no_grad():
        ours = trunk(pack([Branches((), (ROWS[0],))])) @ trunk.head.t()
        changed = theirs(tmp_path / "out")(torch.tensor([ROWS[0]])).logits[0]
        assert float((changed - theirs(folder)(torch.tensor([ROWS[0]])).logits[0]).abs().max()) > 1e-2
    torch.testing.assert_close(ours, changed, **TOLERANCE)


def test_the_sampler_reads_as_the_trainer_does(folder: Path) -> None:
    """Answers are drawn with the log-probabilities that transformers gives their tokens, beyond the window too."""
    trunk, model = Trunk(folder, Precision.FLOAT32, "cpu"), theirs(folder)
    ends = EndRules(load_tokenizer(folder), (), ())
    prompts = [RolloutPrompt("a", (5, 6, 7)), RolloutPrompt("b", (8, 9, 10, 11, 12))]
    answers = sample(trunk, prompts, ends, Sampling(9, 0.8), seed=3, purpose="t")
    rows = [[*p.ids, *a.ids] for p, a in zip(prompts, answers, strict=True)]
    with torch.no_grad():
        logs = token_logprobs_of(model(**ragged(rows)).logits, rows, 0.8)
    for answer, log in zip(answers, logs, strict=True):
        torch.testing.assert_close(torch.tensor(answer.logprobs), log[-len(answer.ids) :], **TOLERANCE)


def test_windows_hold_in_the_kernel_for_long_rows(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cai.engines.embedded.trunk._SHORT", 0)
    test_logits_and_log_probabilities(folder)


# ---- the table in docs -----------------------------------------------------------------------------------------------

DOCS = Path(__file__).parents[3] / "docs" / "models.md"
BEGIN = "<!-- families: CAI_WRITE_GOLDEN=1 pytest tests/engines/embedded/test_families.py writes from here ... -->"
END = "<!-- ... to here -->"


def family_table() -> str:
    """Markdown: what the passport accepts of each family, and the properties that the cases here have."""
    lines = [
        "| family | biases | rope scaling | windows | held against transformers and TRL with |",
        "|---|---|---|---|---|",
    ]
    for name, family in FAMILIES.items():
        cases = "; ".join(case.has for case in CASES if case.family == name)
        rope, windows = ", ".join(sorted(family.rope)), "yes" if family.windows else "none"
        lines.append(f"| {family.title} (`{name}`) | {family.biases} | {rope} | {windows} | {cases} |")
    return "\n".join(lines) + "\n"


def test_the_table_in_docs_is_this_one() -> None:
    text = DOCS.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN + "\n")
    shown, after = rest.split(END)
    if os.environ.get("CAI_WRITE_GOLDEN"):
        DOCS.write_text(f"{before}{BEGIN}\n{family_table()}{END}{after}", encoding="utf-8")
    else:
        assert shown == family_table()


def test_every_family_and_property_that_is_accepted_has_a_case() -> None:
    """The passport accepts nothing that was not held against transformers here."""
    scalings = {case.changes["rope_parameters"]["rope_type"] for case in CASES if "rope_parameters" in case.changes}
    for name, family in FAMILIES.items():
        cases = [case for case in CASES if case.family == name]
        assert cases
        assert any(case.changes.get("tie_word_embeddings", True) for case in cases)
        assert any(case.changes.get("tie_word_embeddings") is False for case in cases)
        assert family.windows == any(case.changes.get("sliding_window") for case in cases)
        # One class of transformers computes the rotary positions of all of them.
        assert family.rope <= scalings | {"default"}


# ---- TRL's own trainers ----------------------------------------------------------------------------------------------

trl_warns = pytest.mark.filterwarnings("ignore")  # of transformers' deprecations, where TRL lags behind
by_family = pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])


def trl_loss(trainer: Any) -> Tensor:
    """The loss of all rows of a TRL trainer as one batch, its gradients on the model."""
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(len(trainer.train_dataset))])
    trainer.model.eval()
    loss: Tensor = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    return loss.detach()


def trl_arguments(kind: Any, place: Path, **more: Any) -> Any:
    quiet = {"report_to": "none", "use_cpu": True, "bf16": False, "disable_tqdm": True, "max_length": None}
    # Checkpointing would read the embeddings anew, and half a test's time.
    return kind(output_dir=str(place), gradient_checkpointing=False, **quiet, **more)


@trl_warns
@by_family
def test_trls_sft_is_this_one(family: str, tmp_path: Path) -> None:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    folder = tiny_folder(tmp_path / "model", family)
    texts = comparisons(5)
    rows = [{"prompt": text.prompt, "completion": text.chosen} for text in texts]
    model = theirs(folder)
    trainer = SFTTrainer(
        model,
        trl_arguments(SFTConfig, tmp_path / "trl"),
        train_dataset=Dataset.from_list(rows),
        processing_class=load_tokenizer(folder),
    )
    expected = trl_loss(trainer)
    trunk = trained_whole(folder)
    spans = [TrainText(t.id, (Span(t.prompt, False), Span(t.chosen, True))) for t in texts]
    examples = examples_of(load_tokenizer(folder), spans, 64, Counter())
    batch, positions, targets = packed_examples(examples, "cpu")
    states = trunk(batch).index_select(0, positions)
    loss = -token_logprobs(states, trunk.head, targets, master=trunk.head_master).mean()
    loss.backward()
    torch.testing.assert_close(loss.detach(), expected, **TOLERANCE)
    assert_gradients_agree(trunk.parameters(), trainer.model)


@trl_warns
@by_family
def test_trls_reward_is_this_one(family: str, tmp_path: Path) -> None:
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from trl import RewardConfig, RewardTrainer

    folder, start = tiny_folder(tmp_path / "model", family), tmp_path / "reward"
    texts, tokenizer = comparisons(5), load_tokenizer(folder)
    trunk = trained_whole(folder, head=False)
    head = (torch.randn(trunk.hidden, generator=torch.Generator().manual_seed(4)) * 0.2).requires_grad_()
    trunk.save(start, RewardHead(head, free_padding(tokenizer, {2})))
    pairs = pairs_of(tokenizer, texts, 64, Counter())
    batch = pack([pair.branches for pair in pairs])
    rewards = rewards_of(trunk(batch), batch, head).view(-1, 2)
    loss = pair_loss(rewards, torch.ones(len(pairs)), 0.0) / len(pairs)
    loss.backward()
    model = AutoModelForSequenceClassification.from_pretrained(start, dtype=torch.float32)
    model.model.embed_tokens.padding_idx = None
    rows = [{"chosen": t.prompt + t.chosen, "rejected": t.prompt + t.rejected} for t in texts]
    trainer = RewardTrainer(
        model,
        trl_arguments(RewardConfig, tmp_path / "trl"),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(start),
    )
    torch.testing.assert_close(loss.detach(), trl_loss(trainer), **TOLERANCE)
    torch.testing.assert_close(head.grad, model.score.weight.grad[0], **TOLERANCE)
    model.score.weight.grad = None
    assert_gradients_agree(trunk.parameters(), model)


@trl_warns
@by_family
def test_trls_dpo_is_this_one(family: str, tmp_path: Path) -> None:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    folder = tiny_folder(tmp_path / "model", family)
    frozen = tiny_folder(tmp_path / "frozen", family, seed=7)
    texts, tokenizer = comparisons(5), load_tokenizer(folder)
    tokenizer.padding_side = "left"
    rows = [{"prompt": t.prompt, "chosen": t.chosen, "rejected": t.rejected} for t in texts]
    trainer = DPOTrainer(
        theirs(folder),
        theirs(frozen),
        trl_arguments(DPOConfig, tmp_path / "trl", beta=0.3),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    expected = trl_loss(trainer)
    pairs = preference_pairs(tokenizer, texts, 64, Counter())
    constants = reference_logprobs(Trunk(frozen, Precision.FLOAT32, "cpu"), pairs, "cpu")
    trunk = trained_whole(folder)
    answers = laid_out(pairs, "cpu")
    logprobs = answer_logprobs(trunk, trunk(answers.batch), answers)
    loss = dpo_loss(0.3 * (logprobs - constants), torch.ones(len(pairs))) / len(pairs)
    loss.backward()
    torch.testing.assert_close(loss.detach(), expected, **TOLERANCE)
    assert_gradients_agree(trunk.parameters(), trainer.model)
