"""Divergence by its numbers: what is one, what only looks like one, and what is kept."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from cai.chat import Span
from cai.engines.base import Attempt
from cai.engines.embedded.divergence import (
    LAST_GOOD,
    Diverged,
    Health,
    TokenLosses,
    diverged,
    keep_last_good,
    not_finite,
    without_deviation,
)
from cai.engines.embedded.dpo import train as train_dpo
from cai.engines.embedded.optim import Work, fit
from cai.engines.embedded.reward import EmbeddedRewardScorer
from cai.engines.embedded.reward import train as train_reward
from cai.engines.embedded.sft import train as train_sft
from cai.engines.methods.base import Lora, Precision, TrainText
from cai.engines.methods.dpo import DpoData, DpoSettings
from cai.engines.methods.reward import RewardData, RewardSettings
from cai.engines.methods.sft import SftData, SftSettings
from cai.errors import StepFailed
from tests.support.training import attempt_at, comparisons, conversations, tiny_folder

VOCABULARY = 1000
UNIFORM = math.log(VOCABULARY)  # 6.91 nats


def seen(losses: Iterable[float], steps: int = 20) -> list[Health]:
    watch = TokenLosses(VOCABULARY, steps)
    return [watch.see(loss) for loss in losses]


def first_fault(losses: Iterable[float], steps: int = 20) -> int | None:
    """The step, from 1, at which the losses are a divergence."""
    return next((step for step, health in enumerate(seen(losses, steps), 1) if health.fault), None)


def test_a_loss_that_comes_back_to_that_of_no_opinion_is_a_divergence_in_words() -> None:
    losses = [3.0, 2.0, 1.5, 4.0, 6.8, 6.9, 6.9]
    assert first_fault(losses) == 7, "at the third of three steps"
    fault = seen(losses)[-1].fault
    assert fault == (
        "over 3 steps the model says nothing any more: the loss is 6.87 nats a token, and was 2.17 "
        "(all 1,000 tokens alike would have 6.91)"
    )


def test_one_odd_batch_is_none_but_no_model_to_keep() -> None:
    healths = seen([3.0, 2.0, 7.0, 2.0, 1.9])
    assert not any(health.fault for health in healths)
    assert [health.sound for health in healths] == [True, True, False, True, True]
    assert [health.sound for health in seen([3.0, 4.9, 5.0])] == [True, True, False], "half of the way up to 6.91"
    assert all(health.sound for health in seen([UNIFORM, UNIFORM + 0.2, UNIFORM - 0.1])), "random weights"


def test_training_from_random_weights_may_begin_at_that_loss_and_stay_there() -> None:
    assert first_fault([UNIFORM + 0.1, UNIFORM - 0.05, UNIFORM + 0.2, UNIFORM, UNIFORM + 0.15, UNIFORM]) is None
    assert first_fault([UNIFORM, *[UNIFORM + 0.5] * 9]) is None, "what never said anything has nothing to lose"
    assert first_fault([UNIFORM, 6.5, 6.0, 5.5, 5.0, *[UNIFORM] * 3]) == 8, "what has learnt something has"


def test_a_high_loss_that_was_always_high_or_falls_is_none() -> None:
    assert first_fault([6.8, 6.75, 6.8, 6.7, 6.75]) is None
    assert first_fault([9.0, 8.0, 7.5, 7.0, 6.9]) is None
    assert first_fault([2.0, 3.0, 5.0, 6.0, 6.5, 6.5, 6.5]) is None, "below 0.97 of log(vocabulary)"


def test_of_many_steps_a_twentieth_is_averaged() -> None:
    losses = [2.0] * 50 + [6.9] * 20
    assert first_fault(losses, steps=20) == 53
    assert first_fault(losses, steps=200) == 60


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_named(value: float) -> None:
    assert not_finite({"loss": value, "tokens": 3}) == f"loss is {value}"
    assert not_finite({"loss": 2.0, "tokens": 3}) == ""


def test_rewards_that_are_all_alike_are_a_fault_of_the_reward_model() -> None:
    assert "128 rewards deviate by 0.0e+00" in without_deviation([0.25] * 128)
    assert "deviate by 5.0e-07" in without_deviation([1e-6, 0.0])
    assert without_deviation([0.25, 0.2501]) == ""
    assert without_deviation([0.25, math.nan]) == "its rewards are not finite"


def test_what_is_kept_is_whole_or_not_there(tmp_path: Path) -> None:
    def save(folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_text("good")

    def fail(folder: Path) -> None:
        folder.mkdir(parents=True)
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        keep_last_good(tmp_path / "work", fail)
    assert not (tmp_path / "work" / LAST_GOOD).exists()
    for _ in range(2):
        folder = keep_last_good(tmp_path / "work", save)
        assert folder == tmp_path / "work" / LAST_GOOD
        assert [path.name for path in (tmp_path / "work").iterdir()] == [LAST_GOOD]
        assert (folder / "model.safetensors").read_text() == "good"


def test_the_error_says_where_what_is_left_and_what_to_do(tmp_path: Path) -> None:
    error = diverged("sft, step 12 of 40", "loss is nan", (10, tmp_path), "lower learning_rate")
    assert isinstance(error, StepFailed)
    assert str(error) == (
        f"sft, step 12 of 40: loss is nan; the last good model, of step 10, is kept in {tmp_path}; lower learning_rate"
    )
    assert "no iteration was checkpointed before" in str(diverged("rl", "x", None, "y", unit="iteration"))


def toy_work(losses: list[float], folder: Path) -> tuple[Work, Attempt]:
    """A training of one weight, which each step makes smaller, whose losses are these; with its attempt."""
    weight = torch.ones(1, requires_grad=True)

    def learn(step: int) -> dict[str, float]:
        (weight * 1.0).sum().backward()
        return {"loss": losses[step], "tokens": 1, "rows": 1}

    def save(place: Path) -> None:
        place.mkdir(parents=True)
        (place / "weight").write_text(f"{weight.item():.2f}")

    watch = TokenLosses(VOCABULARY, len(losses))
    work = Work(
        steps=len(losses),
        parameters={"weight": weight},
        refresh=lambda: None,
        learn=learn,
        validate=dict,
        belongs="toy",
        event="toy",
        save=save,
        health=lambda step, numbers: watch.see(numbers["loss"]),
    )
    return work, attempt_at(folder)


TOY = SftSettings(learning_rate=0.1, checkpoint_every=2, warmup_fraction=0)
"""AdamW with one gradient of 1 moves the weight by the learning rate: after n steps it is 1 - n / 10."""


@pytest.mark.parametrize(
    ("losses", "fault", "kept", "weight"),
    [
        ([2.0, 1.9, 1.8, 1.7, 1.6, math.nan], "toy, step 6 of 6: loss is nan", 4, "0.60"),
        # The checkpoint of step 4 is never written: the loss of the step after it shows that its model is lost.
        ([2.0, 1.9, 1.8, 1.7, 6.9, 6.9, 6.9, 2.0], "toy, step 7 of 8: over 3 steps the model says nothing", 2, "0.80"),
    ],
)
def test_the_last_model_that_was_good_is_kept(
    tmp_path: Path, losses: list[float], fault: str, kept: int, weight: str
) -> None:
    work, attempt = toy_work(losses, tmp_path)
    with pytest.raises(Diverged) as raised:
        fit(work, TOY, attempt)
    assert str(raised.value).startswith(fault)
    folder = tmp_path / "work" / LAST_GOOD
    assert f"the last good model, of step {kept}, is kept in {folder}; lower learning_rate (it is 0.1)" in str(
        raised.value
    )
    assert (folder / "weight").read_text() == weight


def test_without_a_checkpoint_before_the_start_is_what_is_good(tmp_path: Path) -> None:
    work, attempt = toy_work([2.0, math.inf], tmp_path)
    with pytest.raises(Diverged, match="no step was checkpointed before, so the last good model is the one that"):
        fit(work, TOY, attempt)
    assert not (tmp_path / "work" / LAST_GOOD).exists()


def test_a_resumed_training_remembers_how_good_the_model_was(tmp_path: Path) -> None:
    losses = [2.0, 1.9, 1.8, 1.7, 6.9, 6.9, 6.9, 2.0]
    for _ in range(2):
        work, attempt = toy_work(losses, tmp_path)
        with pytest.raises(Diverged, match=r"step 7 of 8.*was 1.80"):
            fit(work, TOY, attempt)


PREFERRED = [TrainText(p.id, (Span(p.prompt, False), Span(p.chosen, True))) for p in comparisons(12)]


@pytest.fixture(scope="module")
def talking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that has learnt to say something: its loss is well below log(25)."""
    folder = tmp_path_factory.mktemp("talking")
    model = tiny_folder(folder / "start")
    settings = SftSettings(epochs=20, learning_rate=1e-2, batch_size=4, lora=None, precision=Precision.FLOAT32)
    trained = train_sft(SftData(model, [*conversations(12), *PREFERRED], []), settings, attempt_at(folder))
    assert trained.metrics["last_loss"] < 0.6 * math.log(25)
    return folder / "out"


