"""What a run's training rests on where a judge made the labels: whether that judge was held against people, and how it
did.

A judge step that fails its calibration makes no artifact (``cai/stages/judge/gate.py``). But one may be in the store
from before: of an older program, or of an experiment that said ``uncalibrated`` or asked for less. So whoever trains
looks again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from cai.engines.methods import method_of
from cai.errors import SpecError, StepFailed
from cai.figures.judge_report import JUDGE_REPORT, JudgeReport, LabelFigures, read_judge_report
from cai.figures.judge_standing import JudgeStanding, agreement_words, rule_words, standing
from cai.plan import Plan, Step
from cai.stages.base import StageSpec
from cai.stages.judge.gate import check_standing
from cai.stages.judge.spec import JudgeSpec
from cai.store.artifacts import Store

_LISTED = 6


class HasFolder(Protocol):
    """The part of an artifact that is read here."""

    @property
    def path(self) -> Path:
        """Its folder."""
        ...


def judges_behind(plan: Plan, step: Step) -> list[Step]:
    """The judges whose labels reach a step, however many steps lie between, in the plan's order."""
    reached: set[str] = set()
    waiting = list(step.needs())
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            waiting += plan.step(name).needs()
    return [each for each in plan.steps if each.name in reached and each.kind == "judge"]


def check_judges(plan: Plan, step: Step, specs: Mapping[str, StageSpec], store: Store) -> None:
    """A step that trains must not learn the labels of a judge that is at chance, where its stage does not say so.

    A judge whose artifact is gone is not looked at.

    Raises:
        StepFailed: naming the judge, what was measured, and what to do.
        SpecError: when a judge's report cannot be read.
    """
    if method_of(step.kind) is None:
        return
    for judge in judges_behind(plan, step):
        spec, stored = specs[judge.name], store.find(judge.kind, judge.key)
        if isinstance(spec, JudgeSpec) and stored is not None and (report := _report(stored)) is not None:
            try:
                check_standing(spec, report.labelled)
            except StepFailed as error:
                raise StepFailed(f"it would learn the labels of '{judge.name}': {error}") from error


def judge_remarks(plan: Plan, artifacts: Mapping[str, HasFolder]) -> list[str]:
    """What must be said of a run's labels wherever its results are told, a report that cannot be read among it.

    ``artifacts`` are those that are there.
    """
    remarks: list[str] = []
    judges = [step for step in plan.steps if step.kind == "judge"]
    for step in judges:
        try:
            report = _report(artifacts[step.name]) if step.name in artifacts else None
            remarks += _remarks(step, report.labelled if report is not None else None)
        except SpecError as error:
            remarks.append(f"'{step.name}': what its labels rest on is not known: {error}")
    unheld = [step.name for step in judges if not _field(step, "labelled") and not _field(step, "uncalibrated")]
    return [*remarks, *_never_calibrated(unheld)]


def _field(step: Step, name: str) -> Any:
    """A field of a judge's spec; a plan of an older program may lack it."""
    return step.spec.get(name, JudgeSpec.model_fields[name].default)


def _remarks(step: Step, labels: LabelFigures | None) -> Iterator[str]:
    measured = agreement_words(labels) if labels is not None else ""
    verdict = standing(labels, _field(step, "min_kappa"))
    if _field(step, "uncalibrated"):
        why = measured or ("not measured yet" if _field(step, "labelled") else JudgeStanding.UNKNOWN.value)
        passed = verdict in (JudgeStanding.ABOVE_CHANCE, JudgeStanding.ABOVE_RULES)
        more = "; that is better than chance, so its stage need not say `uncalibrated`" if passed else ""
        yield f"'{step.name}': labels of an uncalibrated judge: {why}{more}."
    elif labels is not None and verdict is JudgeStanding.AT_CHANCE:
        yield f"'{step.name}': labels of a judge that is {verdict.value}: {measured}."
    elif labels is not None and verdict is JudgeStanding.ABOVE_CHANCE:
        rule = "; ".join(filter(None, (measured, rule_words(labels))))
        yield f"'{step.name}': labels of a judge that is {verdict.value}: {rule}."


def _never_calibrated(names: list[str]) -> Iterator[str]:
    if names:
        quoted = ", ".join(f"'{name}'" for name in names[:_LISTED])
        more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
        yield (
            f"{quoted}{more}: labels of a judge that is not calibrated: it was {JudgeStanding.UNKNOWN.value}, "
            "so nothing says that they are better than chance."
        )


def _report(artifact: HasFolder) -> JudgeReport | None:
    """The report in a judge's artifact; None where there is none."""
    path = artifact.path / JUDGE_REPORT
    return read_judge_report(path) if path.is_file() else None
