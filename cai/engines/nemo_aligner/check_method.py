"""What an experiment asks of training against what NeMo-Aligner's trainers can do; and what becomes of soft labels."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from cai.chat import ChatTemplate
from cai.engines.methods.base import Schedule
from cai.engines.methods.base import SupervisedSettings as Method
from cai.engines.methods.ppo import CriticStart, RlSettings
from cai.engines.methods.reward import RewardSettings
from cai.engines.methods.sft import SftSettings
from cai.engines.nemo_aligner.check_layout import SAMPLING
from cai.engines.nemo_aligner.methods import PPO_TRAINER, REWARD_TRAINER, SFT_TRAINER, trainer_of
from cai.engines.nemo_aligner.settings import Hard, NemoAlignerSettings
from cai.engines.nemo_aligner.survey import PlanSurvey
from cai.engines.nemo_aligner.upstream import UNKNOWN
from cai.errors import SpecError
from cai.plan import Step

WARMUP = "set it to 0, and model.optim.sched.warmup_steps in overrides"


def check(survey: PlanSurvey) -> None:
    """Problems of method, and notes on labels and schedules."""
    for step in survey.trained(SFT_TRAINER, REWARD_TRAINER):
        _supervised(survey, step)
    for step in survey.trained(PPO_TRAINER):
        _ppo(survey, step)
    for step in survey.steps("evaluate"):
        if step.spec.get("reward") is not None:
            message = "nemo_aligner cannot score with a reward model"
            survey.wrong(f"stages.{step.name}.reward", message, "leave out reward, and comparisons with it")
    _template(survey)
    _greedy(survey)
    for step in survey.trained(REWARD_TRAINER):
        _labels(survey, step)


def _no_lora(survey: PlanSurvey, path: str, lora: Any) -> None:
    if lora is not None:
        trainers = "NeMo-Aligner's trainers here train all weights"
        survey.wrong(f"{path}.lora", trainers, "set lora: null")


def _supervised(survey: PlanSurvey, step: Step) -> None:
    path = f"stages.{step.name}.training"
    method: Method
    if trainer_of(step.kind) is SFT_TRAINER:
        method = SftSettings.model_validate(step.spec["training"])
        if step.spec.get("loss") != "all":
            message = "NeMo-Aligner learns every answer of a conversation"
            survey.wrong(f"stages.{step.name}.loss", message, "set loss: all")
    else:
        method = RewardSettings.model_validate(step.spec["training"])
        if method.center_coefficient:
            survey.wrong(f"{path}.center_coefficient", "NeMo-Aligner does not centre rewards", "set it to 0")
    _no_lora(survey, path, method.lora)
    if method.warmup_fraction:
        survey.wrong(f"{path}.warmup_fraction", "NeMo-Aligner warms up over a number of steps, not a share", WARMUP)
    if method.schedule is Schedule.LINEAR:
        survey.wrong(f"{path}.schedule", "NeMo-Aligner's schedule is a cosine", "use constant or cosine")
    if method.epochs != int(method.epochs):
        survey.wrong(f"{path}.epochs", "NeMo-Aligner trains whole epochs", "use a whole number")
    _validation(survey, step)
    _schedule(survey, step, "train", f"{path}.learning_rate")


def _validation(survey: PlanSurvey, step: Step) -> None:
    name = step.source("data")
    assert name is not None
    data = survey.plan.step(name)
    needs = "NeMo-Aligner's trainer needs validation rows"
    if data.kind != "mix":
        hint = "put a mix with val above 0 between them"
        survey.wrong(f"stages.{step.name}.data", f"{needs}, and '{name}' has none", hint)
    elif not data.spec.get("val"):
        survey.wrong(f"stages.{name}.val", f"{needs} ('{step.name}' reads this)", "set a share above 0")


def _ppo(survey: PlanSurvey, step: Step) -> None:
    path = f"stages.{step.name}.training"
    method = RlSettings.model_validate(step.spec["training"])
    _no_lora(survey, path, method.lora)
    for name, right, message, following in (
        ("ppo_epochs", method.ppo_epochs == 1, "NeMo-Aligner makes one pass over its rollouts", "set it to 1"),
        (
            "critic",
            method.critic is CriticStart.REWARD,
            "the critic starts from the reward model",
            "set critic: reward",
        ),
        (
            "normalize_reward",
            not method.normalize_reward,
            "NeMo-Aligner takes the reward as it is",
            "set it to false, and model.reward_standardization in engine.steps.NAME.critic.overrides where wanted",
        ),
        ("kl_limit", method.kl_limit is None, "NeMo-Aligner does not stop at a KL", "set it to null"),
        (
            "missing_end_penalty",
            not method.missing_end_penalty,
            "NeMo-Aligner has no penalty for an answer that is cut",
            "set it to 0",
        ),
    ):
        if not right:
            survey.wrong(f"{path}.{name}", message, following)
    _schedule(survey, step, "actor", f"{path}.learning_rate")
    _schedule(survey, step, "critic", f"{path}.critic_learning_rate")


def _schedule(survey: PlanSurvey, step: Step, role: str, path: str) -> None:
    """Upstream's cosine: with ``constant_steps`` it asserts lr > min_lr, without it raises where lr < min_lr."""
    compiled = survey.role(step, role)
    if compiled is None:
        return
    values, sched = survey.effective(compiled), "model.optim.sched"
    rate, least = values.number("model.optim.lr"), values.number(f"{sched}.min_lr")
    constant = values.number(f"{sched}.constant_steps")
    if rate is None or least is None or values(f"{sched}.name") not in ("CosineAnnealing", UNKNOWN):
        return
    overrides = f"{survey.layout_path(compiled.setting)}.overrides"
    if constant and rate <= least:
        message = f"with constant_steps {constant:g} upstream's cosine needs a rate above its min_lr {least:g}"
        hint = f"set {sched}.min_lr lower or {sched}.constant_steps: 0 in {overrides}"
        survey.wrong(path, f"{message}, and this is {rate:g}", hint)
    elif rate < least:
        message = f"{rate:g} is below upstream's {sched}.min_lr {least:g}"
        survey.wrong(path, message, f"set {sched}.min_lr in {overrides}")


