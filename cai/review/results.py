"""What two finished runs came to: metrics, flipped labels, and the answers that changed most."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cai.errors import Problem, SpecError
from cai.review.changes import Paired, paired
from cai.review.labels import Flips, flips
from cai.review.metrics import Evaluated, Metric, metrics, read_answers, same_scale
from cai.review.words import likeness
from cai.run.finished import Finished

SHOWN = 3
"""Samples of each prompt set."""
_LOOKED_AT = 2000


@dataclass(frozen=True, slots=True)
class AnswerPair:
    """One prompt with a model's answer on each side, and their rewards where there are any."""

    group: str
    model: str
    prompt: str
    before: str
    after: str
    rewards: tuple[float | None, float | None]


@dataclass(frozen=True, slots=True)
class EvaluationDiff:
    """One evaluation that both runs have. ``same_reward_model``: rewards are on one scale. ``only``: models and prompt
    sets of one side alone."""

    step: str
    same_reward_model: bool
    metrics: tuple[Metric, ...]
    only: tuple[tuple[str, ...], tuple[str, ...]]
    samples: tuple[AnswerPair, ...]


@dataclass(frozen=True, slots=True)
class Results:
    """Everything that can be compared of two finished runs; ``missing`` says what cannot, and why."""

    evaluations: tuple[EvaluationDiff, ...]
    flips: tuple[Flips, ...]
    missing: tuple[str, ...]


def results(old: Finished, new: Finished) -> Results:
    """Compare what two runs made.

    Raises:
        SpecError: when a file of an artifact cannot be read.
    """
    match = paired(old.plan, new.plan)
    missing = list(_missing(match, old, new))
    evaluations = []
    for before, after in match.both:
        if after.kind == "evaluate" and before.name in old.artifacts and after.name in new.artifacts:
            evaluations.append(_evaluation(_read_evaluation(before.name, old), _read_evaluation(after.name, new)))
    if not evaluations:
        missing.append("no evaluation is finished on both sides")
    try:
        label_flips = flips(match, old, new)
    except (ValueError, KeyError, TypeError) as error:
        raise SpecError(Problem("judge", f"its rows cannot be read ({error})", "run `store verify`")) from error
    return Results(tuple(evaluations), label_flips, tuple(missing))


def _missing(match: Paired, old: Finished, new: Finished) -> Iterator[str]:
    for side, run in (("before", old), ("after", new)):
        gone = [s.name for s in run.plan.steps if s.name not in run.artifacts and s.kind in ("judge", "evaluate")]
        if gone:
            yield f"the store does not have {', '.join(gone)} of the run {side}"


def _read_evaluation(name: str, run: Finished) -> Evaluated:
    try:
        answers = read_answers(run.artifacts[name].path / "answers.jsonl")
    except (ValueError, KeyError, TypeError) as error:
        raise SpecError(Problem(f"{name}: answers.jsonl", f"cannot be read ({error})", "run `store verify`")) from error
    return Evaluated(run.plan.step(name), run.evaluations()[name], answers)


def _evaluation(old: Evaluated, new: Evaluated) -> EvaluationDiff:
    names = [[*side.evaluation.models, *(f"prompts {name}" for name in side.evaluation.sets)] for side in (old, new)]
    only = tuple(tuple(n for n in mine if n not in theirs) for mine, theirs in (names, names[::-1]))
    scale = same_scale(old.step, new.step)
    samples = tuple(_samples(old, new, scale))
    return EvaluationDiff(new.step.name, scale, metrics(old, new), (only[0], only[1]), samples)


def _samples(old: Evaluated, new: Evaluated, scale: bool) -> Iterator[AnswerPair]:
    """Of every prompt set the last model's answers that changed most: by reward where that has one scale, else by
    words. Equals come in the order of their ids, so that the same runs show the same."""
    models = [model for model in new.evaluation.models if model in old.evaluation.models]
    for group in new.evaluation.sets:
        ranked: list[tuple[float, str, AnswerPair]] = []
        for key in sorted(k for k in new.answers if k[0] == group and k in old.answers)[:_LOOKED_AT]:
            before, after = old.answers[key], new.answers[key]
            model = next((m for m in reversed(models) if m in before and m in after), None)
            if model is None or before[""] != after[""] or before[model]["text"] == after[model]["text"]:
                continue
            texts = str(before[model]["text"]), str(after[model]["text"])
            rewards = before[model].get("reward"), after[model].get("reward")
            by_reward = scale and None not in rewards
            change = abs(rewards[1] - rewards[0]) if by_reward else 1 - likeness(*texts)
            ranked.append((-change, key[1], AnswerPair(group, model, before[""]["text"], *texts, rewards)))
        yield from (sample for *_, sample in sorted(ranked, key=lambda f: f[:2])[:SHOWN])


def worse(results: Results) -> Sequence[Metric]:
    """The metrics that got worse beyond doubt."""
    return [metric for evaluation in results.evaluations for metric in evaluation.metrics if metric.worse]
