"""Where an answer ends: at an end token or before the first stop string, whichever generator made the tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cai.clients.base import Completion, Finish, Request
from cai.clients.outcomes import FinishReason, ModelAnswer, completed
from cai.engines.embedded.models import decode


def cut(text: str, stops: Sequence[str]) -> str | None:
    """The text before the stop string that begins first; None where there is none."""
    starts = [start for start in (text.find(stop) for stop in stops if stop) if start >= 0]
    return text[: min(starts)] if starts else None


def visible_stops(tokenizer: Any, ends: Sequence[int], stops: Sequence[str]) -> tuple[str, ...]:
    """The stop strings that are not simply the text of an end token, and so must be looked for in the text."""
    hidden = {tokenizer.convert_ids_to_tokens(end) for end in ends}
    return tuple(stop for stop in stops if stop and stop not in hidden)


EMPTY_PROMPT, PROMPT_TOO_LONG = "empty prompt", "prompt too long"


def unreadable(ids: Sequence[int], context: int) -> str:
    """Why a model cannot read a prompt's tokens: that is the row's own fate, and stops no other; else empty."""
    if not ids:
        return EMPTY_PROMPT
    return PROMPT_TOO_LONG if context and len(ids) >= context else ""


def unread(request: Request, prompt_tokens: int, why: str) -> Completion:
    """The completion of a prompt that the model cannot read."""
    return Completion(request.id, "", prompt_tokens, 0, Finish.REFUSED, why)


def completion(
    tokenizer: Any, ends: Sequence[int], request: Request, *, prompt_tokens: int, ids: list[int]
) -> Completion:
    """What a request is answered with, from its generated token ids (the end token included where there is one).

    ``tokens`` counts every token generated, also the end token and the tokens of a stop string.
    """
    least = request.sampling.min_tokens
    last = next((position for position, token in enumerate(ids) if token in ends and position >= least), None)
    ids = ids if last is None else ids[: last + 1]
    raw = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    before = cut(raw, request.sampling.stop)
    ended = last is not None or before is not None or not ids  # no token: not even the end was kept
    if before is None:
        text = decode(tokenizer, ids)
    else:
        text = decode(tokenizer, tokenizer(before, add_special_tokens=False)["input_ids"])
    reason = FinishReason.STOP if ended else FinishReason.LENGTH
    return completed(request, ModelAnswer(text, reason, prompt_tokens, len(ids)))[1]
