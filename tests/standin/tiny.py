"""The tiny model behind the stand-in: Mistral's architecture with some 10^5 weights, its tokenizer, its files.

A ``.nemo`` is a tar as NeMo writes it (members start with ``./``): ``model_config.yaml``, ``model_weights.ckpt`` and
``<hash>_tokenizer.model``. Weights carry Hugging Face's names, so the source folder is a real Mistral folder.
Arrays: B rows, T tokens, H hidden, V vocabulary.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sentencepiece
import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

HIDDEN, LAYERS, HEADS, GROUPS, FFN, EPS, THETA = 64, 2, 4, 2, 128, 1e-5, 10000.0
VOCABULARY = 448
_BASE_TEXTS = (
    "I am sorry, but I can't help with that. Here is a safer way to reach the same end, if you like.",
    "What is the capital of France? The capital of France is Paris, a city of two million people.",
    "How do I bake bread? Mix 500 g of flour, water and salt; wait an hour; then bake it at 230 degrees.",
    "<extra_id_0>System <extra_id_1>User <extra_id_1>Assistant <extra_id_2>quality:4",
    "Please critique the answer above, and revise it so that it is harmless, honest and helpful.",
    "Printable: !\"#$%&'()*+,-./0123456789:;<=>?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[\\]^_`abcdefghijklmnopqrstuvwxyz{|}~",
)


class Words:
    """A SentencePiece tokenizer as NeMo uses it: no special tokens added; runs of spaces shrink to one."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self._model = sentencepiece.SentencePieceProcessor(model_proto=data)
        self.eos, self.bos = self._model.eos_id(), self._model.bos_id()

    def __len__(self) -> int:
        return self._model.get_piece_size()

    def encode(self, text: str) -> list[int]:
        return self._model.encode(text, out_type=int)

    def decode(self, ids: Sequence[int]) -> str:
        return self._model.decode([i for i in ids if i < len(self)])

    def pieces(self, ids: Sequence[int]) -> list[str]:
        return [self._model.id_to_piece(i) for i in ids]


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.size = HIDDEN // HEADS
        self.q_proj = nn.Linear(HIDDEN, HEADS * self.size, bias=False)
        self.k_proj = nn.Linear(HIDDEN, GROUPS * self.size, bias=False)
        self.v_proj = nn.Linear(HIDDEN, GROUPS * self.size, bias=False)
        self.o_proj = nn.Linear(HEADS * self.size, HIDDEN, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, past: tuple[Tensor, Tensor] | None, start: int) -> Tensor:
        rows, length, _ = x.shape
        q = _rotate(self.q_proj(x).view(rows, length, HEADS, self.size).transpose(1, 2), cos, sin)
        k = _rotate(self.k_proj(x).view(rows, length, GROUPS, self.size).transpose(1, 2), cos, sin)
        v = self.v_proj(x).view(rows, length, GROUPS, self.size).transpose(1, 2)
        if past is not None:
            past[0][:, :, start : start + length], past[1][:, :, start : start + length] = k, v
            k, v = past[0][:, :, : start + length], past[1][:, :, : start + length]
        k, v = (t.repeat_interleave(HEADS // GROUPS, dim=1) for t in (k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=length > 1)
        return self.o_proj(mixed.transpose(1, 2).reshape(rows, length, -1))


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    one, two = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-two, one), dim=-1) * sin


