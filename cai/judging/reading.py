"""What is read from a judge's answer: p of the first option, or the best and the worst of several; or in a few words
why nothing can be read."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from cai.identity import parse_json

NO_NUMBER = "no log-probability"
UNLISTED = "options not listed"
NO_OPTION = "no option named"
SEVERAL = "several options named"
OPEN_THOUGHT = "its thought was not finished"
ONE_END = "the best or the worst not named"
ONE_FOR_BOTH = "one option named best and worst"


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
    option_numbers = named_options(text, options)
    if len(option_numbers) == 1:
        return _VALUES[option_numbers[0]], ""
    return None, SEVERAL if option_numbers else NO_OPTION


def named_options(text: str, options: Sequence[str]) -> list[int]:
    """Which options a text names: as the ``choice`` of a JSON object, or anywhere in plain text.

    Where no option stands as it is written, one also counts without its brackets, as a word by itself: ``Option B.``
    """
    choice = _structured(text)
    choice = text if choice is None else choice
    whole = [n for n, option in enumerate(options) if _stands(option, choice)]
    return whole or [n for n, option in enumerate(options) if _stands(option.strip("()[] .:"), choice)]


def _stands(option: str, text: str) -> bool:
    """Whether an option stands in a text, and not only as part of a word."""
    if not option:
        return False
    before, after = (r"(?<!\w)" if option[0].isalnum() else ""), (r"(?!\w)" if option[-1].isalnum() else "")
    return re.search(before + re.escape(option) + after, text) is not None


def _structured(text: str) -> str | None:
    """What a JSON object in the text says under ``choice``; None where there is no such object."""
    record = _object(text)
    if record is None or "choice" not in record:
        return None
    return record["choice"] if isinstance(record["choice"], str) else ""


def _object(text: str) -> dict[str, Any] | None:
    """The JSON object in a text, where there is one."""
    start, end = text.find("{"), text.rfind("}")
    if not 0 <= start < end:
        return None
    try:
        parsed = parse_json(text[start : end + 1])
    except ValueError:
        return None
    return parsed if isinstance(parsed, dict) else None


@dataclass(frozen=True, slots=True)
class BestAndWorst:
    """The best and the worst of several options, by their numbers from 0; or ``why`` they cannot be read."""

    best: int | None = None
    worst: int | None = None
    why: str = ""


def letters(count: int) -> tuple[str, ...]:
    """The options of so many answers: (A), (B) ... (Z), (AA), (AB) ..."""
    return tuple(f"({_letters(n)})" for n in range(count))


def _letters(n: int) -> str:
    head, tail = divmod(n, 26)
    return (_letters(head - 1) if head else "") + chr(ord("A") + tail)


def both_ends(best: str, worst: str) -> str:
    """How the judge is to name two options."""
    return f"Best: {best}, worst: {worst}"


def read_ends(text: str, options: Sequence[str]) -> BestAndWorst:
    """The best and the worst of ``options`` (as ``letters`` makes them) that a text names; or why they cannot be read.

    They stand as ``both_ends`` puts them, in any order and case, with or without brackets, marks or words such as
    ``answer`` between; or as "(B) is the best"; or as ``best`` and ``worst`` of a JSON object. More than one of either
    is none, and so is one option for both.
    """
    record = _object(text) or {}
    if isinstance(record.get("choice"), str):
        text, record = record["choice"], {}
    by_key = {key.strip().casefold(): value for key, value in record.items()}
    if "best" in by_key or "worst" in by_key:
        best, worst = (_named_in(by_key.get(end), options) for end in ("best", "worst"))
    else:
        best, worst = (_patterns(tuple(options), end).option_numbers(text) for end in ("best", "worst"))
    if len(best) > 1 or len(worst) > 1:
        return BestAndWorst(why=SEVERAL)
    if not best or not worst:
        return BestAndWorst(why=ONE_END if best or worst else NO_OPTION)
    if best == worst:
        return BestAndWorst(why=ONE_FOR_BOTH)
    return BestAndWorst(min(best), min(worst))


def _named_in(value: Any, options: Sequence[str]) -> set[int]:
    """The options that a value of a JSON object names."""
    text = value.upper() if isinstance(value, str) else ""
    return {n for n, option in enumerate(options) if _stands(option.strip("()"), text)}


@dataclass(frozen=True, slots=True)
class _Patterns:
    """How a text names the best, or the worst: the word and then the option, or the option and then the word.

    ``more`` is a second option after one that was named first: "A and B", but not the "(B) is" of a new sentence.
    """

    numbers: Mapping[str, int]
    word_first: re.Pattern[str]
    option_first: re.Pattern[str]
    more: re.Pattern[str]

    def option_numbers(self, text: str) -> set[int]:
        """The numbers of all options that are named."""
        numbers = set()
        for match in self.word_first.finditer(text):
            numbers.add(self._number(match))
            end = match.end()
            while further := self.more.match(text, end):
                numbers.add(self._number(further))
                end = further.end()
        return numbers | {self._number(match) for match in self.option_first.finditer(text)}

    def _number(self, match: re.Match[str]) -> int:
        letter = next(group for group in match.groups() if group)
        return self.numbers[letter.upper()]


_MARKS = r"[ \t*_`\"'|>#-]{0,12}"  # bounded, so that no text takes long
_NOUN = r"(?:answer|option|response|candidate|choice|one|number)"


@lru_cache(maxsize=64)
def _patterns(options: tuple[str, ...], end: str) -> _Patterns:
    names = [option.strip("()") for option in options]
    anyone = "|".join(sorted(names, key=len, reverse=True))
    # A letter without brackets is an option only where it is no word of a sentence: "Best: a kind answer" names none.
    stops = (
        r"(?=[^\S\n]*(?:$|\n|[^\w\s'’]|['’](?!\w)|(?:and|or|but|is|as|because|since|for|while|with|worst|best|due)\b))"
    )
    bracketed = rf"[(\[][ \t*_]*({anyone})[ \t*_]*[)\]]"
    option = rf"(?:{bracketed}|({anyone})(?!\w){stops})"
    joint = rf"(?:{_MARKS}(?:[:=–—→-]|\bis\b)\s{{0,8}}{_MARKS}|{_MARKS})"  # a new line only after a colon or the like
    word = rf"(?<!second )(?<!second-)(?<!next )(?<![A-Za-z0-9]){end}(?![A-Za-z0-9])"
    word += rf"(?:[ _-]{_NOUN}\b)?(?: overall| of all)?"
    word_first = rf"{word}{joint}(?:the )?(?:{_NOUN}\b{_MARKS}:?{_MARKS})?{option}"
    verb = r"(?:(?:\s+(?:is|was|as|being|seems)\b|\s*[:=])\s*(?:\w+ly\s+|by far\s+)?(?:the\s+)?|\s+the\s+)"
    option_first = rf"(?:{bracketed}|(?<!\w)((?-i:{anyone})))[*_`\"']*{verb}[*_`\"']*{end}\b"
    more = rf"\s*(?:,|/|&|\band\b|\bor\b)\s*{option}(?!\s*(?:is|was|as|being|seems|the|[:=]))"
    compiled = (re.compile(pattern, re.IGNORECASE) for pattern in (word_first, option_first, more))
    return _Patterns({name: n for n, name in enumerate(names)}, *compiled)
