"""Log-probabilities out of OpenAI-style answers: of a text that was read, and of options that could come next.

Servers differ. Some give the place of each token in the text, some give wrong places (a first token that is not in the
text, blanks and pieces of characters that are lost when a token is decoded alone), some none. So places are believed
only where they fit the text; else the tokens are laid along the text from its end, where the continuation is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

PIECES = 8
"""Characters that a token may stand for that cannot be read alone: a piece of a character, or a name for bytes."""


class NoLogprobs(ValueError):
    """The answer has no log-probabilities of the text that was sent."""


class OddLogprob(ValueError):
    """A log-probability that can be none: above 0, or not a number."""


ROUNDING = 1e-3
"""A log-probability may be so far above 0, as reduced precision makes it."""


def _checked(logprob: float) -> float:
    """Raises OddLogprob for what no log-probability is."""
    if math.isnan(logprob):
        raise OddLogprob("a log-probability is NaN")
    if logprob > ROUNDING:
        raise OddLogprob("a log-probability is positive")
    return logprob


@dataclass(frozen=True, slots=True)
class Position:
    """One generated token, and the likeliest tokens at its place with their log-probabilities, its own included."""

    token: str
    likely: Mapping[str, float]


def continuation(choice: Mapping[str, Any], prompt: str, text: str, generated: int) -> tuple[float, int]:
    """log p(``text`` | ``prompt``) from a choice that repeats both, and the number of the text's tokens.

    A token that begins in the prompt and ends in the text belongs to the text. ``generated`` tokens at the end are the
    server's own.

    Raises:
        NoLogprobs: when the choice does not hold what is needed.
    """
    raw_logprobs = choice.get("logprobs")
    if isinstance(raw_logprobs, Mapping) and isinstance(raw_logprobs.get("token_logprobs"), list):
        logprobs = raw_logprobs["token_logprobs"]
        last = len(logprobs) - generated
        tokens, offsets = raw_logprobs.get("tokens"), raw_logprobs.get("text_offset")
    else:
        tokens, logprobs = _vllm(choice.get("prompt_logprobs"))
        last, offsets = len(logprobs), None
    begin, end = len(prompt), len(prompt) + len(text)
    if last <= 0:
        raise NoLogprobs("it lists no tokens of the prompt")
    joined = "".join(map(str, tokens[:last])) if isinstance(tokens, list) else None
    if isinstance(offsets, list) and _fit(offsets, last, end, joined):
        ends = [*offsets[1:last], end]
        first = next(i for i in range(last) if ends[i] > begin)
    elif isinstance(tokens, list) and len(tokens) == len(logprobs):
        first = _lay([str(token) for token in tokens[:last]], prompt + text, begin)
    else:
        raise NoLogprobs("it does not say where in the text its tokens are")
    # Nothing is said about the very first token of a text, which follows nothing.
    begin_token = 1 if first <= 0 and logprobs[0] is None else max(first, 0)
    text_logprobs = logprobs[begin_token:last]
    if not all(isinstance(p, int | float) and not isinstance(p, bool) for p in text_logprobs):
        raise NoLogprobs("its log-probabilities are no numbers")
    return float(sum(map(_checked, text_logprobs))), len(text_logprobs)


def _fit(offsets: Sequence[Any], last: int, end: int, joined: str | None) -> bool:
    """Are the places those of the text as it was sent?"""
    if len(offsets) < last or not all(isinstance(offset, int) for offset in offsets) or offsets[0] != 0:
        return False
    if sorted(offsets) != list(offsets) or (len(offsets) > last and offsets[last] != end):
        return False
    return offsets[last - 1] <= end and (joined is None or len(joined) == end)


def _lay(tokens: Sequence[str], text: str, begin: int) -> int:
    """The first token that ends after ``begin``, the tokens laid along the text from its end."""
    position, i, unread = len(text), len(tokens), 0
    while position > begin:
        if i == 0:
            raise NoLogprobs("its tokens are not those of the text")
        token = tokens[i - 1]
        blank = len(text[:position]) - len(text[:position].rstrip())
        if not text[begin:position].strip() and not (token and text.endswith(token, 0, position)):
            break  # Blanks that the token after them has swallowed.
        start = (
            text.rfind(token, max(0, position - len(token) - blank - PIECES * unread), position) if token else position
        )
        if start >= 0:
            position, unread = start, 0
        else:
            unread += 1
        i -= 1
    return i


def _vllm(listed: Any) -> tuple[list[str], list[float | None]]:
    """Tokens and log-probabilities of vLLM's ``prompt_logprobs``; the prompt's own token comes first in each place."""
    tokens: list[str] = []
    logprobs: list[float | None] = []
    if not isinstance(listed, list):
        raise NoLogprobs("it has none")
    for place in listed:
        own = next(iter(place.values()), None) if isinstance(place, Mapping) else {}
        if not isinstance(own, Mapping) or not isinstance(own.get("decoded_token", ""), str):
            raise NoLogprobs("its prompt_logprobs cannot be read")
        tokens.append(own.get("decoded_token", ""))
        logprobs.append(own.get("logprob"))
    return tokens, logprobs


def positions(choice: Mapping[str, Any]) -> list[Position]:
    """The generated tokens of an answer with what else was likely, from either form of the protocol.

    Raises:
        NoLogprobs: when the choice does not hold what is needed.
    """
    raw_logprobs = choice.get("logprobs")
    if not isinstance(raw_logprobs, Mapping):
        raise NoLogprobs("it has none")
    try:
        if isinstance(raw_logprobs.get("content"), list):
            places = [
                Position(place["token"], {t["token"]: float(t["logprob"]) for t in [*place["top_logprobs"], place]})
                for place in raw_logprobs["content"]
            ]
        else:
            own = zip(raw_logprobs["tokens"], raw_logprobs["token_logprobs"], raw_logprobs["top_logprobs"], strict=True)
            places = [Position(token, {**(likely or {}), token: float(p)}) for token, p, likely in own]
    except (KeyError, TypeError, ValueError):
        raise NoLogprobs("they cannot be read") from None
    if not places:
        raise NoLogprobs("it lists no tokens")
    for place in places:
        if not all(isinstance(token, str) for token in (place.token, *place.likely)):
            raise NoLogprobs("its tokens are no texts")
        for logprob in place.likely.values():
            _checked(logprob)
    return places


def options(places: Sequence[Position], option_texts: Sequence[str]) -> tuple[float | None, ...]:
    """Natural log-probabilities of ``wanted``, summed over the ways in which the answer could begin with each.

    A way is the text generated so far and one of the tokens likely after it. It decides when it is the beginning of
    one option alone: an option counts with and without its brackets, blanks in front do not. None: not listed.
    """
    forms = [{option, option.strip("()[] ")} for option in option_texts]
    total = [0.0] * len(option_texts)
    before, path = "", 0.0
    for place in places:
        for token, logprob in place.likely.items():
            hit = _decides((before + token).lstrip(), forms)
            if hit is not None:
                total[hit] += math.exp(path + logprob)
        before = (before + place.token).lstrip()
        path += place.likely[place.token]
        if before and not _open(before, forms):
            break
    return tuple(math.log(p) if p > 0 else None for p in total)


def _decides(text: str, forms: Sequence[set[str]]) -> int | None:
    """The one option that a text begins with or is the beginning of."""
    hits = {i for i, options in enumerate(forms) for form in options if form and _meets(text, form)}
    return hits.pop() if len(hits) == 1 else None


def _meets(text: str, form: str) -> bool:
    if not text:
        return False
    if text.startswith(form):
        # "A" is said by "A)" and "A.", not by "Apart".
        after = text[len(form) : len(form) + 1]
        return not (after.isalnum() and form[-1].isalnum())
    return form.startswith(text)


def _open(text: str, forms: Sequence[set[str]]) -> bool:
    """May more text still decide? Only where it is the beginning of several options."""
    return _decides(text, forms) is None and any(form.startswith(text) for options in forms for form in options)
