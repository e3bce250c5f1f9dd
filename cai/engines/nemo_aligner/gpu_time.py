"""How long the GPU steps of a plan take: an estimate from peak rates and a share of them, before anything was measured.

A roofline: what must be computed over the peak that is reached, or what must be read over the bandwidth. Sources: about
6 FLOP a parameter and token for training, 2 of them forward (arXiv 2001.08361, 2.1), a forward pass more where all
layers are recomputed (arXiv 2205.05198); drawing reads every weight and the key/value cache once for each token of a
batch (arXiv 2211.05102, 2); peaks from NVIDIA's data sheets. Loading, saving, converting, the network between GPUs,
launching kernels and the queue are not in it, nor is attention over long texts: so it is rather too little.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from cai.engines.base import GpuTime, GpuTimes
from cai.engines.nemo_aligner.check_layout import data_parallel
from cai.engines.nemo_aligner.commands import Compiled
from cai.engines.nemo_aligner.memory import BF16, Shape, cache, fetched_shape
from cai.engines.nemo_aligner.methods import PPO_TRAINER, REWARD_TRAINER, SFT_TRAINER, trainer_of
from cai.engines.nemo_aligner.schedule import replicas
from cai.engines.nemo_aligner.settings import (
    Checkpointing,
    Gpu,
    Layout,
    NemoAlignerSettings,
    ServerLayout,
    TrainingLayout,
)
from cai.engines.nemo_aligner.survey import PlanSurvey, survey_plan
from cai.launchers.base import Command
from cai.plan import Plan, Step

FORWARD, TRAIN, RECOMPUTED = 2, 6, 8
"""FLOP a parameter and token: forward only; with the backward pass; with a second forward pass for it."""
SMALLEST = 8
"""Prompts in a call at least, where there are so many: cai.clients.nemo_generate spreads no fewer."""
FORMULA = (
    "training: 6 x parameters x tokens FLOP (8 x with full recomputation)",
    "reading, scoring, validation: 2 x parameters x tokens FLOP",
    "drawing: tokens / batch x bytes of weights and of key/value cache / bandwidth",
    "PPO: the actor draws and scores while critic and reward model score, then actor and critic train side by side",
    "GPU-hours: GPUs held x time; without loading, saving, converting, network, kernel launches and queue",
)


@dataclass(frozen=True)
class Peak:
    """One GPU: dense bf16 FLOP/s (no sparsity) and bytes/s of its memory."""

    flops: float
    bandwidth: float


PEAKS = {
    Gpu.A100: Peak(312e12, 2.039e12),  # A100 80 GB SXM
    Gpu.H100: Peak(989e12, 3.35e12),  # H100 SXM
    Gpu.H200: Peak(989e12, 4.8e12),  # H200 SXM
}
"""From NVIDIA's data sheets of these GPUs, which print twice as many FLOP/s "with sparsity"."""


@dataclass(frozen=True)
class Rates:
    """What is reached of a GPU's peaks: ``utilisation`` of both (0 to 1)."""

    peak: Peak
    utilisation: float

    def computing(self, flop: float, gpus: float) -> float:
        """Seconds for so many FLOP, spread over ``gpus``."""
        return flop / (self.utilisation * self.peak.flops * gpus)

    def reading(self, size: float) -> float:
        """Seconds in which one GPU reads ``size`` bytes of its memory."""
        return size / (self.utilisation * self.peak.bandwidth)


def step_bytes(shape: Shape, layout: Layout, sequences: int, length: float) -> float:
    """Bytes that are read one after the other for one more token of ``sequences`` texts of ``length`` tokens.

    Weights in bf16 and cache are split over tensor-parallel GPUs, which read side by side. Pipeline stages wait for
    each other, so they split nothing of the time.
    """
    stages = layout.pipeline_parallel
    weights = BF16 * shape.parameters / (layout.tensor_parallel * stages)
    return stages * (weights + cache(shape, layout, sequences, math.ceil(length)))


