"""From rewards to learning signals: per-token rewards with the KL penalty, generalised advantages, whitening."""

from __future__ import annotations

import torch
from torch import Tensor

# Arrays are [answers, tokens] float32, answers filled from the left; ``valid_BT`` marks their tokens.


def token_rewards(
    scores_B: Tensor,  # noqa: N803
    logprobs_BT: Tensor,  # noqa: N803
    reference_BT: Tensor,  # noqa: N803
    valid_BT: Tensor,  # noqa: N803
    *,
    kl_coefficient: float,
) -> Tensor:
    """Per token -kl_coefficient * (log p - log p_ref), plus the answer's score on its last token."""
    rewards = -kl_coefficient * (logprobs_BT - reference_BT) * valid_BT
    last = valid_BT.sum(1) - 1
    rewards[torch.arange(len(scores_B), device=rewards.device), last] += scores_B
    return rewards


def generalised_advantages(
    rewards_BT: Tensor,  # noqa: N803
    values_BT: Tensor,  # noqa: N803
    valid_BT: Tensor,  # noqa: N803
    *,
    gamma: float,
    gae_lambda: float,
) -> tuple[Tensor, Tensor]:
    """Advantages and returns (advantage + value), zero where not valid. Source: arXiv 1506.02438, equation 16.

    Nothing follows an answer's last token, whether it ended or was cut.
    """
    advantages = torch.zeros_like(rewards_BT)
    following = torch.zeros_like(rewards_BT[:, 0])
    values = values_BT * valid_BT
    for t in range(rewards_BT.shape[1] - 1, -1, -1):
        ahead = values[:, t + 1] if t + 1 < rewards_BT.shape[1] else torch.zeros_like(following)
        following = rewards_BT[:, t] + gamma * ahead - values[:, t] + gamma * gae_lambda * following
        following = following * valid_BT[:, t]
        advantages[:, t] = following
    return advantages, (advantages + values) * valid_BT


def whitened(x_BT: Tensor, valid_BT: Tensor) -> Tensor:  # noqa: N803
    """Mean 0 and deviation 1 over the valid tokens; zero elsewhere."""
    chosen = x_BT[valid_BT]
    spread = chosen.std(correction=0).clamp_min(1e-8)
    return (x_BT - chosen.mean()) / spread * valid_BT


def kl_estimates(logprobs_BT: Tensor, reference_BT: Tensor, valid_BT: Tensor) -> tuple[float, float]:  # noqa: N803
    """Mean KL of an answer to the reference in nats: plain (k1) and never negative (k3)."""
    ratio = (reference_BT - logprobs_BT) * valid_BT
    k1 = -ratio.sum(1).mean()
    k3 = (torch.expm1(ratio) - ratio).sum(1).mean()
    return float(k1), float(k3)


def distinct(answers: list[tuple[int, ...]], n: int = 2) -> float:
    """Different n-grams over all n-grams of all answers; 1 when there is none. Source: arXiv 1510.03055."""
    grams = [tuple(ids[i : i + n]) for ids in answers for i in range(len(ids) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 1.0


def explained_variance(values: Tensor, returns: Tensor) -> float:
    """1 - Var(returns - values) / Var(returns); 0 when the returns do not vary."""
    spread = float(returns.var(correction=0))
    return 1.0 - float((returns - values).var(correction=0)) / spread if spread > 1e-12 else 0.0
