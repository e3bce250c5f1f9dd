"""The figures of an evaluation: of every model on every set, of every pair of models, and of sets taken together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import combinations, pairwise

from cai.chat.messages import question
from cai.data.rows import Prompt
from cai.figures import intervals
from cai.figures.answers import repeats
from cai.figures.elo import ratings
from cai.figures.evaluation import AxisRatings, Evaluation, ExampleAnswers, ModelFigures, ModelWins, PromptSetFigures
from cai.figures.intervals import Interval
from cai.grading.answers import declines, evades
from cai.grading.grades import Grade
from cai.identity import uniform
from cai.stages.evaluate.answers import Answer, Answers
from cai.stages.evaluate.spec import EvaluateSpec

COMPARED = 100
"""Answers of a set, drawn by chance, that self-BLEU compares with each other."""


def set_figures(
    spec: EvaluateSpec, seed: int, *, name: str, rows: Sequence[Prompt], answers: Mapping[str, Mapping[str, Answer]]
) -> PromptSetFigures:
    """All that is known of one set of prompts."""
    scored = spec.reward is not None and bool(rows)
    models = list(spec.models)
    rewards = {m: [r for row in rows if (r := answers[m][row.id].reward) is not None] for m in models}

    def compared(pairs: Sequence[tuple[str, str]]) -> tuple[ModelWins, ...]:
        if not scored:
            return ()
        return tuple(
            ModelWins(later, earlier, **asdict(intervals.wins(rewards[later], rewards[earlier])))
            for earlier, later in pairs
        )

    # Each model against the one before it, and the last against the first: what a reader wants to know first.
    first_pairs = [*pairwise(models), *([(models[0], models[-1])] if len(models) > 2 else [])]
    return PromptSetFigures(
        rows=len(rows),
        benign=name in spec.benign,
        models={model: _model_figures(seed, rows, by_id) for model, by_id in answers.items()},
        wins=compared(first_pairs),
        pairs=compared(list(combinations(models, 2))),
    )


def _model_figures(seed: int, rows: Sequence[Prompt], by_id: Mapping[str, Answer]) -> ModelFigures:
    answers = [by_id[row.id] for row in rows]
    rewards = [a.reward for a in answers if a.reward is not None]
    texts = [a.text for a in answers]
    topics: dict[str, list[float]] = defaultdict(list)
    for row, answer in zip(rows, answers, strict=True):
        if answer.reward is not None and row.topic:
            topics[row.topic].append(answer.reward)
    drawn = sorted(rows, key=lambda row: (uniform(seed, row.id, "evaluate/self-bleu"), row.id))[:COMPARED]
    tokens = [float(a.tokens) for a in answers]
    return ModelFigures(
        reward=intervals.mean(rewards, seed) if rewards else None,
        reward_by_topic={topic: intervals.mean(values, seed) for topic, values in sorted(topics.items())},
        tokens=intervals.mean(tokens, seed),
        characters=intervals.mean([float(len(text)) for text in texts], seed),
        distinct_1=intervals.distinct_n(texts, 1),
        distinct_2=intervals.distinct_n(texts),
        self_bleu=intervals.self_bleu([by_id[row.id].text for row in drawn]),
        different_answers=len(set(texts)) / len(texts) if texts else None,
        empty=sum(not text for text in texts),
        refusals=intervals.share(sum(declines(a.text, a.grade) for a in answers), len(answers)),
        evasive=intervals.share(sum(evades(a.text, a.grade) for a in answers), len(answers)),
        repetition=intervals.share(sum(map(repeats, texts)), len(texts)),
        ended=intervals.share(sum(a.ended for a in answers), len(answers)),
        reward_length_correlation=intervals.correlation(rewards, tokens) if len(rewards) == len(answers) else None,
        grades=_grades(answers),
    )


def _grades(answers: Sequence[Answer]) -> dict[str, Interval]:
    """The share of each grade; nothing where answers have none."""
    grades = [answer.grade for answer in answers if answer.grade]
    return {g.value: intervals.share(grades.count(g.value), len(grades)) for g in Grade} if grades else {}


def elo(
    spec: EvaluateSpec, seed: int, sets: Mapping[str, Sequence[Prompt]], answers: Answers
) -> dict[str, AxisRatings]:
    """Every model's Elo on every axis, from the rewards of all answers to its prompts; nothing without rewards."""
    if spec.reward is None or len(spec.models) < 2:
        return {}
    models = list(spec.models)
    ratings_by_axis: dict[str, AxisRatings] = {}
    for axis, names in spec.compared.items():
        rewards = [
            [float(r) for m in models if (r := answers[name][m][row.id].reward) is not None]
            for name in dict.fromkeys(names)
            for row in sets[name]
        ]
        if rewards:
            ratings_by_axis[axis] = AxisRatings(models[0], ratings(rewards, models, seed), len(rewards))
    return ratings_by_axis


def over_refusal(spec: EvaluateSpec, sets: Mapping[str, Sequence[Prompt]], answers: Answers) -> dict[str, Interval]:
    """How often every model declines a request that is safe, over all benign sets together."""
    names = list(dict.fromkeys(spec.benign))
    if not any(sets[name] for name in names):
        return {}
    by_model = {m: [answers[name][m][row.id] for name in names for row in sets[name]] for m in spec.models}
    return {
        m: intervals.share(sum(declines(a.text, a.grade) for a in given), len(given)) for m, given in by_model.items()
    }


def examples(
    spec: EvaluateSpec, seed: int, sets: Mapping[str, Sequence[Prompt]], answers: Answers
) -> tuple[ExampleAnswers, ...]:
    """The same prompts for every model and every run with this seed: drawn by chance, never picked."""
    drawn = []
    for name, rows in sets.items():
        for row in sorted(rows, key=lambda row: (uniform(seed, row.id, "evaluate/examples"), row.id))[: spec.examples]:
            by_model = {model: answers[name][model][row.id] for model in spec.models}
            drawn.append(
                ExampleAnswers(
                    set=name,
                    id=row.id,
                    topic=row.topic,
                    prompt=question(row.messages),
                    answers={model: a.text for model, a in by_model.items()},
                    rewards={model: a.reward for model, a in by_model.items()},
                )
            )
    return tuple(drawn)


def headline(evaluation: Evaluation) -> dict[str, float | None]:
    """The few figures that the record and the run's list show."""
    figures: dict[str, float | None] = {}
    for name, prompt_set in evaluation.sets.items():
        for model, measured in prompt_set.models.items():
            if measured.reward is not None:
                figures[f"reward/{name}/{model}"] = measured.reward.value
    for name, pairs in evaluation.reward_model.items():
        figures[f"accuracy/{name}"] = pairs.accuracy.value
    for axis, rated in evaluation.elo.items():
        figures |= {f"elo/{axis}/{m}": figure.value for m, figure in rated.models.items() if m != rated.reference}
    figures |= {f"over_refusal/{model}": figure.value for model, figure in evaluation.over_refusal.items()}
    for label, revised in evaluation.revisions.items():
        if revised.rounds:
            figures[f"revisions/{label}/change"] = revised.rounds[-1].change.value
    return figures
