"""What a learning rate will really be: upstream's cosine, update by update, and how much of it a run sees.

Sources: NeMo v2.1.0 (nemo/core/optim/lr_scheduler.py: ``CosineAnnealing``; megatron_base_model.py:
``_get_max_steps``), NeMo-Aligner v0.7.0 (the scheduler is stepped once an update, also in PPO). The lab compares this
with the real scheduler.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from cai.engines.methods.ppo import RlSettings
from cai.engines.methods.reward import RewardSettings
from cai.engines.methods.sft import SftSettings
from cai.engines.nemo_aligner.commands import Compiled
from cai.engines.nemo_aligner.methods import PPO_TRAINER, REWARD_TRAINER, SECTIONS, trainer_of
from cai.engines.nemo_aligner.settings import Hard
from cai.engines.nemo_aligner.survey import PlanSurvey
from cai.engines.nemo_aligner.upstream import UNKNOWN, Effective
from cai.plan import Step

SCHED = "model.optim.sched"
CRITIC_STEPS = 10_000
"""``trainer.ppo.max_steps`` of upstream's gpt_ppo_critic.yaml: a server, it has no data to count."""


@dataclass(frozen=True, slots=True)
class LearningRateCurve:
    """The learning rates of a run of ``updates``; the schedule itself is laid out for ``total`` updates.

    ``peak`` and ``floor`` are rates, ``warmup`` and ``constant`` numbers of updates: at the start, and at the end,
    where the rate is ``floor``.
    """

    updates: int
    total: int
    peak: float
    floor: float
    warmup: int
    constant: int

    def rate(self, update: int) -> float:
        """The rate of an update, counted from 0, as ``CosineAnnealing`` gives it."""
        if self.warmup and update <= self.warmup:
            # Upstream has two ways to warm up: with a constant end it starts at 0.
            share = update / self.warmup if self.constant else (update + 1) / (self.warmup + 1)
            return self.peak * share
        decay = self.total - self.warmup - self.constant
        after = update - self.warmup
        if update > self.total or (self.constant and after > decay):
            return self.floor
        return self.floor + (self.peak - self.floor) * 0.5 * (1 + math.cos(math.pi * after / max(decay, 1)))

    @property
    def mean(self) -> float:
        """The mean rate over all updates; 0 where there is none."""
        return math.fsum(map(self.rate, range(self.updates))) / self.updates if self.updates else 0.0

    def words(self) -> str:
        """The curve in a line of a plan."""
        ends = f"{self.rate(0):.2g} to {self.rate(self.updates - 1):.2g}, peak {self.peak:.2g}"
        warm = f"warm-up over {self.warmup}" if self.warmup else "no warm-up"
        return f"{self.updates:,} updates, {warm}, mean learning rate {self.mean:.2g} ({ends})"


def check(survey: PlanSurvey) -> None:
    """A line for each trainer whose updates can be told, and what its schedule leaves unused."""
    for step in survey.trained():
        for compiled in survey.compiled[step.name]:
            curve = curve_of(survey, step, compiled) if compiled.config else None
            if curve is None:
                continue
            role = compiled.command.role
            survey.note(step.name, f"{role}: {curve.words()}")
            if curve.peak > curve.floor and curve.mean < curve.floor + 0.1 * (curve.peak - curve.floor):
                layout_path = survey.layout_path(compiled.setting)
                hint = f"set {SCHED}.constant_steps: 0 in {layout_path}.overrides for a cosine over all"
                survey.note(step.name, f"{role}: nearly all updates are at min_lr {curve.floor:g}; {hint}")


def curve_of(survey: PlanSurvey, step: Step, compiled: Compiled) -> LearningRateCurve | None:
    """The rates of a trainer; None where rows, rates or the kind of schedule are not known here."""
    values = survey.effective(compiled)
    updates = updates_of(survey, step, compiled)
    peak, floor = values.number("model.optim.lr"), values.number(f"{SCHED}.min_lr")
    if not updates or peak is None or floor is None or values(f"{SCHED}.name") not in ("CosineAnnealing", UNKNOWN):
        return None
    warmup, constant = (int(values.number(f"{SCHED}.{name}_steps") or 0) for name in ("warmup", "constant"))
    default = CRITIC_STEPS if compiled.command.role == "critic" else updates
    return LearningRateCurve(updates, _total(values, default), peak, floor, warmup, constant)


def updates_of(survey: PlanSurvey, step: Step, compiled: Compiled) -> int:
    """Optimizer steps of a trainer, from the plan's estimate of its rows; 0 where that is not known."""
    trainer = trainer_of(step.kind)
    if trainer is PPO_TRAINER:
        method = RlSettings.model_validate(step.spec["training"])
        values = survey.effective(compiled)
        rollouts = values.whole("model.ppo.num_rollout_samples", method.rollouts)
        batch = values.whole("model.global_batch_size", method.batch_size)
        warmup = method.critic_warmup if compiled.command.role == "critic" else 0
        return (method.iterations + warmup) * (rollouts // batch)
    if trainer is None or compiled.command.role != trainer.role:
        return 0
    training: SftSettings | RewardSettings = trainer.method.settings.model_validate(step.spec["training"])
    rows, name = step.estimate.rows, step.source("data")
    share = float(survey.plan.step(name).spec.get("val") or 0.0) if name is not None else 0.0
    # Upstream drops a batch that is not full, in every epoch.
    samples = int((rows or 0) * (1 - share)) * replicas(survey, step)
    return int(training.epochs) * (samples // training.batch_size)


def replicas(survey: PlanSurvey, step: Step) -> int:
    """How often a pair is written for training, where soft labels become hard ones by drawing."""
    labels = survey.settings.labels
    return labels.replicas if trainer_of(step.kind) is REWARD_TRAINER and labels.how is Hard.REPLICAS else 1


def _total(values: Effective, default: int) -> int:
    """For how many updates the schedule is laid out: what is written, else the trainer's limit, else ``default``."""
    written = values.whole(f"{SCHED}.max_steps")
    section = next((s for s in SECTIONS if values.number(f"{s}.max_steps") is not None), "")
    limit = values.number(f"{section}.max_steps") if section else None
    return written or (int(limit) if limit is not None and limit >= 0 else default)
