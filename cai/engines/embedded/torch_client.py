"""Batched generation on transformers' models: a loop of our own, so that each row's draws depend on its seed alone.

Prompts are padded on the left, sorted by length; what a group of prompts begins with is computed once; a finished row
leaves its batch. Used on CUDA, on the CPU where openvino-genai is not installed, and for talking, word by word.
"""

# ruff: noqa: N806 - arrays carry their axes: B rows, T tokens, V vocabulary, D width, K kept, N reads

from __future__ import annotations

import gc
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from cai.chat.thinking import prefilled
from cai.clients.base import Completion, Request, Sampling
from cai.engines.embedded.drawing import draw
from cai.engines.embedded.models import (
    context_length,
    decode,
    encode,
    end_tokens,
    load_model,
    load_tokenizer,
    prefix_groups,
    shared_prefix,
)
from cai.engines.embedded.settings import EmbeddedSettings, choose
from cai.engines.embedded.stopping import completion, unread, unreadable, visible_stops
from cai.engines.embedded.streaming import Growing, OnIds, streamed


@dataclass
class _Sequence:
    index: int
    ids: list[int]
    sampling: Sampling
    seed: int
    generated: list[int] = field(default_factory=list)


@torch.inference_mode()  # type: ignore[untyped-decorator]
def prefix_cache(model: Any, prefix: Sequence[int], rows: int) -> Any:
    """Keys and values of a prefix, computed once and repeated for ``rows`` rows; an empty cache for no prefix."""
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config)
    if prefix:
        ids_1T = torch.tensor([list(prefix)], device=model.device)
        model.base_model(input_ids=ids_1T, past_key_values=cache, use_cache=True)
        cache.batch_repeat_interleave(rows)
    return cache


@torch.inference_mode()  # type: ignore[untyped-decorator]
def generate_ids(
    model: Any,
    prompts: Sequence[Sequence[int]],
    samplings: Sequence[Sampling],
    *,
    seeds: Sequence[int],
    ends: Sequence[int],
    batch: int = 64,
    stopped: Callable[[int, Sequence[int]], bool] | None = None,
) -> list[list[int]]:
    """Token ids that follow each prompt, in order, the end token included.

    A pure function of its arguments: rows are sorted by length, and a row's draws come from its own seed.
    ``stopped(i, ids)`` may end prompt i's answer early.

    Raises:
        ValueError: for an empty prompt.
    """
    if not all(prompts):
        raise ValueError("a prompt has no tokens; render it with the chat template first")
    rows = [_Sequence(i, list(p), s, z) for i, (p, s, z) in enumerate(zip(prompts, samplings, seeds, strict=True))]
    groups = prefix_groups(prompts)
    if sum(len(group) > 1 for group in groups) * 4 > len(rows):
        groups = [list(range(len(rows)))]  # too many small groups: full batches save more than short prefixes
    for group in _joined(groups):
        shared = shared_prefix([prompts[i] for i in group])
        order = sorted((rows[i] for i in group), key=lambda row: (len(row.ids), row.index))
        for start in range(0, len(order), batch):
            _run_batch(model, order[start : start + batch], shared=shared, ends=tuple(ends), stopped=stopped)
    return [row.generated for row in rows]


def _joined(groups: list[list[int]]) -> list[list[int]]:
    """Groups that share a prefix, and all the rows that share none together as one group."""
    alone = sorted(i for group in groups if len(group) == 1 for i in group)
    return [group for group in groups if len(group) > 1] + ([alone] if alone else [])


