"""Anthropic's hh-rlhf files, whose rows are transcripts: turns that begin with ``Human:`` or ``Assistant:``.

Source: https://github.com/anthropics/hh-rlhf. Both layouts of the red-team file are read, and both spellings of its
score (the published key has a letter missing).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from itertools import groupby, starmap
from operator import itemgetter
from typing import Any

from cai.chat import Message
from cai.data.readers.shape import FILTERED, MAX_TURNS, Odd, clean, pair, prompt_or_conversation, text_of
from cai.data.rows import Row

# A fixed beginning is searched for ten times as fast as one with choices, so line ends of Windows have their own.
_TURN = re.compile(r"\n\n(Human|Assistant):")
_TURN_CRLF = re.compile(r"\r?\n\r?\n(Human|Assistant):")
_ROLE = {"Human": "user", "Assistant": "assistant"}
SCORE_KEYS = ("task_description_harmlessness_score", "task_descripton_harmlessness_score")


def turns(text: str, merge: bool = False) -> tuple[Message, ...]:
    """The messages of a transcript; with ``merge``, neighbouring turns of one speaker become one."""
    pieces = (_TURN_CRLF if "\r\n" in text else _TURN).split("\n\n" + text, MAX_TURNS + 1)
    if pieces[0].strip():
        raise Odd("text_before_turns")
    if len(pieces) // 2 > MAX_TURNS:
        raise Odd("too_many_turns")
    said = zip(map(_ROLE.__getitem__, pieces[1::2]), map(str.strip, pieces[2::2]), strict=True)
    if not merge:
        return tuple(starmap(Message, said))
    return tuple(
        Message(role, "\n\n".join(words for _, words in neighbours).strip())
        for role, neighbours in groupby(said, key=itemgetter(0))
    )


def hh_rlhf(raw: Mapping[str, Any], makes: str, options: Mapping[str, Any]) -> Row:
    """``{"chosen", "rejected"}``, two whole transcripts; ``merge_turns: true`` mends those that do not alternate."""
    merge = bool(options.get("merge_turns"))
    chosen = turns(text_of(raw, "chosen"), merge)
    if makes == "comparisons":
        return pair(chosen, turns(text_of(raw, "rejected"), merge))
    return prompt_or_conversation(makes, chosen)


def hh_red_team(raw: Mapping[str, Any], makes: str, options: Mapping[str, Any]) -> Row:
    """A red-team attempt: its first human turn as a prompt, or the whole transcript as a conversation.

    Options ``min_rating`` and ``max_rating`` (0 to 4, how well the attack went), ``max_score`` (the harmlessness
    score of the task description; lower is worse) and ``exclude_tags`` choose among the attempts.
    """
    rating, tags = _number(raw.get("rating")), raw.get("tags") or []
    score = next((number for k in SCORE_KEYS if (number := _number(raw.get(k))) is not None), None)
    if not isinstance(tags, list):
        raise Odd("wrong_type")
    names = [clean(t) for t in tags]
    inside = _at_least(rating, options.get("min_rating")) and _at_most(rating, options.get("max_rating"))
    if not inside or not _at_most(score, options.get("max_score")) or set(names) & set(options.get("exclude_tags", ())):
        raise Odd(FILTERED)
    messages = turns(text_of(raw, "transcript"), bool(options.get("merge_turns")))
    meta = {"rating": rating, "score": score, "tags": ", ".join(names) or None}
    topic = names[0] if names else ""
    return prompt_or_conversation(makes, messages[:1] if makes == "prompts" else messages, topic, meta)


def _number(value: Any) -> int | float | None:
    """A finite number, also one that is written as a text; None for anything else."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _at_least(value: float | None, limit: float | None) -> bool:
    return limit is None or (value is not None and value >= limit)


def _at_most(value: float | None, limit: float | None) -> bool:
    return limit is None or (value is not None and value <= limit)
