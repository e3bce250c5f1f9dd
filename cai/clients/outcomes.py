"""One table of outcomes: what becomes of a call, by what came back. No client and no driver decides it elsewhere.

A call ends in one of five ways. It is a **row**; a **drop**, which is this row's own fate and is counted by its reason;
**refused**, which is the row's fate where the server takes other rows and the run's fault where it takes none;
**retry**, elsewhere or later; or **stop**, for what no other call can mend. The table is read from the top, and the
first rule that fits decides.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from cai.chat import ToolCall
from cai.chat.thinking import prefilled, spoken
from cai.clients.base import Completion, Finish, Request
from cai.clients.endpoints import TroubleKind


class Fate(str, Enum):
    """What becomes of a call."""

    ROW = "row"
    DROP = "drop"
    REFUSED = "refused"
    RETRY = "retry"
    STOP = "stop"


class Fault(str, Enum):
    """What a person must mend where every call is refused alike."""

    KEY = "key"
    CREDIT = "credit"
    MODEL = "model"
    ADDRESS = "address"
    REQUEST = "request"


class FinishReason(str, Enum):
    """Why a server says that an answer ended, in one word for all the words of all servers."""

    STOP = "stop"
    LENGTH = "length"
    FILTER = "content_filter"
    SENSITIVE = "sensitive"
    REFUSAL = "refusal"
    TOOL_CALLS = "tool_calls"
    ERROR = "error"
    ABORT = "abort"
    NONE = "none"
    UNKNOWN = "unknown"


_WORDS: Mapping[FinishReason, str] = {
    FinishReason.STOP: "stop eos eos_token end_turn stop_sequence complete completed end",
    FinishReason.LENGTH: "length max_tokens model_length max_output_tokens max_completion_tokens"
    " model_context_window_exceeded context_length_exceeded error_limit",
    FinishReason.FILTER: "content_filter content-filter filter safety recitation blocklist prohibited_content spii"
    " image_safety guardrail_intervened content_filtered error_toxic language",
    FinishReason.SENSITIVE: "sensitive",
    FinishReason.REFUSAL: "refusal refused",
    FinishReason.TOOL_CALLS: "tool_calls tool_call function_call tool_use malformed_function_call unexpected_tool_call",
    FinishReason.ERROR: "error insufficient_system_resource load unload network_error server_error",
    FinishReason.ABORT: "abort aborted cancelled canceled user_cancel",
}
_ENDINGS = {word: ending for ending, words in _WORDS.items() for word in words.split()}


def finish_reason_of(finish_reason: Any, native: Any = None) -> FinishReason:
    """What a server's ``finish_reason`` means; what the model's own server said (``native``) is believed before a
    ``stop`` that a router makes of it, and where the router says nothing."""
    said, own = _ending(finish_reason), _ending(native)
    if own not in (FinishReason.NONE, FinishReason.UNKNOWN) and said in (
        FinishReason.NONE,
        FinishReason.UNKNOWN,
        FinishReason.STOP,
    ):
        return own
    return said


def _ending(word: Any) -> FinishReason:
    if word is None or word == "":
        return FinishReason.NONE
    if not isinstance(word, str):
        return FinishReason.UNKNOWN
    # Gemini's compatible API says "content_filter: SAFETY".
    return _ENDINGS.get(word.strip().partition(":")[0].strip().lower(), FinishReason.UNKNOWN)


@dataclass(frozen=True, slots=True)
class Observed:
    """What came back, as the table reads it: the status, the server's words about an error (its code among them), and
    of an answer how it ended (``finish`` is the server's own word) and whether the model itself refused."""

    status: int = 200
    words: str = ""
    ending: FinishReason = FinishReason.STOP
    finish: str = ""
    refusal: bool = False


@dataclass(frozen=True, slots=True)
class CallOutcome:
    """What becomes of a call. ``reason`` is what the ledger counts, ``finish`` how a row ended, ``trouble`` the kind of
    a fault that may pass; a retry with a ``reason`` is dropped under it when no attempt is left."""

    fate: Fate
    reason: str = ""
    finish: Finish = Finish.STOP
    trouble: TroubleKind = TroubleKind.FAULT
    fault: Fault = Fault.REQUEST


@dataclass(frozen=True, slots=True)
class OutcomeRule:
    """A rule of the table: what it wants of what came back (empty: anything), and what then becomes of the call."""

    outcome: CallOutcome
    status: tuple[int, int] = (0, 999)
    words: re.Pattern[str] | None = None
    endings: tuple[FinishReason, ...] = ()
    refusal: bool = False

    def fits(self, observed: Observed) -> bool:
        """Whether this rule decides."""
        low, high = self.status
        return (
            low <= observed.status <= high
            and (self.words is None or self.words.search(observed.words) is not None)
            and (not self.endings or observed.ending in self.endings)
            and (not self.refusal or observed.refusal)
        )


_TOO_LONG = re.compile(
    r"context.?(length|window|size)|(prompt|input)( is)? too long|longer than the (model|maximum)"
    r"|exceed\w* the (maximum|available|model)|maximum (context|sequence|input)|too many (input )?tokens",
    re.I,
)
_FILTERED = re.compile(r"content.?filter|content management policy|responsibleai", re.I)
_MODERATED = re.compile(r"moderat|flagged|usage polic|safety|data_inspection|sensitive", re.I)
_SENSITIVE = re.compile(r"sensitive", re.I)
_NO_CREDIT = re.compile(r"insufficient_quota|billing_hard_limit|billing_not_active", re.I)

_OK, _4XX = (200, 299), (400, 499)

OUTCOMES: tuple[OutcomeRule, ...] = (
    # An answer that is none, though the server sent one.
    OutcomeRule(CallOutcome(Fate.DROP, "refusal"), _OK, refusal=True),
    OutcomeRule(CallOutcome(Fate.ROW), _OK, endings=(FinishReason.STOP,)),
    OutcomeRule(CallOutcome(Fate.ROW, finish=Finish.LENGTH), _OK, endings=(FinishReason.LENGTH,)),
    OutcomeRule(CallOutcome(Fate.DROP, "filtered", Finish.REFUSED), _OK, endings=(FinishReason.FILTER,)),
    OutcomeRule(CallOutcome(Fate.DROP, "sensitive"), _OK, endings=(FinishReason.SENSITIVE,)),
    OutcomeRule(CallOutcome(Fate.DROP, "refusal"), _OK, endings=(FinishReason.REFUSAL,)),
    OutcomeRule(CallOutcome(Fate.DROP, "tool calls"), _OK, endings=(FinishReason.TOOL_CALLS,)),
    OutcomeRule(CallOutcome(Fate.RETRY, "error"), _OK, endings=(FinishReason.ERROR,)),
    OutcomeRule(CallOutcome(Fate.RETRY, "abort"), _OK, endings=(FinishReason.ABORT,)),
    OutcomeRule(CallOutcome(Fate.DROP, "no finish reason"), _OK, endings=(FinishReason.NONE,)),
    OutcomeRule(CallOutcome(Fate.DROP, "unknown finish"), _OK, endings=(FinishReason.UNKNOWN,)),
    # What may be different the next time.
    OutcomeRule(CallOutcome(Fate.STOP, fault=Fault.CREDIT), (429, 429), _NO_CREDIT),
    OutcomeRule(CallOutcome(Fate.RETRY, trouble=TroubleKind.LIMIT), (429, 429)),
    OutcomeRule(CallOutcome(Fate.RETRY), (408, 408)),
    OutcomeRule(CallOutcome(Fate.RETRY), (425, 425)),
    OutcomeRule(CallOutcome(Fate.RETRY, trouble=TroubleKind.OVERLOAD), (503, 503)),
    OutcomeRule(CallOutcome(Fate.RETRY), (500, 999)),
    # What no other row can change.
    OutcomeRule(CallOutcome(Fate.STOP, fault=Fault.ADDRESS), (300, 399)),
    OutcomeRule(CallOutcome(Fate.STOP, fault=Fault.KEY), (401, 401)),
    OutcomeRule(CallOutcome(Fate.STOP, fault=Fault.MODEL), (404, 405)),
    # What a server says of a row's own text.
    OutcomeRule(CallOutcome(Fate.DROP, "filtered", Finish.REFUSED), _4XX, _FILTERED),
    OutcomeRule(CallOutcome(Fate.DROP, "prompt too long", Finish.REFUSED), (400, 400), _TOO_LONG),
    OutcomeRule(CallOutcome(Fate.DROP, "prompt too long", Finish.REFUSED), (422, 422), _TOO_LONG),
    OutcomeRule(CallOutcome(Fate.REFUSED, "prompt too long", Finish.REFUSED), (413, 413)),
    OutcomeRule(CallOutcome(Fate.REFUSED, "moderated", Finish.REFUSED, fault=Fault.KEY), (403, 403), _MODERATED),
    # What may be the row, or the key, the credit, the model, a parameter: the other rows tell.
    OutcomeRule(CallOutcome(Fate.REFUSED, finish=Finish.REFUSED, fault=Fault.CREDIT), (402, 402)),
    OutcomeRule(CallOutcome(Fate.REFUSED, finish=Finish.REFUSED, fault=Fault.KEY), (403, 403)),
    OutcomeRule(CallOutcome(Fate.REFUSED, finish=Finish.REFUSED), _4XX),
    # A status that no protocol has.
    OutcomeRule(CallOutcome(Fate.RETRY)),
)


def outcome_of(observed: Observed) -> CallOutcome:
    """What becomes of a call."""
    return next(rule.outcome for rule in OUTCOMES if rule.fits(observed))


def drop_reason(decided: CallOutcome, observed: Observed) -> str:
    """What the ledger counts a call under: the table's reason, or the status and the server's own words, with what
    differs from row to row (numbers, quotations) left out."""
    if decided.reason == "unknown finish":
        return f"unknown finish {_alike(observed.finish)!r}"
    if decided.reason:
        return decided.reason
    return f"{observed.status} {_alike(observed.words)}".rstrip()


_DIFFERS = re.compile(r"\"[^\"]*\"|'[^']*'|`[^`]*`|\d[\d.,:-]*|\b\w*[0-9_-]{6,}\w*\b")


def _alike(words: str) -> str:
    text = " ".join(_DIFFERS.sub("*", words[:2000]).split())
    return text if len(text) <= 80 else f"{text[:79]}…"


LEAST_CHARACTERS, CHARACTERS = 4096, 64
"""An answer holds at most so many characters, and so many for each token that was asked for: a token of the largest
vocabularies stands for some 130 at most, and for 4 in the mean."""

TOO_LONG = "longer than max_tokens"


@dataclass(frozen=True, slots=True)
class ModelAnswer:
    """What a model wrote to a request, before anything is decided. ``thinking`` is what a server kept apart itself."""

    text: str
    ending: FinishReason
    prompt_tokens: int
    tokens: int
    finish: str = ""
    refusal: bool = False
    thinking: str = ""
    thinking_tokens: int = 0
    tool_calls: tuple[ToolCall, ...] = ()


def completed(
    request: Request, written: ModelAnswer, cut: Callable[[str], str] | None = None
) -> tuple[CallOutcome, Completion]:
    """What becomes of an answer, and the completion: the thought split off, the rest cut at the first stop string.

    ``cut`` takes what must not stand in a row out of a text (a key that the server repeats).
    """
    parts = spoken(written.text, prefilled(request.prompt) and not written.thinking)
    thinking = "\n\n".join(filter(None, (written.thinking, parts.thinking)))
    tool_calls = (*written.tool_calls, *parts.tool_calls)
    text = parts.text
    if cut is not None:
        text, thinking = cut(text), cut(thinking)
        tool_calls = tuple(ToolCall(cut(each.name), cut(each.arguments), cut(each.id)) for each in tool_calls)
    ending = written.ending
    if parts.tool_calls and not text:
        ending = FinishReason.TOOL_CALLS
    first_stop = min((at for stop in request.sampling.stop if stop and (at := text.find(stop)) >= 0), default=-1)
    if first_stop >= 0:
        text = text[:first_stop]
        ending = FinishReason.STOP if ending in (FinishReason.LENGTH, FinishReason.NONE) else ending
    observed = Observed(ending=ending, finish=written.finish, refusal=written.refusal)
    decided = outcome_of(observed)
    reason = ""
    finish = decided.finish
    if len(written.text) > LEAST_CHARACTERS + CHARACTERS * request.sampling.max_tokens:
        decided, reason = CallOutcome(Fate.DROP, TOO_LONG), TOO_LONG
    elif decided.fate is not Fate.ROW:
        reason = drop_reason(decided, observed)
    if decided.fate is not Fate.ROW:
        text = ""
        finish = decided.finish if decided.finish is Finish.REFUSED else Finish.UNUSABLE
    return decided, Completion(
        request.id,
        text,
        written.prompt_tokens,
        written.tokens,
        finish,
        reason,
        thinking,
        written.thinking_tokens,
        tool_calls,
    )
