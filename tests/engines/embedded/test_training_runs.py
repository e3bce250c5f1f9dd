"""Whole trainings on a tiny model: they learn, resume to the same bytes, and count what they drop."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from cai.chat import Span
from cai.engines.embedded.models import load_tokenizer
from cai.engines.embedded.reward import EmbeddedRewardScorer, pair_loss, quality
from cai.engines.embedded.reward import train as train_reward
from cai.engines.embedded.reward_head import HEAD_FILE, load_head
from cai.engines.embedded.settings import Hardware
from cai.engines.embedded.sft import train as train_sft
from cai.engines.methods.base import Lora, PairText, Precision, TrainText
from cai.engines.methods.reward import RewardData, RewardSettings
from cai.engines.methods.sft import SftData, SftSettings
from cai.errors import PrerequisiteError, SpecError, StepFailed
from tests.support.training import Interrupted, Watch, attempt_at, comparisons, conversations, tiny_folder

Train = Callable[..., Any]
COMMON: dict[str, Any] = {
    "epochs": 3,
    "learning_rate": 2e-2,
    "batch_size": 4,
    "micro_batch_size": 3,
    "lora": Lora(rank=4, last_layers=2, dropout=0.1),
    "precision": Precision.FLOAT32,
    "checkpoint_every": 2,
}
SFT, REWARD = SftSettings(**COMMON), RewardSettings(**COMMON)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("tiny"))


def sft(model: Path, at: Path, settings: SftSettings = SFT, progress: Watch | None = None, name: str = "out") -> Any:
    data, attempt = SftData(model, conversations(12), conversations(4)), attempt_at(at, progress, name)
    return train_sft(data, settings, attempt, Hardware(threads=1))


def reward(
    model: Path, at: Path, settings: RewardSettings = REWARD, progress: Watch | None = None, name: str = "out"
) -> Any:
    data, attempt = RewardData(model, comparisons(12), comparisons(6)), attempt_at(at, progress, name)
    return train_reward(data, settings, attempt, Hardware(threads=1))


def test_sft_learns_and_writes_a_model_that_transformers_opens(model: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    trained = sft(model, tmp_path, SFT.model_copy(update={"val_every": 2}))
    assert trained.metrics["val_loss"] < 0.8 * trained.metrics["val_loss_before"]
    rows = [json.loads(line) for line in (tmp_path / "out/metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == list(range(10))
    assert {"loss", "lr", "tokens"} <= rows[1].keys()
    assert not {"seconds", "tokens_per_s"} & rows[1].keys()
    assert [r["step"] for r in rows if "val_loss" in r] == [0, 2, 4, 6, 8, 9]
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert opened.dtype == torch.float32
    assert AutoTokenizer.from_pretrained(tmp_path / "out").eos_token == "</s>"


@pytest.mark.parametrize("train", [sft, reward])
@pytest.mark.parametrize("lora", [COMMON["lora"], None])
@pytest.mark.parametrize("after", [1, 3, 8])
def test_a_killed_training_goes_on_to_the_same_bytes(
    model: Path, tmp_path: Path, train: Train, lora: Lora | None, after: int
) -> None:
    settings = (SFT if train is sft else REWARD).model_copy(update={"lora": lora, "learning_rate": 5e-3})
    event = "sft.step" if train is sft else "reward.step"
    train(model, tmp_path / "whole", settings)
    with pytest.raises(Interrupted):
        train(model, tmp_path / "cut", settings, Watch(event, after))
    watch = Watch()
    train(model, tmp_path / "cut", settings, watch)
    steps = [f["step"] for e, f in watch.notes if e == event]
    assert steps == list(range((after - 1) // 2 * 2 + 1, 10)), "goes on after the last checkpoint, one every 2 steps"
    for name in ("model.safetensors", "reward.json"):
        if (tmp_path / "whole/out" / name).exists():
            assert (tmp_path / "whole/out" / name).read_bytes() == (tmp_path / "cut/out" / name).read_bytes()
    assert len((tmp_path / "cut/out/metrics.jsonl").read_text().splitlines()) == 10


def test_a_checkpoint_of_other_settings_is_not_used(model: Path, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        sft(model, tmp_path, progress=Watch("sft.step", 5))
    watch = Watch()
    sft(model, tmp_path, SFT.model_copy(update={"learning_rate": 1e-3}), watch)
    assert [e for e, _ in watch.notes].count("sft.step") == 9


def test_what_cannot_be_used_is_counted_by_reason(model: Path, tmp_path: Path) -> None:
    long = TrainText("long", (Span("[user] " + "cat " * 40, False), Span("dog", True)))
    silent = TrainText("silent", (Span("[user] hello", False),))
    settings = SFT.model_copy(update={"max_length": 20, "epochs": 1})
    trained = train_sft(SftData(model, [*conversations(3), long, silent], []), settings, attempt_at(tmp_path))
    assert trained.dropped == {"too long": 1, "nothing to learn": 1}
    with pytest.raises(StepFailed, match="none of 2 examples"):
        train_sft(SftData(model, [long, silent], []), settings, attempt_at(tmp_path / "p"))


def test_training_that_teaches_no_end_is_refused_before_it_starts(model: Path, tmp_path: Path) -> None:
    settings = SFT.model_copy(update={"epochs": 1})
    learnt = {t.id: t.spans[1].text.removesuffix(" </s>") for t in conversations(3)}
    open_ended = [TrainText(id, (Span("[user] hello [bot] ", False), Span(text, True))) for id, text in learnt.items()]
    with pytest.raises(SpecError, match="no answer's end is learnt"):
        train_sft(SftData(model, open_ended, [], "</s>"), settings, attempt_at(tmp_path / "never"))
    assert not (tmp_path / "never/out").exists()
    mixed = SftData(model, [*open_ended, *conversations(1)], [], "</s>")
    assert train_sft(mixed, settings, attempt_at(tmp_path / "ends")).metrics["examples"] == 4


def test_unknown_lora_targets_are_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="query"):
        sft(model, tmp_path, SFT.model_copy(update={"lora": Lora(targets=("query",))}))


def test_reward_learns_the_preference_and_scores_like_training(model: Path, tmp_path: Path) -> None:
    trained = reward(model, tmp_path)
    assert trained.metrics["val_accuracy"] == 1.0
    assert trained.metrics["val_ties"] == 1
    scorer = EmbeddedRewardScorer(tmp_path / "out", precision=Precision.FLOAT32)
    prompt = "[user] hello [bot] "
    asked = [(prompt, "rude cat </s>"), ("[user] no sun [bot] ", "kind dog </s>"), (prompt, "kind cat </s>")]
    together, alone = scorer.score(asked), [scorer.score([pair])[0] for pair in asked]
    assert together == pytest.approx(alone, abs=1e-5)
    assert together[2] > together[0]
    scorer.close()
    with pytest.raises(ValueError, match="closed"):
        scorer.score(asked)
    about = json.loads((tmp_path / "out/reward.json").read_text())
    assert about["std"] > 0
    with pytest.raises(PrerequisiteError, match=r"score\.weight"):
        EmbeddedRewardScorer(model)


def test_the_pair_loss_is_the_formula() -> None:
    rewards, p = torch.tensor([[1.5, 0.2], [0.3, 0.3], [-1.0, 2.0]]), torch.tensor([1.0, 0.5, 0.8])
    expected = 0.0
    for (a, b), q in zip(rewards.tolist(), p.tolist(), strict=True):
        s = torch.sigmoid(torch.tensor(a - b)).item()
        expected += -(q * torch.log(torch.tensor(s)) + (1 - q) * torch.log(torch.tensor(1 - s))).item()
        expected += 0.01 * (a + b) ** 2
    assert float(pair_loss(rewards, p, 0.01)) == pytest.approx(expected, rel=1e-5)


def test_quality_leaves_ties_out_and_knows_calibration() -> None:
    found = quality([2.0, -1.0, 3.0, 0.0], [1.0, 0.9, 0.5, 0.2])
    assert found["val_ties"] == 1
    assert found["val_accuracy"] == pytest.approx(1.5 / 3)
    even = quality([0.0, 0.0], [0.5, 0.5])
    assert "val_accuracy" not in even
    assert even["val_calibration_error"] == pytest.approx(0.0)
    assert quality([4.0], [0.0])["val_calibration_error"] > 0.9


def test_an_empty_answer_is_dropped_and_counted(model: Path, tmp_path: Path) -> None:
    pairs = [*comparisons(4), PairText("e", "[user] hello [bot] ", "", "rude", 1.0)]
    settings = REWARD.model_copy(update={"epochs": 1})
    trained = train_reward(RewardData(model, pairs, []), settings, attempt_at(tmp_path))
    assert trained.dropped == {"empty answer": 1}
    assert load_file(tmp_path / "out/model.safetensors")["score.weight"].shape == (1, 32)


def test_the_head_of_a_reward_model_of_before_is_still_read(model: Path, tmp_path: Path) -> None:
    """It stood in a file of its own beside a model of transformers' causal kind."""
    shutil.copytree(model, tmp_path / "old")
    head = torch.randn(32, generator=torch.Generator().manual_seed(0))
    save_file({"weight": head}, str(tmp_path / "old" / HEAD_FILE))
    assert torch.equal(load_head(tmp_path / "old", "cpu"), head)
    scorer = EmbeddedRewardScorer(tmp_path / "old", precision=Precision.FLOAT32)
    [reward] = scorer.score([("[user] hello [bot] ", "yes </s>")])
    ids = load_tokenizer(model)("[user] hello [bot] yes </s>", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        states = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).model(torch.tensor([ids]))
    assert reward == pytest.approx(float(states.last_hidden_state[0, -1] @ head), abs=1e-5)