def _run_batch(
    model: Any,
    rows: list[_Sequence],
    *,
    shared: int,
    ends: tuple[int, ...],
    stopped: Callable[[int, Sequence[int]], bool] | None,
) -> None:
    device = model.device
    cache = prefix_cache(model, rows[0].ids[:shared], len(rows))
    width = max(len(row.ids) for row in rows) - shared
    pads = [width - (len(row.ids) - shared) for row in rows]
    # The padding token's value does not matter: it is masked.
    ids_BT = torch.tensor([[0] * p + row.ids[shared:] for row, p in zip(rows, pads, strict=True)], device=device)
    mask_BT = torch.tensor([[1] * shared + [0] * p + [1] * (width - p) for p in pads], device=device)
    place_BT = (mask_BT.cumsum(-1) - 1).clamp(min=0)[:, shared:]
    seen_BV = _seen_tokens(rows, model.config.vocab_size, device)
    while rows:
        out = model(
            input_ids=ids_BT,
            attention_mask=mask_BT,
            position_ids=place_BT,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        tokens = draw(
            out.logits[:, -1].float(),
            [row.sampling for row in rows],
            seeds=[row.seed for row in rows],
            steps=[len(row.generated) for row in rows],
            seen_BV=seen_BV,
            ends=ends,
        )
        for row, token in zip(rows, tokens, strict=True):
            row.generated.append(token)
        going = [i for i, row in enumerate(rows) if not _finished(row, ends, stopped)]
        ids_BT = torch.tensor(tokens, device=device)[:, None]
        place_BT = place_BT[:, -1:] + 1
        if seen_BV is not None:
            seen_BV.scatter_(1, ids_BT, True)
        if len(going) < len(rows):
            rows = [rows[i] for i in going]
            keep = torch.tensor(going, device=device, dtype=torch.long)
            ids_BT, place_BT, mask_BT = ids_BT[keep], place_BT[keep], mask_BT[keep]
            seen_BV = seen_BV[keep] if seen_BV is not None else None
            if rows:
                cache.batch_select_indices(keep)
        mask_BT = torch.cat([mask_BT, mask_BT.new_ones(len(rows), 1)], dim=1)


def _finished(row: _Sequence, ends: tuple[int, ...], stopped: Callable[[int, Sequence[int]], bool] | None) -> bool:
    if row.generated[-1] in ends or len(row.generated) >= row.sampling.max_tokens:
        return True
    return stopped is not None and stopped(row.index, row.generated)


def _seen_tokens(rows: list[_Sequence], vocabulary: int, device: Any) -> torch.Tensor | None:
    if all(row.sampling.repetition_penalty == 1 for row in rows):
        return None
    seen_BV = torch.zeros(len(rows), vocabulary, dtype=torch.bool)
    for i, row in enumerate(rows):
        seen_BV[i, row.ids] = True
    return seen_BV.to(device)


class TorchGenerator:
    """Completes requests with a transformers model on the chosen device, in the chosen precision."""

    def __init__(self, model: Path, settings: EmbeddedSettings) -> None:
        chosen = choose(settings)
        if settings.threads:
            torch.set_num_threads(settings.threads)
        self._batch = settings.generation_batch
        self._tokenizer = load_tokenizer(model)
        self._ends = end_tokens(model, self._tokenizer)
        self._context = context_length(model)
        self._model: Any = load_model(model, chosen.precision.value, chosen.device.value)

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """Complete the requests; all are computed before the first is returned. What cannot be read is refused."""
        prompts = encode(self._tokenizer, [request.prompt for request in requests])
        reasons = [unreadable(prompt, self._context) for prompt in prompts]
        for request, prompt, why in zip(requests, prompts, reasons, strict=True):
            if why:
                yield unread(request, len(prompt), why)
        requests = [request for request, why in zip(requests, reasons, strict=True) if not why]
        prompts = [prompt for prompt, why in zip(prompts, reasons, strict=True) if not why]
        samplings = [request.sampling for request in requests]
        stops = [visible_stops(self._tokenizer, self._ends, sampling.stop) for sampling in samplings]

        def stopped(row: int, ids: Sequence[int]) -> bool:
            if not stops[row]:
                return False
            # A token is at least one byte, so a stop string that has just ended lies within this many tokens.
            tail = ids[-max(len(stop.encode()) for stop in stops[row]) - 1 :]
            text = self._tokenizer.decode(tail, skip_special_tokens=False, clean_up_tokenization_spaces=False)
            return any(stop in text for stop in stops[row])

        seeds = [request.seed for request in requests]
        answers = generate_ids(
            self._model,
            prompts,
            samplings,
            seeds=seeds,
            ends=self._ends,
            batch=self._batch,
            stopped=stopped,
        )
        for request, prompt, ids in zip(requests, prompts, answers, strict=True):
            yield completion(self._tokenizer, self._ends, request, prompt_tokens=len(prompt), ids=ids)

    def stream(self, request: Request) -> Generator[str, None, Completion]:
        """Pieces of one answer as its tokens are drawn; joined they are ``generate``'s text for the same request."""
        stops = visible_stops(self._tokenizer, self._ends, request.sampling.stop)
        growing = Growing(lambda ids: decode(self._tokenizer, ids), stops, prefilled(request.prompt))

        def work(on_ids: OnIds) -> Completion:
            [prompt] = encode(self._tokenizer, [request.prompt])

            def stopped(row: int, ids: Sequence[int]) -> bool:
                text = decode(self._tokenizer, ids) if stops else ""
                return on_ids(ids) or any(stop in text for stop in stops)

            [ids] = generate_ids(
                self._model,
                [prompt],
                [request.sampling],
                seeds=[request.seed],
                ends=self._ends,
                batch=1,
                stopped=stopped,
            )
            return completion(self._tokenizer, self._ends, request, prompt_tokens=len(prompt), ids=ids)

        return streamed(work, growing)

    def close(self) -> None:
        """Release the model's memory."""
        self._model = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
