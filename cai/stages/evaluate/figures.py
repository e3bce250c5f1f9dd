"""The figures of an evaluation: of every model on every set, of every pair of models, and of sets taken together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations, pairwise
from typing import Any

from cai.data.rows import Prompt
from cai.figures import intervals
from cai.figures.answers import evades, refuses, repeats
from cai.figures.elo import ratings
from cai.identity import uniform
from cai.stages.evaluate.answers import Answer, Answers
from cai.stages.evaluate.spec import EvaluateSpec

COMPARED = 100
"""Answers of a set, drawn by chance, that self-BLEU compares with each other."""


def set_report(
    spec: EvaluateSpec, seed: int, name: str, rows: list[Prompt], answers: Mapping[str, Mapping[str, Answer]]
) -> dict[str, Any]:
    """All that is known of one set of prompts."""
    scored = spec.reward is not None and bool(rows)
    models = list(spec.models)
    rewards = {m: [r for row in rows if (r := answers[m][row.id].reward) is not None] for m in models}

    def compared(wanted: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
        return [{"model": b, "against": a, **intervals.wins(rewards[b], rewards[a])} for a, b in wanted]

    # Each model against the one before it, and the last against the first: what a reader wants to know first.
    told = list(pairwise(models)) + ([(models[0], models[-1])] if len(models) > 2 else [])
    return {
        "rows": len(rows),
        "benign": name in spec.benign,
        "models": {model: _model_report(seed, rows, found) for model, found in answers.items()},
        "wins": compared(told) if scored else [],
        "pairs": compared(list(combinations(models, 2))) if scored else [],
    }


def _model_report(seed: int, rows: list[Prompt], found: Mapping[str, Answer]) -> dict[str, Any]:
    answers = [found[row.id] for row in rows]
    rewards = [a.reward for a in answers if a.reward is not None]
    texts = [a.text for a in answers]
    topics: dict[str, list[float]] = defaultdict(list)
    for row, answer in zip(rows, answers, strict=True):
        if answer.reward is not None and row.topic:
            topics[row.topic].append(answer.reward)
    drawn = sorted(rows, key=lambda row: (uniform(seed, row.id, "evaluate/self-bleu"), row.id))[:COMPARED]
    return {
        "reward": intervals.mean(rewards, seed) if rewards else None,
        "reward_by_topic": {topic: intervals.mean(values, seed) for topic, values in sorted(topics.items())},
        "tokens": intervals.mean([float(a.tokens) for a in answers], seed),
        "characters": intervals.mean([float(len(text)) for text in texts], seed),
        "distinct_1": intervals.distinct_n(texts, 1),
        "distinct_2": intervals.distinct_n(texts),
        "self_bleu": intervals.self_bleu([found[row.id].text for row in drawn]),
        "different_answers": len(set(texts)) / len(texts) if texts else None,
        "empty": sum(not text for text in texts),
        "refusals": intervals.share(sum(map(refuses, texts)), len(texts)),
        "evasive": intervals.share(sum(map(evades, texts)), len(texts)),
        "repetition": intervals.share(sum(map(repeats, texts)), len(texts)),
        "ended": intervals.share(sum(a.ended for a in answers), len(answers)),
        "reward_length_correlation": intervals.correlation(rewards, [float(a.tokens) for a in answers])
        if len(rewards) == len(answers)
        else None,
    }


def elo(spec: EvaluateSpec, seed: int, sets: Mapping[str, list[Prompt]], answers: Answers) -> dict[str, Any]:
    """Every model's Elo on every axis, from the rewards of all answers to its prompts; nothing without rewards."""
    if spec.reward is None or len(spec.models) < 2:
        return {}
    models, found = list(spec.models), {}
    for axis, names in spec.compared.items():
        rewards = [
            [float(r) for m in models if (r := answers[name][m][row.id].reward) is not None]
            for name in dict.fromkeys(names)
            for row in sets[name]
        ]
        if rewards:
            found[axis] = {"reference": models[0], "models": ratings(rewards, models, seed), "rows": len(rewards)}
    return found


def over_refusal(spec: EvaluateSpec, sets: Mapping[str, list[Prompt]], answers: Answers) -> dict[str, Any]:
    """How often every model declines a request that is safe, over all benign sets together."""
    names = list(dict.fromkeys(spec.benign))
    if not any(sets[name] for name in names):
        return {}
    said = {m: [answers[name][m][row.id].text for name in names for row in sets[name]] for m in spec.models}
    return {model: intervals.share(sum(map(refuses, texts)), len(texts)) for model, texts in said.items()}


def examples(spec: EvaluateSpec, seed: int, sets: Mapping[str, list[Prompt]], answers: Answers) -> list[dict[str, Any]]:
    """The same prompts for every model and every run with this seed: drawn by chance, never picked."""
    shown = []
    for name, rows in sets.items():
        for row in sorted(rows, key=lambda row: (uniform(seed, row.id, "evaluate/examples"), row.id))[: spec.examples]:
            mine = {model: answers[name][model][row.id] for model in spec.models}
            shown.append(
                {
                    "set": name,
                    "id": row.id,
                    "topic": row.topic,
                    "prompt": row.messages[-1].content,
                    "answers": {model: a.text for model, a in mine.items()},
                    "rewards": {model: a.reward for model, a in mine.items()},
                }
            )
    return shown


def headline(report: Mapping[str, Any]) -> dict[str, Any]:
    """The few figures that the record and the run's list show."""
    figures: dict[str, Any] = {}
    for name, found in report["sets"].items():
        for model, values in found["models"].items():
            if values["reward"] is not None:
                figures[f"reward/{name}/{model}"] = values["reward"]["value"]
    for name, found in report["reward_model"].items():
        figures[f"accuracy/{name}"] = found["accuracy"]["value"]
    for axis, found in report["elo"].items():
        figures |= {f"elo/{axis}/{m}": f["value"] for m, f in found["models"].items() if m != found["reference"]}
    figures |= {f"over_refusal/{model}": figure["value"] for model, figure in report["over_refusal"].items()}
    for label, found in report["revisions"].items():
        if found["rounds"]:
            figures[f"revisions/{label}/change"] = found["rounds"][-1]["change"]["value"]
    return figures
