"""A Hugging Face folder to one GGUF file of float16 weights: the form that openvino-genai builds its own model from.

Written straight from the safetensors, a tensor at a time, without torch. Llama checkpoints only; for anything else the
model's passport says why not, and generation stays with torch.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from cai.engines.embedded.models import folder_digest
from cai.errors import PrerequisiteError
from cai.files.home import cai_home
from cai.identity import parse_json
from cai.models.passport import passport_of

# Bump when the same folder would now give another file.
FORMAT = 1

_LAYER = {
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
}
_TOP = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


def cached_gguf(folder: Path) -> Path:
    """The folder's model as ``$CAI_HOME/cache/gguf/<digest of weights and configuration>.gguf``, made once.

    Raises:
        PrerequisiteError: openvino-genai cannot read such a model.
    """
    reason = passport_of(folder).unknown_to_openvino()
    if reason:
        raise PrerequisiteError(f"{folder}: cannot be served by openvino-genai: {reason}; set generator=transformers")
    cache = cai_home() / "cache" / "gguf"
    path = cache / f"{folder_digest(folder)}-{FORMAT}.gguf"
    if path.exists():
        return path
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=cache) as scratch:
        partial = Path(scratch) / "model.gguf"
        write_gguf(folder, partial)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        # Rename last: a name in the cache means the file is whole.
        os.replace(partial, path)
    return path


def write_gguf(folder: Path, path: Path) -> None:
    """Write the folder's weights, configuration and vocabulary to ``path``; matrices float16, vectors float32."""
    import gguf
    import numpy as np
    from safetensors import safe_open

    config = _config(folder)
    heads = int(config["num_attention_heads"])
    kv_heads = int(config.get("num_key_value_heads") or heads)
    writer = gguf.GGUFWriter(str(path), "llama")
    _write_config(writer, config, heads, kv_heads)
    _write_vocabulary(writer, folder, config)
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - safe_open is no mapping
                target = _target(name)
                if target == "output.weight" and config.get("tie_word_embeddings"):
                    continue
                tensor = opened.get_tensor(name).float().numpy()
                if name.endswith(("q_proj.weight", "k_proj.weight")):
                    tensor = _interleaved(tensor, heads if name.endswith("q_proj.weight") else kv_heads)
                writer.add_tensor(target, tensor.astype(np.float16 if tensor.ndim > 1 else np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _config(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = parse_json((folder / "config.json").read_text(encoding="utf-8"))
    return config


def _target(name: str) -> str:
    if name in _TOP:
        return _TOP[name]
    prefix, _, rest = name.removeprefix("model.layers.").partition(".")
    if not prefix.isdigit() or rest not in _LAYER:
        raise PrerequisiteError(f"unknown weight '{name}' in a llama model; set generator=transformers")
    return f"blk.{prefix}.{_LAYER[rest]}"


def _interleaved(weight: Any, heads: int) -> Any:
    """Rows reordered from rotary halves (transformers) to rotary pairs (GGUF's llama), head by head."""
    rows, columns = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, columns)
    return halves.swapaxes(1, 2).reshape(rows, columns)


def _write_config(writer: Any, config: dict[str, Any], heads: int, kv_heads: int) -> None:
    import gguf

    rope = config.get("rope_parameters") or {}
    head_dim = int(config.get("head_dim") or config["hidden_size"] // heads)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0))
    writer.add_rope_dimension_count(head_dim)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)


def _write_vocabulary(writer: Any, folder: Path, config: dict[str, Any]) -> None:
    """Vocabulary, merges and control tokens of the folder's tokenizer.json.

    Prompts arrive as token ids, but openvino-genai compiles the tokenizer all the same and fails on an empty one.
    """
    import gguf

    tokenizer = parse_json((folder / "tokenizer.json").read_text(encoding="utf-8"))
    texts = {token: text for text, token in tokenizer["model"]["vocab"].items()}
    types = dict.fromkeys(texts, gguf.TokenType.NORMAL)
    for added in tokenizer.get("added_tokens", []):
        texts[added["id"]] = added["content"]
        types[added["id"]] = gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
    size = int(config["vocab_size"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([texts.get(token, f"[unused{token}]") for token in range(size)])
    writer.add_token_types([types.get(token, gguf.TokenType.UNUSED) for token in range(size)])
    merges = tokenizer["model"].get("merges", [])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    end = config.get("eos_token_id")
    end = int((end[0] if isinstance(end, list) else end) or 0)
    writer.add_bos_token_id(int(config.get("bos_token_id") or end))
    writer.add_eos_token_id(end)
    writer.add_pad_token_id(int(config.get("pad_token_id") or end))
