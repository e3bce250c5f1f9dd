"""DPO on a tiny model: TRL's losses and gradients on the same pairs, learning, resuming, and what is left out."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from cai.engines.embedded.dpo import answer_logprobs, dpo_loss, laid_out, pairs_of, reference_logprobs, train
from cai.engines.embedded.models import load_tokenizer
from cai.engines.embedded.settings import Hardware
from cai.engines.embedded.trunk import Trunk
from cai.engines.methods.base import Lora, PairText, Precision
from cai.engines.methods.dpo import DpoData, DpoSettings
from cai.errors import StepFailed
from tests.support.training import Interrupted, Watch, attempt_at, comparisons, tiny_folder

BETA = 0.3
SETTINGS = DpoSettings(
    beta=BETA,
    epochs=4,
    learning_rate=1e-2,
    batch_size=4,
    micro_batch_size=2,
    checkpoint_every=2,
    precision=Precision.FLOAT32,
    lora=Lora(rank=4, alpha=8),
)
FULL = SETTINGS.model_copy(update={"lora": None, "learning_rate": 1e-3})


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("reference"), seed=7)


def dpo(model: Path, place: Path, settings: DpoSettings = SETTINGS, progress: Watch | None = None, **more: Any) -> Any:
    data = DpoData(model, comparisons(12), comparisons(6), **more)
    return train(data, settings, attempt_at(place, progress), Hardware(threads=1))


def rows_of(place: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (place / "out/metrics.jsonl").read_text().splitlines()]


def weights(place: Path) -> str:
    return hashlib.sha256((place / "out/model.safetensors").read_bytes()).hexdigest()


# ---- against TRL ---------------------------------------------------------------------------------------------------


def trl_losses(model: Path, reference: Path, pairs: list[PairText], folder: Path) -> Any:
    """TRL's trainer over full models, and the collated batch of the pairs."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM
    from trl import DPOConfig, DPOTrainer

    rows = [{"prompt": p.prompt, "chosen": p.chosen, "rejected": p.rejected} for p in pairs]
    args = DPOConfig(
        output_dir=str(folder),
        beta=BETA,
        per_device_train_batch_size=len(rows),
        report_to="none",
        use_cpu=True,
        bf16=False,
        max_length=None,
        disable_tqdm=True,
    )
    policy, frozen = (AutoModelForCausalLM.from_pretrained(m, dtype=torch.float32) for m in (model, reference))
    trainer = DPOTrainer(policy, frozen, args, train_dataset=Dataset.from_list(rows), processing_class=_padded(model))
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(len(rows))])
    return trainer, batch


def _padded(model: Path) -> Any:
    tokenizer = load_tokenizer(model)
    tokenizer.padding_side = "left"
    return tokenizer


def trl_gradients(
    model: Path, reference: Path, pairs: list[PairText], folder: Path
) -> tuple[float, dict[str, torch.Tensor]]:
    trainer, batch = trl_losses(model, reference, pairs, folder)
    trainer.model.eval()  # no dropout anywhere; the loss is the same
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    return float(loss.detach()), {n: p.grad for n, p in trainer.model.named_parameters() if p.grad is not None}


def our_gradients(model: Path, reference: Path, texts: list[PairText]) -> tuple[float, dict[str, torch.Tensor]]:
    tokenizer = load_tokenizer(model)
    pairs = pairs_of(tokenizer, texts, 64, Counter())
    assert len(pairs) == len(texts)
    constants = reference_logprobs(Trunk(reference, Precision.FLOAT32, "cpu"), pairs, "cpu")
    trunk = Trunk(model, Precision.FLOAT32, "cpu")
    trunk.train_all()
    trunk.refresh()
    answers = laid_out(pairs, "cpu")
    logprobs = answer_logprobs(trunk, trunk(answers.batch), answers)
    labels = torch.tensor([pair.p_chosen for pair in pairs])
    loss = dpo_loss(BETA * (logprobs - constants), labels) / len(pairs)
    loss.backward()
    return float(loss.detach()), {n: t.grad for n, t in trunk.parameters().items() if t.grad is not None}


def side_by_side(name: str, gradients: dict[str, torch.Tensor]) -> torch.Tensor:
    """A gradient of transformers' model under our name: projections that are one matrix here are several there."""
    parts = [part if part.endswith(".weight") else f"{part}.weight" for part in name.split("|")]
    return torch.cat([gradients[part] for part in parts])


def with_labels(p_chosen: list[float]) -> list[PairText]:
    """Pairs of differing length with these labels."""
    texts = comparisons(len(p_chosen))
    longer = ["the sun sings", "a", "red moon walks please", "dog"]
    return [
        PairText(t.id, t.prompt, f"kind {longer[i % 4]} </s>", f"rude {longer[(i + 1) % 3]} no </s>", p)
        for i, (t, p) in enumerate(zip(texts, p_chosen, strict=True))
    ]


def swapped(pairs: list[PairText]) -> list[PairText]:
    return [PairText(p.id, p.prompt, p.rejected, p.chosen, p.p_chosen) for p in pairs]


trl_warns = pytest.mark.filterwarnings("ignore")  # of transformers' deprecations, where TRL lags behind


