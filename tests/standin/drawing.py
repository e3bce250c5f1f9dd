"""Batched generation, step by step as NeMo does it: all rows advance together from the shortest prompt's end.

So the budget counts from the LONGEST prompt, and shorter ones get the difference on top. Greedy ignores the repetition
penalty, and sampling applies it only when log-probabilities are computed: upstream's behaviour, kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from .tiny import Tiny, Words


@dataclass(frozen=True)
class Sampling:
    """NeMo's parameters, under NeMo's names."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 0.9
    greedy: bool = False
    repetition_penalty: float = 1.0
    min_tokens_to_generate: int = 0
    compute_logprob: bool = False
    all_probs: bool = False
    end_strings: Sequence[str] = field(default_factory=lambda: ("<|endoftext|>",))


@dataclass(frozen=True)
class Drawn:
    """``tokens`` (B, T) with the prompts; ``ends``: where each row stopped, its end token included."""

    tokens: Tensor
    ends: list[int]
    logprob: Tensor | None
    full_logprob: Tensor | None


@torch.no_grad()
def draw(
    model: Tiny,
    words: Words,
    prompts: Sequence[Sequence[int]],
    budget: int,
    how: Sampling,
    dice: torch.Generator | None = None,
) -> Drawn:
    """Continue ``prompts``; stops at ``budget`` tokens after the longest, or when every row has ended."""
    lengths = torch.tensor([len(p) for p in prompts])
    position, last = int(lengths.min()), int(lengths.max()) + budget
    tokens = torch.tensor([[*p, *[words.eos] * (last - len(p))] for p in prompts])
    done = torch.zeros(len(prompts), dtype=torch.bool)
    ends = [last] * len(prompts)
    cache = model.cache(len(prompts), last)
    fed = 0
    seen: list[Tensor] = []
    while position < last:
        logits_BTV = model.lm_head(model.hidden(tokens[:, fed:position], cache, fed))  # noqa: N806
        fed = position
        logits = logits_BTV[:, -1].clone()
        if how.min_tokens_to_generate > 0:
            logits[(position - lengths) < how.min_tokens_to_generate, words.eos] = -float("inf")
        used = tokens[:, 1:position] if how.compute_logprob and seen else None
        chosen = logits.argmax(-1) if how.greedy else _sampled(logits, how, used, dice)
        started = lengths <= position
        chosen = torch.where(started, chosen, tokens[:, position])
        chosen = torch.where(done, words.eos, chosen)
        tokens[:, position] = chosen
        if how.compute_logprob:
            seen.append(torch.log_softmax(logits_BTV, -1))
        for row in (started & ~done).nonzero().flatten().tolist():
            if _ended(tokens[row, : position + 1].tolist(), words, how.end_strings):
                done[row], ends[row] = True, position + 1
        position += 1
        if bool(done.all()):
            break
    tokens = tokens[:, :position]
    full = torch.cat(seen, 1) if seen else None
    logprob = None if full is None else full.gather(-1, tokens[:, 1:, None]).squeeze(-1)
    return Drawn(tokens, [min(e, position) for e in ends], logprob, full if how.all_probs else None)


def _sampled(logits: Tensor, how: Sampling, used: Tensor | None, dice: torch.Generator | None) -> Tensor:
    logits = logits / how.temperature
    if used is not None and how.repetition_penalty != 1.0:
        logits = logits.scatter(1, used, logits.gather(1, used) / how.repetition_penalty)
    if how.top_k > 0:
        edge = torch.topk(logits, min(how.top_k, logits.shape[-1]))[0][..., -1, None]
        logits = logits.masked_fill(logits < edge, -float("inf"))
    if 0.0 < how.top_p < 1.0:
        ordered, order = logits.sort(descending=True, dim=-1)
        above = F.softmax(ordered, -1).cumsum(-1) > how.top_p
        above = torch.cat((torch.zeros_like(above[:, :1]), above[:, :-1]), 1)
        logits = logits.masked_fill(torch.zeros_like(above).scatter(1, order, above), -float("inf"))
    return torch.multinomial(F.softmax(logits, -1), 1, generator=dice).view(-1)


def _ended(ids: list[int], words: Words, end_strings: Sequence[str]) -> bool:
    if ids[-1] == words.eos:
        return True
    # Only the tail is decoded: an end string spans at most one token a byte.
    tail = max((len(e.encode()) for e in end_strings), default=0) + 4
    text = words.decode(ids[-tail:])
    return any(text.endswith(end) for end in end_strings)
