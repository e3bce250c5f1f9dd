"""A rough estimate of GPU memory, so that a job that cannot fit is refused before it queues.

Sources: Megatron-LM's sequence parallelism paper (arXiv 2205.05198) for activations, NVIDIA Apex's distributed fused
Adam for the optimizer (its fp32 state is sharded over the data-parallel ranks), arXiv 2305.13245 for grouped key/value
heads. Communication buffers, fragmentation and CUDA's own memory are not in it.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any

from cai.engines.methods.reward import REWARD
from cai.engines.methods.sft import SFT
from cai.engines.nemo_aligner.check_layout import data_parallel, model_config
from cai.engines.nemo_aligner.commands import Compiled
from cai.engines.nemo_aligner.methods import trainer_of
from cai.engines.nemo_aligner.settings import Checkpointing, Layout, ServerLayout, TrainingLayout
from cai.engines.nemo_aligner.survey import PlanSurvey
from cai.plan import Step

GIB = 2**30
BF16, FP32 = 2, 4
STATE = 3 * FP32
"""Bytes a parameter of Adam: fp32 master weight and two moments."""
VOCABULARY = 32_000
PADDED = 128
"""Tokens assumed for a prompt, beside the answer's budget."""
_SIZE_IN_NAME = re.compile(r"(?i)(?<![a-z0-9.])(?:(\d+)x)?(\d+(?:\.\d+)?)([bm])(?![a-z0-9])")


@dataclass(frozen=True)
class Shape:
    """A decoder: ``width`` is the hidden size, ``groups`` are key/value heads; ``exact`` when no number is a guess."""

    parameters: float
    layers: int
    width: int
    heads: int
    groups: int
    vocabulary: int = VOCABULARY
    exact: bool = False


@dataclass(frozen=True)
class Memory:
    """Bytes a GPU by part. ``certain`` parts are there whatever the data; the others follow lengths and batches."""

    parts: dict[str, float] = field(default_factory=dict)
    certain: tuple[str, ...] = ("weights", "gradients", "optimizer")

    @property
    def total(self) -> float:
        """Bytes of all parts."""
        return sum(self.parts.values())

    @property
    def sure(self) -> float:
        """Bytes of the certain parts."""
        return sum(size for name, size in self.parts.items() if name in self.certain)

    def words(self) -> str:
        """The parts in GiB, largest first."""
        ordered = sorted(self.parts.items(), key=lambda part: -part[1])
        return ", ".join(f"{name} {size / GIB:.1f}" for name, size in ordered if size >= 0.05 * GIB)


def parameters_of(source: str) -> float:
    """Parameters guessed from a model's name (``7B``, ``8x7b``, ``135M``); 0 where it says nothing.

    Experts share their attention, which is about a seventh of such a model: 8x7B is 47 billion, not 56.
    """
    match = _SIZE_IN_NAME.search(source.rpartition(":")[2].rpartition("/")[2])
    if match is None:
        return 0.0
    experts, size, unit = match.groups()
    per_expert = float(size) * (1e9 if unit.lower() == "b" else 1e6)
    return per_expert * (1 + (int(experts) - 1) * 0.82) if experts else per_expert


def counted(config: dict[str, Any]) -> float:
    """Parameters by a Llama-like ``config.json``; 0 where it does not say enough, or has experts."""
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
    if any(not isinstance(config.get(name), int) for name in names) or config.get("num_local_experts"):
        return 0.0
    width, layers, heads, inner, words = (config[name] for name in names)
    head = config.get("head_dim") or width // heads
    groups = config.get("num_key_value_heads") or heads
    layer = 2 * width * head * (heads + groups) + 3 * width * inner + 2 * width
    return float(words * width * (1 if config.get("tie_word_embeddings") else 2) + layers * layer + width)


