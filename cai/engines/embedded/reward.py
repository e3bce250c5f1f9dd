"""The reward model: a linear head on the last token's final state, trained on pairs with soft labels.

The prompt of a pair is computed once for both answers. Soft-label Bradley-Terry loss as in RewardSettings; a tie is
p = 0.5 and pulls the two rewards together.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from cai.engines.base import Attempt, Trained
from cai.engines.embedded.batches import Branches, Packed, batches_of, by_length, epoch_order, pack
from cai.engines.embedded.checkpoints import fingerprint
from cai.engines.embedded.divergence import LEAST_DEVIATION, Health, without_deviation
from cai.engines.embedded.functions import without_gradient
from cai.engines.embedded.lower import LowerStates
from cai.engines.embedded.models import encode, encode_after, end_tokens, load_tokenizer
from cai.engines.embedded.optim import Work, fit, rate_of
from cai.engines.embedded.reward_head import RewardHead, free_padding, load_head
from cai.engines.embedded.settings import Hardware
from cai.engines.embedded.sft import dropout_generator, prepared
from cai.engines.embedded.trunk import Trunk
from cai.engines.methods.base import PairText, Precision
from cai.engines.methods.reward import RewardData, RewardSettings
from cai.errors import StepFailed
from cai.identity import sampling_seed

ABOUT_FILE = "reward.json"
# Answers from which the reward's mean and deviation are told.
_SCALE_PAIRS = 128
_SCORE_TOKENS = 4096


@dataclass(frozen=True, slots=True)
class Pair:
    """A tokenised comparison: both answers on one prompt, and the label."""

    id: str
    branches: Branches
    p_chosen: float


def pair_tokens(tokenizer: Any, texts: Sequence[PairText]) -> list[list[list[int]]]:
    """Token ids of the prompts, of the chosen and of the rejected answers, in the order of ``texts``."""
    prompts = [text.prompt for text in texts]
    answers = [[text.chosen for text in texts], [text.rejected for text in texts]]
    return [encode(tokenizer, prompts), *(encode_after(tokenizer, prompts, column) for column in answers)]


def pairs_of(tokenizer: Any, texts: Sequence[PairText], max_length: int, dropped: Counter[str]) -> list[Pair]:
    """Tokenise; pairs that are too long or have an empty answer are left out and counted by reason."""
    columns = pair_tokens(tokenizer, texts)
    pairs = []
    for text, prompt, chosen, rejected in zip(texts, *columns, strict=True):
        branches = Branches(tuple(prompt), (tuple(chosen), tuple(rejected)))
        if not chosen or not rejected:
            dropped["empty answer"] += 1
        elif branches.longest > max_length:
            dropped["too long"] += 1
        else:
            pairs.append(Pair(text.id, branches, text.p_chosen))
    return pairs


def pair_loss(rewards_P2: Tensor, p_chosen_P: Tensor, center: float) -> Tensor:  # noqa: N803
    """Sum over pairs of the soft-label Bradley-Terry loss and the centring term; rewards are (chosen, rejected)."""
    d = rewards_P2[:, 0] - rewards_P2[:, 1]
    preference = -(p_chosen_P * functional.logsigmoid(d) + (1 - p_chosen_P) * functional.logsigmoid(-d))
    return (preference + center * rewards_P2.sum(1).square()).sum()


def rewards_of(states: Tensor, batch: Packed, head: Tensor) -> Tensor:
    """Rewards [B] of a micro-batch's rows, float32; pooling is by known length."""
    return states.index_select(0, batch.last_B).float() @ head


def quality(margins: Sequence[float], labels: Sequence[float]) -> dict[str, float]:
    """Accuracy (ties left out and counted; an undecided margin is half right), calibration error and Brier score.

    Calibration compares sigmoid(margin) with the label in ten equal bins of the former, orientation made symmetric.
    """
    decided = [(d, p) for d, p in zip(margins, labels, strict=True) if abs(p - 0.5) > 1e-9]
    right = sum(0.5 if d == 0 else float((d > 0) == (p > 0.5)) for d, p in decided)
    metrics: dict[str, float] = {"val_ties": float(len(labels) - len(decided)), "val_pairs": float(len(labels))}
    if decided:
        metrics["val_accuracy"] = right / len(decided)
    bins: dict[int, list[tuple[float, float]]] = {}
    for d, p in zip(margins, labels, strict=True):
        for sign, label in ((d, p), (-d, 1 - p)):
            q = 1 / (1 + math.exp(-max(-60.0, min(60.0, sign))))
            bins.setdefault(min(9, int(q * 10)), []).append((q, label))
    count = sum(map(len, bins.values()))
    if count:
        gaps = (abs(sum(q for q, _ in b) - sum(p for _, p in b)) for b in bins.values())
        metrics["val_calibration_error"] = sum(gaps) / count
        metrics["val_brier"] = sum((q - p) ** 2 for b in bins.values() for q, p in b) / count
    return metrics


