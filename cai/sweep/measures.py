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
class Found:
    """One figure of one cell. ``scale`` is the key of the reward model that gave it; empty where none did."""

    name: str
    figure: Figure
    scale: str = ""
    share: bool = False
    higher: bool = True


def found_in(run: Finished) -> Iterator[Found]:
    """Every figure of a run's evaluations, of its last model, in the order in which they rank a sweep by default."""
    evaluations = run.evaluations()
    for step, report in evaluations.items():
        before = f"{step}: " if len(evaluations) > 1 else ""
        for found in (*_revisions(report), *_answers(report), *_reward_model(report)):
            scale = _scale(run, step) if found.scale else ""
            yield Found(before + found.name, found.figure, scale, found.share, found.higher)


def _scale(run: Finished, step: str) -> str:
    name = run.plan.step(step).inputs.get("reward")
    return run.plan.step(name).key if isinstance(name, str) else ""


_OWN = "by the reward model"


def _revisions(report: Mapping[str, Any]) -> Iterator[Found]:
    for label, told in report.get("revisions", {}).items():
        if told["rounds"]:
            last = told["rounds"][-1]
            yield Found(f"reward of {label}", last["reward"], _OWN)
            if last.get("change"):
                yield Found(f"gain of {label}", last["change"], _OWN)


def _answers(report: Mapping[str, Any]) -> Iterator[Found]:
    first, last = report["models"][0], report["models"][-1]
    sets = report["sets"]
    for name, told in sets.items():
        figures = told["models"][last]
        if figures["reward"] and not told["benign"]:
            yield Found(f"reward on {name}", figures["reward"], _OWN)
    for name, told in sets.items():
        for win in told["wins"]:
            if (win["model"], win["against"]) == (last, first) and first != last and not told["benign"]:
                yield Found(f"wins on {name}", win, _OWN, share=True)
    for axis, told in report.get("elo", {}).items():
        if len(report["models"]) > 1 and last in told["models"]:
            yield Found(f"Elo {axis}", told["models"][last], _OWN)
    for name, told in sets.items():
        if told["benign"]:
            yield Found(f"refuses {name}", told["models"][last]["refusals"], share=True, higher=False)


def _reward_model(report: Mapping[str, Any]) -> Iterator[Found]:
    for name, told in report["reward_model"].items():
        yield Found(f"accuracy on {name}", told["accuracy"], share=True)


def by_prompt(run: Finished) -> dict[str, dict[str, float]]:
    """Values of single prompts behind the figures of the same names: measure -> row id -> value.

    Only for what is a mean over prompts: rewards, wins over the first model (a tie is a half), refusals.
    """
    found: dict[str, dict[str, float]] = {}
    evaluations = run.evaluations()
    for step, report in evaluations.items():
        before = f"{step}: " if len(evaluations) > 1 else ""
        first, last = report["models"][0], report["models"][-1]
        benign = {name for name, told in report["sets"].items() if told["benign"]}
        path = run.artifacts[step].path / "answers.jsonl"
        with path.open(encoding="utf-8") as file:
            for line in file:
                row = json.loads(line)
                ours, theirs = row["answers"][last], row["answers"][first]
                name = row["set"]
                if name in benign:
                    found.setdefault(f"{before}refuses {name}", {})[row["id"]] = float(refuses(ours["text"]))
                elif ours["reward"] is not None:
                    found.setdefault(f"{before}reward on {name}", {})[row["id"]] = ours["reward"]
                    if first != last:
                        won = 0.5 * (1 + (ours["reward"] > theirs["reward"]) - (ours["reward"] < theirs["reward"]))
                        found.setdefault(f"{before}wins on {name}", {})[row["id"]] = won
    return found
