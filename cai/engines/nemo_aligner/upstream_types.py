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

_SHOWN = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", list: "a list"}
_MANY = {bool: "true and false", int: "whole numbers", float: "numbers", str: "texts", list: "lists"}


@dataclass(frozen=True)
class Wanted:
    """Types a value may have, or the only words; ``item`` is what a list holds."""

    types: tuple[type, ...] = ()
    choices: tuple[Any, ...] = ()
    null: bool = False
    item: Wanted | None = None
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
            shown = [str(c) for c in self.choices]
        else:
            types = [t for t in self.types if not (t is int and float in self.types)]
            shown = [f"a list of {self.item._many()}" if t is list and self.item else _SHOWN[t] for t in types]
        shown += ["a section"] * self.section + ["null"] * self.null
        return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} or {shown[-1]}"

    def _many(self) -> str:
        return " or ".join(_MANY[t] for t in self.types if not (t is int and float in self.types))


INT, NUMBER, BOOL, TEXT = Wanted((int,)), Wanted((float,)), Wanted((bool,)), Wanted((str,))
PATH = Wanted((str,), null=True)
TEXTS = Wanted((list,), item=TEXT)
MAYBE_INT, MAYBE_NUMBER = replace(INT, null=True), replace(NUMBER, null=True)
PRECISION = Wanted(choices=(16, 32, 64, "16", "32", "64", "bf16", "16-mixed", "bf16-mixed", "32-true", "bf16-true"))
SHARE_OR_COUNT = Wanted((float,))

TABLE: dict[str, Wanted] = {
    "trainer.precision": PRECISION,
    "trainer.max_time": PATH,
    "trainer.gradient_clip_val": MAYBE_NUMBER,
    "trainer.max_epochs": MAYBE_INT,
    "trainer.max_steps": INT,
    **{
        f"{section}.{key}": wanted
        for section in SECTIONS
        for key, wanted in {
            "limit_train_batches": SHARE_OR_COUNT,
            "limit_val_batches": SHARE_OR_COUNT,
            "val_check_interval": SHARE_OR_COUNT,
            "save_interval": SHARE_OR_COUNT,
            "gradient_clip_val": MAYBE_NUMBER,
        }.items()
    },
    "trainer.ppo.rollout_batch_seq_length": MAYBE_INT,
    "trainer.ppo.strip_sequence_length_to_multiple": MAYBE_INT,
    "trainer.ppo.inference_micro_batch_size": Wanted((int, list), item=INT),
    "trainer.ppo.trt_llm.max_input_len": INT,
    "trainer.ppo.trt_llm.model_type": Wanted(choices=("gptj", "gptnext", "llama", "gemma", "falcon")),
    "remote_critic_rm.pad_to_length": MAYBE_INT,
    "exp_manager.explicit_log_dir": PATH,
    "exp_manager.exp_dir": PATH,
    "exp_manager.resume_from_checkpoint": PATH,
    "exp_manager.max_time_per_run": PATH,
    "exp_manager.checkpoint_callback_params.model_parallel_size": INT,
    "exp_manager.checkpoint_callback_params.mode": Wanted(choices=("min", "max")),
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
    "model.activations_checkpoint_granularity": Wanted(choices=("selective", "full"), null=True),
    "model.activations_checkpoint_method": Wanted(choices=("uniform", "block"), null=True),
    "model.activations_checkpoint_num_layers": MAYBE_INT,
    "model.activations_checkpoint_layers_per_pipeline": MAYBE_INT,
    "model.seq_len_interpolation_factor": MAYBE_NUMBER,
    "model.use_flash_attention": Wanted((bool,), null=True),
    "model.dist_ckpt_format": Wanted(choices=("torch_dist", "zarr")),
    "model.reward_model_type": Wanted(choices=("binary_ranking", "regression")),
    "model.force_head_dtype": Wanted(
        choices=("float32", "bfloat16", "float16", "bf16", "fp32", "32", "16", 32, 16), null=True
    ),
    "model.regression.attribute_weights": Wanted((list,), item=NUMBER, null=True),
    "model.regression.loss_func": Wanted(choices=("regression", "regular_bt", "margin_bt", "scaled_bt")),
    "model.reward_standardization.mean": MAYBE_NUMBER,
    "model.reward_standardization.std": MAYBE_NUMBER,
    "model.peft.peft_scheme": Wanted(choices=("none", "lora"), null=True),
    "model.peft.restore_from_path": PATH,
    "model.peft.restore_from_ckpt.checkpoint_dir": PATH,
    "model.peft.restore_from_ckpt.checkpoint_name": PATH,
    "model.peft.lora_tuning.layer_selection": Wanted((list,), item=INT, null=True),
    "model.optim.betas": Wanted((list,), item=NUMBER),
    "model.optim.sched.warmup_steps": MAYBE_INT,
    "model.optim.sched.warmup_ratio": MAYBE_NUMBER,
    "model.optim.sched.constant_steps": MAYBE_INT,
    "model.optim.sched.constant_ratio": MAYBE_NUMBER,
    "model.ppo.length_params.max_length": INT,
    "model.ppo.sampling_params.end_strings": TEXTS,
    "model.data.data_prefix": Wanted((list,), section=True, item=Wanted((str, float)), null=True),
    "model.data.data_impl": Wanted(choices=("mmap", "json", "jsonl")),
    "model.data.splits_string": PATH,
    "model.data.index_mapping_dir": PATH,
    **{
        f"model.data.{part}.{key}": wanted
        for part in ("train_ds", "validation_ds")
        for key, wanted in {
            "file_path": TEXT,
            "memmap_workers": MAYBE_INT,
            "index_mapping_dir": PATH,
            "truncation_method": Wanted(choices=("left", "right")),
        }.items()
    },
    "gpt_model_file": PATH,
    "checkpoint_dir": PATH,
    "checkpoint_name": PATH,
    "hparams_file": PATH,
    "inference.end_strings": TEXTS,
    "prompts": TEXTS,
}


def expected(key: str, there: Any) -> Wanted | None:
    """What a key takes: from the table, else what upstream's (resolved) value is; None where nothing is known."""
    if key in TABLE:
        return TABLE[key]
    if isinstance(there, list):
        kinds = [t for t in (bool, int, float, str) if any(type(item) is t for item in there)]
        return Wanted((list,), item=Wanted(tuple(kinds)) if kinds else None)
    if type(there) in (bool, int):
        return Wanted((type(there),))
    if isinstance(there, float | str):
        # Upstream leaves many of these out with null; a whole number or a truth value it never does.
        return Wanted((type(there),), null=True)
    return None
