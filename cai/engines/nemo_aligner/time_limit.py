"""How long a training may train in one job, so that upstream saves and ends before Slurm ends the job.

``exp_manager.max_time_per_run`` makes upstream finish the step at hand, validate, save, and end without a model
(NeMo-Aligner v0.7.0: SupervisedTrainer.fit, PPOTrainer.fit). Its clock starts when training does (``Timer.start_time``
in ``fit``), not with the job or the script, and it is looked at between two steps. So the job's limit must also hold,

- before: the start of the job and its container, this program writing the data, reading the model (of PPO first the
  critic's, then the actor's) and the checkpoint;
- after: the step at hand, the validation, one or two checkpoints, each of 14 bytes a parameter (the best and the last),
  and at the very end the model, and what this program does to keep it;
- at the end: Slurm's warning, at which this program stops whatever still runs.

What the first two take is ``engine.steps.NAME.time_margin``; nothing measures it, so it is rather too long: a job that
ends early gives its nodes back, one that ends late loses all since its last save. The critic has no clock: it is
stopped when the actor has ended.
"""

from __future__ import annotations

from cai.engines.nemo_aligner.methods import trainer_of
from cai.engines.nemo_aligner.settings import NemoAlignerSettings, StepLayout
from cai.launchers.settings import Slurm
from cai.launchers.slurm_script import seconds_of

EARLY = 60
"""Seconds by which Slurm's warning may come too early, as it looks at its jobs now and then (sbatch, --signal)."""
LOADED = 900
"""Seconds of the limit for each model that is loaded and saved, at most."""


def job_seconds(settings: NemoAlignerSettings, name: str, kind: str) -> int:
    """The limit of a training step's job, in seconds; 0 where there is none."""
    if not isinstance(settings.launcher, Slurm):
        return 0
    layout = settings.step(name)
    limits = [part.time for part in ((layout, layout.critic) if _models(kind) > 1 else (layout,)) if part.time]
    return max(map(seconds_of, limits), default=seconds_of(settings.launcher.time))


def _models(kind: str) -> int:
    trainer = trainer_of(kind)
    return trainer.models if trainer is not None else 1


def margin_seconds(layout: StepLayout, kind: str, limit: int) -> int:
    """What of ``limit`` is for loading and saving: as written, else a quarter for each model, at most 15 minutes."""
    if layout.time_margin is not None:
        return layout.time_margin
    return _models(kind) * min(LOADED, limit // 4)


def training_seconds(settings: NemoAlignerSettings, name: str, kind: str) -> int | None:
    """How long a step may train in one job; None where there is no limit, 0 or less where nothing is left."""
    limit = job_seconds(settings, name, kind)
    if not limit:
        return None
    assert isinstance(settings.launcher, Slurm)
    warned = settings.launcher.warn + EARLY if settings.launcher.warn else 0
    return limit - warned - margin_seconds(settings.step(name), kind, limit)


def per_run(settings: NemoAlignerSettings, name: str, kind: str) -> str:
    """The value of ``exp_manager.max_time_per_run``, DAYS:HOURS:MINUTES:SECONDS; empty where there is no limit."""
    seconds = training_seconds(settings, name, kind)
    if seconds is None:
        return ""
    # Lightning's own timer, which has the same limit, takes 0 for one that is over before training begins.
    minutes, seconds = divmod(max(seconds, 1), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{days:02d}:{hours:02d}:{minutes:02d}:{seconds:02d}"
