"""What is read from a judge's answer: p of the first option, or in a few words why nothing can be read."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence

NO_NUMBER = "no log-probability"
UNLISTED = "options not listed"
NO_OPTION = "no option named"
SEVERAL = "several options named"


def sigmoid(x: float) -> float:
    """The logistic function, without overflow."""
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def read_options(logprobs: Sequence[float | None], temperature: float = 1.0) -> tuple[float | None, str]:
    """p of the first option from natural log-probabilities of both and, where there is one, of the tie, which counts
    half for each; or why it cannot be read.

    A server that lists only the likeliest tokens may leave options out. What it lists must have more than half of the
    mass, so that none of the others can be likelier; these count as 0 then. Else it is no vote.
    """
    numbers = [x for x in logprobs if x is not None]
    if any(math.isnan(x) or x == math.inf for x in numbers):
        return None, NO_NUMBER
    listed = [x for x in numbers if x > -math.inf]
    if not listed:
        return None, UNLISTED
    if len(listed) < len(logprobs) and math.fsum(map(math.exp, listed)) <= 0.5:
        return None, UNLISTED
    exact = [-math.inf if x is None else x for x in logprobs]
    if len(exact) == 2:
        difference = (exact[0] - exact[1]) / temperature
        return (sigmoid(difference) if math.isfinite(difference) else float(difference > 0)), ""
    most = max(listed)
    first, second, tie = (math.exp((x - most) / temperature) for x in exact)
    return (first + tie / 2) / (first + second + tie), ""


_VALUES = (1.0, 0.0, 0.5)
"""A vote for the first option, the second, and the tie."""


def read_choice(text: str, options: Sequence[str]) -> tuple[float | None, str]:
    """1 for the first option, 0 for the second, 0.5 for a third (the tie); or why it cannot be read."""
    named = named_options(text, options)
    if len(named) == 1:
        return _VALUES[named[0]], ""
    return None, SEVERAL if named else NO_OPTION


def named_options(text: str, options: Sequence[str]) -> list[int]:
    """Which options a text names: as the ``choice`` of a JSON object, or anywhere in plain text.

    Where no option stands as it is written, one also counts without its brackets, as a word by itself: ``Option B.``
    """
    said = _structured(text)
    said = text if said is None else said
    whole = [n for n, option in enumerate(options) if _stands(option, said)]
    return whole or [n for n, option in enumerate(options) if _stands(option.strip("()[] .:"), said)]


def _stands(option: str, text: str) -> bool:
    """Whether an option stands in a text, and not only as part of a word."""
    if not option:
        return False
    before, after = (r"(?<!\w)" if option[0].isalnum() else ""), (r"(?!\w)" if option[-1].isalnum() else "")
    return re.search(before + re.escape(option) + after, text) is not None


def _structured(text: str) -> str | None:
    """What a JSON object in the text says under ``choice``; None where there is no such object."""
    start, end = text.find("{"), text.rfind("}")
    if not 0 <= start < end:
        return None
    try:
        found = json.loads(text[start : end + 1])
    except ValueError:
        return None
    if not isinstance(found, dict) or "choice" not in found:
        return None
    return found["choice"] if isinstance(found["choice"], str) else ""