WILD: dict[str, Any] = {
    "epochs": 20,
    "learning_rate": 1.0,
    "warmup_fraction": 0.9,  # it begins at 1/55, which still learns
    "batch_size": 4,
    "lora": Lora(rank=4),
    "precision": Precision.FLOAT32,
    "checkpoint_every": 1,
}


def wild_sft(model: Path, folder: Path) -> None:
    train_sft(SftData(model, conversations(12), []), SftSettings(**WILD), attempt_at(folder))


def wild_dpo(model: Path, folder: Path) -> None:
    train_dpo(DpoData(model, comparisons(12), []), DpoSettings(**WILD), attempt_at(folder))


@pytest.mark.parametrize(
    ("train", "event", "texts"), [(wild_sft, "sft", conversations(12)), (wild_dpo, "dpo", PREFERRED)]
)
def test_a_learning_rate_that_is_far_too_high_fails_in_words_and_leaves_a_model(
    talking: Path, tmp_path: Path, train: Callable[[Path, Path], None], event: str, texts: list[TrainText]
) -> None:
    from transformers import AutoModelForCausalLM

    with pytest.raises(StepFailed, match=rf"^{event}, step \d+ of 60: .*says nothing any more.*lower learning_rate"):
        train(talking, tmp_path)
    assert not (tmp_path / "out/model.safetensors").exists()
    folder = tmp_path / "work" / LAST_GOOD
    assert AutoModelForCausalLM.from_pretrained(folder).config.vocab_size == 25
    settings = SftSettings(**{**WILD, "learning_rate": 1e-9, "epochs": 1})
    again = train_sft(SftData(folder, texts, []), settings, attempt_at(tmp_path / "again"))
    assert again.metrics["first_loss"] < 0.97 * math.log(25), "what was kept still says something"


def test_a_reward_model_that_says_the_same_of_all_fails_in_words_and_leaves_a_model(
    talking: Path, tmp_path: Path
) -> None:
    settings = RewardSettings(**{**WILD, "learning_rate": 1e-9, "weight_decay": 1e9})  # at full rate nothing is left
    with pytest.raises(StepFailed, match=r"^reward, step 60 of 60: the reward model says the same of every answer"):
        train_reward(RewardData(talking, comparisons(12), []), settings, attempt_at(tmp_path))
    assert not (tmp_path / "out/reward.json").exists()
    folder = tmp_path / "work" / LAST_GOOD
    assert json.loads((folder / "reward.json").read_text())["std"] > 0
    scorer = EmbeddedRewardScorer(folder, precision=Precision.FLOAT32)
    assert len(set(scorer.score([("[user] hello [bot] ", "kind </s>"), ("[user] hello [bot] ", "rude </s>")]))) == 2
