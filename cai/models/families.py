"""The families of models that are known here, by the ``model_type`` of their configuration, and what is done with each.

Whatever the table says can be trained is held against transformers and TRL by tests/engines/embedded/test_families.py,
which also writes the table of docs/models.md. A family that is not in it can still be asked, by whatever generator has
a class for it; it is not trained here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

SILU = frozenset({"silu", "swish"})
"""The activation of the families here, by both of its names."""


@dataclass(frozen=True, slots=True)
class Family:
    """``rope``: the scalings of rotary positions that are computed as transformers does. ``windows``: whether layers
    may see a part of the positions only. ``biases``: where its projections have any."""

    title: str
    rope: frozenset[str]
    biases: str
    windows: bool
    activations: frozenset[str] = SILU


_ROPE = frozenset({"default", "linear", "llama3", "yarn"})

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "llama": Family("Llama", _ROPE, "where its configuration says so", windows=False),
        "mistral": Family("Mistral", _ROPE, "none", windows=True),
        "qwen2": Family("Qwen 2", _ROPE, "queries, keys and values", windows=True),
        "qwen3": Family("Qwen 3", _ROPE, "where its configuration says so", windows=True),
    }
)
"""Families that the embedded engine trains."""