def train(data: RewardData, settings: RewardSettings, attempt: Attempt, hardware: Hardware = Hardware()) -> Trained:
    """Train a reward model; ``attempt.dest`` gets a Hugging Face folder, the head, reward.json, metrics.jsonl.

    Raises:
        StepFailed: when no pair is left, or training diverges: what was good of the model is kept (``optim.fit``).
    """
    seed, device, dest = attempt.seed, hardware.device, attempt.dest
    trunk = prepared(data.model, settings, seed, hardware, head=False)
    tokenizer = load_tokenizer(data.model)
    dropped: Counter[str] = Counter()
    limit = min(settings.max_length, trunk.longest)
    pairs = pairs_of(tokenizer, data.train, limit, dropped)
    held_out = pairs_of(tokenizer, data.val, limit, Counter())
    if not pairs:
        raise StepFailed(f"reward: none of {len(data.train)} pairs can be used ({dict(dropped)}); raise max_length")
    head = _new_head(trunk.hidden, seed, device)
    ids = [p.id for p in pairs]
    batches = batches_of(ids, settings.batch_size, settings.epochs, seed)
    steps = len(batches)
    train_states = LowerStates(trunk, [p.branches for p in pairs], settings.epochs)
    val_states = LowerStates(trunk, [p.branches for p in held_out], 2)
    attempt.progress.expect(
        rows=sum(map(len, batches)), tokens=sum(pairs[i].branches.tokens for b in batches for i in b)
    )

    def rewards(source: list[Pair], lower: LowerStates, micro: list[int], generator: Any = None) -> Tensor:
        batch = pack([source[i].branches for i in micro], device)
        states = trunk.above(lower(micro, batch), batch, generator=generator)
        return rewards_of(states, batch, head).view(-1, 2)

    def labels(source: list[Pair], micro: list[int]) -> Tensor:
        return torch.tensor([source[i].p_chosen for i in micro], dtype=torch.float32, device=device)

    spread = torch.ones((), device=device)  # the deviation of the last batch's rewards

    def learn(step: int) -> dict[str, float]:
        chosen, loss, right = batches[step], torch.zeros((), device=device), torch.zeros((), device=device)
        batch_rewards = []
        for number, micro in enumerate(
            by_length(chosen, settings.micro_batch_size, lambda i: pairs[i].branches.tokens)
        ):
            scored = rewards(
                pairs, train_states, micro, dropout_generator(settings, seed, step=step, micro=number, device=device)
            )
            label = labels(pairs, micro)
            part = pair_loss(scored, label, settings.center_coefficient) / len(chosen)
            part.backward()
            loss += part.detach()
            agreement = (scored[:, 0] - scored[:, 1]).detach() * (label - 0.5)
            right += (agreement > 0).sum()
            batch_rewards.append(scored.detach().flatten())
        spread.copy_(torch.cat(batch_rewards).std(correction=0))
        tokens = sum(pairs[i].branches.tokens for i in chosen)
        decided = sum(pairs[i].p_chosen != 0.5 for i in chosen)
        return {"loss": float(loss), "accuracy": float(right) / max(1, decided), "tokens": tokens, "rows": len(chosen)}

    @without_gradient
    def validate() -> dict[str, float]:
        margins: list[float] = []
        targets: list[float] = []
        total = 0.0
        for micro in by_length(range(len(held_out)), 8, lambda i: held_out[i].branches.tokens):
            scored, label = rewards(held_out, val_states, micro), labels(held_out, micro)
            total += float(pair_loss(scored, label, 0.0))
            margins += (scored[:, 0] - scored[:, 1]).tolist()
            targets += label.tolist()
        return {"val_loss": total / len(margins), **quality(margins, targets)} if margins else {}

    sample = epoch_order(ids, seed, "scale")[:_SCALE_PAIRS]

    @without_gradient
    def sampled_rewards() -> Tensor:
        """Of both answers of the sample's pairs [2 P], float64."""
        micros = by_length(sample, 8, lambda i: pairs[i].branches.tokens)
        return torch.cat([rewards(pairs, train_states, micro).flatten() for micro in micros]).double()

    ends = {*end_tokens(data.model, tokenizer), *(end[-1] for pair in pairs for end in pair.branches.ends)}

    def save(folder: Path, rewards_of_sample: Tensor) -> dict[str, Any]:
        """Write the reward model; returns what its reward.json says."""
        trunk.save(folder, RewardHead(head, free_padding(tokenizer, ends)))
        about = _about(trunk, rewards_of_sample)
        (folder / ABOUT_FILE).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        return about

    final: list[Tensor] = []  # the sample's rewards at the end

    def finished(rows: list[dict[str, Any]]) -> str:
        final.append(sampled_rewards())
        return without_deviation(final[-1].tolist())

    work = Work(
        steps=steps,
        parameters={**trunk.parameters(), "reward_head": head},
        refresh=trunk.refresh,
        learn=learn,
        validate=validate,
        belongs=fingerprint(settings, seed, data.train, str(trunk.dtype)),
        event="reward",
        save=lambda folder: save(folder, sampled_rewards()),
        # Of the batch just seen: whether all rewards are alike is decided on the whole sample, at the end.
        health=lambda step, numbers: Health(sound=spread.item() >= LEAST_DEVIATION),
        finished=finished,
    )
    rows = fit(work, settings, attempt)
    about = save(dest, final[-1])
    metrics: dict[str, Any] = {
        "pairs": len(pairs),
        "ties": sum(abs(p.p_chosen - 0.5) < 1e-9 for p in pairs),
        "steps": steps,
        "tokens": int(sum(r.get("tokens", 0) for r in rows)),
        "tokens_per_s": round(rate_of(rows), 1),
        "first_loss": rows[1]["loss"],
        "last_loss": rows[-1]["loss"],
        "reward_mean": about["mean"],
        "reward_std": about["std"],
        "precision": str(trunk.dtype).removeprefix("torch."),
    }
    metrics |= {f"{k}_before": v for k, v in rows[0].items() if k in ("val_loss", "val_accuracy")}
    metrics |= {k: v for k, v in rows[-1].items() if k.startswith("val_")}
    return Trained(metrics, dict(dropped))


