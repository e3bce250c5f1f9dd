"""What a model's folder may say to a loader: its shape, and nothing that chooses code.

A folder comes from a stranger. transformers takes from its files which attention kernel to load (from the hub, where it
has a slash), which Python modules (``auto_map``) and which quantiser: here those are the program's choice, so the first
is left out and the others are refused. What could take memory or time without bound is bounded before a tensor is read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cai.errors import PrerequisiteError
from cai.identity import parse_json

MAX_JSON = 64 * 2**20
"""Bytes of one of a model's JSON files; the largest tokenizers have 20 MiB."""

MAX_HEADER = 32 * 2**20
"""Bytes of the header of a safetensors file; those of models with thousands of tensors have 1 MiB."""

_BOUNDS = {
    "vocab_size": 4_000_000,
    "hidden_size": 262_144,
    "intermediate_size": 2_097_152,
    "num_hidden_layers": 1_024,
    "num_attention_heads": 4_096,
    "num_key_value_heads": 4_096,
    "head_dim": 16_384,
    "max_position_embeddings": 100_000_000,
}
"""Fields of a configuration that decide how much is allocated, and what no model is above."""

_OURS = ("_attn_implementation", "_attn_implementation_internal", "attn_implementation", "_experts_implementation")
"""Fields that choose code for what the model computes; the loader's own arguments say it."""


def read_json(path: Path) -> dict[str, Any]:
    """One of a model's JSON files.

    Raises:
        PrerequisiteError: when it is too large, no JSON, or no mapping.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_JSON + 1)
        data = parse_json(raw) if len(raw) <= MAX_JSON else None
    except (OSError, ValueError) as error:
        raise PrerequisiteError(f"{path}: cannot be read as JSON ({error}); get the model's files again") from error
    if data is None:
        raise PrerequisiteError(f"{path}: is larger than {MAX_JSON // 2**20} MiB, which no model's is")
    if not isinstance(data, dict):
        raise PrerequisiteError(f"{path}: is no JSON object; get the model's files again")
    return data


def check_model(folder: Path) -> None:
    """What a loader will read of a folder chooses no code and is bounded; a pickle is not even looked at.

    Raises:
        PrerequisiteError: naming the file, and what to do.
    """
    checked_config(folder)
    check_tokenizer(folder)
    check_weights(folder)


def checked_config(folder: Path) -> dict[str, Any]:
    """The folder's ``config.json`` without what would choose code.

    Raises:
        PrerequisiteError: for code of the model's own, quantised weights, or sizes that no model has.
    """
    path = folder / "config.json"
    config = _without_ours(read_json(path))
    _refuse_code(path, config)
    if config.get("quantization_config") or config.get("compression_config"):
        raise PrerequisiteError(
            f"{path}: the weights are quantised, and would be read by code that the file chooses; give the model in "
            "bfloat16, or as a GGUF file"
        )
    if not isinstance(config.get("model_type"), str):
        raise PrerequisiteError(f"{path}: has no model_type; get the model's files again")
    for name, most in _BOUNDS.items():
        value = config.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= most):
            raise PrerequisiteError(f"{path}: {name} is {str(value)[:40]!r}, and no model's is; get its files again")
    for field in ("rope_parameters", "rope_scaling"):
        for name, value in (config.get(field) or {}).items() if isinstance(config.get(field), dict) else ():
            if name in ("rope_theta", "factor") and (isinstance(value, bool) or not isinstance(value, int | float)):
                raise PrerequisiteError(
                    f"{path}: {field}.{name} is {str(value)[:40]!r}, no number; get its files again"
                )
    return config


def check_tokenizer(folder: Path) -> None:
    """The tokenizer's files bring no code.

    Raises:
        PrerequisiteError: when they do, or cannot be read.
    """
    for path in (folder / "tokenizer_config.json", folder / "generation_config.json"):
        if path.is_file():
            _refuse_code(path, read_json(path))


def check_weights(folder: Path) -> None:
    """The header of every safetensors file is as long as it can be, before anything is allocated for it.

    Raises:
        PrerequisiteError: naming the file.
    """
    for path in sorted(folder.glob("*.safetensors")):
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(MAX_HEADER, size - 8):
            raise PrerequisiteError(f"{path}: its header cannot be {length:,} bytes; get the model's files again")


def _without_ours(config: dict[str, Any]) -> dict[str, Any]:
    """Parts of a model of several (``text_config``) have configurations of their own."""
    return {
        name: _without_ours(value) if isinstance(value, dict) else value
        for name, value in config.items()
        if name not in _OURS
    }


def _refuse_code(path: Path, data: dict[str, Any]) -> None:
    if data.get("auto_map") or data.get("custom_generate"):
        raise PrerequisiteError(
            f"{path}: the model brings Python code of its own (auto_map), which is never run; take a model that "
            "transformers has a class for, or remove auto_map where it does"
        )
