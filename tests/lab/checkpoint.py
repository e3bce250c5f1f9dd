"""A tiny ``.nemo`` as a folder: the config that upstream's converter writes for Mistral-7B, with small layers.

Only sizes differ from the real one: number and width of layers, heads, vocabulary. Whatever a later script takes over
from a checkpoint (layout, recomputation, sequence length, optimizer ...) is as the converter of NeMo v2.1.0 leaves it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

TOKENIZER = "tokenizer.model"
SIZES = {
    "num_layers": 4,
    "hidden_size": 64,
    "ffn_hidden_size": 128,
    "num_attention_heads": 8,
    "num_query_groups": 4,
    "kv_channels": 8,
}
"""Divisible by tensor parallel 4, as the real 32 heads and 8 groups are."""


def converted() -> dict[str, Any]:
    """``model_config.yaml`` of a converted Mistral-7B-v0.1."""
    return {
        "mcore_gpt": True,
        "transformer_engine": True,
        "micro_batch_size": 4,
        "global_batch_size": 8,
        "rampup_batch_size": None,
        "tensor_model_parallel_size": 1,
        "pipeline_model_parallel_size": 1,
        "virtual_pipeline_model_parallel_size": None,
        # A sliding window becomes the sequence length.
        "encoder_seq_length": 4096,
        "max_position_embeddings": 32768,
        "window_size": [4096, 0],
        **SIZES,
        "init_method_std": 0.02,
        "use_scaled_init_method": True,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "ffn_dropout": 0.0,
        "apply_query_key_layer_scaling": True,
        "normalization": "rmsnorm",
        "layernorm_epsilon": 1e-5,
        "do_layer_norm_weight_decay": False,
        "make_vocab_size_divisible_by": 128,
        "pre_process": True,
        "post_process": True,
        "persist_layer_norm": True,
        "bias": False,
        "activation": "fast-swiglu",
        "headscale": False,
        "transformer_block_type": "pre_ln",
        "openai_gelu": False,
        "normalize_attention_scores": True,
        "position_embedding_type": "rope",
        "rotary_percentage": 1.0,
        "rotary_base": 10000.0,
        "attention_type": "multihead",
        "share_embeddings_and_output_weights": False,
        "tokenizer": {
            "library": "sentencepiece",
            "type": None,
            "model": f"nemo:{TOKENIZER}",
            "vocab_file": None,
            "merge_file": None,
            "delimiter": None,
            "sentencepiece_legacy": False,
        },
        "native_amp_init_scale": 4294967296,
        "native_amp_growth_interval": 1000,
        "hysteresis": 2,
        "fp32_residual_connection": False,
        "fp16_lm_cross_entropy": False,
        "megatron_amp_O2": False,
        "grad_allreduce_chunk_size_mb": 125,
        "grad_div_ar_fusion": True,
        "gradient_accumulation_fusion": False,
        "bias_activation_fusion": False,
        "bias_dropout_add_fusion": False,
        "masked_softmax_fusion": True,
        "get_attention_mask_from_fusion": True,
        "apply_rope_fusion": False,
        "seed": 1234,
        "use_cpu_initialization": True,
        "onnx_safe": False,
        "apex_transformer_log_level": 30,
        "gradient_as_bucket_view": True,
        "sync_batch_comm": False,
        "activations_checkpoint_granularity": None,
        "activations_checkpoint_method": None,
        "activations_checkpoint_num_layers": None,
        "num_micro_batches_with_partial_activation_checkpoints": None,
        "activations_checkpoint_layers_per_pipeline": None,
        "sequence_parallel": False,
        "fp8": False,
        "data": {
            "index_mapping_dir": None,
            "data_impl": "mmap",
            "splits_string": "900,50,50",
            "seq_length": 4096,
            "skip_warmup": True,
            "num_workers": 2,
            "dataloader_type": "single",
        },
        "nsys_profile": {"enabled": False},
        "optim": {
            "name": "fused_adam",
            "lr": 2e-4,
            "weight_decay": 0.01,
            "betas": [0.9, 0.98],
            "sched": {"name": "CosineAnnealing", "warmup_steps": 500, "constant_steps": 50000, "min_lr": 2e-5},
        },
        "precision": "bf16",
        "target": "nemo.collections.nlp.models.language_modeling.megatron_gpt_model.MegatronGPTModel",
        "nemo_version": "2.1.0",
    }


def write(folder: Path, config: dict[str, Any], tokenizer: bytes) -> Path:
    """An extracted ``.nemo`` without weights: what a script reads before it builds its model."""
    folder.mkdir(parents=True)
    (folder / "model_config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    (folder / TOKENIZER).write_bytes(tokenizer)
    return folder
