"""How the answers of OpenAI-compatible servers are read; what becomes of them is in ``outcomes``.

The protocol is kept to loosely: a content may be a list of parts, usage may have any shape or none, a filtered answer
no content, and what a model thought stands under several names. What can be read is read; what cannot says why.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

from cai.chat import ToolCall
from cai.chat.content import Content
from cai.chat.thinking import THINKING_KEYS
from cai.clients.base import Call, OptionScores, OptionsRequest, Request, Result, Score, ScoreRequest
from cai.clients.openai_logprobs import OddLogprob, continuation, options, positions
from cai.clients.outcomes import (
    CallOutcome,
    Fate,
    FinishReason,
    ModelAnswer,
    Observed,
    completed,
    finish_reason_of,
    outcome_of,
)
from cai.clients.served_models import ServedModel, served_model
from cai.identity import parse_json

NO_CHOICES = "no choices"
_TOKENS = 1024


@dataclass(frozen=True, slots=True)
class ServerAnswer:
    """What becomes of a call (``outcome``), its result where there is one, and the tokens it took. ``words`` are the
    server's own where it says what went wrong, with the ``status`` that it gives an error in its body; ``served`` is
    what it says it serves, and ``counted`` whether the tokens are as it says."""

    outcome: CallOutcome
    result: Result | None = None
    prompt_tokens: int = 0
    tokens: int = 0
    words: str = ""
    served: ServedModel | None = None
    counted: bool = False
    status: int = 200


def read_answer(call: Call, payload: bytes, chat: bool, hide: Callable[[str], str]) -> ServerAnswer:
    """The answer in a body that came with a status of 200; ``hide`` takes the key out of a text.

    Raises:
        ValueError: it is no answer; NoLogprobs among them: it is one, without what was asked for.
    """
    raw = parse_json(payload)
    if not isinstance(raw, Mapping):
        raise ValueError("no completion")
    choices = raw.get("choices")
    if not isinstance(choices, list) or not choices:
        return _without_choices(call, raw, hide)
    choice = choices[0]
    if not isinstance(choice, Mapping):
        raise ValueError("no completion")
    usage = raw.get("usage")
    usage = usage if isinstance(usage, Mapping) else {}
    if isinstance(call, Request):
        answer = _completion(call, choice, usage, chat=chat, hide=hide)
    else:
        answer = _scores(call, choice, usage)
    return replace(answer, served=served_model(raw), counted=_counts(call, usage))


def _counts(call: Call, usage: Mapping[str, Any]) -> bool:
    """Whether a server says what a call took, and can be believed."""
    said = [count for name in ("prompt_tokens", "completion_tokens") if is_count(count := usage.get(name))]
    return len(said) == 2 and sum(said) > 0 and (not isinstance(call, Request) or said[1] <= _most_tokens(call))


def _most_tokens(call: Request) -> int:
    return max(_TOKENS, 4 * call.sampling.max_tokens)


def _without_choices(call: Call, raw: Mapping[str, Any], hide: Callable[[str], str]) -> ServerAnswer:
    """An error in a body whose status says that all is well, a prompt that was filtered, or nothing at all."""
    error = raw.get("error")
    if error:
        code = error.get("code") if isinstance(error, Mapping) else None
        words = hide(error_words(json.dumps({"error": error})))
        status = code if isinstance(code, int) and 400 <= code <= 599 else 500
        return ServerAnswer(outcome_of(Observed(status, words)), words=words, status=status)
    if raw.get("prompt_filter_results") or raw.get("promptFeedback") or raw.get("prompt_feedback"):
        written = ModelAnswer("", FinishReason.FILTER, 0, 0)
        return _written(call, written, hide)
    if "choices" not in raw:
        raise ValueError("no completion")
    return ServerAnswer(CallOutcome(Fate.RETRY, NO_CHOICES), words="its list of choices is empty")


def _written(call: Call, written: ModelAnswer, hide: Callable[[str], str]) -> ServerAnswer:
    if not isinstance(call, Request):
        return ServerAnswer(outcome_of(Observed(ending=written.ending)), unscored(call, "filtered"))
    decided, result = completed(call, written, hide)
    return ServerAnswer(decided, result, written.prompt_tokens, written.tokens)


def _completion(
    call: Request, choice: Mapping[str, Any], usage: Mapping[str, Any], *, chat: bool, hide: Callable[[str], str]
) -> ServerAnswer:
    message = choice.get("message") if chat else choice
    if message is None and choice.get("finish_reason"):
        message = {}  # nothing but how it ended, as some filters answer
    if not isinstance(message, Mapping):
        raise ValueError("no completion")
    said = message.get("content") if chat else choice.get("text")
    if isinstance(said, list) and not all(isinstance(part, Mapping) for part in said):
        raise ValueError("no completion")
    content = Content.of(said)
    thought = next(
        (message[name] for name in THINKING_KEYS if isinstance(message.get(name), str) and message[name]), ""
    )
    refusal = message.get("refusal")
    calls = _tool_calls(message) or content.tool_calls
    ending = FinishReason.ERROR if choice.get("error") else _ending(choice)
    if calls and ending is FinishReason.STOP and not content.text.strip():
        ending = FinishReason.TOOL_CALLS
    thought = "\n\n".join(filter(None, (thought.strip(), content.thinking.strip())))
    # A server that does not count is counted for, roughly, in words; nor is one believed that counts what cannot be.
    tokens = whole(usage.get("completion_tokens"), f"{thought} {content.text}")
    tokens = tokens if tokens <= _most_tokens(call) else len(content.text.split())
    details = usage.get("completion_tokens_details")
    reasoning = details.get("reasoning_tokens") if isinstance(details, Mapping) else None
    written = ModelAnswer(
        content.text,
        ending,
        whole(usage.get("prompt_tokens"), call.prompt),
        tokens,
        finish=hide(str(choice.get("finish_reason"))),
        refusal=bool(content.refusal) or (isinstance(refusal, str) and bool(refusal.strip())),
        thinking=thought,
        thinking_tokens=min(whole(reasoning, thought), tokens),
        tool_calls=calls,
    )
    return _written(call, written, hide)


def _ending(choice: Mapping[str, Any]) -> FinishReason:
    return finish_reason_of(choice.get("finish_reason"), choice.get("native_finish_reason"))


def _tool_calls(message: Mapping[str, Any]) -> tuple[ToolCall, ...]:
    listed = message.get("tool_calls")
    calls = [call for call in listed if isinstance(call, Mapping)] if isinstance(listed, list) else []
    functions = [(call.get("function") or call, call.get("id")) for call in calls]
    if isinstance(message.get("function_call"), Mapping):
        functions.append((message["function_call"], None))
    return tuple(
        ToolCall(
            str(function.get("name") or ""),
            arguments if isinstance(arguments := function.get("arguments"), str) else json.dumps(arguments or {}),
            id if isinstance(id, str) else "",
        )
        for function, id in functions
        if isinstance(function, Mapping)
    )


def _scores(call: ScoreRequest | OptionsRequest, choice: Mapping[str, Any], usage: Mapping[str, Any]) -> ServerAnswer:
    row = CallOutcome(Fate.ROW)
    read = call.prompt + call.continuation if isinstance(call, ScoreRequest) else call.prompt
    prompt_tokens, tokens = whole(usage.get("prompt_tokens"), read), whole(usage.get("completion_tokens"), "")
    try:
        if isinstance(call, ScoreRequest):
            generated = 0 if usage.get("completion_tokens") == 0 else 1
            logprob, scored = continuation(choice, call.prompt, call.continuation, generated)
            return ServerAnswer(row, Score(call.id, logprob, scored), prompt_tokens, generated)
        result = OptionScores(call.id, options(positions(choice), call.options), tokens)
        return ServerAnswer(row, result, prompt_tokens, tokens)
    except OddLogprob as error:
        return ServerAnswer(CallOutcome(Fate.DROP, str(error)), unscored(call, str(error)), prompt_tokens, tokens)


def unscored(call: ScoreRequest | OptionsRequest, why: str) -> Result:
    """The result of a question for likelihoods that has no answer, for a reason that counts as the answer."""
    if isinstance(call, ScoreRequest):
        return Score(call.id, float("nan"), 0, why)
    return OptionScores(call.id, (None,) * len(call.options), 0, why)


def error_words(text: str) -> str:
    """The server's own words about an error, its code before them, where they can be found; else the body."""
    try:
        raw: Any = parse_json(text)
    except ValueError:
        return text
    code: Any = None
    while isinstance(raw, Mapping):
        own = raw.get("code") or raw.get("type")
        code = own if isinstance(own, str) else code
        inner = next((raw[name] for name in ("error", "detail", "message") if raw.get(name)), None)
        if inner is None:
            break
        raw = inner
    words = raw if isinstance(raw, str) else json.dumps(raw, ensure_ascii=False)
    return f"{code}: {words}" if code and code not in words else words


def whole(count: object, text: str) -> int:
    """What the server counted, or the words of ``text`` where it did not count."""
    return count if is_count(count) else len(text.split())


def is_count(value: object) -> TypeGuard[int]:
    """Whether a server has counted."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
