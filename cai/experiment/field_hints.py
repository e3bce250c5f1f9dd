"""What an unknown field may stand for: the names that other programs give our fields, and fields a level away.

``lr`` is ``learning_rate`` wherever one is trained; ``epochs`` beside ``training`` belongs into it. What is nearest by
its letters is only asked last: ``batch`` is as near to ``branch`` as to ``batch_size``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from cai.errors import did_you_mean
from cai.settings import types_in

SYNONYMS: Mapping[str, tuple[str, ...]] = {
    "learning_rate": ("lr", "step_size", "alpha_lr"),
    "critic_learning_rate": ("critic_lr", "value_lr"),
    "batch_size": ("bs", "batch", "global_batch_size", "train_batch_size", "gbs"),
    "micro_batch_size": ("mbs", "micro_batch", "microbatch", "per_device_train_batch_size", "per_device_batch_size"),
    "epochs": ("epoch", "n_epochs", "num_epochs", "num_train_epochs", "max_epochs"),
    "ppo_epochs": ("num_ppo_epochs", "inner_epochs"),
    "iterations": ("steps", "max_steps", "num_iterations", "total_steps"),
    "rollouts": ("rollout_batch_size", "num_rollouts"),
    "max_length": (
        "max_len",
        "max_seq_len",
        "max_seq_length",
        "seq_len",
        "sequence_length",
        "context_length",
        "cutoff",
    ),
    "max_tokens": ("max_new_tokens", "max_output_tokens", "max_completion_tokens", "max_length", "max_len"),
    "max_prompt_tokens": ("max_prompt_length", "prompt_length"),
    "max_grad_norm": ("grad_clip", "gradient_clip", "clip_grad", "gradient_clip_val", "clip_grad_norm"),
    "weight_decay": ("wd", "decay"),
    "warmup_fraction": ("warmup", "warmup_ratio", "warmup_share"),
    "schedule": ("scheduler", "lr_schedule", "lr_scheduler", "lr_scheduler_type"),
    "kl_coefficient": ("kl", "kl_coef", "init_kl_coef", "kl_penalty", "kl_weight"),
    "gae_lambda": ("lam", "lambda", "lmbda"),
    "clip": ("cliprange", "clip_range", "clip_ratio", "epsilon"),
    "entropy_bonus": ("entropy", "entropy_coef", "ent_coef"),
    "lora": ("peft", "lora_config", "adapter"),
    "rank": ("r", "lora_r", "lora_rank"),
    "alpha": ("lora_alpha",),
    "dropout": ("lora_dropout",),
    "targets": ("target_modules",),
    "val_every": ("eval_every", "eval_steps", "val_check_interval"),
    "checkpoint_every": ("save_every", "save_steps", "save_interval"),
    "precision": ("dtype", "torch_dtype"),
    "temperature": ("temp",),
    "top_p": ("nucleus", "topp"),
    "top_k": ("topk",),
    "repetition_penalty": ("rep_penalty", "repeat_penalty"),
    "stop": ("stops", "stop_strings", "stop_sequences", "stop_words"),
    "sampling": ("generation", "generation_config", "decoding", "sampling_params"),
    "n": ("num_samples", "n_samples", "num_candidates", "candidates", "num_return_sequences", "samples"),
    "chunk": ("batch", "batch_size", "bs", "cohort"),
    "limit": ("max_rows", "max_samples", "n_rows", "num_rows", "max_examples", "take"),
    "rounds": ("n_rounds", "num_rounds", "revisions", "num_revisions"),
    "n_shots": ("shots", "num_shots", "num_examples"),
    "system": ("system_prompt", "system_message"),
    "prompts": ("prompt", "questions", "dataset", "data"),
    "data": ("dataset", "train_data", "train_dataset", "rows"),
    "sources": ("datasets", "source", "inputs", "data"),
    "from": ("source", "name", "data"),
    "val": ("validation", "val_share", "val_split", "test_size"),
    "responses": ("response", "answers", "prompts", "data"),
    "candidates": ("answers", "responses", "data"),
    "model": ("policy", "base_model", "judge", "actor"),
    "models": ("policies",),
    "reward": ("reward_model", "rm"),
    "reference": ("ref", "ref_model", "reference_model"),
    "training": ("trainer", "train", "hyperparameters", "training_args"),
    "source": ("path", "repo", "repo_id", "name_or_path", "model_name_or_path", "model", "name", "checkpoint"),
    "revision": ("commit", "sha", "branch"),
    "url": ("base_url", "api_base", "endpoint", "address", "host"),
    "api_key_env": ("api_key", "key", "token"),
    "template": ("chat_template", "prompt_template"),
    "parameters": ("n_params", "num_parameters", "size"),
    "path": ("file", "files", "paths", "data_files", "dataset", "source", "url", "name"),
    "reader": ("format", "type", "loader"),
    "makes": ("kind", "as", "rows"),
    "splits": ("split", "parts", "shares"),
    "split_seed": ("seed",),
    "options": ("kwargs", "reader_options"),
    "options.columns": ("columns", "column_names", "rename"),
    "options.merge_turns": ("merge_turns",),
}
"""Our fields, and what they are called elsewhere. A word may stand for several: the first that is there is meant.
Of a field that is a mapping, its entries too."""


def known_fields(model: Any) -> list[str]:
    """The fields of a settings' type as a file writes them."""
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        return []
    return [info.alias or name for name, info in model.model_fields.items()]


def field_hint(word: str, enclosing: Sequence[Any], path: str = "") -> str:
    """What an unknown field may stand for.

    ``enclosing`` are the types of the settings around it, the innermost last, and ``path`` is where that one stands.
    """
    model = enclosing[-1]
    fields = known_fields(model)
    for names in (_same_word(word, fields), _nested(word, model), _outside(word, enclosing, path)):
        if name := next(names, None):
            return f"did you mean '{name}'?"
    return did_you_mean(word, fields)


def _same_word(word: str, fields: Sequence[str]) -> Iterator[str]:
    """Fields that are called so elsewhere, or were written otherwise (``learningRate``, ``batch-size``)."""
    bare = _bare(word)
    yield from (name for name in fields if _bare(name) == bare)
    yield from (name for name in fields if bare in map(_bare, SYNONYMS.get(name, ())))
    entries = (name for name in SYNONYMS if "." in name and name.partition(".")[0] in fields)
    yield from (name for name in entries if bare in map(_bare, SYNONYMS[name]))


def _nested(word: str, model: Any) -> Iterator[str]:
    """The same in the settings that the fields of ``model`` hold: ``training.epochs``."""
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        return
    for name, info in model.model_fields.items():
        # Of a list or a mapping it is not clear which item is meant.
        inner = [part for part in types_in(info.annotation) if isinstance(part, type) and issubclass(part, BaseModel)]
        for part in inner if len(inner) == 1 else ():
            yield from (f"{info.alias or name}.{field}" for field in _same_word(word, known_fields(part)))


def _outside(word: str, enclosing: Sequence[Any], path: str) -> Iterator[str]:
    """The same in the settings around: ``loss`` within ``training``."""
    way = path.split(".")
    for level, model in enumerate(reversed(enclosing[:-1]), 1):
        for field in known_fields(model):
            if field == word and len(way) > level:
                yield ".".join((*way[:-level], field))


def _bare(word: str) -> str:
    return word.replace("_", "").replace("-", "").lower()