def _about(trunk: Trunk, rewards: Tensor) -> dict[str, Any]:
    """What reward.json says: how the reward is read, and its mean and deviation over ``rewards``, float64."""
    return {
        "pooling": "last",
        "hidden": trunk.hidden,
        "mean": float(rewards.mean()),
        "std": float(rewards.std(correction=0)),
        "answers": rewards.numel(),
    }


def _new_head(hidden: int, seed: int, device: str) -> Tensor:
    generator = torch.Generator().manual_seed(sampling_seed(seed, "reward_head", "init"))
    weight = torch.randn(hidden, generator=generator)
    # Small, and without a direction of its own: rewards start near zero whatever the states' mean is.
    return ((weight - weight.mean()) * (0.1 / hidden**0.5)).to(device).requires_grad_()


class EmbeddedRewardScorer:
    """A finished reward model in this process."""

    def __init__(
        self, path: Path, device: str = "cpu", threads: int = 0, precision: Precision = Precision.AUTO
    ) -> None:
        if threads:
            torch.set_num_threads(threads)
        self._head: Tensor | None = load_head(path, device)
        self._trunk: Trunk | None = Trunk(path, precision, device)
        self._tokenizer = load_tokenizer(path)

    @without_gradient
    def score(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """Rewards of (rendered prompt, rendered answer) pairs, in order; a prompt asked again is computed once.

        Raises:
            ValueError: after ``close``.
        """
        if self._trunk is None or self._head is None:
            raise ValueError("this reward model is closed")
        prompts = {p: i for i, p in enumerate(dict.fromkeys(p for p, _ in pairs))}
        rows_by_prompt: list[list[int]] = [[] for _ in prompts]
        for row, (prompt, _) in enumerate(pairs):
            rows_by_prompt[prompts[prompt]].append(row)
        prompt_ids = encode(self._tokenizer, list(prompts))
        answer_ids = encode_after(self._tokenizer, [p for p, _ in pairs], [a for _, a in pairs])
        trees = [
            Branches(tuple(ids), tuple(tuple(answer_ids[row]) for row in rows))
            for ids, rows in zip(prompt_ids, rows_by_prompt, strict=True)
        ]
        scores = [0.0] * len(pairs)
        for group in _by_tokens(trees, _SCORE_TOKENS):
            batch = pack([trees[i] for i in group], self._trunk.device)
            rewards = rewards_of(self._trunk(batch), batch, self._head).tolist()
            for row, reward in zip((row for i in group for row in rows_by_prompt[i]), rewards, strict=True):
                scores[row] = reward
        return scores

    def close(self) -> None:
        """Release the model's memory."""
        self._trunk = self._head = None


def _by_tokens(trees: Sequence[Branches], most: int) -> list[list[int]]:
    groups: list[list[int]] = []
    filled = 0
    for i in sorted(range(len(trees)), key=lambda i: (-trees[i].longest, i)):
        if not groups or filled + trees[i].tokens > most:
            groups.append([])
            filled = 0
        groups[-1].append(i)
        filled += trees[i].tokens
    return groups
