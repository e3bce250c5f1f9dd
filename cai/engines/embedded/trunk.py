"""A decoder for training: reads a Hugging Face folder of the Llama family, runs packed tokens, writes the folder back.

Written by hand for speed on small machines: no padding in any matrix product, frozen weights cast once, projections
fused, attention by plain batched products for short rows (twice as fast as the CPU's fused kernel, forwards and
backwards), layers below the adapted ones without gradient. The residual stream is float32. Equality with
transformers' own forward is a test.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from cai.engines.embedded.batches import Packed
from cai.engines.embedded.functions import gated, normed, rotated, without_gradient
from cai.engines.embedded.lora import Group
from cai.engines.embedded.models import load_config
from cai.engines.embedded.reward_head import SCORE, RewardHead
from cai.engines.methods.base import Lora, Precision
from cai.errors import PrerequisiteError, Problem, SpecError
from cai.identity import parse_json
from cai.models.config_file import check_weights
from cai.models.passport import passport_of

_PARTS = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "out": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}
# Rows up to this many tokens materialise their attention scores on the CPU; longer ones use the fused kernel.
_SHORT = 384


def compute_dtype(precision: Precision, device: str) -> torch.dtype:
    """The arithmetic of matrix products: bfloat16 where asked for, or where ``auto`` finds it in hardware."""
    if precision is Precision.FLOAT32:
        return torch.float32
    if precision is Precision.BFLOAT16:
        return torch.bfloat16
    if device.startswith("cuda"):
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    capable = "avx512_bf16" in _cpu_flags() or "amx_bf16" in _cpu_flags()
    return torch.bfloat16 if capable else torch.float32


def _cpu_flags() -> frozenset[str]:
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return frozenset()
    for line in info.read_text().splitlines():
        if line.startswith("flags"):
            return frozenset(line.split(":", 1)[1].split())
    return frozenset()


@lru_cache(maxsize=16)
def _unseen(width: int, window: int) -> Tensor:
    """[width, width], True where a position (first axis) does not look: after itself, and ``window`` or more before."""
    ones = torch.ones((width, width), dtype=torch.bool)
    return ones.triu(1) | ones.tril(-window) if window else ones.triu(1)


@lru_cache(maxsize=16)
def _causal_bias(width: int, per: int, window: int, dtype: torch.dtype) -> Tensor:
    """What is added to scores [per * width, width]: nothing where a position looks, minus infinity elsewhere."""
    return torch.zeros((width, width), dtype=dtype).masked_fill_(_unseen(width, window), -torch.inf).repeat(per, 1)


def layer_windows(config: Any) -> list[int]:
    """For each layer how many positions it sees, its own included; 0: all before it."""
    window = int(getattr(config, "sliding_window", None) or 0)
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        return [window] * int(config.num_hidden_layers)
    return [window if kind == "sliding_attention" else 0 for kind in kinds]


class Weights:
    """The tensors of a model folder, read one at a time."""

    def __init__(self, folder: Path) -> None:
        self._files: dict[str, Path] = {}
        for path in sorted(folder.glob("*.safetensors")):
            if path.name.startswith("model"):
                with safe_open(str(path), framework="pt") as file:
                    self._files |= dict.fromkeys(file.keys(), path)
        if not self._files:
            raise PrerequisiteError(f"{folder}: no model*.safetensors; save the model with safe serialization")

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def names(self) -> Iterator[str]:
        """Every tensor's name, sorted."""
        yield from sorted(self._files)

    def __getitem__(self, name: str) -> Tensor:
        with safe_open(str(self._files[name]), framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
        return tensor.float()


class Layer:
    """One decoder layer's fused projections and norms."""

    def __init__(self, weights: Weights, index: int, dtype: torch.dtype, device: str) -> None:
        prefix = f"model.layers.{index}."
        self.groups: dict[str, Group] = {}
        for part, names in _PARTS.items():
            full = tuple(prefix + n for n in names)
            biases = [weights[f"{n}.bias"].to(device) for n in full] if f"{full[0]}.bias" in weights else None
            matrices = [weights[f"{n}.weight"].to(device) for n in full]
            self.groups[part] = Group(full, matrices, biases, dtype)
        names_of_norms = ("input_layernorm", "post_attention_layernorm", "self_attn.q_norm", "self_attn.k_norm")
        self.norms = {
            n: weights[f"{prefix}{n}.weight"].to(device) for n in names_of_norms if f"{prefix}{n}.weight" in weights
        }


class Trunk:
    """Embedding, layers and final norm of a model, and the embedding matrix that turns states into logits.

    ``first_trained`` is the lowest layer with anything to train; the layers below it never see a gradient.
    """

    def __init__(self, folder: Path, precision: Precision, device: str) -> None:
        from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

        self.folder = folder
        self.device = device
        config: Any = load_config(folder)
        message, todo = passport_of(folder).untrainable()
        if message:
            raise SpecError(Problem(str(folder), message, todo))
        check_weights(folder)
        self.dtype = compute_dtype(precision, device)
        self.eps: float = config.rms_norm_eps
        self.heads = int(config.num_attention_heads)
        self.kv_heads = int(config.num_key_value_heads)
        self.hidden = int(config.hidden_size)
        self.head_dim = int(getattr(config, "head_dim", None) or self.hidden // self.heads)
        self.longest = int(config.max_position_embeddings)
        self.windows = layer_windows(config)
        self._rotary = LlamaRotaryEmbedding(config).to(device)
        weights = Weights(folder)
        self.embedding = weights["model.embed_tokens.weight"].to(device)
        self.tied = bool(config.tie_word_embeddings) or "lm_head.weight" not in weights
        self.head = (self.embedding if self.tied else weights["lm_head.weight"].to(device)).to(self.dtype)
        self.head_master: Tensor | None = None
        self.layers = [Layer(weights, i, self.dtype, device) for i in range(int(config.num_hidden_layers))]
        self.norm = weights["model.norm.weight"].to(device)
        self.first_trained = len(self.layers)
        self.all_trained = False

    def adapt(self, lora: Lora, seed: int) -> None:
        """Put adapters on the layers that ``lora`` names.

        Raises:
            SpecError: when no projection is named by ``lora.targets``.
        """
        projections = {n.rsplit(".", 1)[-1] for names in _PARTS.values() for n in names}
        unknown = sorted(set(lora.targets) - projections)
        if unknown or not lora.targets:
            hint = f"known: {sorted(projections)}"
            raise SpecError(Problem("lora.targets", f"no projection is called {unknown}", hint))
        count = len(self.layers)
        self.first_trained = count - min(lora.last_layers or count, count)
        for layer in self.layers[self.first_trained :]:
            for group in layer.groups.values():
                group.adapt(lora, seed)

    def train_all(self, head: bool = True) -> None:
        """Train every weight; ``head`` False leaves the logits' matrix out (a reward model has no use for it)."""
        weights = Weights(self.folder)
        self.first_trained = 0
        self.all_trained = True
        for layer in self.layers:
            for group in layer.groups.values():
                biases = None if group.bias is None else [weights[f"{n}.bias"] for n in group.names]
                group.train_all([weights[f"{n}.weight"] for n in group.names], biases)
            for norm in layer.norms.values():
                norm.requires_grad_()
        self.norm.requires_grad_()
        self.embedding.requires_grad_()
        if head:
            self.head_master = self.embedding if self.tied else weights["lm_head.weight"].to(self.device)
            self.head_master.requires_grad_()

    def parameters(self) -> dict[str, Tensor]:
        """What is trained, by name, float32."""
        parameters: dict[str, Tensor] = {}
        for index, layer in enumerate(self.layers[self.first_trained :], self.first_trained):
            for group in layer.groups.values():
                parameters |= group.parameters()
            if self.all_trained:
                parameters |= {f"model.layers.{index}.{n}.weight": t for n, t in layer.norms.items()}
        if self.all_trained:
            parameters |= {"model.norm.weight": self.norm, "model.embed_tokens.weight": self.embedding}
            if self.head_master is not None and not self.tied:
                parameters["lm_head.weight"] = self.head_master
        return parameters

    @without_gradient
    def refresh(self) -> None:
        """Bring the compute copies up to date; after every change of the parameters."""
        for layer in self.layers[self.first_trained :]:
            for group in layer.groups.values():
                group.refresh()
        if self.head_master is not None:
            self.head.copy_(self.head_master)

    def below(self, batch: Packed) -> Tensor:
        """States [N, hidden] float32 that enter the lowest trained layer; without gradient unless all is trained."""
        with torch.set_grad_enabled(self.all_trained and torch.is_grad_enabled()):
            states = functional.embedding(batch.ids_N, self.embedding)
            return self._layers(states, batch, start=0, stop=self.first_trained, adapted=False, generator=None)

    def above(
        self, states: Tensor, batch: Packed, adapted: bool = True, generator: torch.Generator | None = None
    ) -> Tensor:
        """From ``below`` to the final norm: [N, hidden] in the compute type. ``adapted`` False is the start model."""
        states = self._layers(
            states, batch, start=self.first_trained, stop=len(self.layers), adapted=adapted, generator=generator
        )
        return normed(states, self.norm, self.eps, self.dtype)

    def __call__(self, batch: Packed, generator: torch.Generator | None = None) -> Tensor:
        """Final states [N, hidden] of a micro-batch."""
        return self.above(self.below(batch), batch, generator=generator)

    def rope(self, positions_N: Tensor) -> tuple[Tensor, Tensor]:  # noqa: N803
        """Cosines and sines [N, 1, head_dim / 2] of the positions, in the compute type."""
        cos, sin = self._rotary(self.norm, positions_N[None])
        half = self.head_dim // 2
        return tuple(x[0, :, None, :half].to(self.dtype).contiguous() for x in (cos, sin))

    def qkv(
        self,
        layer: Layer,
        states: Tensor,
        rope: tuple[Tensor, Tensor],
        *,
        adapted: bool,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Queries, keys (both rotated) and values: [N, heads + 2 kv_heads, head_dim]."""
        x = normed(states, layer.norms["input_layernorm"], self.eps, self.dtype)
        y = layer.groups["qkv"](x, adapted, generator).view(x.shape[0], -1, self.head_dim)
        if "self_attn.q_norm" in layer.norms:
            q = normed(y[:, : self.heads], layer.norms["self_attn.q_norm"], self.eps, self.dtype)
            k = y[:, self.heads : self.heads + self.kv_heads]
            k = normed(k, layer.norms["self_attn.k_norm"], self.eps, self.dtype)
            y = torch.cat((q, k, y[:, self.heads + self.kv_heads :]), dim=1)
        return rotated(y, *rope, self.heads + self.kv_heads)

    def after_attention(
        self, layer: Layer, states: Tensor, mixed: Tensor, *, adapted: bool, generator: torch.Generator | None = None
    ) -> Tensor:
        """Output projection, residual, and the gated feed-forward part."""
        states = states + layer.groups["out"](mixed, adapted, generator)
        x = normed(states, layer.norms["post_attention_layernorm"], self.eps, self.dtype)
        wide = layer.groups["gate_up"](x, adapted, generator)
        return states + layer.groups["down"](gated(wide), adapted, generator)

    def through(self, states: Tensor, rope: tuple[Tensor, Tensor], attend: Callable[[int, Tensor], Tensor]) -> Tensor:
        """All layers and the final norm, for sampling; ``attend(layer, qkv)`` mixes over positions."""
        for index, layer in enumerate(self.layers):
            mixed = attend(index, self.qkv(layer, states, rope, adapted=True))
            states = self.after_attention(layer, states, mixed, adapted=True)
        return normed(states, self.norm, self.eps, self.dtype)

    def _layers(
        self,
        states: Tensor,
        batch: Packed,
        *,
        start: int,
        stop: int,
        adapted: bool,
        generator: torch.Generator | None,
    ) -> Tensor:
        if start == stop:
            return states
        rope = self.rope(batch.positions_N)
        for layer, window in zip(self.layers[start:stop], self.windows[start:stop], strict=True):
            qkv = self.qkv(layer, states, rope, adapted=adapted, generator=generator)
            mixed = self.attend(qkv, batch, window)
            states = self.after_attention(layer, states, mixed, adapted=adapted, generator=generator)
        return states

    def attend(self, qkv: Tensor, batch: Packed, window: int = 0) -> Tensor:
        """Causal attention row by row: [N, heads + 2 kv_heads, head_dim] -> [N, heads * head_dim].

        With a ``window`` a position sees itself and ``window - 1`` before it.
        """
        rows, width = batch.grid_BL.shape
        window = window if window < width else 0
        kv, per = self.kv_heads, self.heads // self.kv_heads
        grid = qkv.flatten(1).index_select(0, batch.grid_BL.flatten())
        grid = grid.view(rows, width, -1, self.head_dim).transpose(1, 2)
        q, k, v = grid.split((self.heads, kv, kv), dim=1)
        if width <= _SHORT and not self.device.startswith("cuda"):
            bias = _causal_bias(width, per, window, self.dtype)
            q3 = q.reshape(rows * kv, per * width, self.head_dim)
            k3, v3 = (x.reshape(rows * kv, width, self.head_dim) for x in (k, v))
            scores = torch.baddbmm(bias, q3, k3.transpose(1, 2), alpha=self.head_dim**-0.5)
            mixed = torch.bmm(torch.softmax(scores, dim=-1), v3).view(rows, self.heads, width, self.head_dim)
        else:
            mask = ~_unseen(width, window).to(q.device) if window else None
            mixed = functional.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=per > 1
            )
        return mixed.transpose(1, 2).reshape(rows * width, -1).index_select(0, batch.read_N)

    @without_gradient
    def save(self, dest: Path, head: RewardHead | None = None) -> None:
        """Write the model with what it learnt to ``dest``: float32 weights, so that small changes survive.

        With a reward ``head`` instead of its own the folder is one of transformers' sequence classification.
        """
        dest.mkdir(parents=True, exist_ok=True)
        weights = Weights(self.folder)
        learnt = {n: g for layer in self.layers for g in layer.groups.values() for n in g.names}
        whole = self.parameters() if self.all_trained else {}
        tensors: dict[str, Tensor] = {}
        for name in weights.names():
            base = weights[name]
            projection, _, kind = name.rpartition(".")
            group = learnt.get(projection)
            if group is not None and kind in ("weight", "bias"):
                base = group.merged(projection, base) if kind == "weight" else group.learnt_bias(projection, base)
            elif name in whole:
                base = whole[name].detach()
            tensors[name] = base.cpu().contiguous()
        if head is not None:
            tensors.pop("lm_head.weight", None)
            tensors[SCORE] = head.weight.detach().cpu()[None].contiguous()
        save_file(tensors, str(dest / "model.safetensors"), metadata={"format": "pt"})
        copied = ("config.json", "generation_config.json", "chat_template.jinja", "special_tokens_map.json", "vocab*")
        for pattern in (*copied, "tokenizer*", "added_tokens.json", "merges.txt"):
            for path in self.folder.glob(pattern):
                shutil.copyfile(path, dest / path.name)
        config = parse_json((dest / "config.json").read_text())
        config.pop("torch_dtype", None)
        config |= {"dtype": "float32"} if head is None else {"dtype": "float32", **head.config(config["model_type"])}
        (dest / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        if head is not None:
            head.mark_padding(dest)
