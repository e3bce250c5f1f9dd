"""What an experiment says about NeMo: where it is installed, what the cluster has, how each step is laid out on it.

The stages hold the method (learning rate, batch, KL); this holds the machine. Layout never counts for a step's key;
``overrides``, which reach into upstream's config, do, and so does how soft labels become hard ones.
"""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from cai.launchers.settings import TIME, Launcher, Local
from cai.settings import Settings

Scalar = bool | int | float | str | None
Value = Scalar | list[Any]


class Checkpointing(str, Enum):
    """Recomputation of activations in the backward pass: none, attention only, or whole layers."""

    NONE = "none"
    SELECTIVE = "selective"
    FULL = "full"


class Layout(Settings):
    """How a model is spread. ``devices`` are GPUs per node; 0 takes the cluster's. Data parallel is what remains."""

    nodes: Annotated[int, Field(ge=1)] = 1
    devices: Annotated[int, Field(ge=0)] = 0
    tensor_parallel: Annotated[int, Field(ge=1)] = 1
    pipeline_parallel: Annotated[int, Field(ge=1)] = 1
    overrides: Annotated[
        dict[str, Value], Field(description="more settings of upstream's config; '++KEY' adds one that it lacks")
    ] = Field(default_factory=dict)
    env: dict[str, str] = Field(default_factory=dict)
    time: Annotated[str, Field(pattern=rf"^$|{TIME}", description="Slurm time limit; empty takes the launcher's")] = ""

    @field_validator("env")
    @classmethod
    def _no_secrets(cls, value: dict[str, str]) -> dict[str, str]:
        for name in value:
            if {"KEY", "TOKEN", "SECRET", "PASSWORD", "CREDENTIALS"} & set(name.upper().split("_")):
                raise ValueError(f"looks like a secret: {name}; export it in the shell instead, it is inherited")
        return value


class TrainingLayout(Layout):
    """Layout of a training step."""

    sequence_parallel: bool = False
    activation_checkpointing: Checkpointing = Checkpointing.NONE


class CriticLayout(TrainingLayout):
    """Layout of PPO's critic, which is a server of its own."""

    port: Annotated[int, Field(ge=1024, le=65535)] = 5567
    ready_timeout: Annotated[float, Field(gt=0, description="seconds")] = 3600.0


class StepLayout(TrainingLayout):
    """Layout of a training step; ``critic`` and the micro batches of rollouts are read by ``rl`` alone.

    ``val_batches`` is how many validation batches are measured (0: all), ``val_samples`` how many validation prompts
    ``rl`` answers (0: as many as rollouts). ``time_margin`` is what of a job's time limit is not for training: loading
    before it, the last step, validation and checkpoint after it.
    """

    critic: CriticLayout = CriticLayout()
    time_margin: Annotated[
        int | None, Field(ge=0, description="seconds; null: a quarter of the limit for each model, at most 15 minutes")
    ] = None
    rollout_micro_batch: Annotated[int, Field(ge=1)] = 8
    val_batches: Annotated[int, Field(ge=0)] = 0
    val_samples: Annotated[int, Field(ge=0)] = 0


class ServerLayout(Layout):
    """Layout of an inference server; ``count`` servers of the same model share the load, on consecutive ports."""

    count: Annotated[int, Field(ge=1)] = 1
    port: Annotated[int, Field(ge=1024, le=65000)] = 5656
    ready_timeout: Annotated[float, Field(gt=0, description="seconds")] = 1800.0
    batch: Annotated[int, Field(ge=1, le=128, description="prompts in one call")] = 128
    precision: str = "bf16"


class Gpu(str, Enum):
    """GPUs whose peak rates are known (cai/engines/nemo_aligner/gpu_time.py): A100 of 80 GB, H100 and H200, all SXM."""

    A100 = "A100"
    H100 = "H100"
    H200 = "H200"


class Cluster(Settings):
    """What the machine or the cluster has; ``gpu_memory`` in GiB. Checked against, never asked of the machine.

    ``gpu`` and ``utilisation`` are what the plan's GPU-hours are estimated from, until a step has been measured here.
    """

    nodes: Annotated[int, Field(ge=1)] = 1
    gpus_per_node: Annotated[int, Field(ge=1)] = 8
    gpu_memory: Annotated[float, Field(gt=0)] = 80.0
    gpu: Annotated[Gpu, Field(description="whose peak rates GPU-hours are estimated from")] = Gpu.H100
    utilisation: Annotated[float, Field(gt=0, le=1, description="share of those peaks that is reached")] = 0.4


class Hard(str, Enum):
    """How a soft label becomes a hard one: by its larger side, or drawn as often as ``replicas`` says."""

    MARGIN = "margin"
    REPLICAS = "replicas"


class LabelSettings(Settings):
    """NeMo-Aligner's reward trainer takes hard labels only (arXiv 2212.08073 found soft ones better).

    ``margin``: a pair counts as its likelier order; pairs with p nearer to 0.5 than ``margin`` are left out, counted.
    ``replicas``: each pair is written ``replicas`` times, each time in an order drawn with probability p, from the
    seed and the row; the gradient's expectation is that of the soft label.
    """

    how: Hard = Hard.MARGIN
    margin: Annotated[float, Field(ge=0, lt=0.5)] = 0.1
    replicas: Annotated[int, Field(ge=1, le=64)] = 4

    @model_validator(mode="after")
    def _used(self) -> LabelSettings:
        # Against the defaults, not against what was written: a plan file writes every field.
        if self.how is Hard.REPLICAS and self.margin != LabelSettings.model_fields["margin"].default:
            raise ValueError("margin is read by `how: margin` only")
        if self.how is Hard.MARGIN and self.replicas != LabelSettings.model_fields["replicas"].default:
            raise ValueError("replicas is read by `how: replicas` only")
        return self


class NemoAlignerSettings(Settings):
    """``steps`` and ``servers`` are by name of a step (the model's step, for a server); ``default`` serves the rest."""

    aligner: Annotated[str, Field(description="NeMo-Aligner's root, as the commands see it")] = "/opt/NeMo-Aligner"
    nemo: Annotated[str, Field(description="NeMo's root, as the commands see it")] = "/opt/NeMo"
    python: Annotated[str, Field(description="interpreter of NeMo's commands")] = "python"
    program: Annotated[str, Field(description="interpreter of this program in jobs; empty: the one that plans")] = ""
    upstream: Annotated[str, Field(description="folder of upstream's configs; else CAI_UPSTREAM, `aligner`")] = ""
    converter: Annotated[str, Field(description="script below `nemo` that turns a Hugging Face folder into .nemo")] = (
        "scripts/checkpoint_converters/convert_mistral_7b_hf_to_nemo.py"
    )
    cluster: Cluster = Cluster()
    launcher: Launcher = Local()
    steps: dict[str, StepLayout] = Field(default_factory=dict)
    servers: dict[str, ServerLayout] = Field(default_factory=dict)
    labels: LabelSettings = LabelSettings()

    def step(self, name: str) -> StepLayout:
        """The layout of a training step."""
        return self.steps.get(name) or self.steps.get("default") or StepLayout()

    def server(self, model: str) -> ServerLayout:
        """The layout of the servers of the model that step ``model`` makes."""
        return self.servers.get(model) or self.servers.get("default") or ServerLayout()

    def devices(self, layout: Layout) -> int:
        """GPUs per node of a layout."""
        return layout.devices or self.cluster.gpus_per_node
