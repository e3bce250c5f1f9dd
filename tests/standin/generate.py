"""``/generate`` as NeMo's inference server has it, quirks included: a table of checks, then one batch."""

from __future__ import annotations

import sys
from typing import Any

import torch

from .drawing import Sampling, draw
from .serving import Answer, UnsupportedError
from .tiny import Tiny, Words

_WRONG_POSITIVE = "tokens_to_generate must be an integer greater than 0"
_WRONG_TEMPERATURE = "temperature must be a positive number less than or equal to 100.0"


def _number(value: Any) -> bool:
    return type(value) in (int, float)


# Each known key: its default, when a value is fine, and what a 200 says when it is not.
_CHECKS: dict[str, tuple[Any, Any, str]] = {
    "tokens_to_generate": (64, lambda v: isinstance(v, int) and v >= 1, _WRONG_POSITIVE),
    "all_probs": (False, lambda v: isinstance(v, bool), "all_probs must be a boolean value"),
    "temperature": (1.0, lambda v: _number(v) and 0.0 < v <= 100.0, _WRONG_TEMPERATURE),
    "add_BOS": (False, lambda v: isinstance(v, bool), "add_BOS must be a boolean value"),
    "greedy": (False, lambda v: isinstance(v, bool), "greedy must be a boolean value"),
    "top_k": (0, lambda v: _number(v) and v >= 0, "top_k must be a positive integer number"),
    "top_p": (
        0.9,
        lambda v: _number(v) and 0.0 <= v <= 1.0,
        "top_p must be a positive number less than or equal to 1.0",
    ),
    "repetition_penalty": (
        1.0,
        lambda v: _number(v) and v >= 1.0,
        "repetition_penalty must be a positive number no less than 1.0",
    ),
    "end_strings": (
        ["<|endoftext|>"],
        lambda v: isinstance(v, list) and all(isinstance(s, str) for s in v),
        "expect end_strings to be a list of strings",
    ),
    "min_tokens_to_generate": (
        0,
        lambda v: isinstance(v, int) and v >= 0,
        "min_tokens_to_generate must be an integer no less than 0",
    ),
    "compute_logprob": (False, lambda v: isinstance(v, bool), "compute_logprob must be a boolean value"),
    "random_seed": (
        None,
        lambda v: v is None or (isinstance(v, int) and v >= 0),
        "random_seed must be a positive integer number or None",
    ),
}


class Generate:
    """Called with each HTTP request."""

    def __init__(self, model: Tiny, words: Words) -> None:
        self._model, self._words = model, words

    def __call__(self, method: str, path: str, data: Any) -> Answer:
        if path != "/generate":
            return 404, {"message": "The requested URL was not found on the server."}
        if method == "POST":
            raise RuntimeError("Unknown endpoint requested.")
        if method != "PUT":
            return 405, {"message": "The method is not allowed for the requested URL."}
        if isinstance(data, UnsupportedError):
            return 415, {"message": "Did not attempt to load JSON data because the Content-Type is not JSON."}
        if isinstance(data, ValueError):
            return 400, {"message": "The browser (or proxy) sent a request that this server could not understand."}
        for key in data:
            if key not in _CHECKS and key not in ("sentences", "task_ids", "neighbors"):
                print(f"The request key {key} is not allowed", file=sys.stderr, flush=True)
        sentences = data["sentences"]
        if len(sentences) > 128:
            return 400, "Maximum number of sentences is 128"
        values = {}
        for key, (default, fine, message) in _CHECKS.items():
            values[key] = data.get(key, default)
            if key in data and not fine(values[key]):
                return 200, message
        return 200, self.generate(sentences, **values)

    def generate(
        self,
        sentences: list[str],
        tokens_to_generate: int,
        add_BOS: bool = False,  # noqa: N803
        random_seed: int | None = None,
        **how: Any,
    ) -> dict[str, Any]:
        """Prompt and completion of each sentence, detokenised, with NeMo's other columns."""
        if random_seed is not None:
            torch.manual_seed(random_seed)
        prompts = [[self._words.bos] * add_BOS + self._words.encode(text) for text in sentences]
        drawn = draw(self._model, self._words, prompts, tokens_to_generate, Sampling(**how))
        ids = drawn.tokens.tolist()
        pieces = [self._words.pieces(row) for row in ids]
        answer = {
            "sentences": [self._words.decode(row) for row in ids],
            "tokens": pieces,
            "logprob": None if drawn.logprob is None else drawn.logprob.tolist(),
            "token_ids": ids,
            "offsets": [_offsets(row) for row in pieces],
        }
        if how.get("all_probs"):
            full = drawn.full_logprob
            answer["full_logprob"] = None if full is None else full.tolist()
        return answer


def _offsets(pieces: list[str]) -> list[int]:
    offsets = [0]
    for piece in pieces[:-1]:
        offsets.append(offsets[-1] + len(piece))
    return offsets