def _greedy(survey: PlanSurvey) -> None:
    """Upstream's greedy draws no sample and so applies no penalty; the client asks for the one likeliest token."""
    for step in survey.steps(*SAMPLING):
        if not any(c.command.background for c in survey.compiled[step.name]):
            continue
        drawn = [step.spec.get(name) or {} for name in SAMPLING[step.kind]]
        if any(d.get("temperature") == 0 and d.get("repetition_penalty", 1.0) != 1.0 for d in drawn):
            message = "upstream ignores repetition_penalty when greedy"
            survey.note(step.name, f"{message}: it is asked for top_k 1 instead, which draws the same and is penalised")


def _template(survey: PlanSurvey) -> None:
    trained = next(survey.trained(), None)
    frozen = trained.resources.get("template") if trained is not None else None
    if frozen is None:
        return
    difference = _difference(frozen["name"], frozen["text"])
    if difference:
        message = f"NeMo-Aligner's chat data has a template of its own, and '{frozen['name']}' is another: {difference}"
        survey.wrong("template", message, "use template=nemo_extra_id")


@lru_cache(maxsize=8)
def _difference(name: str, text: str) -> str:
    from cai.data.formats.nemo_chat import matches_nemo_chat

    try:
        return matches_nemo_chat(ChatTemplate.from_text(name, text))
    except SpecError as error:
        return str(error)


def _labels(survey: PlanSurvey, step: Step) -> None:
    for above in survey.above(step, "data"):
        if above.kind == "judge" and above.spec.get("labels") == "soft":
            survey.note(step.name, f"'{above.name}' gives soft labels: {soft_label_summary(survey.settings)}")


def soft_label_summary(settings: NemoAlignerSettings) -> str:
    """What becomes of soft labels, in words."""
    labels = settings.labels
    hard = "NeMo-Aligner takes hard labels only"
    if labels.how is Hard.REPLICAS:
        times = f"{labels.replicas} times" if labels.replicas > 1 else "once"
        return f"{hard}: each pair is written {times}, in an order drawn with its probability"
    if not labels.margin:
        return f"{hard}: each pair counts as its likelier order"
    return f"{hard}: pairs within {labels.margin:g} of 0.5 are left out, the others count as their likelier order"