@trl_warns
@pytest.mark.parametrize("p_chosen", [1.0, 0.9, 0.5])
def test_losses_and_gradients_are_trls(model: Path, reference: Path, tmp_path: Path, p_chosen: float) -> None:
    """TRL's loss is that of hard labels; a soft label is that much of it, and the rest of the pair's the other way."""
    pairs = with_labels([p_chosen] * 6)
    loss, gradients = our_gradients(model, reference, pairs)
    forward, forward_gradients = trl_gradients(model, reference, pairs, tmp_path / "forward")
    backward, backward_gradients = trl_gradients(model, reference, swapped(pairs), tmp_path / "backward")
    assert loss == pytest.approx(p_chosen * forward + (1 - p_chosen) * backward, abs=1e-4)
    assert sum(gradient.numel() for gradient in gradients.values()) == sum(
        g.numel() for g in forward_gradients.values()
    )
    for name, gradient in gradients.items():
        theirs = p_chosen * side_by_side(name, forward_gradients)
        theirs += (1 - p_chosen) * side_by_side(name, backward_gradients)
        assert torch.allclose(gradient, theirs, atol=1e-4), name
        assert theirs.abs().max() > 0, name


@trl_warns
def test_labels_of_a_batch_may_differ(model: Path, reference: Path, tmp_path: Path) -> None:
    labels = [1.0, 0.8, 0.5, 0.65]
    pairs = with_labels(labels)
    loss, _ = our_gradients(model, reference, pairs)
    expected = 0.0
    for pair, p in zip(pairs, labels, strict=True):
        forward, _ = trl_gradients(model, reference, [pair], tmp_path / f"{pair.id}f")
        backward, _ = trl_gradients(model, reference, swapped([pair]), tmp_path / f"{pair.id}b")
        expected += (p * forward + (1 - p) * backward) / len(pairs)
    assert loss == pytest.approx(expected, abs=1e-4)


# ---- training --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [SETTINGS, FULL], ids=["lora", "full"])
def test_it_learns_the_preference_and_writes_a_model_that_transformers_opens(
    model: Path, tmp_path: Path, settings: DpoSettings
) -> None:
    from transformers import AutoModelForCausalLM

    trained = dpo(model, tmp_path, settings)
    assert trained.metrics["val_accuracy"] == 1.0
    assert trained.metrics["val_ties"] == 1
    assert trained.metrics["val_loss"] < trained.metrics["val_loss_before"]
    assert trained.metrics["margin"] > 0.1
    rows = rows_of(tmp_path)
    assert rows[1]["margin"] == pytest.approx(0.0, abs=1e-6), "the first step begins at the reference"
    assert rows[1]["loss"] == pytest.approx(0.693147, abs=1e-5)
    assert {"loss", "accuracy", "margin", "reward_chosen", "reward_rejected", "lr", "grad_norm"} <= rows[-1].keys()
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")


def test_another_reference_is_another_training(model: Path, reference: Path, tmp_path: Path) -> None:
    dpo(model, tmp_path / "own")
    dpo(model, tmp_path / "other", reference=reference)
    assert weights(tmp_path / "own") != weights(tmp_path / "other")
    dpo(model, tmp_path / "same", reference=model)
    assert weights(tmp_path / "own") == weights(tmp_path / "same"), "the model itself is the reference by default"


@pytest.mark.parametrize("settings", [SETTINGS, FULL], ids=["lora", "full"])
@pytest.mark.parametrize("after", [1, 5])
def test_a_stopped_training_goes_on_to_the_same_bytes(
    model: Path, tmp_path: Path, settings: DpoSettings, after: int
) -> None:
    dpo(model, tmp_path / "whole", settings)
    with pytest.raises(Interrupted):
        dpo(model, tmp_path / "cut", settings, Watch("dpo.step", after))
    dpo(model, tmp_path / "cut", settings)
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")
    assert rows_of(tmp_path / "cut") == rows_of(tmp_path / "whole")


def test_a_stronger_beta_stays_nearer_to_the_reference(model: Path, tmp_path: Path) -> None:
    near, far = (
        dpo(model, tmp_path / str(beta), SETTINGS.model_copy(update={"beta": beta})).metrics["reward_chosen"] / beta
        for beta in (2.0, 0.1)
    )
    assert abs(near) < abs(far)


def test_what_cannot_be_used_is_counted_by_reason(model: Path, tmp_path: Path) -> None:
    pairs = [
        *comparisons(4),
        PairText("e", "[user] hello [bot] ", "", "rude", 1.0),
        PairText("p", "", "kind", "rude", 1.0),
        PairText("l", "[user] hello [bot] ", "kind " * 80, "rude", 1.0),
    ]
    trained = train(DpoData(model, pairs, []), SETTINGS, attempt_at(tmp_path), Hardware(threads=1))
    assert trained.dropped == {"empty answer": 1, "empty prompt": 1, "too long": 1}
    assert trained.metrics["pairs"] == 4
    with pytest.raises(StepFailed, match="none of 3 pairs"):
        train(DpoData(model, pairs[4:], []), SETTINGS, attempt_at(tmp_path / "none"), Hardware(threads=1))
