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
    """One side's evaluation: its step, its ``evaluation.json``, and its answers."""

    step: Step
    report: Mapping[str, Any]
    answers: Answers


def read_answers(path: Path) -> Answers:
    """The answers of an evaluation; empty where there is no file. Of a line that is no row nothing is taken."""
    answers: dict[tuple[str, str], Mapping[str, Any]] = {}
    if not path.is_file():
        return answers
    with path.open(encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            answers[str(row["set"]), str(row["id"])] = {"": {"text": str(row.get("prompt", ""))}, **row["answers"]}
    return answers


def same_scale(old: Step, new: Step, role: str = "reward") -> bool:
    """Whether both evaluations asked the same model in a role; equal too where neither asked one."""
    old_model, new_model = (str(step.ingredients.get("inputs", {}).get(role, "")) for step in (old, new))
    return old_model == new_model if not (old_model and new_model) else same_key(old_model, new_model)


def metrics(old: Evaluated, new: Evaluated) -> tuple[Metric, ...]:
    """Every figure that both evaluations have, in the order of the new one."""
    scale = same_scale(old.step, new.step)
    judge = same_scale(old.step, new.step, "adherence")
    before = {(g, of, name): figure for g, of, name, figure, *_ in _figures(old.report)}
    compared = []
    for group, of, name, figure, better, opinion, judged in _figures(new.report):
        was = before.get((group, of, name))
        if was is None:
            continue
        comparable = (scale or not opinion) and (judge or not judged)
        difference = _paired(old.answers, new.answers, group=group, model=of, metric=name) if comparable else None
        worse = comparable and _worse(was, figure, difference, better)
        compared.append(Metric(group, of, name, was, figure, difference, better, comparable, worse))
    return tuple(compared)


Figure = tuple[str, str, str, Mapping[str, Any], int, bool, bool]
"""group, of, name, figure, better, the reward model's opinion, the judge's opinion."""


def _figures(report: Mapping[str, Any]) -> Iterator[Figure]:
    for name, data in report.get("sets", {}).items():
        for model, figures in data.get("models", {}).items():
            for metric, (better, opinion) in _BY_MODEL.items():
                better = -1 if metric == "refusals" and data.get("benign") else better
                if (figure := _figure(figures.get(metric))) is not None:
                    yield name, model, metric, figure, better, opinion, False
        for win in data.get("pairs") or data.get("wins", ()):
            if (figure := _figure(win)) is not None:
                yield name, f"{win['model']} against {win['against']}", "win rate", figure, 1, True, False
    for axis, data in report.get("elo", {}).items():
        for model, figure in data.get("models", {}).items():
            if model != data.get("reference") and (estimate := _figure(figure)) is not None:
                yield axis, model, "Elo", estimate, 1, True, False
    for model, figure in report.get("over_refusal", {}).items():
        if (estimate := _figure(figure)) is not None:
            yield "benign prompts", model, "over-refusal", estimate, -1, False, False
    for name, data in report.get("reward_model", {}).items():
        if (estimate := _figure(data.get("accuracy"))) is not None:
            yield name, "reward model", "accuracy", estimate, 1, False, False
    for label, data in report.get("revisions", {}).items():
        for last_round in data.get("rounds", ())[-1:]:
            if (estimate := _figure(last_round.get("change"))) is not None:
                yield "revisions", label, f"reward gained by round {last_round.get('round')}", estimate, 1, True, False
    for name, models in (report.get("adherence") or {}).get("sets", {}).items():
        for model, principles in models.items():
            for principle, figure in principles.items():
                if (estimate := _figure(figure)) is not None:
                    yield name, model, f"violates {principle}", estimate, -1, False, True


def _figure(value: Any) -> Mapping[str, Any] | None:
    if isinstance(value, Mapping) and isinstance(value.get("value"), int | float):
        return {part: value.get(part) for part in ("value", "low", "high", "n")}
    if isinstance(value, int | float) and not isinstance(value, bool):
        return {"value": value, "low": None, "high": None, "n": None}
    return None


def _paired(old: Answers, new: Answers, *, group: str, model: str, metric: str) -> Mapping[str, Any] | None:
    """After minus before on the prompts that both sides answered, with an interval by bootstrap over them."""
    from cai.figures.intervals import mean

    measure = _MEASURES.get(metric)
    if measure is None:
        return None
    differences = []
    for prompt_key in (key for key in new if key[0] == group and key in old):
        old_answer, new_answer = old[prompt_key].get(model), new[prompt_key].get(model)
        if old_answer is None or new_answer is None or old[prompt_key][""]["text"] != new[prompt_key][""]["text"]:
            continue
        pair = measure(old_answer), measure(new_answer)
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
