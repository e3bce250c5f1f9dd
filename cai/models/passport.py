"""A model's passport: what its own files say of it, looked up while planning, without torch.

It is read from where the model lies on this disk: a folder, a GGUF file, the hub's cache. What is nowhere here yet has
no passport before it is fetched; the same questions are asked then.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from cai.errors import PrerequisiteError
from cai.models.config_file import check_weights, read_json
from cai.models.families import FAMILIES
from cai.models.gguf_file import gguf_metadata

_TOKENIZERS = {"tokenizer.json": "fast", "tokenizer.model": "sentencepiece", "vocab.json": "vocabulary"}
_FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
"""Types of weights that are read as they stand, and their bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Passport:
    """What is known of a model; a text is empty and a number 0 where its files do not say.

    ``family`` is the ``model_type``, ``rope`` the kind of its rotary positions' scaling, ``window`` the positions that
    a layer sees at most (0: all). ``quantisation`` is what its weights are packed by. ``tokenizer`` is ``fast``,
    ``sentencepiece``, ``vocabulary`` or ``gguf``. ``context`` is in tokens, ``parameters`` counts weights.
    ``heads_fit`` says whether all heads together are as wide as the model.
    """

    where: Path
    family: str
    activation: str = "silu"
    biases: bool = False
    rope: str = "default"
    window: int = 0
    quantisation: str = ""
    tokenizer: str = ""
    context: int = 0
    parameters: int = 0
    vocabulary: int = 0
    hidden: int = 0
    heads_fit: bool = True
    partial_rope: bool = False

    def unreadable(self) -> tuple[str, str]:
        """Why the model's weights cannot be read here, and what to do; empty where they can."""
        if not self.quantisation:
            return "", ""
        return (
            f"its weights are packed by {self.quantisation}, which nothing here unpacks",
            "give the model in bfloat16 or float32, as a GGUF file, or served by an API",
        )

    def untrainable(self) -> tuple[str, str]:
        """Why the embedded engine cannot train the model, and what to do; empty where it can."""
        if any(why := self.unreadable()):
            return why
        if not self.family:
            return "its files do not say of which type it is (model_type)", "get the model's files again"
        family = FAMILIES.get(self.family)
        if family is None:
            known = ", ".join(FAMILIES)
            hint = f"take a model of {known}, or another engine: `nemo_aligner` trains what it can convert"
            return f"model type {self.family!r} cannot be trained by the embedded engine", hint
        another = f"take another model of {', '.join(FAMILIES)}"
        if self.activation not in family.activations:
            return f"activation {self.activation!r} cannot be trained by the embedded engine", another
        if self.rope not in family.rope:
            return f"rope scaling {self.rope!r} cannot be trained by the embedded engine", another
        if self.partial_rope:
            return "rotary positions on a part of each head cannot be trained by the embedded engine", another
        return "", ""

    def unknown_to_openvino(self) -> str:
        """Why openvino-genai cannot generate with the model; empty where it can.

        It builds its model from a GGUF file of Llama's shape, which is written from the folder.
        """
        if self.family != "llama":
            return f"its reader has no {self.family!r}"
        reasons = {
            "the projections have biases": self.biases,
            f"the activation is {self.activation!r}": self.activation not in FAMILIES["llama"].activations,
            f"rope_type is {self.rope!r}": self.rope != "default",
            "rotary positions are on a part of each head": self.partial_rope,
            "its heads are not as wide as the model": not self.heads_fit,
            "it has no tokenizer.json": self.tokenizer not in ("fast", "gguf"),
        }
        return next((reason for reason, holds in reasons.items() if holds), "")

    def training_bytes(self, full: bool) -> int:
        """Memory that training takes at least: float32 masters, and with ``full`` gradients and two moments.

        Without ``full`` low-rank adapters are trained, which weigh next to nothing; their base is kept once, in at
        most float32.
        """
        return self.parameters * (16 if full else 4)


def passport_of(path: Path) -> Passport:
    """The passport of a model's folder or GGUF file.

    Raises:
        PrerequisiteError: when its files cannot be read as a model's.
    """
    stamp = tuple((f.name, s.st_size, s.st_mtime_ns) for f in _files(path) for s in [f.stat()])
    return _passport(path, stamp)


def _files(path: Path) -> list[Path]:
    patterns = ("config.json", "tokenizer*", "vocab.json", "*.safetensors")
    return [path] if path.is_file() else sorted(file for pattern in patterns for file in path.glob(pattern))


@lru_cache(maxsize=64)
def _passport(path: Path, stamp: tuple[tuple[str, int, int], ...]) -> Passport:
    return _of_gguf(path) if path.is_file() else _of_folder(path)


# ---- folders ---------------------------------------------------------------------------------------------------------