def drawing(
    rates: Rates, shape: Shape, layout: Layout, *, tokens: float, batch: int, copies: int, length: float
) -> float:
    """Seconds to draw ``tokens`` in all, on ``copies`` of the model with ``batch`` texts each at once.

    ``length`` is the mean number of tokens in a text while it is drawn: its prompt and half of the answer.
    """
    return tokens / (batch * copies) * rates.reading(step_bytes(shape, layout, batch, length))


# ---- a plan's steps --------------------------------------------------------------------------------------------------


class _Unknown(Exception):
    """Why a step's time cannot be said."""


def times(settings: NemoAlignerSettings, plan: Plan) -> GpuTimes:
    """Every step that needs GPUs, with its time where what it depends on is known; and what that was taken from."""
    survey = survey_plan(settings, plan, str)
    rates = Rates(PEAKS[settings.cluster.gpu], settings.cluster.utilisation)
    own = [step for step in plan.steps if not step.engine]
    steps = {step.name: _time(survey, rates, step) for step in own if _gpus_and_nodes(survey, step)[0]}
    return GpuTimes(steps, assumptions(settings))


def step_time(survey: PlanSurvey, step: Step) -> GpuTime:
    """The time of one step of a plan that is being checked."""
    cluster = survey.settings.cluster
    return _time(survey, Rates(PEAKS[cluster.gpu], cluster.utilisation), step)


def assumptions(settings: NemoAlignerSettings) -> dict[str, Any]:
    """The rates and the formula as plain data: TFLOP/s, TB/s, a share."""
    gpu, utilisation = settings.cluster.gpu, settings.cluster.utilisation
    peak = PEAKS[gpu]
    return {
        "gpu": gpu.value,
        "peak_tflops": peak.flops / 1e12,
        "bandwidth_tb_s": peak.bandwidth / 1e12,
        "utilisation": utilisation,
        "rates": (
            f"{gpu.value} of {peak.flops / 1e12:g} TFLOP/s (bf16) and {peak.bandwidth / 1e12:g} TB/s, "
            f"{utilisation:.0%} of both reached (engine.cluster.gpu, .utilisation)"
        ),
        "formula": list(FORMULA),
    }


def _gpus_and_nodes(survey: PlanSurvey, step: Step) -> tuple[int, int]:
    """What the commands of a step hold at once: servers of different models run one after the other."""
    placed = [c.command for c in survey.compiled[step.name] if c.command.resources.gpus_per_node]
    turns = {command.turn for command in placed}
    gpus = [sum(_gpus(c) for c in placed if c.turn == turn) for turn in turns]
    if survey.settings.launcher.kind == "local":
        return max(gpus, default=0), 1
    ends: dict[int, int] = {}
    for command in placed:
        last = command.relative + command.resources.nodes
        ends[command.component] = max(ends.get(command.component, 0), last)
    return max(gpus, default=0), sum(ends.values())


def _gpus(command: Command) -> int:
    return command.resources.nodes * command.resources.gpus_per_node


def _time(survey: PlanSurvey, rates: Rates, step: Step) -> GpuTime:
    untimed = GpuTime(*_gpus_and_nodes(survey, step))
    try:
        if step.kind not in _BY_KIND:
            raise _Unknown("converting a model has no estimate")
        _known(step.estimate.rows)
        parts, assumes = _BY_KIND[step.kind](survey, rates, step)
    except _Unknown as why:
        return replace(untimed, unknown=str(why))
    return replace(untimed, seconds=sum(parts.values()), parts=parts, assumes=assumes)


def _known(number: int | None) -> int:
    """A number of the plan's estimate."""
    if number is None:
        raise _Unknown("how many rows there will be is not known")
    return number


def _shape(survey: PlanSurvey, model: str) -> Shape:
    """The shape of the model that a step makes."""
    origin = survey.origin(model)
    shape = fetched_shape(origin) if origin is not None else None
    if shape is None:
        raise _Unknown(f"how large '{model}' is is not known; set models.{origin.name if origin else model}.parameters")
    return shape


def _input(step: Step, role: str) -> str:
    name = step.source(role)
    assert name is not None
    return name


def _in_bf16(precision: Any) -> None:
    if str(precision).startswith("32"):
        raise _Unknown("the peaks are those of bf16, and this is float32")


