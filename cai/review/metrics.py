"""Metrics of two finished runs: both intervals, and the difference on the same prompts where the answers allow it.

Rewards of two reward models have no common scale: then no difference is given, and it is said.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cai.figures.evaluation import Evaluation, ModelFigures
from cai.figures.intervals import Interval
from cai.identity import parse_json
from cai.plan import Step
from cai.review.changes import same_key

Answers = Mapping[tuple[str, str], Mapping[str, Any]]
"""(set, id) -> {model: {text, tokens, ended, reward}} with the prompt under ``""``."""

_BY_MODEL: dict[str, tuple[Callable[[ModelFigures], Interval | float | None], int, bool]] = {
    # metric: (itself; which way is better: 1 more, -1 less, 0 neither; is it of the reward model's opinion)
    "reward": (lambda figures: figures.reward, 1, True),
    "refusals": (lambda figures: figures.refusals, 0, False),
    "evasive": (lambda figures: figures.evasive, -1, False),
    "repetition": (lambda figures: figures.repetition, -1, False),
    "ended": (lambda figures: figures.ended, 1, False),
    "tokens": (lambda figures: figures.tokens, 0, False),
    "characters": (lambda figures: figures.characters, 0, False),
    "distinct_1": (lambda figures: figures.distinct_1, 1, False),
    "distinct_2": (lambda figures: figures.distinct_2, 1, False),
    "self_bleu": (lambda figures: figures.self_bleu, -1, False),
    "different_answers": (lambda figures: figures.different_answers, 1, False),
}


_BY_GRADER = frozenset({"refusals", "evasive", "over-refusal"})
"""What another grader counts in another way."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One figure before and after. ``group`` is the prompt set, the axis or the like, ``of`` the model.

    ``difference`` is after minus before on the prompts that both have, or None. ``better``: 1 where more is better, -1
    where less, 0 where neither. ``comparable``: both are on one scale. ``worse``: the difference's interval (without
    one, the two intervals) leaves no doubt.
    """

    group: str
    of: str
    name: str
    before: Interval
    after: Interval
    difference: Interval | None
    better: int
    comparable: bool
    worse: bool


@dataclass(frozen=True, slots=True)
class Evaluated:
    """One side's evaluation: its step, what it measured, and its answers."""

    step: Step
    evaluation: Evaluation
    answers: Answers


def read_answers(path: Path) -> Answers:
    """The answers of an evaluation; empty where there is no file. Of a line that is no row nothing is taken."""
    answers: dict[tuple[str, str], Mapping[str, Any]] = {}
    if not path.is_file():
        return answers
    with path.open(encoding="utf-8") as file:
        for line in file:
            row = parse_json(line)
            answers[str(row["set"]), str(row["id"])] = {"": {"text": str(row.get("prompt", ""))}, **row["answers"]}
    return answers


def same_scale(old: Step, new: Step, role: str = "reward") -> bool:
    """Whether both evaluations asked the same model in a role; equal too where neither asked one."""
    old_model, new_model = (str((step.ingredients.inputs or {}).get(role, "")) for step in (old, new))
    return old_model == new_model if not (old_model and new_model) else same_key(old_model, new_model)


def metrics(old: Evaluated, new: Evaluated) -> tuple[Metric, ...]:
    """Every figure that both evaluations have, in the order of the new one."""
    scale = same_scale(old.step, new.step)
    judge = same_scale(old.step, new.step, "adherence")
    alike = old.evaluation.grader == new.evaluation.grader
    before = {(g, of, name): figure for g, of, name, figure, *_ in _figures(old.evaluation)}
    compared = []
    for group, of, name, figure, better, opinion, judged in _figures(new.evaluation):
        was = before.get((group, of, name))
        if was is None:
            continue
        comparable = (scale or not opinion) and (judge or not judged) and (alike or name not in _BY_GRADER)
        difference = _paired(old.answers, new.answers, group=group, model=of, metric=name) if comparable else None
        worse = comparable and _worse(was, figure, difference, better)
        compared.append(Metric(group, of, name, was, figure, difference, better, comparable, worse))
    return tuple(compared)


Figure = tuple[str, str, str, Interval, int, bool, bool]
"""group, of, name, figure, better, the reward model's opinion, the judge's opinion."""


def _figures(evaluation: Evaluation) -> Iterator[Figure]:
    """Those that have a value."""
    return (figure for figure in _all_figures(evaluation) if figure[3].value is not None)


def _all_figures(evaluation: Evaluation) -> Iterator[Figure]:
    for name, prompt_set in evaluation.sets.items():
        for model, figures in prompt_set.models.items():
            for metric, (figure_of, better, opinion) in _BY_MODEL.items():
                better = -1 if metric == "refusals" and prompt_set.benign else better
                figure = figure_of(figures)
                interval = figure if isinstance(figure, Interval) else Interval(figure)
                yield name, model, metric, interval, better, opinion, False
        for win in prompt_set.comparisons:
            yield name, f"{win.model} against {win.against}", "win rate", win.share, 1, True, False
    for axis, rated in evaluation.elo.items():
        for model, rating in rated.models.items():
            if model != rated.reference:
                yield axis, model, "Elo", rating, 1, True, False
    for model, refused in evaluation.over_refusal.items():
        yield "benign prompts", model, "over-refusal", refused, -1, False, False
    for name, pairs in evaluation.reward_model.items():
        yield name, "reward model", "accuracy", pairs.accuracy, 1, False, False
    for label, revised in evaluation.revisions.items():
        for last_round in revised.rounds[-1:]:
            gained = f"reward gained by round {last_round.round}"
            yield "revisions", label, gained, last_round.change, 1, True, False
    for name, by_model in evaluation.adherence.sets.items() if evaluation.adherence else ():
        for model, by_principle in by_model.items():
            for principle, violated in by_principle.items():
                yield name, model, f"violates {principle}", violated, -1, False, True


def _paired(old: Answers, new: Answers, *, group: str, model: str, metric: str) -> Interval | None:
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
    from cai.grading.answers import declines

    return declines(str(answer["text"]), str(answer.get("grade", "")))


def _evades(answer: Mapping[str, Any]) -> bool:
    from cai.grading.answers import evades

    return evades(str(answer["text"]), str(answer.get("grade", "")))


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


def _worse(before: Interval, after: Interval, difference: Interval | None, better: int) -> bool:
    if not better:
        return False
    if difference is not None:
        if difference.low is None or difference.high is None:
            return False
        return difference.high < 0 if better > 0 else difference.low > 0
    return below(after, before) if better > 0 else below(before, after)


def below(lower: Interval, upper: Interval) -> bool:
    """Whether all of one interval is below all of another; not where one of them is not known."""
    return lower.high is not None and upper.low is not None and lower.high < upper.low
