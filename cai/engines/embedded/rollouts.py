"""Answers of the policy while it trains: one batch, keys and values kept, finished rows leave.

The sampler runs the very layers that are trained, adapters included, so there is no second copy of the model and no
export between updates. Each row's draws are counted: they depend on the seed, the prompt and the iteration alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from cai.clients.base import Sampling
from cai.engines.embedded.batches import Branches, pack
from cai.engines.embedded.drawing import inverted
from cai.engines.embedded.functions import without_gradient
from cai.engines.embedded.models import encode
from cai.engines.embedded.trunk import Trunk
from cai.identity import sampling_seed

# Prompt tokens read at once, and the share of rows that must have finished before the caches are rewritten.
_PREFILL_TOKENS = 4096
_COMPACT_AT = 0.75


@dataclass(frozen=True, slots=True)
class RolloutPrompt:
    """A prompt to answer: ``key`` names its random draws."""

    key: str
    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SampledAnswer:
    """Sampled tokens, the end of turn included when the answer came to it, and the log-probability that each was drawn
    with: after temperature, top-k and top-p."""

    ids: tuple[int, ...]
    ended: bool
    logprobs: tuple[float, ...] = ()


class EndRules:
    """When an answer is over: end tokens, and stop strings (single-token ones become end tokens)."""

    def __init__(self, tokenizer: Any, tokens: Sequence[int], stops: Sequence[str]) -> None:
        pieces = dict(zip(stops, encode(tokenizer, stops), strict=True))
        # With SentencePiece a stop by itself is a piece with a space before it, and another one within a text.
        single = {s: ids[0] for s, ids in pieces.items() if [s] == tokenizer.convert_ids_to_tokens(ids)}
        self.tokens = frozenset(tokens) | frozenset(single.values())
        self._strings = [s for s in pieces if s and s not in single]
        # A token covers at least one byte, so a stop string's tail lies within as many tokens as it has bytes.
        self._tail = max((len(s.encode()) for s in self._strings), default=0) + 1
        self._tokenizer = tokenizer

    def over(self, ids: Sequence[int]) -> bool:
        """Whether the answer so far is complete."""
        if ids[-1] in self.tokens:
            return True
        if not self._strings:
            return False
        tail = self._tokenizer.decode(ids[-self._tail :], skip_special_tokens=False)
        return any(s in tail for s in self._strings)


class _Cache:
    """Keys and values of every layer: two tensors [layers, rows, kv_heads, width, head_dim] in the compute type."""

    def __init__(self, trunk: Trunk, rows: int, width: int) -> None:
        shape = (len(trunk.layers), rows, trunk.kv_heads, width, trunk.head_dim)
        self.keys = torch.zeros(shape, dtype=trunk.dtype, device=trunk.device)
        self.values = torch.zeros_like(self.keys)

    def put(self, layer: int, qkv: Tensor, *, rows: Tensor, positions: Tensor, heads: int) -> None:
        kv = self.keys.shape[2]
        self.keys[layer, rows, :, positions] = qkv[:, heads : heads + kv]
        self.values[layer, rows, :, positions] = qkv[:, heads + kv :]

    def keep(self, rows: Tensor) -> None:
        self.keys = self.keys.index_select(1, rows)
        self.values = self.values.index_select(1, rows)


@without_gradient
def sample(
    trunk: Trunk,
    prompts: Sequence[RolloutPrompt],
    ends: EndRules,
    sampling: Sampling,
    *,
    seed: int,
    purpose: str,
) -> list[SampledAnswer]:
    """One answer to each prompt, in order; drawn from softmax(logits / temperature), of which top-k and top-p may leave
    a part, by inverting its distribution. Of ``sampling`` nothing else counts."""
    device, max_tokens = trunk.device, sampling.max_tokens
    width = max(len(p.ids) for p in prompts) + max_tokens
    cache = _Cache(trunk, len(prompts), width)
    states = _prefill(trunk, cache, prompts)
    draws = torch.stack([_uniforms(seed, p.key, purpose, max_tokens) for p in prompts]).to(device)
    lengths = torch.tensor([len(p.ids) for p in prompts], device=device)
    rows = list(range(len(prompts)))
    alive = torch.ones(len(prompts), dtype=torch.bool)
    answers: list[list[int]] = [[] for _ in prompts]
    logprobs: list[list[float]] = [[] for _ in prompts]
    ended = [False] * len(prompts)
    for step in range(max_tokens):
        tokens, drawn_with = _draw(functional.linear(states, trunk.head), sampling, draws[:, step])
        for slot, (token, logprob) in enumerate(zip(tokens.tolist(), drawn_with.tolist(), strict=True)):
            if not alive[slot]:
                continue
            answer = answers[rows[slot]]
            answer.append(token)
            logprobs[rows[slot]].append(logprob)
            if ends.over(answer):
                ended[rows[slot]] = True
                alive[slot] = False
        if step + 1 == max_tokens or not bool(alive.any()):
            break
        if int(alive.sum()) <= _COMPACT_AT * len(rows):
            slots = alive.nonzero()[:, 0]
            rows = [rows[i] for i in slots.tolist()]
            alive = alive[slots]
            slots = slots.to(device)
            cache.keep(slots)
            draws, lengths, tokens = draws[slots], lengths[slots], tokens[slots]
        longest = max(len(prompts[i].ids) for i in rows) + step + 1
        states = _step(trunk, cache, tokens, lengths, width=longest)
        lengths = lengths + 1
    return [SampledAnswer(tuple(ids), e, tuple(p)) for ids, e, p in zip(answers, ended, logprobs, strict=True)]


def _uniforms(seed: int, key: str, purpose: str, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(sampling_seed(seed, key, purpose))
    return torch.rand(count, generator=generator, dtype=torch.float64)


def _draw(logits: Tensor, sampling: Sampling, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens [B]: the first whose cumulative probability exceeds the row's uniform number; log-probabilities [B]."""
    probs = torch.softmax(logits.float() / sampling.temperature, dim=-1)
    if sampling.top_k or sampling.top_p < 1:
        return inverted(probs, uniforms[:, None], sampling.top_k, sampling.top_p)
    cumulative = probs.cumsum(-1)
    aims = (uniforms * cumulative[:, -1]).float()[:, None]
    tokens = torch.searchsorted(cumulative, aims, right=True).clamp_(max=logits.shape[1] - 1)
    return tokens[:, 0], probs.gather(1, tokens).clamp_min_(torch.finfo(probs.dtype).tiny).log()[:, 0]


