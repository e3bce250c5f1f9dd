"""Bulk generation on the CPU by openvino-genai: paged attention, continuous batching, bfloat16 where the CPU has it.

Our tokenizer makes and reads the token ids; openvino-genai sees numbers only. A result is a function of the list it is
asked in. Draws come from each request's own seed; and where the processor multiplies bfloat16, a row's arithmetic does
not depend on its neighbours as long as there is one, because only a lone row runs through another kernel (matrix by
vector). In float32 on AVX2 it does: kernels go by the number of rows. So a companion row, whose text nobody reads,
always runs along. Prefix caching stays off: with openvino-genai 2026.4.1 it made few-shot prompts three times as fast,
but two runs of the same list, each with an empty cache, gave different answers.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cai.clients.base import Completion, Request
from cai.engines.embedded.gguf_export import cached_gguf
from cai.engines.embedded.models import context_length, encode, end_tokens, load_tokenizer
from cai.engines.embedded.settings import EmbeddedSettings, GenerationPrecision, choose
from cai.engines.embedded.stopping import PROMPT_TOO_LONG, completion, unread, unreadable, visible_stops

_log = logging.getLogger(__name__)

# A companion runs for this many tokens, then another takes its place.
_COMPANION_TOKENS = 1024
# Prompt tokens computed in one step; bounds the memory of activations.
_STEP_TOKENS = 1024


class OpenVinoGenerator:
    """Completes requests with openvino-genai; at most ``generation_batch`` rows run side by side."""

    def __init__(self, model: Path, settings: EmbeddedSettings) -> None:
        import openvino_genai

        self._tokenizer = load_tokenizer(model)
        self._ends = end_tokens(model, self._tokenizer)
        self._context = context_length(model)
        self._kv_cache_gb = settings.kv_cache_gb
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.cache_size = settings.kv_cache_gb
        scheduler.max_num_seqs = settings.generation_batch + 1  # and the companion
        scheduler.max_num_batched_tokens = _STEP_TOKENS
        scheduler.enable_prefix_caching = False
        exact = choose(settings).precision is GenerationPrecision.FLOAT32
        properties: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32" if exact else "bf16"}
        properties["KV_CACHE_PRECISION"] = "f32" if exact else "f16"
        if settings.threads:
            properties["INFERENCE_NUM_THREADS"] = settings.threads
        self._pipeline: Any = openvino_genai.ContinuousBatchingPipeline(
            str(cached_gguf(model)), scheduler, "CPU", properties
        )
        self._number = 0

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """Complete the requests, each yielded when it is done.

        A prompt that cannot be read (no tokens, too many for the model or for the cache of keys and values) is refused.
        """
        prompts = encode(self._tokenizer, [request.prompt for request in requests])
        work: list[tuple[Request, list[int], Any]] = []
        for request, prompt in zip(requests, prompts, strict=True):
            if why := unreadable(prompt, self._context):
                yield unread(request, len(prompt), why)
            else:
                work.append((request, prompt, self._config(request)))
        if work:
            yield from self._run(work)

    def close(self) -> None:
        """Release the model's memory."""
        self._pipeline = None
        gc.collect()

    def _run(self, work: list[tuple[Request, list[int], Any]]) -> Iterator[Completion]:
        companion = self._companion()
        waiting = {i: self._add(ids, config) for i, (_, ids, config) in enumerate(work)}
        try:
            while waiting:
                if not _runs(companion):
                    companion = self._companion()
                self._pipeline.step()
                for i in [i for i, handle in waiting.items() if not _runs(handle)]:
                    request, ids, _ = work[i]
                    handle = waiting.pop(i)
                    if _ignored(handle):
                        self._warn(request, ids)
                        yield unread(request, len(ids), PROMPT_TOO_LONG)
                        continue
                    token_ids = _token_ids(handle)
                    yield completion(self._tokenizer, self._ends, request, prompt_tokens=len(ids), ids=token_ids)
        finally:
            # Also when the caller leaves early: nothing of this list may run along with the next.
            for handle in (companion, *waiting.values()):
                handle.cancel()
            while self._pipeline is not None and self._pipeline.has_non_finished_requests():
                self._pipeline.step()

    def _warn(self, request: Request, ids: list[int]) -> None:
        _log.warning(
            "%s: a prompt of %d tokens and %d more do not fit %g GiB of keys and values; raise engine.kv_cache_gb or "
            "shorten the prompt",
            request.id,
            len(ids),
            request.sampling.max_tokens,
            self._kv_cache_gb,
        )

    def _add(self, ids: list[int], config: Any) -> Any:
        import numpy as np
        import openvino

        self._number += 1
        return self._pipeline.add_request(self._number, openvino.Tensor(np.asarray([ids], dtype=np.int64)), config)

    def _companion(self) -> Any:
        config = self._plain(_COMPANION_TOKENS)
        config.ignore_eos = True
        return self._add([self._ends[0]] * 2, config)

    def _plain(self, tokens: int) -> Any:
        import openvino_genai

        config = openvino_genai.GenerationConfig()
        config.apply_chat_template = False
        config.max_new_tokens = tokens
        config.eos_token_id = self._ends[0]
        return config

    def _config(self, request: Request) -> Any:
        sampling = request.sampling
        config = self._plain(sampling.max_tokens)
        config.min_new_tokens = sampling.min_tokens
        config.stop_token_ids = set(self._ends)
        config.repetition_penalty = sampling.repetition_penalty
        stops = visible_stops(self._tokenizer, self._ends, sampling.stop)
        if stops:
            config.stop_strings = set(stops)
            config.include_stop_str_in_output = True
        if sampling.temperature > 0:
            config.do_sample = True
            config.rng_seed = request.seed
            config.temperature = sampling.temperature
            config.top_p = sampling.top_p
            if sampling.top_k:
                config.top_k = sampling.top_k
        return config


def _token_ids(handle: Any) -> list[int]:
    outputs = handle.read_all()  # none where the first token ends the answer
    return [int(token) for token in outputs[0].generated_ids] if outputs else []


def _ignored(handle: Any) -> bool:
    import openvino_genai

    return bool(handle.get_status() == openvino_genai.GenerationStatus.IGNORED)


def _runs(handle: Any) -> bool:
    import openvino_genai

    return bool(handle.get_status() == openvino_genai.GenerationStatus.RUNNING)