# ---- answers and judgements ------------------------------------------------------------------------------------------


def _generating(survey: PlanSurvey, rates: Rates, step: Step) -> tuple[dict[str, float], str]:
    """Servers read the prompts and draw the answers, one model after the other."""
    if step.kind == "grade" and not step.sources("model"):
        return {}, "nobody is asked"
    servers: dict[str, list[Compiled]] = {}
    for compiled in survey.compiled[step.name]:
        if compiled.model is not None:
            servers.setdefault(compiled.setting.removeprefix("engine.servers."), []).append(compiled)
    count = len(step.sources("models")) or 1
    if len(servers) < count:
        raise _Unknown("some of its models are endpoints, whose time is not known")
    calls, prompts = _known(step.estimate.calls) / count, _known(step.estimate.prompt_tokens) / count
    drawn = _known(step.estimate.tokens) / count
    parts = {"reading": 0.0, "drawing": 0.0}
    for model, copies in servers.items():
        shape, layout = _shape(survey, model), copies[0].layout
        assert isinstance(layout, ServerLayout)
        _in_bf16(layout.precision)
        gpus = len(copies) * layout.tensor_parallel * layout.pipeline_parallel
        parts["reading"] += rates.computing(FORWARD * shape.parameters * prompts, gpus)
        if drawn:
            batch = _batch(step, calls, len(copies), layout.batch)
            length = (prompts + drawn / 2) / calls
            parts["drawing"] += drawing(
                rates, shape, layout, tokens=drawn, batch=batch, copies=len(copies), length=length
            )
    prompt_length = round(prompts / calls) if calls else 0
    assumes = f"prompts of {prompt_length:,} tokens" + (f", answers of {round(drawn / calls):,}" if drawn else "")
    return parts, assumes


def _batch(step: Step, calls: float, servers: int, most: int) -> int:
    """Prompts that a server has in a call: the calls of ``chunk`` rows that do not wait for each other, dealt out."""
    side_by_side = calls / max(_known(step.estimate.rows), 1) if step.kind in ("sample", "judge") else 1.0
    together = min(calls, float(step.spec["chunk"]) * side_by_side)
    return min(most, max(SMALLEST, math.ceil(together / servers)))


# ---- training --------------------------------------------------------------------------------------------------------


