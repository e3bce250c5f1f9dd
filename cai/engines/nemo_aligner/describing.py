"""What of NeMo's settings decides a result, and what a plan tells a person about them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cai.engines.nemo_aligner.methods import REWARD_TRAINER, trainer_of
from cai.engines.nemo_aligner.settings import NemoAlignerSettings
from cai.launchers.settings import Slurm

VERSION = "0.7.0"


def identity(settings: NemoAlignerSettings, kind: str, name: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What counts for a step's key: upstream's version, overrides, the server's precision, how labels become hard.

    How a model is spread over GPUs, where things are installed and which launcher runs them do not count.
    """
    key_parts: dict[str, Any] = {"version": VERSION}
    trainer = trainer_of(kind)
    if trainer is not None:
        layout = settings.step(name)
        overrides = {"": layout.overrides} | ({"critic": layout.critic.overrides} if trainer.critic else {})
        key_parts["overrides"] = {role: dict(value) for role, value in overrides.items() if value}
        if trainer is REWARD_TRAINER:
            key_parts["labels"] = settings.labels.model_dump(mode="json")
        return key_parts
    servers = []
    for model in _names(inputs.get("models", inputs.get("model"))):
        server = settings.server(model)
        servers.append({"precision": server.precision, "overrides": dict(server.overrides)})
    return {**key_parts, "servers": servers}


def _names(value: Any) -> list[str]:
    if value is None:
        return []
    return [value] if isinstance(value, str) else list(value.values() if isinstance(value, Mapping) else value)


def describe(settings: NemoAlignerSettings) -> dict[str, Any]:
    """NeMo's version, the launcher and the cluster, for the plan's first lines."""
    cluster = settings.cluster
    description: dict[str, Any] = {"nemo_aligner": VERSION, "launcher": settings.launcher.kind}
    description["cluster"] = f"{cluster.nodes} x {cluster.gpus_per_node} GPUs of {cluster.gpu_memory:g} GiB"
    if isinstance(settings.launcher, Slurm) and settings.launcher.container:
        description["container"] = settings.launcher.container
    return description
