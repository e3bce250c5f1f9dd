"""Metrics of two finished runs: both intervals, and the difference on the same prompts where the answers allow it.

Rewards of two reward models have no common scale: then no difference is given, and it is said.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cai.plan import Step
from cai.review.changes import same_key

Answers = Mapping[tuple[str, str], Mapping[str, Any]]
"""(set, id) -> {model: {text, tokens, ended, reward}} with the prompt under ``""``."""

_BY_MODEL = {
    # metric: (which way is better: 1 more, -1 less, 0 neither; is it of the reward model's opinion)
    "reward": (1, True),
    "refusals": (0, False),
    "evasive": (-1, False),
    "repetition": (-1, False),
    "ended": (1, False),
    "tokens": (0, False),
    "characters": (0, False),
    "distinct_1": (1, False),
    "distinct_2": (1, False),
    "self_bleu": (-1, False),
    "different_answers": (1, False),
}


@dataclass(frozen=True, slots=True)
class Metric:
    """One figure before and after. ``group`` is the prompt set, the axis or the like, ``of`` the model.

    ``before`` and ``after`` are {value, low, high, n}; ``difference`` is the same of after minus before on the prompts
    that both have, or None. ``better``: 1 where more is better, -1 where less, 0 where neither. ``comparable``: both
    are on one scale. ``worse``: the difference's interval (without one, the two intervals) leaves no doubt.
    """

    group: str
    of: str
    name: str
    before: Mapping[str, Any]
    after: Mapping[str, Any]
    difference: Mapping[str, Any] | None
    better: int
    comparable: bool
    worse: bool


@dataclass(frozen=True, slots=True)
class Evaluated:
    """One side's evaluation: its step, what it says, and its answers."""

    step: Step
    said: Mapping[str, Any]
    answers: Answers


def read_answers(path: Path) -> Answers:
    """The answers of an evaluation; empty where there is no file. Of a line that is no row nothing is taken."""
    found: dict[tuple[str, str], Mapping[str, Any]] = {}
    if not path.is_file():
        return found
    with path.open(encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            found[str(row["set"]), str(row["id"])] = {"": {"text": str(row.get("prompt", ""))}, **row["answers"]}
    return found


def same_scale(old: Step, new: Step, role: str = "reward") -> bool:
    """Whether both evaluations asked the same model in a role; equal too where neither asked one."""
    one, other = (str(step.ingredients.get("inputs", {}).get(role, "")) for step in (old, new))
    return one == other if not (one and other) else same_key(one, other)


def metrics(old: Evaluated, new: Evaluated) -> tuple[Metric, ...]:
    """Every figure that both evaluations have, in the order of the new one."""
    scale = same_scale(old.step, new.step)
    judge = same_scale(old.step, new.step, "adherence")
    before = {(g, of, name): figure for g, of, name, figure, *_ in _figures(old.said)}
    found = []
    for group, of, name, figure, better, opinion, judged in _figures(new.said):
        was = before.get((group, of, name))
        if was is None:
            continue
        comparable = (scale or not opinion) and (judge or not judged)
        difference = _paired(old.answers, new.answers, group, of, name) if comparable else None
        worse = comparable and _worse(was, figure, difference, better)
        found.append(Metric(group, of, name, was, figure, difference, better, comparable, worse))
    return tuple(found)


Figure = tuple[str, str, str, Mapping[str, Any], int, bool, bool]
"""group, of, name, figure, better, the reward model's opinion, the judge's opinion."""


def _figures(said: Mapping[str, Any]) -> Iterator[Figure]:
    for name, data in said.get("sets", {}).items():
        for model, figures in data.get("models", {}).items():
            for metric, (better, opinion) in _BY_MODEL.items():
                better = -1 if metric == "refusals" and data.get("benign") else better
                if (figure := _figure(figures.get(metric))) is not None:
                    yield name, model, metric, figure, better, opinion, False
        for win in data.get("pairs") or data.get("wins", ()):
            if (figure := _figure(win)) is not None:
                yield name, f"{win['model']} against {win['against']}", "win rate", figure, 1, True, False
    for axis, data in said.get("elo", {}).items():
        for model, figure in data.get("models", {}).items():
            if model != data.get("reference") and (told := _figure(figure)) is not None:
                yield axis, model, "Elo", told, 1, True, False
    for model, figure in said.get("over_refusal", {}).items():
        if (told := _figure(figure)) is not None:
            yield "benign prompts", model, "over-refusal", told, -1, False, False
    for name, data in said.get("reward_model", {}).items():
        if (told := _figure(data.get("accuracy"))) is not None:
            yield name, "reward model", "accuracy", told, 1, False, False
    for label, data in said.get("revisions", {}).items():
        for one in data.get("rounds", ())[-1:]:
            if (told := _figure(one.get("change"))) is not None:
                yield "revisions", label, f"reward gained by round {one.get('round')}", told, 1, True, False
    for name, models in (said.get("adherence") or {}).get("sets", {}).items():
        for model, principles in models.items():
            for principle, figure in principles.items():
                if (told := _figure(figure)) is not None:
                    yield name, model, f"violates {principle}", told, -1, False, True


def _figure(value: Any) -> Mapping[str, Any] | None:
    if isinstance(value, Mapping) and isinstance(value.get("value"), int | float):
        return {part: value.get(part) for part in ("value", "low", "high", "n")}
    if isinstance(value, int | float) and not isinstance(value, bool):
        return {"value": value, "low": None, "high": None, "n": None}
    return None


def _paired(old: Answers, new: Answers, group: str, model: str, metric: str) -> Mapping[str, Any] | None:
    """After minus before on the prompts that both sides answered, with an interval by bootstrap over them."""
    from cai.figures.intervals import mean

    measure = _MEASURES.get(metric)
    if measure is None:
        return None
    differences = []
    for at in (key for key in new if key[0] == group and key in old):
        one, other = old[at].get(model), new[at].get(model)
        if one is None or other is None or old[at][""]["text"] != new[at][""]["text"]:
            continue
        pair = measure(one), measure(other)
        if None not in pair:
            differences.append(float(pair[1]) - float(pair[0]))
    return mean(differences) if differences else None


def _refuses(answer: Mapping[str, Any]) -> bool:
    from cai.figures.answers import refuses

    return refuses(str(answer["text"]))


def _evades(answer: Mapping[str, Any]) -> bool:
    from cai.figures.answers import evades

    return evades(str(answer["text"]))


def _repeats(answer: Mapping[str, Any]) -> bool:
    from cai.figures.answers import repeats

    return repeats(str(answer["text"]))


_MEASURES: dict[str, Any] = {
    "reward": lambda answer: answer.get("reward"),
    "tokens": lambda answer: answer.get("tokens"),
    "ended": lambda answer: answer.get("ended"),
    "characters": lambda answer: len(answer["text"]),
    "refusals": _refuses,
    "evasive": _evades,
    "repetition": _repeats,
}


def _worse(
    before: Mapping[str, Any], after: Mapping[str, Any], difference: Mapping[str, Any] | None, better: int
) -> bool:
    if not better:
        return False
    if difference is not None:
        low, high = difference["low"], difference["high"]
        return low is not None and (high < 0 if better > 0 else low > 0)
    bounds = [side[end] for side in (before, after) for end in ("low", "high")]
    if None in bounds:
        return False
    return bool(after["high"] < before["low"] if better > 0 else after["low"] > before["high"])
