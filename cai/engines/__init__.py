"""Engines: who trains and serves. One line in the table for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cai.engines.base import Engine, Settings
from cai.engines.embedded.settings import EmbeddedSettings, choose, describe


@dataclass(frozen=True)
class EngineKind:
    """An engine as the resolver sees it: its settings, what of them decides results, what it uses, how it starts."""

    settings: type[Settings]
    identity: Callable[[Any], Mapping[str, Any]]
    describe: Callable[[Any], Mapping[str, Any]]
    make: Callable[[Any], Engine]


def _embedded_identity(settings: EmbeddedSettings) -> dict[str, Any]:
    # Versions of packages are told in the plan but do not count: an upgrade must not rerun a night's work.
    chosen = choose(settings)
    return settings.model_dump(mode="json", exclude={"threads"}) | {
        "device": chosen.device.value,
        "generator": chosen.generator.value,
        "generation_precision": chosen.precision.value,
    }


def _embedded(settings: EmbeddedSettings) -> Engine:
    from cai.engines.embedded.engine import EmbeddedEngine

    return EmbeddedEngine(settings)


ENGINES: dict[str, EngineKind] = {
    "embedded": EngineKind(EmbeddedSettings, _embedded_identity, describe, _embedded),
}


def make_engine(config: Mapping[str, Any]) -> Engine:
    """The engine of a plan's ``engine`` block: its kind and its settings."""
    data = dict(config)
    data.pop("uses", None)  # what the plan tells a person about this machine
    kind = ENGINES[data.pop("kind")]
    return kind.make(kind.settings.model_validate(data))
