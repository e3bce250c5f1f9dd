"""Safety sets as they are published: what a model should decline, what it should not, and which answer is better.

A row's ``topic`` is the set's own category, and ``meta.label`` says ``safe`` or ``unsafe`` of the request where the
set, or the option ``label``, does. Sources: XSTest (arXiv 2308.01263), OR-Bench (2405.20947), StrongREJECT
(2402.10260), HarmBench (2402.04249), HHH (2112.00861), RewardBench 2 (2506.01937).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cai.chat import Message
from cai.data.readers.messages import messages_of
from cai.data.readers.shape import FILTERED, Odd, clean, comparison, prompt, text_of
from cai.data.readers.tables import parquet_records
from cai.data.readers.transcripts import turns
from cai.data.records import MAX_RECORD, json_records, open_bytes
from cai.data.rows import Row
from cai.identity import parse_json

SAFE, UNSAFE = "safe", "unsafe"
MAX_PAIRS = 4_096
"""Comparisons that one record of RewardBench 2 may make."""

_CONTRAST = "contrast_"
_PARQUET = b"PAR1"


def xstest(raw: Mapping[str, Any], makes: str, options: Mapping[str, Any]) -> Row:
    """``id, prompt, type, label, focus, note``; where there is no ``label`` the types ``contrast_`` are unsafe."""
    kind = text_of(raw, "type")
    label = clean(raw.get("label") or "").lower() or (UNSAFE if kind.startswith(_CONTRAST) else SAFE)
    if label not in (SAFE, UNSAFE):
        raise Odd("wrong_label")
    meta = {"label": label, "number": raw.get("id"), "focus": raw.get("focus"), "note": raw.get("note")}
    return _request(text_of(raw, "prompt"), kind, meta)


def or_bench(raw: Mapping[str, Any], makes: str, options: Mapping[str, Any]) -> Row:
    """``prompt, category``; which of its files holds safe requests is told by its name alone, here by ``label``."""
    return _request(text_of(raw, "prompt"), text_of(raw, "category"), {"label": _label(options)})


def strongreject(raw: Mapping[str, Any], makes: str, options: Mapping[str, Any]) -> Row:
    """``category, source, forbidden_prompt``: all requests are unsafe."""
    meta = {"label": UNSAFE, "source": raw.get("source")}
    return _request(text_of(raw, "forbidden_prompt"), text_of(raw, "category"), meta)


def harmbench(raw: Mapping[str, Any], makes: str, options: Mapping[str, Any]) -> Row:
    """``Behavior, FunctionalCategory, SemanticCategory, Tags, ContextString, BehaviorID``: all requests are unsafe.

    A context comes first, as in HarmBench's own direct requests: context, a line of three dashes, the behavior.
    """
    behavior, context = text_of(raw, "Behavior"), clean(raw.get("ContextString") or "")
    if not behavior:
        raise Odd("empty_prompt")
    meta = {
        "label": UNSAFE,
        "behavior": raw.get("BehaviorID"),
        "functional_category": raw.get("FunctionalCategory"),
        "tags": raw.get("Tags"),
    }
    request = f"{context}\n\n---\n\n{behavior}" if context else behavior
    return _request(request, text_of(raw, "SemanticCategory"), meta)


def hhh_alignment(raw: Mapping[str, Any], makes: str, options: Mapping[str, Any]) -> Row:
    """``input`` with ``target_scores`` (answer: score) or ``targets`` (``choices``, ``labels``): best against worst.

    An ``input`` of several turns has them as ``Human:`` and ``Assistant:``, the first one unnamed.
    """
    text = text_of(raw, "input")
    messages = turns(text if text.startswith(("Human:", "Assistant:")) else f"Human: {text}")
    if messages[-1].role == "assistant" and not messages[-1].content:
        messages = messages[:-1]
    scored = sorted(_scores(raw), key=lambda entry: entry[1])
    if len(scored) < 2:
        raise Odd("one_completion")
    (worst, low), (best, high) = scored[0], scored[-1]
    if low == high:
        raise Odd("tie")
    if makes == "prompts":
        return prompt(messages, _topic(options))
    return comparison(messages, clean(best), clean(worst), topic=_topic(options))


def rewardbench(raw: Mapping[str, Any], makes: str, options: Mapping[str, Any]) -> Row:
    """One chosen and one rejected answer of ``rewardbench_records``; ``subset: [Safety]`` leaves out other subsets."""
    subset = text_of(raw, "subset")
    if "subset" in options and subset not in options["subset"]:
        raise Odd(FILTERED)
    request = raw.get("prompt")
    messages = messages_of(request) if isinstance(request, list) else (Message("user", text_of(raw, "prompt")),)
    meta = {"record": raw.get("id")}
    return comparison(messages, text_of(raw, "chosen"), text_of(raw, "rejected"), topic=subset, meta=meta)


def hhh_records(path: Path, tally: Counter[str], most: int | None = None) -> Iterator[dict[str, Any]]:
    """The ``examples`` of a BIG-bench task, which is one JSON object; else as any JSON file.

    Raises:
        PrerequisiteError: when the file cannot be read or is damaged.
        BeginningRead: after ``most`` bytes, where it has more.
    """
    task = _task(path)
    if task is None:
        yield from json_records(path, tally, most)
        return
    for example in task:
        if isinstance(example, dict):
            yield example
        else:
            tally["not_object"] += 1


def rewardbench_records(path: Path, tally: Counter[str], most: int | None = None) -> Iterator[dict[str, Any]]:
    """Records of RewardBench 2, JSON or parquet: one for every chosen answer with every rejected one.

    Raises:
        PrerequisiteError: when the file cannot be read or is damaged.
        BeginningRead: after ``most`` bytes, where it has more.
    """
    with path.open("rb") as file:
        records = parquet_records if file.read(4) == _PARQUET else json_records
    for raw in records(path, tally, most):
        chosen, rejected = raw.get("chosen"), raw.get("rejected")
        if not isinstance(chosen, list) or not isinstance(rejected, list):
            yield raw  # the parser says what is wrong with it, or takes a pair that is one already
        elif not chosen or not rejected:
            tally["one_completion"] += 1
        elif len(chosen) * len(rejected) > MAX_PAIRS:
            tally["too_many_answers"] += 1
        else:
            yield from ({**raw, "chosen": good, "rejected": bad} for good in chosen for bad in rejected)


def _request(text: str, topic: str, meta: Mapping[str, Any]) -> Row:
    return prompt((Message("user", text),), topic, meta)


def _label(options: Mapping[str, Any]) -> str | None:
    return options.get("label")


def _topic(options: Mapping[str, Any]) -> str:
    return str(options.get("topic", ""))


def _scores(raw: Mapping[str, Any]) -> list[tuple[Any, float]]:
    scores, targets = raw.get("target_scores"), raw.get("targets")
    if isinstance(targets, Mapping) and scores is None:
        choices, labels = targets.get("choices"), targets.get("labels")
        if not isinstance(choices, list) or not isinstance(labels, list) or len(choices) != len(labels):
            raise Odd("wrong_type")
        pairs = list(zip(choices, labels, strict=True))
    elif isinstance(scores, Mapping):
        pairs = list(scores.items())
    else:
        raise Odd("missing_target_scores" if scores is None else "wrong_type")
    if not all(isinstance(score, int | float) and not isinstance(score, bool) for _, score in pairs):
        raise Odd("wrong_type")
    return pairs


def _task(path: Path) -> list[Any] | None:
    """The examples, where the whole file is one object that has them."""
    if path.stat().st_size > MAX_RECORD:
        return None
    try:
        with open_bytes(path) as file:
            if not (head := file.read(1 << 12).lstrip()).startswith((b"{", b"\xef\xbb\xbf{")):
                return None
            whole = parse_json((head + file.read(MAX_RECORD)).decode("utf-8-sig"))
    except (ValueError, OSError, EOFError):
        return None  # no single object: read, and refused, as lines
    examples = whole.get("examples") if isinstance(whole, dict) else None
    return examples if isinstance(examples, list) else None