def shape_of(parameters: float, config: dict[str, Any] | None = None) -> Shape:
    """The model's shape from its ``config.json``, or guessed: 12 layers x width^2 weights, heads of 128, 8 groups.

    Published models of 0.1 to 100 billion parameters have a width of about 128 times their layers.
    """
    config = config or {}
    layers = int(config.get("num_hidden_layers") or max(1, round((parameters / (12 * 128**2)) ** (1 / 3))))
    width = int(config.get("hidden_size") or max(64, round(math.sqrt(parameters / (12 * layers)) / 64) * 64))
    heads = int(config.get("num_attention_heads") or max(1, width // 128))
    groups = int(config.get("num_key_value_heads") or (heads if config else min(heads, 8)))
    return Shape(parameters, layers, width, heads, groups, int(config.get("vocab_size") or VOCABULARY), bool(config))


def fetched_shape(origin: Step) -> Shape | None:
    """The shape of a model that the plan fetches, by its folder, its ``parameters`` or its name; None where unknown."""
    config = model_config(origin)
    declared = origin.spec.get("parameters") or parameters_of(str(origin.spec.get("source", "")))
    parameters = counted(config) or float(declared)
    return shape_of(parameters, config) if parameters else None


def activations(
    shape: Shape, layout: TrainingLayout, micro: int, length: int, *, of_layers: int | None = None
) -> float:
    """Bytes of activations kept for the backward pass, on the first pipeline stage.

    A layer keeps s b h (10 + 24/t) without the attention matrix, which flash attention never stores; sequence parallel
    divides the 10 as well (arXiv 2205.05198, eq. 2-4 without 5as/h). Recomputation of whole layers keeps each layer's
    input, 2 s b h, and works on one layer at a time. The first stage holds a micro batch for every stage.
    """
    layers = of_layers or math.ceil(shape.layers / layout.pipeline_parallel)
    tensor = layout.tensor_parallel
    tokens = float(length * micro * shape.width)
    layer = tokens * (34 / tensor if layout.sequence_parallel else 10 + 24 / tensor)
    if layout.activation_checkpointing is Checkpointing.FULL:
        input_bytes = 2 * tokens / (tensor if layout.sequence_parallel else 1)
        return input_bytes * layers * layout.pipeline_parallel + layer
    return layer * layers * layout.pipeline_parallel


def cache(shape: Shape, layout: Layout, sequences: int, length: int) -> float:
    """Bytes of keys and values: 2 x layers x tokens x (groups x width / heads), bf16, split like the weights."""
    head = shape.width / shape.heads
    layers = math.ceil(shape.layers / layout.pipeline_parallel)
    groups = max(shape.groups / layout.tensor_parallel, 1.0)
    return 2 * BF16 * layers * groups * head * sequences * length


def estimate(
    kind: str,
    parameters: float,
    layout: Layout,
    *,
    devices: int,
    micro: int,
    length: int,
    sequences: int = 0,
    shape: Shape | None = None,
    offload_adam: bool = False,
    fp32: bool = False,
) -> Memory:
    """Rough bytes a GPU of one command.

    ``kind``: ``server``, ``sft``, ``reward``, ``actor`` or ``critic``. ``devices`` are all its GPUs (of all nodes),
    ``micro`` the sequences of a training step on a GPU, ``length`` their tokens, ``sequences`` those that are generated
    at once. Weights and gradients: 2 bytes each (bf16 with O2), split by tensor x pipeline; optimizer: 12 bytes over
    the data-parallel ranks too. The actor's first policy waits in the host's memory and replaces the weights while it
    is asked, so it takes none here; the critic holds the reward model's weights in the same way.
    """
    shape = shape or shape_of(parameters)
    split = layout.tensor_parallel * layout.pipeline_parallel
    wide = FP32 if fp32 else BF16
    weights = wide * parameters / split
    if kind == "server" or not isinstance(layout, TrainingLayout):
        parts = {"weights": weights, "key/value cache": cache(shape, layout, sequences, length)}
        return Memory(parts, tuple(parts) if shape.exact else ("weights",))
    ranks = max(devices // split, 1)
    # In fp32 there is no other master weight.
    state = (2 * FP32 if fp32 else STATE) * parameters / (split * ranks)
    pairs = REWARD.answers if kind == REWARD.name else 1  # the chosen and the rejected text of each pair
    parts = {"weights": weights, "gradients": wide * parameters / split, "optimizer": state}
    parts["activations"] = activations(shape, layout, micro * pairs, length) * (wide / BF16)
    if kind in (SFT.name, "actor"):
        # Scores of every word in fp32, and their gradient.
        parts["logits"] = 2 * FP32 * micro * length * shape.vocabulary / layout.tensor_parallel
    if kind == "actor":
        # Answers are drawn while no gradients and activations are held; what is larger counts.
        drawn = cache(shape, layout, sequences, length)
        freed = parts["activations"] + parts["logits"] + (state if offload_adam else 0.0)
        if drawn > freed:
            parts["rollouts above training"] = drawn - freed
    return Memory(parts)


# ---- a plan's commands -----------------------------------------------------------------------------------------------


def check(survey: PlanSurvey) -> None:
    """A problem where the certain part is larger than a GPU; else a note."""
    checked: set[str] = set()
    for name, every in survey.compiled.items():
        step = survey.plan.step(name)
        for compiled in every:
            key = compiled.setting if isinstance(compiled.layout, ServerLayout) else f"{name}/{compiled.command.role}"
            if compiled.layout is None or key in checked:
                continue
            checked.add(key)
            _command(survey, step, compiled)


def _command(survey: PlanSurvey, step: Step, compiled: Compiled) -> None:
    trainer = trainer_of(step.kind)
    kind = trainer.method.name if trainer is not None and not trainer.critic else compiled.command.role
    kind = "server" if isinstance(compiled.layout, ServerLayout) else kind
    name = compiled.setting.removeprefix("engine.servers.") if kind == "server" else _model(step, kind)
    origin = survey.origin(name)
    if origin is None or str(origin.spec.get("source", "")).startswith("api:"):
        return
    shape = fetched_shape(origin)
    if shape is None:
        field = f"models.{origin.name}.parameters"
        survey.note(step.name, f"GPU memory was not estimated: how large '{origin.name}' is is not known; set {field}")
        return
    memory = _estimated(survey, step, compiled, kind=kind, shape=shape)
    have, role = survey.settings.cluster.gpu_memory, compiled.command.role
    size = f"about {memory.total / GIB:.0f}" if memory.total >= GIB else "less than 1"
    parts = f" ({memory.words()})" if memory.words() else ""
    about = f"{role}: {size} of {have:g} GiB a GPU{parts}"
    if memory.sure > have * GIB:
        message = f"{role} needs at least {memory.sure / GIB:.0f} GiB a GPU ({memory.words()}), and a GPU has {have:g}"
        sizes = "tensor_parallel, pipeline_parallel" + ("" if kind == "server" else ", devices or nodes")
        survey.wrong(f"{survey.layout_path(compiled.setting)}.tensor_parallel", message, f"raise {sizes}")
    elif memory.total > have * GIB:
        survey.note(step.name, f"{about}: likely too much; raise tensor_parallel, or recompute activations")
    else:
        survey.note(step.name, about)


def _model(step: Step, kind: str) -> str:
    name = step.source("reward" if kind == "critic" else "model")
    assert name is not None
    return name


def _estimated(survey: PlanSurvey, step: Step, compiled: Compiled, *, kind: str, shape: Shape) -> Memory:
    layout, values = compiled.layout, survey.effective(compiled)
    assert layout is not None
    if isinstance(layout, ServerLayout):
        users = [s for s in survey.plan.steps if any(c.setting == compiled.setting for c in survey.compiled[s.name])]
        budgets = [v["max_tokens"] for user in users for v in user.spec.values() if _is_sampling(v)]
        length = PADDED + max(budgets, default=0)
        fp32 = layout.precision.startswith("32")
        return estimate(
            kind,
            shape.parameters,
            layout,
            devices=1,
            micro=1,
            length=length,
            sequences=layout.batch,
            shape=shape,
            fp32=fp32,
        )
    copy = layout.tensor_parallel * layout.pipeline_parallel
    devices = max(data_parallel(survey, compiled), 1) * copy
    trainer = trainer_of(step.kind)
    sequences = values.whole("model.ppo.rollout_micro_batch_size") if kind == "actor" else 0
    length = values.whole("model.encoder_seq_length", 1)
    micro = values.whole(f"{trainer.batches[0] if trainer else 'model'}.micro_batch_size", 1)
    return estimate(
        kind,
        shape.parameters,
        layout,
        devices=devices,
        micro=micro,
        length=length,
        sequences=sequences,
        shape=shape,
        offload_adam=values("model.ppo.offload_adam_states") is True,
        fp32=values("trainer.precision") == 32,
    )


def _is_sampling(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("max_tokens"), int)
