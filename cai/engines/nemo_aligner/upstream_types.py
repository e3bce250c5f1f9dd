"""What kind of value each key of upstream's configs takes, which upstream itself does not check.

Most kinds follow from the value that upstream's file has. The table holds the keys whose value there is null or
``???``, that are in no file at all, or that take only some words (NeMo-Aligner v0.7.0, NeMo v2.1.0, Megatron-Core
r0.10).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from cai.engines.nemo_aligner.methods import SECTIONS
from cai.engines.nemo_aligner.overrides import Env

_SINGULAR = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", list: "a list"}
_PLURAL = {bool: "true and false", int: "whole numbers", float: "numbers", str: "texts", list: "lists"}


@dataclass(frozen=True)
class ValueType:
    """Types a value may have, or the only words; ``item`` is what a list holds."""

    types: tuple[type, ...] = ()
    choices: tuple[Any, ...] = ()
    null: bool = False
    item: ValueType | None = None
    section: bool = False

    def wrong(self, value: Any) -> str:
        """Empty when the value is right, else what to give instead."""
        if isinstance(value, Env) or (value is None and self.null):
            return ""
        if isinstance(value, Mapping):
            return "" if self.section else self.words()
        if self.choices:
            # 1 == True and "16" is not 16: the type counts as well.
            return "" if any(type(value) is type(c) and value == c for c in self.choices) else self.words()
        if isinstance(value, list | tuple):
            if list not in self.types:
                return self.words()
            return self.words() if self.item and any(self.item.wrong(v) for v in value) else ""
        allowed = (*self.types, int) if float in self.types else self.types
        right = type(value) in allowed
        return "" if right else self.words()

    def words(self) -> str:
        """What is wanted, in words."""
        if self.choices:
            descriptions = [str(c) for c in self.choices]
        else:
            types = [t for t in self.types if not (t is int and float in self.types)]
            descriptions = [
                f"a list of {self.item._many()}" if t is list and self.item else _SINGULAR[t] for t in types
            ]
        descriptions += ["a section"] * self.section + ["null"] * self.null
        return descriptions[0] if len(descriptions) == 1 else f"{', '.join(descriptions[:-1])} or {descriptions[-1]}"

    def _many(self) -> str:
        return " or ".join(_PLURAL[t] for t in self.types if not (t is int and float in self.types))


INT, NUMBER, BOOL, TEXT = ValueType((int,)), ValueType((float,)), ValueType((bool,)), ValueType((str,))
PATH = ValueType((str,), null=True)
TEXTS = ValueType((list,), item=TEXT)
MAYBE_INT, MAYBE_NUMBER = replace(INT, null=True), replace(NUMBER, null=True)
PRECISION = ValueType(choices=(16, 32, 64, "16", "32", "64", "bf16", "16-mixed", "bf16-mixed", "32-true", "bf16-true"))
SHARE_OR_COUNT = ValueType((float,))

TABLE: dict[str, ValueType] = {
    "trainer.precision": PRECISION,
    "trainer.max_time": PATH,
    "trainer.gradient_clip_val": MAYBE_NUMBER,
    "trainer.max_epochs": MAYBE_INT,
    "trainer.max_steps": INT,
    **{
        f"{section}.{key}": value_type
        for section in SECTIONS
        for key, value_type in {
            "limit_train_batches": SHARE_OR_COUNT,
            "limit_val_batches": SHARE_OR_COUNT,
            "val_check_interval": SHARE_OR_COUNT,
            "save_interval": SHARE_OR_COUNT,
            "gradient_clip_val": MAYBE_NUMBER,
        }.items()
    },
    "trainer.ppo.rollout_batch_seq_length": MAYBE_INT,
    "trainer.ppo.strip_sequence_length_to_multiple": MAYBE_INT,
    "trainer.ppo.inference_micro_batch_size": ValueType((int, list), item=INT),
    "trainer.ppo.trt_llm.max_input_len": INT,
    "trainer.ppo.trt_llm.model_type": ValueType(choices=("gptj", "gptnext", "llama", "gemma", "falcon")),
    "remote_critic_rm.pad_to_length": MAYBE_INT,
    "exp_manager.explicit_log_dir": PATH,
    "exp_manager.exp_dir": PATH,
    "exp_manager.resume_from_checkpoint": PATH,
    "exp_manager.max_time_per_run": PATH,
    "exp_manager.checkpoint_callback_params.model_parallel_size": INT,
    "exp_manager.checkpoint_callback_params.mode": ValueType(choices=("min", "max")),
    "exp_manager.wandb_logger_kwargs.project": PATH,
    "exp_manager.wandb_logger_kwargs.name": PATH,
    "pretrained_checkpoint.restore_from_path": TEXT,
    "model.restore_from_path": TEXT,
    "model.resume_from_checkpoint": PATH,
    "model.precision": PRECISION,
    "model.tensor_model_parallel_size": INT,
    "model.pipeline_model_parallel_size": INT,
    "model.virtual_pipeline_model_parallel_size": MAYBE_INT,
    "model.context_parallel_size": INT,
    "model.expert_model_parallel_size": INT,
    "model.sequence_parallel": BOOL,
    "model.transformer_engine": BOOL,
    "model.mcore_gpt": BOOL,
    "model.activations_checkpoint_granularity": ValueType(choices=("selective", "full"), null=True),
    "model.activations_checkpoint_method": ValueType(choices=("uniform", "block"), null=True),
    "model.activations_checkpoint_num_layers": MAYBE_INT,
    "model.activations_checkpoint_layers_per_pipeline": MAYBE_INT,
    "model.seq_len_interpolation_factor": MAYBE_NUMBER,
    "model.use_flash_attention": ValueType((bool,), null=True),
    "model.dist_ckpt_format": ValueType(choices=("torch_dist", "zarr")),
    "model.reward_model_type": ValueType(choices=("binary_ranking", "regression")),
    "model.force_head_dtype": ValueType(
        choices=("float32", "bfloat16", "float16", "bf16", "fp32", "32", "16", 32, 16), null=True
    ),
    "model.regression.attribute_weights": ValueType((list,), item=NUMBER, null=True),
    "model.regression.loss_func": ValueType(choices=("regression", "regular_bt", "margin_bt", "scaled_bt")),
    "model.reward_standardization.mean": MAYBE_NUMBER,
    "model.reward_standardization.std": MAYBE_NUMBER,
    "model.peft.peft_scheme": ValueType(choices=("none", "lora"), null=True),
    "model.peft.restore_from_path": PATH,
    "model.peft.restore_from_ckpt.checkpoint_dir": PATH,
    "model.peft.restore_from_ckpt.checkpoint_name": PATH,
    "model.peft.lora_tuning.layer_selection": ValueType((list,), item=INT, null=True),
    "model.optim.betas": ValueType((list,), item=NUMBER),
    "model.optim.sched.warmup_steps": MAYBE_INT,
    "model.optim.sched.warmup_ratio": MAYBE_NUMBER,
    "model.optim.sched.constant_steps": MAYBE_INT,
    "model.optim.sched.constant_ratio": MAYBE_NUMBER,
    "model.ppo.length_params.max_length": INT,
    "model.ppo.sampling_params.end_strings": TEXTS,
    "model.data.data_prefix": ValueType((list,), section=True, item=ValueType((str, float)), null=True),
    "model.data.data_impl": ValueType(choices=("mmap", "json", "jsonl")),
    "model.data.splits_string": PATH,
    "model.data.index_mapping_dir": PATH,
    **{
        f"model.data.{part}.{key}": value_type
        for part in ("train_ds", "validation_ds")
        for key, value_type in {
            "file_path": TEXT,
            "memmap_workers": MAYBE_INT,
            "index_mapping_dir": PATH,
            "truncation_method": ValueType(choices=("left", "right")),
        }.items()
    },
    "gpt_model_file": PATH,
    "checkpoint_dir": PATH,
    "checkpoint_name": PATH,
    "hparams_file": PATH,
    "inference.end_strings": TEXTS,
    "prompts": TEXTS,
}


def expected(key: str, there: Any) -> ValueType | None:
    """What a key takes: from the table, else what upstream's (resolved) value is; None where nothing is known."""
    if key in TABLE:
        return TABLE[key]
    if isinstance(there, list):
        kinds = [t for t in (bool, int, float, str) if any(type(item) is t for item in there)]
        return ValueType((list,), item=ValueType(tuple(kinds)) if kinds else None)
    if type(there) in (bool, int):
        return ValueType((type(there),))
    if isinstance(there, float | str):
        # Upstream leaves many of these out with null; a whole number or a truth value it never does.
        return ValueType((type(there),), null=True)
    return None
