"""log p(continuation | prompt) by torch, in float32 unless the engine's settings say otherwise: what judges read.

Token boundary: prompt and continuation are tokenised apart and their ids joined, so that a continuation's tokens do
not depend on the prompt, and "A" and "B" after the same prompt are compared on equal terms.

The last token of a continuation is never an input, so one-token options of the same prompt (the judge's usual case)
are one row of the batch. What all rows begin with is computed once. Logits exist only where a token is scored.
Batches are formed from the list alone; against a batch of one, sums differ by rounding only (within 1e-3 nats in
float32). In bfloat16 the layers are computed with 8 significant bits; the logits are taken in float32 all the same,
since of two options whose logits are 20 bfloat16 would tell only differences of 0.125.
"""

# ruff: noqa: N806 - arrays carry their axes: B rows, T tokens, V vocabulary, D width, K kept, N reads

from __future__ import annotations

import gc
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from cai.clients.base import Score, ScoreRequest
from cai.engines.embedded.models import context_length, encode, encode_after, load_model, load_tokenizer, shared_prefix
from cai.engines.embedded.settings import EmbeddedSettings, choose
from cai.engines.embedded.stopping import PROMPT_TOO_LONG, unreadable
from cai.engines.embedded.torch_client import prefix_cache

# Logits of this many positions exist at once: 256 x 49,152 x 4 bytes = 50 MB.
_POSITIONS = 256


@dataclass
class _Input:
    """One input of the model and who reads from it: (request index, position of the first read, tokens)."""

    ids: tuple[int, ...]
    readers: list[tuple[int, int, list[int]]] = field(default_factory=list)


class TorchScorer:
    """Scores continuations with a transformers model on the chosen device, in the precision that the settings say."""

    def __init__(self, model: Path, settings: EmbeddedSettings) -> None:
        if settings.threads:
            torch.set_num_threads(settings.threads)
        self._budget = settings.scoring_batch_tokens
        self._tokenizer = load_tokenizer(model)
        self._context = context_length(model)
        chosen = choose(settings)
        self._model: Any = load_model(model, chosen.scoring.value, chosen.device.value)
        _widen_head(self._model)

    def score(self, requests: Sequence[ScoreRequest]) -> Iterator[Score]:
        """Score every request; an empty continuation has log-probability 0.

        A text that cannot be read (no prompt to follow, too long for the model) has none, and its score says why.
        """
        texts = [request.prompt for request in requests]
        prompts = encode(self._tokenizer, texts)
        tails = encode_after(self._tokenizer, texts, [request.continuation for request in requests])
        reasons = [unreadable(prompt, 0) for prompt in prompts]
        for i, (prompt, tail) in enumerate(zip(prompts, tails, strict=True)):
            if self._context and len(prompt) + len(tail) > self._context:
                reasons[i] = PROMPT_TOO_LONG
        for request, why in zip(requests, reasons, strict=True):
            if why:
                yield Score(request.id, math.nan, 0, why)
        readable = [i for i, why in enumerate(reasons) if not why]
        requests = [requests[i] for i in readable]
        prompts = [prompts[i] for i in readable]
        tails = [tails[i] for i in readable]
        sums = score_ids(self._model, prompts, tails, self._budget)
        for request, tail, total in zip(requests, tails, sums, strict=True):
            yield Score(request.id, total, len(tail))

    def close(self) -> None:
        """Release the model's memory."""
        self._model = None
        gc.collect()


def _widen_head(model: Any) -> None:
    """Let a model's last product be in float32. The matrix is a copy: the embedding may be the same one."""
    head = model.get_output_embeddings()
    if head.weight.dtype == torch.float32:
        return
    wide = torch.nn.Linear(head.in_features, head.out_features, bias=head.bias is not None, device="meta")
    wide.weight = torch.nn.Parameter(head.weight.detach().float(), requires_grad=False)
    if head.bias is not None:
        wide.bias = torch.nn.Parameter(head.bias.detach().float(), requires_grad=False)
    model.set_output_embeddings(wide)


@torch.inference_mode()  # type: ignore[untyped-decorator]
def score_ids(
    model: Any, prompts: Sequence[Sequence[int]], tails: Sequence[Sequence[int]], budget: int = 4096
) -> list[float]:
    """Sums of log-probabilities (nats) of each tail after its prompt; ``budget`` tokens, padding included, a batch."""
    rows: dict[tuple[int, ...], _Input] = {}
    for index, (prompt, tail) in enumerate(zip(prompts, tails, strict=True)):
        if tail:
            ids = (*prompt, *tail[:-1])
            rows.setdefault(ids, _Input(ids)).readers.append((index, len(prompt) - 1, list(tail)))
    sums = [0.0] * len(prompts)
    shared = shared_prefix(list(rows))
    order = sorted(rows.values(), key=lambda row: (len(row.ids), row.readers[0][0]))
    batch: list[_Input] = []
    for row in order:
        if batch and (len(batch) + 1) * len(row.ids) > budget:
            _score_batch(model, batch, shared, sums)
            batch = []
        batch.append(row)
    if batch:
        _score_batch(model, batch, shared, sums)
    return sums


def _score_batch(model: Any, rows: list[_Input], shared: int, sums: list[float]) -> None:
    # A tail's first token is read at its prompt's last position, which must not lie in the shared part.
    shared = min([shared, *(place for row in rows for _, place, _ in row.readers)])
    width = max(len(row.ids) for row in rows) - shared
    ids_BT = torch.zeros(len(rows), width, dtype=torch.long)
    mask_BT = torch.zeros(len(rows), shared + width, dtype=torch.long)
    for i, row in enumerate(rows):
        ids_BT[i, : len(row.ids) - shared] = torch.tensor(row.ids[shared:])
        mask_BT[i, : len(row.ids)] = 1
    place_1T = torch.arange(shared, shared + width, device=model.device)[None]
    hidden_BTD = model.base_model(
        input_ids=ids_BT.to(model.device),
        attention_mask=mask_BT.to(model.device),
        position_ids=place_1T,
        past_key_values=prefix_cache(model, rows[0].ids[:shared], len(rows)),
        use_cache=True,
    ).last_hidden_state
    reads = [
        (index, i, place - shared + offset, token)
        for i, row in enumerate(rows)
        for index, place, tail in row.readers
        for offset, token in enumerate(tail)
    ]
    head = model.get_output_embeddings()
    for start in range(0, len(reads), _POSITIONS):
        part = reads[start : start + _POSITIONS]
        hidden_ND = hidden_BTD[[i for _, i, _, _ in part], [position for _, _, position, _ in part]]
        logits_NV = head(hidden_ND.to(head.weight.dtype)).float()
        tokens_N = torch.tensor([token for *_, token in part], device=logits_NV.device)
        found_N = logits_NV.gather(-1, tokens_N[:, None]).squeeze(-1) - logits_NV.logsumexp(-1)
        for (index, *_), value in zip(part, found_N.tolist(), strict=True):
            sums[index] += value
