"""What a cell's evaluations say, as named figures that can be set beside those of other cells.

Figures that a reward model gave can only be compared where it is the same reward model: its step's key is their scale.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from cai.figures.evaluation import PHRASES, Evaluation
from cai.figures.intervals import Interval
from cai.grading.answers import declines
from cai.identity import parse_json
from cai.run.finished import Finished


@dataclass(frozen=True, slots=True)
class RunFigure:
    """One figure of one cell. ``scale`` is the key of the reward model that gave it; empty where none did."""

    name: str
    figure: Interval
    scale: str = ""
    share: bool = False
    higher: bool = True


def run_figures(run: Finished) -> Iterator[RunFigure]:
    """Every figure of a run's evaluations, of its last model, in the order in which they rank a sweep by default."""
    evaluations = run.evaluations()
    for step, evaluation in evaluations.items():
        before = f"{step}: " if len(evaluations) > 1 else ""
        for figure in (*_revisions(evaluation), *_answers(evaluation), *_reward_model(evaluation)):
            scale = _scale(run, step) if figure.scale else ""
            yield RunFigure(before + figure.name, figure.figure, scale, figure.share, figure.higher)


def _scale(run: Finished, step: str) -> str:
    name = run.plan.step(step).source("reward")
    return run.plan.step(name).key if name is not None else ""


_OWN = "by the reward model"


def _revisions(evaluation: Evaluation) -> Iterator[RunFigure]:
    for label, revised in evaluation.revisions.items():
        for last_round in revised.rounds[-1:]:
            yield RunFigure(f"reward of {label}", last_round.reward, _OWN)
            yield RunFigure(f"gain of {label}", last_round.change, _OWN)


def _answers(evaluation: Evaluation) -> Iterator[RunFigure]:
    first, last = evaluation.models[0], evaluation.models[-1]
    for name, prompt_set in evaluation.sets.items():
        reward = prompt_set.models[last].reward
        if reward is not None and not prompt_set.benign:
            yield RunFigure(f"reward on {name}", reward, _OWN)
    for name, prompt_set in evaluation.sets.items():
        for win in prompt_set.wins:
            if (win.model, win.against) == (last, first) and first != last and not prompt_set.benign:
                yield RunFigure(f"wins on {name}", win.share, _OWN, share=True)
    for axis, rated in evaluation.elo.items():
        if len(evaluation.models) > 1 and last in rated.models:
            yield RunFigure(f"Elo {axis}", rated.models[last], _OWN)
    for name, prompt_set in evaluation.sets.items():
        if prompt_set.benign:
            yield RunFigure(_refusals(evaluation, name), prompt_set.models[last].refusals, share=True, higher=False)


def _refusals(evaluation: Evaluation, name: str) -> str:
    """The figure's name; another one where other means found the refusals, so that the two are never compared."""
    return f"refuses {name}" if evaluation.grader == PHRASES else f"declines {name}"


def _reward_model(evaluation: Evaluation) -> Iterator[RunFigure]:
    for name, pairs in evaluation.reward_model.items():
        yield RunFigure(f"accuracy on {name}", pairs.accuracy, share=True)


def by_prompt(run: Finished) -> dict[str, dict[str, float]]:
    """Values of single prompts behind the figures of the same names: measure -> row id -> value.

    Only for what is a mean over prompts: rewards, wins over the first model (a tie is a half), refusals.
    """
    values_by_measure: dict[str, dict[str, float]] = {}
    evaluations = run.evaluations()
    for step, evaluation in evaluations.items():
        before = f"{step}: " if len(evaluations) > 1 else ""
        first, last = evaluation.models[0], evaluation.models[-1]
        benign = {name for name, prompt_set in evaluation.sets.items() if prompt_set.benign}
        path = run.artifacts[step].path / "answers.jsonl"
        with path.open(encoding="utf-8") as file:
            for line in file:
                row = parse_json(line)
                ours, theirs = row["answers"][last], row["answers"][first]
                name = row["set"]
                if name in benign:
                    refused = declines(ours["text"], ours.get("grade", ""))
                    values_by_measure.setdefault(before + _refusals(evaluation, name), {})[row["id"]] = float(refused)
                elif ours["reward"] is not None:
                    values_by_measure.setdefault(f"{before}reward on {name}", {})[row["id"]] = ours["reward"]
                    if first != last:
                        won = 0.5 * (1 + (ours["reward"] > theirs["reward"]) - (ours["reward"] < theirs["reward"]))
                        values_by_measure.setdefault(f"{before}wins on {name}", {})[row["id"]] = won
    return values_by_measure