def _prefill(trunk: Trunk, cache: _Cache, prompts: Sequence[RolloutPrompt]) -> Tensor:
    """Read the prompts; the final state [rows, hidden] of each one's last token."""
    finals = torch.empty((len(prompts), trunk.hidden), dtype=trunk.dtype, device=trunk.device)
    group: list[int] = []
    filled = 0
    for row in sorted(range(len(prompts)), key=lambda i: (-len(prompts[i].ids), i)):
        if group and filled + len(prompts[row].ids) > _PREFILL_TOKENS:
            finals[group] = _prefill_group(trunk, cache, prompts, group)
            group, filled = [], 0
        group.append(row)
        filled += len(prompts[row].ids)
    finals[group] = _prefill_group(trunk, cache, prompts, group)
    return finals


def _prefill_group(trunk: Trunk, cache: _Cache, prompts: Sequence[RolloutPrompt], group: list[int]) -> Tensor:
    """Read the prompts of these rows as one batch; the final state [group, hidden] of each one's last token."""
    batch = pack([Branches((), (prompts[i].ids,)) for i in group], trunk.device)
    lengths = torch.tensor([len(prompts[i].ids) for i in group], device=trunk.device)
    rows = torch.tensor(group, device=trunk.device).repeat_interleave(lengths)

    def cache_and_attend(layer: int, qkv: Tensor) -> Tensor:
        cache.put(layer, qkv, rows=rows, positions=batch.positions_N, heads=trunk.heads)
        return trunk.attend(qkv, batch, trunk.windows[layer])

    embedded = functional.embedding(batch.ids_N, trunk.embedding)
    states = trunk.through(embedded, trunk.rope(batch.positions_N), cache_and_attend)
    return states.index_select(0, batch.last_B)


def _step(trunk: Trunk, cache: _Cache, tokens: Tensor, lengths: Tensor, *, width: int) -> Tensor:
    """Read one token a row at position ``lengths``, all below ``width``; final states [rows, hidden]."""
    count = tokens.shape[0]
    kv, per, dim = trunk.kv_heads, trunk.heads // trunk.kv_heads, trunk.head_dim
    rows = torch.arange(count, device=tokens.device)
    places = torch.arange(width, device=tokens.device)[None]

    def bias_of(window: int) -> Tensor:
        unseen = places > lengths[:, None]
        if window:
            unseen |= places <= lengths[:, None] - window
        bias = torch.zeros((count, 1, 1, width), dtype=trunk.dtype, device=tokens.device)
        return bias.masked_fill_(unseen[:, None, None], -torch.inf)

    biases = {window: bias_of(window) for window in dict.fromkeys(trunk.windows)}

    def cache_and_attend(layer: int, qkv: Tensor) -> Tensor:
        cache.put(layer, qkv, rows=rows, positions=lengths, heads=trunk.heads)
        keys, values = cache.keys[layer, :, :, :width], cache.values[layer, :, :, :width]
        queries = qkv[:, : trunk.heads].reshape(count, kv, per, dim) * dim**-0.5
        weights = torch.softmax(torch.matmul(queries, keys.transpose(2, 3)) + biases[trunk.windows[layer]], dim=-1)
        return torch.matmul(weights, values).reshape(count, -1)

    return trunk.through(functional.embedding(tokens, trunk.embedding), trunk.rope(lengths), cache_and_attend)
