"""What a training method is: its settings, what it reads and makes, how quick it is, and what there is to see of it.

A method is one file here and one line in the table. Who trains by it is another matter: an engine has a table of its
own, of the methods that it can.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Generic, TypeVar

from pydantic import Field

from cai.chat import Message, Span
from cai.identity import RUNTIME
from cai.settings import Settings

D = TypeVar("D")
S = TypeVar("S", bound=Settings)


class Precision(str, Enum):
    """Arithmetic of training. ``auto``: bfloat16 autocast where the processor has it, else float32."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class Schedule(str, Enum):
    """Learning rate over the steps, after the warm-up."""

    CONSTANT = "constant"
    LINEAR = "linear"
    COSINE = "cosine"


class Lora(Settings):
    """Low-rank adaptation (arXiv 2106.09685): W + (alpha / rank) B A on the named projections."""

    rank: Annotated[int, Field(ge=1)] = 16
    alpha: Annotated[float, Field(gt=0)] = 32.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    last_layers: Annotated[int, Field(ge=0, description="adapt only the last n layers; 0 adapts all")] = 0


class SupervisedSettings(Settings):
    """What supervised and reward training share. Batch sizes count examples (pairs for the reward model)."""

    epochs: Annotated[float, Field(gt=0, le=1000)] = 1.0
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 2e-4
    schedule: Schedule = Schedule.CONSTANT
    warmup_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.05
    batch_size: Annotated[int, Field(ge=1)] = 16
    micro_batch_size: Annotated[int, Field(ge=1)] = 4
    max_length: Annotated[int, Field(ge=8, description="tokens; longer examples are dropped and counted")] = 1024
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    lora: Lora | None = Lora()
    precision: Precision = Precision.AUTO
    val_every: Annotated[int, Field(ge=0), RUNTIME] = 0
    checkpoint_every: Annotated[int, Field(ge=1), RUNTIME] = 10


@dataclass(frozen=True, slots=True)
class TrainText:
    """A rendered conversation cut into spans; their texts joined are the whole text.

    ``messages`` are the same turns unrendered, made harmless as text, for trainers that write the template themselves.
    """

    id: str
    spans: tuple[Span, ...]
    messages: tuple[Message, ...] = ()


@dataclass(frozen=True, slots=True)
class PairText:
    """A rendered prompt (ending with the assistant header) and two rendered answers (with the end of turn)."""

    id: str
    prompt: str
    chosen: str
    rejected: str
    p_chosen: float


@dataclass(frozen=True, slots=True)
class PromptText:
    """A rendered prompt, ending with the assistant header."""

    id: str
    prompt: str


@dataclass(frozen=True, slots=True)
class Curve:
    """One panel of a figure: ``fields`` of metrics.jsonl with what each stands for (empty where there is but one).

    ``label`` is the axis', with the unit. ``share`` marks shares from 0 to 1; ``reference`` is where chance lies.
    """

    title: str
    label: str
    fields: Mapping[str, str]
    share: bool = False
    reference: float | None = None


@dataclass(frozen=True, slots=True)
class Plot:
    """What a report draws of a training: panels over ``axis``, a field of metrics.jsonl, and a table.

    ``columns`` of the table are fields of metrics.jsonl with their heads; ``remark`` says how to read the figure.
    """

    title: str
    axis: str
    curves: tuple[Curve, ...]
    columns: Mapping[str, str]
    remark: str = ""


FIT_COLUMNS = {name: name for name in ("step", "loss", "val_loss", "accuracy", "val_accuracy", "lr", "grad_norm")}
"""What the loop that supervised, preference and reward training share writes down (those of them that it has)."""


@dataclass(frozen=True, slots=True)
class Method(Generic[D, S]):
    """A way to train a model.

    ``stage`` is the kind of stage that trains by it, ``data`` the type of what it reads. ``answers`` is how many
    answers of an example are read side by side. ``tokens_per_second``, written and read, are of 135M parameters on two
    processor cores. ``samples`` says that it leaves answers of its rollouts, ``snapshots`` that it can keep models on
    its way.
    """

    name: str
    stage: str
    settings: type[S]
    data: type[D]
    makes: str
    tokens_per_second: tuple[float, float]
    plot: Plot
    answers: int = 1
    samples: bool = False
    snapshots: bool = False
