"""Whether a judge is better than chance, by its agreement with people, and how that is told."""

from __future__ import annotations

from enum import Enum

from cai.figures.intervals import Interval
from cai.figures.judge_report import LabelFigures


class JudgeStanding(str, Enum):
    """What labelled pairs say of a judge, by the lower bounds of 95 % intervals over the pairs."""

    UNKNOWN = "held against no labelled pairs"
    AT_CHANCE = "not clearly better than chance"
    ABOVE_CHANCE = "clearly better than chance, and not than a rule that reads no answer"
    ABOVE_RULES = "clearly better than chance and than every rule that reads no answer"


def kappa_of(labels: LabelFigures) -> Interval:
    """Cohen's kappa of a judge and people.

    Reports of older programs do not have it. The answers of a labelled pair stand in an order drawn for it, so chance
    agrees on half of the pairs, and kappa is 2 p - 1 with the agreement p.
    """
    if labels.beyond_chance is not None:
        return labels.beyond_chance.kappa
    value, low, high = (None if p is None else 2 * p - 1 for p in _bounds(labels.accuracy))
    return Interval(value, low, high, labels.accuracy.n)


def _bounds(figure: Interval) -> tuple[float | None, float | None, float | None]:
    return figure.value, figure.low, figure.high


def standing(labels: LabelFigures | None, min_kappa: float = 0.0) -> JudgeStanding:
    """How good a judge is that must have a kappa above ``min_kappa``; without ``labels`` nothing is known."""
    if labels is None:
        return JudgeStanding.UNKNOWN
    kappa = kappa_of(labels)
    if kappa.low is None or kappa.low <= min_kappa:
        return JudgeStanding.AT_CHANCE
    above = labels.beyond_chance.above_best_rule.low if labels.beyond_chance is not None else None
    return JudgeStanding.ABOVE_RULES if above is not None and above > 0 else JudgeStanding.ABOVE_CHANCE


def agreement_words(labels: LabelFigures) -> str:
    """What was measured: ``agreement 0.51 (0.44 to 0.58), kappa 0.02 (-0.12 to 0.16), over 200 labelled pairs``."""
    n = labels.accuracy.n
    if not n:
        reasons = ", ".join(f"{reason} {count}" for reason, count in labels.counts.items() if reason != "rows")
        return (
            f"none of {labels.counts.get('rows', 0)} labelled pairs could be compared ({reasons or 'there are none'})"
        )
    pairs = f"{n} labelled pair{'s' * (n != 1)}"
    return f"agreement {_words(labels.accuracy)}, kappa {_words(kappa_of(labels))}, over {pairs}"


def rule_words(labels: LabelFigures) -> str:
    """What the best rule that reads no answer gets on the same pairs; empty where that was not measured."""
    beyond = labels.beyond_chance
    if beyond is None or not beyond.best_rule or beyond.best_rule not in labels.baselines:
        return ""
    return f"'{beyond.best_rule}' has {_words(labels.baselines[beyond.best_rule].accuracy)}"


def _words(figure: Interval) -> str:
    if figure.value is None:
        return "undefined"
    if figure.low is None or figure.high is None:
        return f"{figure.value:.2f}"
    return f"{figure.value:.2f} ({figure.low:.2f} to {figure.high:.2f})"
