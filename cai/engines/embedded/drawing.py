"""The next token of every row, drawn from its own numbers: the u of row i at step t is a function of (seed_i, t).

Order of the rules: repetition penalty (arXiv 1909.05858) over prompt and answer, end tokens held back before
``min_tokens``, temperature, top-k, top-p (arXiv 1904.09751), then inversion of the cumulative distribution.
"""

# ruff: noqa: N803, N806 - arrays carry their axes: B rows, T tokens, V vocabulary, D width, K kept, N reads

from __future__ import annotations

from collections.abc import Sequence

import torch

from cai.clients.base import Sampling
from cai.identity import uniform

# Nucleus sampling first looks among this many best tokens; a row whose nucleus is larger is sorted whole.
_NUCLEUS = 512


def draw(
    logits_BV: torch.Tensor,
    samplings: Sequence[Sampling],
    *,
    seeds: Sequence[int],
    steps: Sequence[int],
    seen_BV: torch.Tensor | None = None,
    ends: Sequence[int] = (),
) -> list[int]:
    """One token a row from float32 logits, which are changed in place.

    ``steps`` counts the tokens each row already has. ``seen_BV`` marks the tokens in prompt and answer; it is needed
    only where a row has a repetition penalty.
    """
    if seen_BV is not None:
        factor_B1 = logits_BV.new_tensor([[s.repetition_penalty] for s in samplings])
        weaker_BV = torch.where(logits_BV > 0, logits_BV / factor_B1, logits_BV * factor_B1)
        logits_BV = torch.where(seen_BV, weaker_BV, logits_BV)
    for row, (sampling, step) in enumerate(zip(samplings, steps, strict=True)):
        if step < sampling.min_tokens and ends:
            logits_BV[row, list(ends)] = -torch.inf
    tokens: list[int] = logits_BV.argmax(dim=-1).tolist()
    groups: dict[tuple[int, float], list[int]] = {}
    for row, sampling in enumerate(samplings):
        if sampling.temperature > 0:
            groups.setdefault((sampling.top_k, sampling.top_p), []).append(row)
    for (top_k, top_p), rows in groups.items():
        heat_B1 = logits_BV.new_tensor([[samplings[row].temperature] for row in rows])
        probs_BV = torch.softmax(logits_BV[rows] / heat_B1, dim=-1)
        at_B1 = probs_BV.new_tensor(
            [[uniform(seeds[row], str(steps[row]), "token")] for row in rows], dtype=torch.double
        )
        for row, token in zip(rows, inverted(probs_BV, at_B1, top_k, top_p)[0].tolist(), strict=True):
            tokens[row] = token
    return tokens


def inverted(
    probs_BV: torch.Tensor, at_B1: torch.Tensor, top_k: int, top_p: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens [B] in which the cumulative distributions of the kept tokens pass ``at``, and their log-probabilities.

    Those [B] are what the draws really had, in nats: by what temperature made of the logits, and by the mass of the
    tokens that top-k and top-p left.
    """
    vocabulary = probs_BV.shape[-1]
    best_BK: torch.Tensor | None = None
    kept_BK = probs_BV
    if 0 < top_k < vocabulary:
        kept_BK, best_BK = probs_BV.topk(top_k, dim=-1)
    elif top_p < 1:
        kept_BK, best_BK = probs_BV.topk(min(_NUCLEUS, vocabulary), dim=-1)
        if bool((kept_BK.sum(-1) < top_p).any()):
            kept_BK, best_BK = probs_BV.sort(dim=-1, descending=True)
    # Double: a float32 sum over 50,000 tokens is off by more than the rarest of them.
    mass_BK = kept_BK.double()
    if top_p < 1:
        # With top-k the nucleus is of what top-k left; without it, of the whole distribution (which sums to one).
        whole_B1 = mass_BK.sum(-1, keepdim=True) if 0 < top_k < vocabulary else 1.0
        before_BK = mass_BK.cumsum(-1) - mass_BK
        mass_BK = mass_BK.masked_fill(before_BK >= top_p * whole_B1, 0.0)
    total_BK = mass_BK.cumsum(-1)
    place_B1 = torch.searchsorted(total_BK, at_B1 * total_BK[:, -1:], right=True)
    last_B1 = (mass_BK > 0).long().mul(torch.arange(1, mass_BK.shape[-1] + 1, device=mass_BK.device)).amax(-1) - 1
    place_B1 = torch.minimum(place_B1, last_B1[:, None])
    mass_B1 = mass_BK.gather(-1, place_B1)
    token_B1 = place_B1 if best_BK is None else best_BK.gather(-1, place_B1)
    return token_B1[:, 0], (mass_B1 / total_BK[:, -1:]).log()[:, 0].float()
