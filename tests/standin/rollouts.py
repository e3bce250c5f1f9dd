"""PPO's arithmetic as upstream does it. Arrays are (B, T - 1): entry t is about token t + 1."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from omegaconf import DictConfig
from torch import Tensor

from .drawing import Sampling, draw
from .rows import Prompt
from .tiny import Tiny, Words, pad


@dataclass(frozen=True)
class Rollout:
    """Texts drawn from the actor: ``tokens`` (B, T), where each prompt and each text ends, which rows count."""

    tokens: Tensor
    starts: Tensor
    ends: Tensor
    counted: Tensor

    def mask(self) -> Tensor:
        """1 for the answer's tokens of rows that count."""
        at = torch.arange(self.tokens.shape[1] - 1)
        inside = (at >= self.starts[:, None] - 1) & (at < self.ends[:, None] - 1)
        return inside.float() * self.counted[:, None]


def roll_out(actor: Tiny, words: Words, prompts: list[Prompt], size: int, cfg: DictConfig) -> Rollout:
    """Answer ``prompts`` in batches of ``size``, with ``cfg.sampling_params`` and ``cfg.length_params``."""
    asked = cfg.sampling_params
    how = Sampling(
        temperature=asked.temperature,
        top_k=asked.top_k,
        top_p=asked.top_p,
        greedy=asked.use_greedy,
        repetition_penalty=asked.repetition_penalty,
        min_tokens_to_generate=cfg.length_params.min_length,
        end_strings=tuple(asked.end_strings),
    )
    texts, ends = [], []
    for start in range(0, len(prompts), size):
        batch = [p.ids for p in prompts[start : start + size]]
        drawn = draw(actor, words, batch, cfg.length_params.max_length, how)
        ends += drawn.ends
        texts += drawn.tokens.tolist()
    return Rollout(
        pad(texts, words.eos),
        torch.tensor([len(p.ids) for p in prompts]),
        torch.tensor(ends),
        torch.tensor([not p.masked for p in prompts]).float(),
    )


def penalised(rewards: Tensor, ends: Tensor, kl: Tensor, penalty: float) -> Tensor:
    """The reward at the last token, less the KL penalty at every one."""
    return torch.zeros_like(kl).scatter(1, (ends - 2)[:, None], rewards[:, None]) - penalty * kl


def advantages(values: Tensor, rewards: Tensor, mask: Tensor, discount: float, decay: float) -> tuple[Tensor, Tensor]:
    """(advantages, returns) by generalised advantage estimation."""
    values, rewards = values * mask, rewards * mask
    found, running = torch.zeros_like(values), torch.zeros(len(values))
    for t in reversed(range(values.shape[1])):
        following = values[:, t + 1] if t + 1 < values.shape[1] else torch.zeros(len(values))
        running = rewards[:, t] + discount * following - values[:, t] + discount * decay * running
        found[:, t] = running
    return found, found + values


def normalised(x: Tensor, mask: Tensor) -> Tensor:
    """Mean 0 and variance 1 over what ``mask`` counts."""
    count = mask.sum().clamp(min=1)
    mean = (x * mask).sum() / count
    variance = (((x - mean) * mask) ** 2).sum() / count
    return (x - mean) * torch.rsqrt(variance + 1e-8)


def policy_loss(now: Tensor, before: Tensor, advantage: Tensor, mask: Tensor, clip: float) -> Tensor:
    """The clipped objective, to be minimised."""
    ratio = (now - before).exp()
    worst = torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - clip, 1 + clip))
    return (worst * mask).sum() / mask.sum().clamp(min=1)
