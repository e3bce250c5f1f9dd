"""Few-shot examples of critique and revision: published transcripts in, plain rows out."""

from __future__ import annotations

import re
from typing import Any

from cai.errors import Problem, SpecError

PARTS = ("prompt", "response", "critique_request", "critique", "revision_request", "revision")
"""The six parts of one example, in the order of the conversation."""

_MARK = re.compile(
    r"(?:^|\n)[ \t]*(Human|Assistant|Critique ?Request|Critique|Revision ?Request|Revision):[ \t]*", re.IGNORECASE
)
_WANTED = "wanted: {samples: [[six messages], ...]}, or transcripts with Human:, Assistant:, CritiqueRequest: ..."


def is_few_shots(data: Any) -> bool:
    """Whether data, read from a file, holds examples of critique and revision rather than principles."""
    if isinstance(data, str):
        marks = {m[1].lower().replace(" ", "") for m in _MARK.finditer(data)}
        return {"human", "critique"} <= marks or {"human", "critiquerequest"} <= marks
    if isinstance(data, dict):
        return "samples" in data or (bool(data) and set(PARTS) <= data.keys())
    if not isinstance(data, list) or not data:
        return False
    if isinstance(data[0], str):
        return any(is_few_shots(text) for text in data if isinstance(text, str))
    return _is_messages(data[0]) or (isinstance(data[0], dict) and set(PARTS) <= data[0].keys())


def comparison_examples(data: Any) -> bool:
    """Whether data holds examples of better and worse answers: ``prompt``, ``corrects``, ``incorrects``."""
    return isinstance(data, list) and bool(data) and isinstance(data[0], dict) and "corrects" in data[0]


def few_shot_rows(data: Any, where: str) -> list[dict[str, str]]:
    """Rows with the six ``PARTS``.

    Earlier turns of a longer conversation stay in ``prompt``, marked ``Human:`` and ``Assistant:``.

    Raises:
        SpecError: with every sample that is not whole.
    """
    if comparison_examples(data):
        raise SpecError(Problem(where, "holds examples that compare two answers, not critiques and revisions"))
    if isinstance(data, dict) and "samples" in data:
        data, where = data["samples"], f"{where}: samples"
    samples = [data] if isinstance(data, str | dict) else data
    if not isinstance(samples, list) or not samples:
        raise SpecError(Problem(where, "holds no few-shot example", _WANTED))
    rows: list[dict[str, str]] = []
    problems: list[Problem] = []
    for number, sample in enumerate(samples):
        place = f"{where}[{number}]"
        try:
            rows += _rows(sample, place)
        except SpecError as error:
            problems += error.problems
    if problems:
        raise SpecError(problems)
    return rows


def _is_messages(sample: Any) -> bool:
    return (
        isinstance(sample, list)
        and bool(sample)
        and all(isinstance(m, dict) and {"role", "content"} <= m.keys() for m in sample)
    )


def _rows(sample: Any, place: str) -> list[dict[str, str]]:
    if isinstance(sample, str):
        return _from_transcript(sample, place)
    if _is_messages(sample):
        return [_from_messages(sample, place)]
    if isinstance(sample, dict) and set(PARTS) <= sample.keys():
        return [_whole([sample[p] for p in PARTS], place)]
    raise SpecError(Problem(place, "is no few-shot example", _WANTED))


def _whole(values: list[Any], place: str) -> dict[str, str]:
    for part, value in zip(PARTS, values, strict=True):
        if not isinstance(value, str) or not value.strip():
            raise SpecError(Problem(f"{place}.{part}", "must be text that is not empty"))
    return {part: value.strip() for part, value in zip(PARTS, values, strict=True)}


def _from_messages(sample: list[dict[str, Any]], place: str) -> dict[str, str]:
    turns = [m for m in sample if m["role"] != "system"]
    roles = [m["role"] for m in turns]
    if len(turns) < 6 or len(turns) % 2 or roles != ["user", "assistant"] * (len(turns) // 2):
        message = f"has {len(turns)} messages; user and assistant must alternate, with six or more in all"
        raise SpecError(
            Problem(place, message, "prompt, response, critique request, critique, revision request, revision")
        )
    dialogue = [("Human" if m["role"] == "user" else "Assistant", m["content"]) for m in turns[:-5]]
    if not all(isinstance(text, str) for _, text in dialogue):
        raise SpecError(Problem(f"{place}.prompt", "must be text"))
    return _whole([_opening(dialogue), *(m["content"] for m in turns[-5:])], place)


def _opening(dialogue: list[tuple[str, str]]) -> str:
    if len(dialogue) == 1:
        return dialogue[0][1]
    return "\n\n".join(f"{who}: {text.strip()}" for who, text in dialogue)


def _from_transcript(text: str, place: str) -> list[dict[str, str]]:
    marks = list(_MARK.finditer(text))
    ends = [m.start() for m in marks[1:]] + [len(text)]
    pieces = [(m[1].lower().replace(" ", ""), text[m.end() : end].strip()) for m, end in zip(marks, ends, strict=True)]
    rows: list[dict[str, str]] = []
    dialogue: list[tuple[str, str]] = []
    parts: dict[str, str] = {}
    for kind, body in pieces:
        if kind in ("human", "assistant"):
            if parts:
                raise SpecError(_broken(place, parts))
            dialogue.append((kind.capitalize(), body))
            continue
        parts[kind] = body
        if kind == "revision":
            rows.append(_example(dialogue, parts, f"{place}"))
            dialogue, parts = [], {}
    if parts:
        raise SpecError(_broken(place, parts))
    # What follows the last revision is the opening of the next example: usually a bare "Human:".
    if not rows or any(body for _, body in dialogue):
        raise SpecError(Problem(place, "has no Revision: at its end", _WANTED))
    return rows


def _broken(place: str, parts: dict[str, str]) -> Problem:
    order = ("critiquerequest", "critique", "revisionrequest", "revision")
    missing = [name for name in order if name not in parts]
    return Problem(place, f"an example lacks {', '.join(missing)}", _WANTED)


def _example(dialogue: list[tuple[str, str]], parts: dict[str, str], place: str) -> dict[str, str]:
    part_names = ("critiquerequest", "critique", "revisionrequest", "revision")
    if any(name not in parts for name in part_names):
        raise SpecError(_broken(place, parts))
    if len(dialogue) < 2 or dialogue[-1][0] != "Assistant":
        raise SpecError(Problem(place, "the critique must follow a Human: and an Assistant: turn", _WANTED))
    return _whole([_opening(dialogue[:-1]), dialogue[-1][1], *(parts[name] for name in part_names)], place)