def _supervised(survey: PlanSurvey, rates: Rates, step: Step) -> tuple[dict[str, float], str]:
    """An epoch reads every training row; at every ``val_check_interval`` the validation rows are read too."""
    compiled = survey.role(step, "train")
    assert compiled is not None
    assert isinstance(compiled.layout, TrainingLayout)
    values, shape = survey.effective(compiled), _shape(survey, _input(step, "model"))
    _in_bf16(values("trainer.precision"))
    trainer = trainer_of(step.kind)
    assert trainer is not None
    val = float(survey.plan.step(_input(step, "data")).spec.get("val") or 0.0)
    rows, epochs = _known(step.estimate.rows), step.spec["training"]["epochs"]
    train_rows, val_rows = rows * (1 - val) * epochs * replicas(survey, step), rows * val
    batch = values.whole(f"{trainer.batches[0]}.global_batch_size", step.spec["training"]["batch_size"])
    measured = _validated(values, trainer.section, steps=train_rows // batch, val_rows=val_rows, batch=batch)
    longest = values.whole("model.encoder_seq_length", step.spec["training"]["max_length"])
    if trainer is REWARD_TRAINER:
        # Upstream pads both texts of every pair to the whole sequence.
        length, assumes = 2.0 * longest, f"both texts of a pair padded to {longest:,} tokens, as upstream does"
    else:
        length = _known(step.estimate.tokens) / (rows * epochs) if rows else 0.0
        most = f"; {longest / length:.0f} times as much where every row has {longest:,}" if length else ""
        assumes = f"rows of {round(length):,} tokens{most}"
    gpus = _gpus(compiled.command)
    factor = RECOMPUTED if compiled.layout.activation_checkpointing is Checkpointing.FULL else TRAIN
    parts = {
        "training": rates.computing(factor * shape.parameters * train_rows * length, gpus),
        "validation": rates.computing(FORWARD * shape.parameters * measured * length, gpus),
    }
    return parts, assumes


def _validated(values: Any, trainer: str, *, steps: float, val_rows: float, batch: int) -> float:
    """Validation rows that are read in the whole training: those of every check and of the last step."""
    interval, limit = values(f"{trainer}.val_check_interval"), values(f"{trainer}.limit_val_batches")
    every = interval if _is_whole(interval) else steps * interval if isinstance(interval, float) else 0.0
    checks = math.ceil(steps / every) if every else 1
    share = limit if isinstance(limit, float) else 1.0
    rows = min(val_rows, limit * batch) if _is_whole(limit) else val_rows * min(share, 1.0)
    return float(checks * rows)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _ppo(survey: PlanSurvey, rates: Rates, step: Step) -> tuple[dict[str, float], str]:
    """Rollouts on the actor's GPUs while critic and reward model score them on theirs; then both train side by side."""
    actor, critic = survey.role(step, "actor"), survey.role(step, "critic")
    assert actor is not None
    assert critic is not None
    values, method = survey.effective(actor), step.spec["training"]
    _in_bf16(values("trainer.precision"))
    policy, judge = _shape(survey, _input(step, "model")), _shape(survey, _input(step, "reward"))
    rollouts = values.whole("model.ppo.num_rollout_samples", method["rollouts"])
    answer = values.whole("model.ppo.length_params.max_length", method["max_tokens"])
    calls = _known(step.estimate.calls)
    prompt = _known(step.estimate.prompt_tokens) / calls if calls else 0.0
    batch = min(values.whole("model.ppo.rollout_micro_batch_size", 1), rollouts)
    copies, gpus, beside = max(data_parallel(survey, actor), 1), _gpus(actor.command), _gpus(critic.command)
    rounds = method["iterations"] + int(values.number("trainer.ppo.critic_warmup_steps") or 0)

    def texts(samples: float) -> float:
        return samples * (prompt + answer)

    def drawn(samples: float) -> float:
        prefill = rates.computing(FORWARD * policy.parameters * samples * prompt, gpus)
        tokens, length = samples * answer, prompt + answer / 2
        assert actor is not None
        assert actor.layout is not None
        return prefill + drawing(rates, policy, actor.layout, tokens=tokens, batch=batch, copies=copies, length=length)

    answers = drawn(rollouts)
    # The log-probabilities of the policy as it is and as it began; values of the critic, scores of the reward model.
    likely = 2 * rates.computing(FORWARD * policy.parameters * texts(rollouts), gpus)
    scored = 2 * rates.computing(FORWARD * judge.parameters * texts(rollouts), beside)
    updates = max(
        rates.computing(_factor(actor) * policy.parameters * texts(rollouts), gpus),
        rates.computing(_factor(critic) * judge.parameters * texts(rollouts), beside),
    )
    val_samples = values.whole("model.ppo.num_val_samples", rollouts)
    every = values.whole("trainer.ppo.val_check_interval", method["iterations"])
    checks = math.ceil(method["iterations"] / every)
    parts = {
        "drawing": rounds * answers,
        "scoring": rounds * max(likely, scored - answers),
        "training": rounds * updates,
        "validation": checks
        * (drawn(val_samples) + rates.computing(FORWARD * policy.parameters * texts(val_samples), gpus)),
    }
    return parts, f"prompts of {round(prompt):,} tokens, answers of {answer:,}"


def _factor(compiled: Compiled) -> int:
    layout = compiled.layout
    full = isinstance(layout, TrainingLayout) and layout.activation_checkpointing is Checkpointing.FULL
    return RECOMPUTED if full else TRAIN


_BY_KIND: Mapping[str, Callable[[PlanSurvey, Rates, Step], tuple[dict[str, float], str]]] = {
    **dict.fromkeys(("respond", "revise", "sample", "judge", "grade", "evaluate"), _generating),
    SFT_TRAINER.method.stage: _supervised,
    REWARD_TRAINER.method.stage: _supervised,
    PPO_TRAINER.method.stage: _ppo,
}
