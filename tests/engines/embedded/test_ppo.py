"""PPO on a tiny model: its arithmetic, its sampler, its learning, its stop, its resume."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from cai.clients.base import Sampling
from cai.engines.embedded.advantages import (
    distinct,
    explained_variance,
    generalised_advantages,
    kl_estimates,
    token_rewards,
    whitened,
)
from cai.engines.embedded.batches import Branches, pack
from cai.engines.embedded.drawing import inverted
from cai.engines.embedded.models import encode, load_tokenizer
from cai.engines.embedded.ppo import lost_policy
from cai.engines.embedded.ppo import train as train_ppo
from cai.engines.embedded.ppo_update import (
    clipped_policy_loss,
    clipped_value_loss,
    cut_microbatches,
    optimizer_steps,
    step_sizes,
)
from cai.engines.embedded.reward import train as train_reward
from cai.engines.embedded.rollouts import EndRules, RolloutPrompt, SampledAnswer, sample
from cai.engines.embedded.settings import Hardware
from cai.engines.embedded.trunk import Trunk
from cai.engines.methods.base import Lora, Precision
from cai.engines.methods.ppo import CriticStart, PpoData
from cai.engines.methods.reward import RewardData, RewardSettings
from cai.engines.rewards import RewardModel
from cai.errors import SpecError, StepFailed
from tests.support.training import (
    PPO_SETTINGS,
    Interrupted,
    Watch,
    attempt_at,
    comparisons,
    likes_kind,
    questions,
    tiny_folder,
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("tiny"))


def ppo(model: Path, at: Path, progress: Watch | None = None, reward: Path | None = None, **changes: Any) -> Any:
    settings = PPO_SETTINGS.model_copy(update=changes)
    score = likes_kind if reward is None else None
    data = PpoData(model, RewardModel(reward or model), questions(10))
    return train_ppo(data, settings, attempt_at(at, progress), Hardware(threads=1), score=score)


def rows_of(at: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (at / "out/metrics.jsonl").read_text().splitlines()]


def test_advantages_equal_a_naive_loop() -> None:
    torch.manual_seed(0)
    lengths, gamma, lam = [5, 1, 3], 0.9, 0.8
    valid = torch.arange(5)[None] < torch.tensor(lengths)[:, None]
    rewards, values = torch.randn(3, 5) * valid, torch.randn(3, 5)
    advantages, returns = generalised_advantages(rewards, values, valid, gamma=gamma, gae_lambda=lam)
    for b, length in enumerate(lengths):
        for t in range(length):
            expected = 0.0
            for k in range(t, length):
                after = float(values[b, k + 1]) if k + 1 < length else 0.0
                delta = float(rewards[b, k]) + gamma * after - float(values[b, k])
                expected += (gamma * lam) ** (k - t) * delta
            assert float(advantages[b, t]) == pytest.approx(expected, abs=1e-5)
            assert float(returns[b, t]) == pytest.approx(expected + float(values[b, t]), abs=1e-5)
    assert not advantages[~valid].any()
    assert not returns[~valid].any()


def test_the_score_stands_on_the_last_token_and_the_penalty_on_each() -> None:
    valid = torch.tensor([[True, True, True], [True, False, False]])
    new, old = torch.tensor([[0.5, 0.2, 0.1], [0.3, 9.0, 9.0]]), torch.zeros(2, 3)
    rewards = token_rewards(torch.tensor([2.0, -1.0]), new, old, valid, kl_coefficient=0.1)
    torch.testing.assert_close(rewards, torch.tensor([[-0.05, -0.02, 1.99], [-1.03, 0.0, 0.0]]))


def test_whitening_counts_valid_tokens_only() -> None:
    valid = torch.tensor([[True, True, False], [True, False, False]])
    white = whitened(torch.tensor([[1.0, 2.0, 50.0], [6.0, 50.0, 50.0]]), valid)
    assert float(white[valid].mean()) == pytest.approx(0.0, abs=1e-6)
    assert float(white[valid].std(correction=0)) == pytest.approx(1.0)
    assert not white[~valid].any()


def test_clipping_and_estimates_are_the_formulas() -> None:
    new, old = torch.tensor([0.0, 1.0, -1.0]), torch.zeros(3)
    loss, clipped = clipped_policy_loss(new, old, torch.tensor([1.0, 1.0, 1.0]), 0.2)
    torch.testing.assert_close(loss, torch.tensor([-1.0, -1.2, -0.36787945]))
    assert clipped.tolist() == [0.0, 1.0, 1.0]
    value = clipped_value_loss(torch.tensor([1.0]), torch.tensor([0.0]), torch.tensor([1.0]), 0.2)
    assert float(value) == pytest.approx(0.5 * 0.8**2)
    assert float(clipped_value_loss(torch.tensor([1.0]), torch.tensor([0.0]), torch.tensor([1.0]), 0.0)) == 0.0
    k1, k3 = kl_estimates(torch.tensor([[0.5, 7.0]]), torch.tensor([[0.0, 0.0]]), torch.tensor([[True, False]]))
    assert k1 == pytest.approx(0.5)
    assert k3 == pytest.approx(2.718281828**-0.5 - 1 + 0.5, abs=1e-6)
    assert distinct([(1, 2, 1, 2), (1, 2)]) == 2 / 4
    assert explained_variance(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0])) == 1.0


def test_samples_follow_the_models_distribution_and_their_own_draws(model: Path) -> None:
    trunk = Trunk(model, Precision.FLOAT32, "cpu")
    trunk.adapt(Lora(rank=2), 0)
    tokenizer = load_tokenizer(model)
    ends = EndRules(tokenizer, (2,), ("thanks",))
    ids = tuple(encode(tokenizer, ["[user] hello [bot]"])[0])
    many = [RolloutPrompt(f"r{i}", ids) for i in range(2000)]
    answers = sample(trunk, many, ends, Sampling(1, 0.8), seed=7, purpose="t")
    with torch.no_grad():
        states = trunk(pack([Branches((), (ids,))]))[-1:]
        expected = torch.softmax((states @ trunk.head.t())[0] / 0.8, -1)
    counts = torch.bincount(torch.tensor([a.ids[0] for a in answers]), minlength=len(expected)) / len(many)
    assert float((counts - expected).abs().sum()) / 2 < 0.06
    few = [RolloutPrompt("r0", ids), RolloutPrompt("x", ids[:2]), RolloutPrompt("r5", (*ids, 8, 9))]
    twelve = Sampling(12)

    def drawn(prompts: list[RolloutPrompt]) -> list[SampledAnswer]:
        return sample(trunk, prompts, ends, twelve, seed=7, purpose="t")

    together = drawn(few)
    assert [drawn([prompt])[0].ids for prompt in few] == [answer.ids for answer in together]
    for answer in drawn(many[:64]):
        last = answer.ids[-1] in ends.tokens
        assert answer.ended == last
        assert last or len(answer.ids) == 12
        assert not any(t in ends.tokens for t in answer.ids[:-1])


def test_a_stop_string_of_several_tokens_ends_an_answer(model: Path) -> None:
    tokenizer = load_tokenizer(model)
    ends = EndRules(tokenizer, (2,), ("cat dog",))
    cat, dog, sun = (encode(tokenizer, [w])[0][0] for w in ("cat", "dog", "sun"))
    assert ends.over([sun, cat, dog])
    assert not ends.over([cat, sun])
    assert ends.over([2])


@pytest.mark.long
def test_ppo_raises_the_reward_and_tells_what_it_did(model: Path, tmp_path: Path) -> None:
    watch = Watch()
    trained = ppo(
        model,
        tmp_path,
        watch,
        iterations=8,
        rollouts=32,
        lora=Lora(rank=8),
        kl_coefficient=0.0,
        ppo_epochs=4,
        learning_rate=1e-2,
    )
    rows = rows_of(tmp_path)
    early, late = (sum(r["reward"] for r in part) / len(part) for part in (rows[:2], rows[-2:]))
    assert late > early + 0.15
    assert rows[0]["kl"] == 0.0
    assert rows[-1]["kl"] > 0.0
    assert all(r["first_ratio"] == 0.0 for r in rows)
    wanted = {"reward_std", "objective", "length", "entropy", "distinct_2", "ended", "clip_fraction"}
    assert wanted | {"explained_variance", "policy_loss", "value_loss"} <= rows[0].keys()
    assert [e for e, _ in watch.notes].count("rl.iteration") == 8
    assert trained.metrics["reward"] == rows[-1]["reward"]
    samples = [json.loads(line) for line in (tmp_path / "out/samples.jsonl").read_text().splitlines()]
    assert {"iteration", "prompt", "answer", "reward"} <= samples[0].keys()


@pytest.mark.parametrize("changes", [{}, {"lora": None, "learning_rate": 2e-3}, {"kl_limit": 1000.0}])
def test_a_killed_ppo_goes_on_to_the_same_bytes(model: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    ppo(model, tmp_path / "whole", **changes)
    with pytest.raises(Interrupted):
        ppo(model, tmp_path / "cut", Watch("rl.iteration", 3), **changes)
    watch = Watch()
    ppo(model, tmp_path / "cut", watch, **changes)
    assert next(f["iteration"] for e, f in watch.notes if e == "rl.resumed") == 2
    one, two = (tmp_path / n / "out/model.safetensors" for n in ("whole", "cut"))
    assert one.read_bytes() == two.read_bytes()
    assert len(rows_of(tmp_path / "cut")) == len(rows_of(tmp_path / "whole"))


def test_the_kl_limit_keeps_the_last_iterate_within_it(model: Path, tmp_path: Path) -> None:
    trained = ppo(model, tmp_path / "limited", kl_limit=0.3, iterations=8, learning_rate=3e-2)
    rows = rows_of(tmp_path / "limited")
    assert trained.metrics["stopped_by_kl"]
    assert rows[-1]["discarded"]
    assert rows[-1]["kl"] > 0.3
    assert all(r["kl"] <= 0.3 for r in rows[:-1])
    # The result is the iterate that made the last rows within the limit: the one before the discarded update.
    kept = len(rows) - 2
    if kept:
        ppo(model, tmp_path / "short", iterations=kept, learning_rate=3e-2)
        one, two = (tmp_path / n / "out/model.safetensors" for n in ("limited", "short"))
        assert one.read_bytes() == two.read_bytes()


def test_a_critic_from_the_reward_model_runs_and_other_tokens_are_refused(model: Path, tmp_path: Path) -> None:
    settings = RewardSettings(epochs=2, learning_rate=1e-2, batch_size=4, precision=Precision.FLOAT32)
    train_reward(RewardData(model, comparisons(12), []), settings, attempt_at(tmp_path, name="rm"))
    ppo(model, tmp_path, reward=tmp_path / "rm", critic=CriticStart.REWARD, iterations=2, critic_warmup=1)
    rows = rows_of(tmp_path)
    assert rows[1]["kl"] == 0.0, "the first iteration trains the critic alone"
    assert rows[1]["value_loss"] < rows[0]["value_loss"] * 2
    tokenizer = tmp_path / "rm/tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace('"rude"', '"rough"'))
    with pytest.raises(SpecError, match="reads other tokens"):
        ppo(model, tmp_path / "x", reward=tmp_path / "rm", critic=CriticStart.REWARD)


def test_long_prompts_are_dropped_and_counted(model: Path, tmp_path: Path) -> None:
    trained = ppo(model, tmp_path, max_prompt_tokens=4, iterations=1)
    assert trained.dropped == {"prompt too long": 4}
    assert trained.metrics["prompts"] == 6


def test_first_ratios_are_one_in_bfloat16_with_every_layer_adapted(model: Path, tmp_path: Path) -> None:
    ppo(model, tmp_path, precision=Precision.BFLOAT16, lora=Lora(rank=4), iterations=2, entropy_bonus=0.01)
    assert [r["first_ratio"] for r in rows_of(tmp_path)] == [0.0, 0.0]


@pytest.mark.parametrize("precision", [Precision.FLOAT32, Precision.BFLOAT16])
@pytest.mark.parametrize("lora", [Lora(rank=4), Lora(rank=4, last_layers=1), None])
def test_policy_and_reference_agree_to_the_bit_at_the_start(
    model: Path, tmp_path: Path, lora: Lora | None, precision: Precision
) -> None:
    ppo(model, tmp_path, lora=lora, precision=precision, iterations=2, learning_rate=1e-3)
    rows = rows_of(tmp_path)
    assert (rows[0]["kl"], rows[0]["kl_k1"], rows[0]["first_ratio"]) == (0.0, 0.0, 0.0)
    assert rows[1]["kl"] > 0


@pytest.mark.parametrize(
    ("rollouts", "batch_size", "micro_batch_size", "expected"),
    [
        (8, 8, 3, [[3, 3, 2]]),
        (16, 8, 4, [[4, 4], [4, 4]]),
        (10, 4, 8, [[4], [4], [2]]),
        (10, 10, 4, [[4, 3, 3]]),
        (7, 32, 8, [[7]]),
        (5, 1, 1, [[1]] * 5),
    ],
)
def test_an_optimizer_step_has_batch_size_answers_whatever_the_micro_size(
    rollouts: int, batch_size: int, micro_batch_size: int, expected: list[list[int]]
) -> None:
    assert step_sizes(rollouts, batch_size, micro_batch_size) == expected
    settings = PPO_SETTINGS.model_copy(update={"batch_size": batch_size, "micro_batch_size": micro_batch_size})
    prompts, answers = [(5, 6)] * rollouts, [tuple(range(3, 4 + i)) for i in range(rollouts)]
    microbatches = cut_microbatches(prompts, answers, settings, "cpu")
    steps = list(optimizer_steps(microbatches[::-1], settings))
    assert [sum(len(m.rows) for m in step) for step in steps] == [sum(sizes) for sizes in expected]
    assert all(len(m.rows) <= micro_batch_size for step in steps for m in step)
    assert sorted(row for step in steps for m in step for row in m.rows) == list(range(rollouts))


def test_the_micro_size_changes_nothing_but_rounding(model: Path, tmp_path: Path) -> None:
    """One step an epoch, so that no order of steps differs either."""
    found = {}
    for size in (1, 3, 16, 40):
        ppo(model, tmp_path / str(size), batch_size=16, micro_batch_size=size, iterations=1, ppo_epochs=1)
        [found[size]] = rows_of(tmp_path / str(size))
    for size in (1, 3, 40):
        for name in ("policy_loss", "value_loss", "grad_norm", "reward"):
            assert found[size][name] == pytest.approx(found[16][name], abs=1e-5), (size, name)


@pytest.mark.parametrize("limit", [0.0, 1e-6])
@pytest.mark.parametrize("lora", [Lora(rank=4), None])
def test_a_kl_limit_that_the_first_update_passes_ends_at_the_start(
    model: Path, tmp_path: Path, limit: float, lora: Lora | None
) -> None:
    trained = ppo(model, tmp_path, kl_limit=limit, lora=lora, iterations=4)
    assert trained.metrics["stopped_by_kl"]
    assert trained.metrics["kl"] == 0.0
    rows = rows_of(tmp_path)
    assert [bool(row.get("discarded")) for row in rows] == [False, True]
    start, result = (load_file(folder / "model.safetensors") for folder in (model, tmp_path / "out"))
    assert all(torch.equal(start[name].float(), result[name]) for name in start)


def test_the_samplers_log_probabilities_are_recorded_and_their_gap_is_told(model: Path, tmp_path: Path) -> None:
    ppo(model, tmp_path / "plain", iterations=1, temperature=0.7)
    [plain] = rows_of(tmp_path / "plain")
    assert 0 <= plain["sampler_gap"] <= plain["sampler_gap_max"] < 1e-5
    sampled = [json.loads(line) for line in (tmp_path / "plain/out/samples.jsonl").read_text().splitlines()]
    assert all(sample["logprob"] < 0 for sample in sampled)
    ppo(model, tmp_path / "cut", iterations=1, temperature=0.7, top_k=2)
    [cut] = rows_of(tmp_path / "cut")
    assert cut["sampler_gap"] > 0.05, "what top-k leaves out is a difference that the trainer does not know"


@pytest.mark.parametrize(("top_k", "top_p"), [(3, 1.0), (0, 0.6), (4, 0.7)])
def test_draws_have_the_probabilities_of_the_tokens_that_are_left(top_k: int, top_p: float) -> None:
    generator = torch.Generator().manual_seed(0)
    probs = torch.softmax(torch.randn((1, 40), generator=generator) * 2, -1)
    order = probs[0].argsort(descending=True)
    kept = order[: top_k or 40]
    mass = probs[0, kept].double()
    before = mass.cumsum(0) - mass
    kept = kept[before < top_p * mass.sum()]
    expected = torch.zeros(40, dtype=torch.double)
    expected[kept] = probs[0, kept].double() / probs[0, kept].double().sum()
    at = torch.linspace(0, 1, 4001, dtype=torch.double)[:-1, None]
    tokens, logprobs = inverted(probs.expand(len(at), -1), at, top_k, top_p)
    shares = torch.bincount(tokens, minlength=40) / len(at)
    torch.testing.assert_close(shares.double(), expected, atol=5e-4, rtol=0)
    torch.testing.assert_close(logprobs.double(), expected[tokens].log(), atol=1e-5, rtol=0)


def test_a_policy_that_is_lost_fails_with_words_and_the_last_good_one_is_kept(model: Path, tmp_path: Path) -> None:
    """With a learning rate that no training survives."""
    with pytest.raises(StepFailed, match=r"rl, iteration \d of 6: .*the last good model, of iteration \d, is kept in"):
        ppo(model, tmp_path, learning_rate=30.0, max_grad_norm=1e9, iterations=6, kl_coefficient=0.0)
    kept = load_file(tmp_path / "work/last_good/model.safetensors")
    assert all(bool(torch.isfinite(tensor).all()) for tensor in kept.values())
    assert not (tmp_path / "out/model.safetensors").exists()


ROW = {"reward": 0.1, "reward_std": 0.3, "kl": 0.0, "kl_k1": 0.0, "entropy": 1.5}
ALIKE = {**ROW, "reward_std": 0.0}


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([ROW, ROW], ""),
        ([ROW, {**ROW, "reward": math.nan}], "reward is nan"),
        ([{**ROW, "kl": math.inf}], "kl is inf"),
        ([ROW, {**ROW, "entropy": 0.002}], "entropy is gone: 0.0020 nats a token, and was 1.50"),
        ([{**ROW, "entropy": 0.002}], ""),
        ([ROW, {**ROW, "entropy": 3.2}], "says nothing any more: its entropy is 3.20 nats a token, and was 1.50"),
        ([{**ROW, "entropy": 3.2}, {**ROW, "entropy": 3.2}], ""),
        ([ALIKE, ALIKE], ""),
        ([ALIKE, ROW, ALIKE, ALIKE], ""),
        ([ROW, ALIKE, ALIKE, ALIKE], "all answers of 3 iterations have the same reward"),
    ],
)
def test_what_shows_that_a_policy_is_lost(rows: list[dict[str, Any]], told: str) -> None:
    fault = lost_policy(rows, 25)
    assert told in fault
    assert bool(fault) == bool(told)


def test_a_reward_that_says_the_same_of_all_ends_training(model: Path, tmp_path: Path) -> None:
    data = PpoData(model, RewardModel(model), questions(10))
    with pytest.raises(StepFailed, match="the same reward") as error:
        train_ppo(data, PPO_SETTINGS, attempt_at(tmp_path), Hardware(threads=1), score=lambda pairs: [0.5] * len(pairs))
    assert "rl, iteration 2 of 4" in str(error.value)
    assert "the last good model, of iteration 1, is kept in" in str(error.value)
    assert (tmp_path / "work/last_good/model.safetensors").exists()
