"""No training on the labels of a judge that is no better than chance, unless the experiment says that it wants that."""

from __future__ import annotations

from cai.errors import StepFailed
from cai.figures.judge_report import LabelFigures
from cai.figures.judge_standing import JudgeStanding, agreement_words, rule_words, standing
from cai.stages.judge.spec import JudgeSpec

NEXT = (
    "take another judge, another scoring or prompt, or more labelled pairs, "
    "or write `uncalibrated: true` into its stage, which every summary then repeats"
)


def check_standing(spec: JudgeSpec, labels: LabelFigures | None) -> None:
    """A judge that was held against labelled pairs must be better than chance, or the experiment say ``uncalibrated``.

    Raises:
        StepFailed: with what was measured, over how many pairs, and what to do.
    """
    if spec.uncalibrated or standing(labels, spec.min_kappa) is not JudgeStanding.AT_CHANCE:
        return
    assert labels is not None
    measured = "; ".join(filter(None, (agreement_words(labels), rule_words(labels))))
    wanted = "better than chance" if spec.min_kappa == 0 else f"above min_kappa {spec.min_kappa:g}"
    raise StepFailed(
        f"the judge is not clearly {wanted} (the lower bound of kappa must be above {spec.min_kappa:g}): {measured}. "
        f"Nothing is trained on its labels: {NEXT}"
    )