def _of_folder(folder: Path) -> Passport:
    file = folder / "config.json"
    if not file.is_file():
        raise PrerequisiteError(f"{folder}: has no config.json; name a Hugging Face model folder")
    config = read_json(file)
    check_weights(folder)
    tensors = dict(_tensors(folder))
    hidden, heads = _number(config, "hidden_size"), _number(config, "num_attention_heads")
    head_dim = _number(config, "head_dim") or (hidden // heads if heads else 0)
    rope = _rope(config)
    return Passport(
        where=folder,
        family=_text(config, "model_type"),
        activation=_text(config, "hidden_act") or _text(config, "hidden_activation") or "silu",
        biases=any(name.endswith("_proj.bias") for name in tensors)
        or any(config.get(name) is True for name in ("attention_bias", "mlp_bias")),
        rope=str(rope.get("rope_type", rope.get("type", "default")) or "default"),
        window=_window(config),
        quantisation=_quantisation(config, tensors),
        tokenizer=next((kind for name, kind in _TOKENIZERS.items() if (folder / name).is_file()), ""),
        context=_number(config, "max_position_embeddings"),
        parameters=sum(weights for _, weights in tensors.values()),
        vocabulary=_number(config, "vocab_size"),
        hidden=hidden,
        heads_fit=heads * head_dim == hidden,
        partial_rope=_fraction(config, rope) not in (None, 1, 1.0),
    )


def _text(config: Mapping[str, Any], name: str) -> str:
    value = config.get(name)
    return value if isinstance(value, str) else ""


def _number(config: Mapping[str, Any], name: str) -> int:
    value = config.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def _rope(config: Mapping[str, Any]) -> Mapping[str, Any]:
    scaling = config.get("rope_parameters") or config.get("rope_scaling")
    return scaling if isinstance(scaling, Mapping) else {}


def _fraction(config: Mapping[str, Any], rope: Mapping[str, Any]) -> Any:
    return rope.get("partial_rotary_factor", config.get("partial_rotary_factor"))


def _window(config: Mapping[str, Any]) -> int:
    return 0 if config.get("use_sliding_window") is False else _number(config, "sliding_window")


def _quantisation(config: Mapping[str, Any], tensors: Mapping[str, tuple[str, int]]) -> str:
    """What packs the weights: as the configuration says, or as their types and names give away."""
    said = config.get("quantization_config") or config.get("compression_config")
    if said:
        return str(said.get("quant_method") or "a quantiser") if isinstance(said, Mapping) else "a quantiser"
    if any(name.endswith((".qweight", ".qzeros")) for name in tensors):
        return "gptq or awq"
    if any(".quant_state" in name or name.endswith(".absmax") for name in tensors):
        return "bitsandbytes"
    odd = sorted({kind for name, (kind, _) in tensors.items() if kind not in _FLOATS and name.endswith(".weight")})
    return ("fp8" if odd[0].startswith("F8") else odd[0]) if odd else ""


def _tensors(folder: Path) -> Iterator[tuple[str, tuple[str, int]]]:
    """Every tensor's name, with its type and how many numbers it has, by the heads of the files.

    Raises:
        PrerequisiteError: when a head cannot be read.
    """
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            raw = file.read(int.from_bytes(file.read(8), "little"))
        try:
            for name, entry in json.loads(raw).items():
                if name != "__metadata__":
                    weights = 1
                    for side in entry["shape"]:
                        weights *= int(side)
                    yield name, (str(entry["dtype"]), weights)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise PrerequisiteError(
                f"{path}: its header cannot be read ({error}); get the model's files again"
            ) from error


# ---- GGUF ------------------------------------------------------------------------------------------------------------


def _of_gguf(path: Path) -> Passport:
    """A GGUF file is unpacked to float32 when it is fetched, so however it is packed it can be read."""
    metadata = gguf_metadata(path, before="tokenizer.")
    family = str(metadata.get("general.architecture", ""))

    def field(name: str) -> int:
        return _number(metadata, f"{family}.{name}")

    hidden, heads = field("embedding_length"), field("attention.head_count")
    head_dim = field("attention.key_length") or (hidden // heads if heads else 0)
    scaling = metadata.get(f"{family}.rope.scaling.type")
    return Passport(
        where=path,
        family=family,
        rope=scaling if isinstance(scaling, str) and scaling != "none" else "default",
        window=field("attention.sliding_window"),
        tokenizer="gguf",
        context=field("context_length"),
        parameters=_weights(metadata, family, head_dim),
        vocabulary=field("vocab_size"),
        hidden=hidden,
        heads_fit=heads * head_dim == hidden,
    )


def _weights(metadata: Mapping[str, Any], family: str, head_dim: int) -> int:
    """About how many weights a decoder of these sizes has, its embeddings counted once; 0 where a size is missing."""
    names = ("vocab_size", "embedding_length", "block_count", "feed_forward_length", "attention.head_count")
    vocabulary, hidden, layers, inner, heads = sizes = [_number(metadata, f"{family}.{name}") for name in names]
    own_keys = _number(metadata, f"{family}.attention.head_count_kv") or heads
    if not all(sizes):
        return 0
    return vocabulary * hidden + layers * hidden * (2 * (heads + own_keys) * head_dim + 3 * inner)
