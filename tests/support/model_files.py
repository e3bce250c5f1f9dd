"""The heads of model files: what planning reads of a model, without any weights."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LLAMA = {
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_hidden_layers": 1,
    "vocab_size": 100,
    "max_position_embeddings": 2048,
}


def model_folder(folder: Path, tensors: Mapping[str, tuple[str, list[int]]] | None = None, **config: Any) -> Path:
    """A folder with a configuration, a tokenizer's file and the head of a safetensors file: a Llama unless told."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**LLAMA, **config}))
    (folder / "tokenizer.json").write_text("{}")
    named = tensors or {"model.embed_tokens.weight": ("BF16", [100, 64])}
    head = json.dumps({n: {"dtype": t, "shape": s, "data_offsets": [0, 0]} for n, (t, s) in named.items()}).encode()
    (folder / "model.safetensors").write_bytes(len(head).to_bytes(8, "little") + head)
    return folder


def gguf_file(path: Path, architecture: str = "llama", **fields: int | str) -> Path:
    """The head of a GGUF file of version 3 with one tensor of 100 x 64 weights; fields are of the architecture."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value.encode())) + value.encode()

    def pair(name: str, value: int | str) -> bytes:
        if isinstance(value, str):
            return text(name) + struct.pack("<I", 8) + text(value)
        return text(name) + struct.pack("<II", 4, value)

    named = {"general.architecture": architecture, **{f"{architecture}.{n}": v for n, v in fields.items()}}
    body = b"".join(pair(name, value) for name, value in named.items())
    tensor = text("token_embd.weight") + struct.pack("<IQQIQ", 2, 64, 100, 0, 0)
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 1, len(named)) + body + tensor)
    return path