class _Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(HIDDEN, FFN, bias=False)
        self.up_proj = nn.Linear(HIDDEN, FFN, bias=False)
        self.down_proj = nn.Linear(FFN, HIDDEN, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class _Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.self_attn, self.mlp = _Attention(), _Mlp()
        self.input_layernorm = nn.RMSNorm(HIDDEN, eps=EPS)
        self.post_attention_layernorm = nn.RMSNorm(HIDDEN, eps=EPS)


class _Trunk(nn.Module):
    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(vocabulary, HIDDEN)
        self.layers = nn.ModuleList(_Layer() for _ in range(LAYERS))
        self.norm = nn.RMSNorm(HIDDEN, eps=EPS)


class Tiny(nn.Module):
    """The model; ``head`` adds NeMo-Aligner's ``rm_head``, one number a token."""

    def __init__(self, vocabulary: int, head: bool = False) -> None:
        super().__init__()
        self.model = _Trunk(vocabulary)
        self.lm_head = nn.Linear(HIDDEN, vocabulary, bias=False)
        if head:
            self.rm_head = nn.Linear(HIDDEN, 1)
            nn.init.zeros_(self.rm_head.bias)

    def cache(self, rows: int, length: int) -> list[tuple[Tensor, Tensor]]:
        shape = (rows, GROUPS, length, HIDDEN // HEADS)
        return [(torch.zeros(shape), torch.zeros(shape)) for _ in range(LAYERS)]

    def hidden(self, ids_BT: Tensor, cache: list[tuple[Tensor, Tensor]] | None = None, start: int = 0) -> Tensor:  # noqa: N803
        size = HIDDEN // HEADS
        inverse = THETA ** (-torch.arange(0, size, 2).float() / size)
        angle = torch.arange(start, start + ids_BT.shape[1]).float()[:, None] * inverse
        angle = torch.cat((angle, angle), dim=-1)
        cos, sin = angle.cos(), angle.sin()
        x = self.model.embed_tokens(ids_BT)
        for i, layer in enumerate(self.model.layers):
            past = cache[i] if cache else None
            x = x + layer.self_attn(layer.input_layernorm(x), cos, sin, past, start)
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        return self.model.norm(x)

    def forward(self, ids_BT: Tensor) -> Tensor:  # noqa: N803
        return self.lm_head(self.hidden(ids_BT))

    def scores(self, ids_BT: Tensor) -> Tensor:  # noqa: N803
        """(B, T): the head's number at every token."""
        return self.rm_head(self.hidden(ids_BT)).squeeze(-1)

    def logprobs(self, ids_BT: Tensor) -> Tensor:  # noqa: N803
        """(B, T - 1): the log-probability of every token but the first."""
        logits = self(ids_BT[:, :-1])
        return torch.log_softmax(logits, -1).gather(-1, ids_BT[:, 1:, None]).squeeze(-1)


@dataclass
class Nemo:
    """What a .nemo holds."""

    config: dict[str, Any]
    state: dict[str, Tensor]
    words: Words

    def model(self, head: bool = False, base_only: bool = False) -> Tiny:
        """The model, loaded strictly; ``base_only`` leaves a new, seeded head when the file has none."""
        model = Tiny(len(self.words), head)
        state = dict(self.state)
        if base_only:
            state = {k: v for k, v in state.items() if not k.startswith("rm_head.")}
            state |= {k: v for k, v in model.state_dict().items() if k.startswith("rm_head.")}
        model.load_state_dict(state, strict=True)
        return model


class Adam:
    """AdamW, written out: torch's own takes a second to import."""

    def __init__(self, model: nn.Module, betas: tuple[float, float] = (0.9, 0.999), decay: float = 0.0) -> None:
        self._weights = list(model.parameters())
        self._betas, self._decay = betas, decay
        self.state: dict[str, Any] = {
            "step": 0,
            "first": [torch.zeros_like(w) for w in self._weights],
            "second": [torch.zeros_like(w) for w in self._weights],
        }

    @torch.no_grad()
    def step(self, rate: float, clip: float = 0.0) -> None:
        """One update from the gradients, which it clears."""
        found = [(i, w.grad) for i, w in enumerate(self._weights) if w.grad is not None]
        norm = torch.stack([g.norm() for _, g in found]).norm()
        scale = torch.clamp(clip / (norm + 1e-6), max=1.0) if clip else 1.0
        self.state["step"] += 1
        one, two = self._betas
        for i, gradient in found:
            gradient = gradient * scale
            first, second, weight = self.state["first"][i], self.state["second"][i], self._weights[i]
            first.mul_(one).add_(gradient, alpha=1 - one)
            second.mul_(two).addcmul_(gradient, gradient, value=1 - two)
            root = (second / (1 - two ** self.state["step"])).sqrt_().add_(1e-8)
            weight.mul_(1 - rate * self._decay).sub_(first / (1 - one ** self.state["step"]) / root, alpha=rate)
            weight.grad = None


def pad(rows: Sequence[Sequence[int]], fill: int) -> Tensor:
    length = max(map(len, rows))
    return torch.tensor([[*row, *[fill] * (length - len(row))] for row in rows], dtype=torch.long)


def load_nemo(path: str | Path) -> Nemo:
    path = Path(path)
    assert path.exists(), f"tried to load from restore_path={str(path)!r} but it does not exist"
    if path.is_dir():  # upstream takes an unpacked .nemo as well
        data = {file.name: file.read_bytes() for file in path.iterdir()}
    else:
        with tarfile.open(path, "r:") as tar:
            read = {member.name.removeprefix("./"): tar.extractfile(member) for member in tar if member.isfile()}
            data = {name: file.read() for name, file in read.items() if file is not None}
    config = yaml.safe_load(data["model_config.yaml"])
    state = torch.load(io.BytesIO(data["model_weights.ckpt"]), weights_only=True)
    return Nemo(config, state, Words(data[config["tokenizer"]["model"].removeprefix("nemo:")]))


def save_nemo(path: str | Path, nemo: Nemo) -> None:
    """Written in place, as NeMo does: a kill in the middle leaves a torn file."""
    name = hashlib.md5(nemo.words.data, usedforsecurity=False).hexdigest() + "_tokenizer.model"
    config = nemo.config | {"tokenizer": {**nemo.config.get("tokenizer", {}), "model": f"nemo:{name}"}}
    weights = io.BytesIO()
    torch.save(nemo.state, weights)
    members = {
        "model_config.yaml": yaml.safe_dump(config, sort_keys=True).encode(),
        name: nemo.words.data,
        "model_weights.ckpt": weights.getvalue(),
    }
    with tarfile.open(path, "w:") as tar:
        for member, data in members.items():
            info = tarfile.TarInfo(f"./{member}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def make_hf_folder(
    path: str | Path, texts: Sequence[str] = (), seed: int = 0, positions: int = 1024, steps: int = 40
) -> Path:
    """A source model: config.json, tokenizer.model, model.safetensors; trained for ``steps`` on ``texts``."""
    from safetensors.torch import save_file

    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    texts = [*texts, *_BASE_TEXTS]
    lines = [line for text in texts for line in text.split("\n") if line.strip()]
    data = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines * 4),
        model_writer=data,
        vocab_size=VOCABULARY,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        num_threads=1,
        minloglevel=2,
    )
    words = Words(data.getvalue())
    model = _born(words, texts, seed, steps)
    config = {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "vocab_size": len(words),
        "hidden_size": HIDDEN,
        "intermediate_size": FFN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": GROUPS,
        "head_dim": HIDDEN // HEADS,
        "hidden_act": "silu",
        "max_position_embeddings": positions,
        "sliding_window": None,
        "initializer_range": 0.02,
        "rms_norm_eps": EPS,
        "rope_theta": THETA,
        "bos_token_id": words.bos,
        "eos_token_id": words.eos,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
    }
    (path / "config.json").write_text(json.dumps(config, indent=2))
    (path / "tokenizer.model").write_bytes(words.data)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, path / "model.safetensors", {"format": "pt"})
    return path


def _born(words: Words, texts: Sequence[str], seed: int, steps: int) -> Tiny:
    before = torch.get_rng_state()
    torch.manual_seed(seed)
    model = Tiny(len(words))
    for name, weight in model.named_parameters():
        if weight.dim() > 1:
            nn.init.normal_(weight, std=0.02 if "embed" in name else 1 / math.sqrt(weight.shape[1]))
    stream = [i for text in texts for i in [*words.encode(text), words.eos]]
    while len(stream) < 512:
        stream = stream * 2
    adam = Adam(model)
    for _ in range(steps):
        starts = torch.randint(0, len(stream) - 65, (8,)).tolist()
        ids = torch.tensor([stream[s : s + 65] for s in starts])
        (-model.logprobs(ids).mean()).backward()
        adam.step(5e-3)
    torch.set_rng_state(before)
    return model
