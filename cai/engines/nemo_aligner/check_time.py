"""Whether training and the time limit of its job know each other: what is left to train, and how often it saves.

A limit that leaves nothing is refused. All else rests on an estimate (cai.engines.nemo_aligner.gpu_time), which is
rather too short, and becomes a note: how many jobs a step takes, one after the other, and how much of one a crash costs
when it saves less than once in it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from cai.engines.nemo_aligner import schedule
from cai.engines.nemo_aligner.commands import Compiled
from cai.engines.nemo_aligner.gpu_time import step_time
from cai.engines.nemo_aligner.methods import trainer_of
from cai.engines.nemo_aligner.survey import PlanSurvey
from cai.engines.nemo_aligner.time_limit import job_seconds, training_seconds
from cai.launchers.settings import Slurm
from cai.plan import Step
from cai.text import duration

OFTEN = 0.5
"""Of what a job trains, the share after which it should have saved: the estimate is rather too short."""


@dataclass(frozen=True, slots=True)
class _Training:
    """How long a step trains and may train in one job, in seconds, and the trainer's part of the config."""

    seconds: float
    seconds_per_job: int
    section: str


def check(survey: PlanSurvey) -> None:
    """Every training step of a plan whose jobs have a limit."""
    for step in survey.trained():
        trainer = trainer_of(step.kind)
        assert trainer is not None
        seconds_per_job = training_seconds(survey.settings, step.name, step.kind)
        compiled = survey.role(step, trainer.role)
        if seconds_per_job is None or compiled is None:
            continue
        if seconds_per_job <= 0:
            _nothing_left(survey, step)
            continue
        seconds = step_time(survey, step).seconds
        if seconds:
            _jobs(survey, step, seconds, seconds_per_job)
            _saves(survey, step, compiled, _Training(seconds, seconds_per_job, trainer.section))


def _where(survey: PlanSurvey, step: Step) -> str:
    """The field that says the limit."""
    layout = survey.settings.step(step.name)
    layout_path = survey.layout_path(f"engine.steps.{step.name}")
    if layout.time:
        return f"{layout_path}.time"
    trainer = trainer_of(step.kind)
    critic = trainer is not None and trainer.critic
    return f"{layout_path}.critic.time" if critic and layout.critic.time else "engine.launcher.time"


def _nothing_left(survey: PlanSurvey, step: Step) -> None:
    launcher = survey.settings.launcher
    assert isinstance(launcher, Slurm)
    limit = job_seconds(survey.settings, step.name, step.kind)
    layout_path = survey.layout_path(f"engine.steps.{step.name}")
    message = f"a job of {duration(limit)} leaves '{step.name}' no time to train"
    why = f"Slurm's warning comes {duration(launcher.warn)} before its end, loading and saving take their part"
    hint = f"raise it, or lower engine.launcher.warn or {layout_path}.time_margin"
    survey.wrong(_where(survey, step), f"{message}: {why}", hint)


def _jobs(survey: PlanSurvey, step: Step, seconds: float, seconds_per_job: int) -> None:
    launcher = survey.settings.launcher
    assert isinstance(launcher, Slurm)
    jobs = math.ceil(seconds / seconds_per_job)
    if jobs < 2:
        return
    allowed = 1 + (launcher.max_requeues if launcher.requeue else 0)
    limit = duration(job_seconds(survey.settings, step.name, step.kind))
    message = f"about {duration(seconds)} of training take {jobs} jobs of {limit}, one after the other"
    more = f"; {allowed} are allowed: raise {_where(survey, step)} or engine.launcher.max_requeues"
    survey.note(step.name, message + (more if jobs > allowed else ""))


def _saves(survey: PlanSurvey, step: Step, compiled: Compiled, training: _Training) -> None:
    values = survey.effective(compiled)
    iterations = int(step.spec["training"].get("iterations", 0))
    steps = iterations or schedule.updates_of(survey, step, compiled)
    every = values.whole(f"{training.section}.save_interval")
    if not steps or not every:
        return
    between = training.seconds / steps * min(every, steps)
    if between > training.seconds_per_job * OFTEN:
        word, field = ("iterations", "checkpoint_every") if iterations else ("steps", "val_every")
        limit = duration(job_seconds(survey.settings, step.name, step.kind))
        message = f"saves every {every} {word}, about {duration(between)}, and its job's limit is {limit}"
        hint = f"lower stages.{step.name}.training.{field}: at least one save must fit, or a crash costs the whole job"
        survey.note(step.name, f"{message}; {hint}")
