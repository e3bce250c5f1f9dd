"""What a cell's evaluations say, as named figures that can be set beside those of other cells.

Figures that a reward model gave can only be compared where it is the same reward model: its step's key is their scale.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cai.figures.answers import refuses
from cai.run.finished import Finished

Figure = Mapping[str, Any]
"""{"value", "low", "high", "n"}: 95 % interval; any of them may be None."""


@dataclass(frozen=True, slots=True)
class RunFigure:
    """One figure of one cell. ``scale`` is the key of the reward model that gave it; empty where none did."""

    name: str
    figure: Figure
    scale: str = ""
    share: bool = False
    higher: bool = True


def run_figures(run: Finished) -> Iterator[RunFigure]:
    """Every figure of a run's evaluations, of its last model, in the order in which they rank a sweep by default."""
    evaluations = run.evaluations()
    for step, report in evaluations.items():
        before = f"{step}: " if len(evaluations) > 1 else ""
        for figure in (*_revisions(report), *_answers(report), *_reward_model(report)):
            scale = _scale(run, step) if figure.scale else ""
            yield RunFigure(before + figure.name, figure.figure, scale, figure.share, figure.higher)


def _scale(run: Finished, step: str) -> str:
    name = run.plan.step(step).source("reward")
    return run.plan.step(name).key if name is not None else ""


_OWN = "by the reward model"


def _revisions(report: Mapping[str, Any]) -> Iterator[RunFigure]:
    for label, revision in report.get("revisions", {}).items():
        if revision["rounds"]:
            last = revision["rounds"][-1]
            yield RunFigure(f"reward of {label}", last["reward"], _OWN)
            if last.get("change"):
                yield RunFigure(f"gain of {label}", last["change"], _OWN)


def _answers(report: Mapping[str, Any]) -> Iterator[RunFigure]:
    first, last = report["models"][0], report["models"][-1]
    sets = report["sets"]
    for name, prompt_set in sets.items():
        figures = prompt_set["models"][last]
        if figures["reward"] and not prompt_set["benign"]:
            yield RunFigure(f"reward on {name}", figures["reward"], _OWN)
    for name, prompt_set in sets.items():
        for win in prompt_set["wins"]:
            if (win["model"], win["against"]) == (last, first) and first != last and not prompt_set["benign"]:
                yield RunFigure(f"wins on {name}", win, _OWN, share=True)
    for axis, ratings in report.get("elo", {}).items():
        if len(report["models"]) > 1 and last in ratings["models"]:
            yield RunFigure(f"Elo {axis}", ratings["models"][last], _OWN)
    for name, prompt_set in sets.items():
        if prompt_set["benign"]:
            yield RunFigure(f"refuses {name}", prompt_set["models"][last]["refusals"], share=True, higher=False)


def _reward_model(report: Mapping[str, Any]) -> Iterator[RunFigure]:
    for name, accuracy_report in report["reward_model"].items():
        yield RunFigure(f"accuracy on {name}", accuracy_report["accuracy"], share=True)


def by_prompt(run: Finished) -> dict[str, dict[str, float]]:
    """Values of single prompts behind the figures of the same names: measure -> row id -> value.

    Only for what is a mean over prompts: rewards, wins over the first model (a tie is a half), refusals.
    """
    values_by_measure: dict[str, dict[str, float]] = {}
    evaluations = run.evaluations()
    for step, report in evaluations.items():
        before = f"{step}: " if len(evaluations) > 1 else ""
        first, last = report["models"][0], report["models"][-1]
        benign = {name for name, prompt_set in report["sets"].items() if prompt_set["benign"]}
        path = run.artifacts[step].path / "answers.jsonl"
        with path.open(encoding="utf-8") as file:
            for line in file:
                row = json.loads(line)
                ours, theirs = row["answers"][last], row["answers"][first]
                name = row["set"]
                if name in benign:
                    values_by_measure.setdefault(f"{before}refuses {name}", {})[row["id"]] = float(
                        refuses(ours["text"])
                    )
                elif ours["reward"] is not None:
                    values_by_measure.setdefault(f"{before}reward on {name}", {})[row["id"]] = ours["reward"]
                    if first != last:
                        won = 0.5 * (1 + (ours["reward"] > theirs["reward"]) - (ours["reward"] < theirs["reward"]))
                        values_by_measure.setdefault(f"{before}wins on {name}", {})[row["id"]] = won
    return values_by_measure
