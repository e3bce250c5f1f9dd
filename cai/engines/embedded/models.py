"""Model folders on disk: where caches live, how a folder becomes a torch model and a tokenizer, and what it weighs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cai.errors import PrerequisiteError
from cai.identity import file_digest, parse_json
from cai.models.config_file import check_model, check_tokenizer, check_weights, checked_config

# What makes a folder a model: weights, configuration, tokenizer. Pickled weights (*.bin, *.pt) can run code: refused.
MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "model.safetensors.index.json",
    "tokenizer*.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
)


def model_files(folder: Path) -> list[Path]:
    """The files of ``MODEL_FILES`` that are in the folder, sorted by name, each once."""
    return sorted({path for pattern in MODEL_FILES for path in folder.glob(pattern) if path.is_file()})


def folder_digest(folder: Path, pattern: str = "*") -> str:
    """SHA-256 over the names and digests of the folder's model files that match ``pattern``; 64 hexadecimal digits."""
    lines = [f"{file_digest(path)}  {path.name}\n" for path in model_files(folder) if path.match(pattern)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def check_folder(folder: Path, source: str) -> None:
    """Make sure that a folder holds a model that can be loaded without running foreign code.

    Raises:
        PrerequisiteError: naming what is missing, or what would choose code (``model_config``).
    """
    if not folder.is_dir():
        raise PrerequisiteError(f"{source}: {folder} is no folder; name a Hugging Face model folder")
    names = {path.name for path in model_files(folder)}
    missing = [name for name in ("config.json",) if name not in names]
    missing += [] if any(n.endswith(".safetensors") for n in names) else ["*.safetensors"]
    missing += [] if names & {"tokenizer.json", "tokenizer.model", "vocab.json"} else ["tokenizer.json"]
    if missing:
        raise PrerequisiteError(
            f"{source}: {folder} has no {', '.join(missing)}; save the model with save_pretrained(safe_serialization)"
        )
    check_model(folder)


def load_config(folder: Path) -> Any:
    """The folder's configuration as transformers has it, by transformers' own class for its ``model_type``.

    Raises:
        PrerequisiteError: as ``checked_config``, and for a model or an activation that transformers does not know.
    """
    from transformers import CONFIG_MAPPING
    from transformers.activations import ACT2CLS

    fields = checked_config(folder)
    kind, activation = fields["model_type"], fields.get("hidden_act", "silu")
    if not isinstance(activation, str) or activation not in ACT2CLS:
        raise PrerequisiteError(
            f"{folder}: transformers has no activation {str(activation)[:40]!r}; take another model"
        )
    if kind not in CONFIG_MAPPING:
        raise PrerequisiteError(f"{folder}: transformers knows no model type {kind[:40]!r}; update it, or take another")
    try:
        return CONFIG_MAPPING[kind].from_dict(fields)
    except Exception as error:  # each class checks its fields with errors of its own
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise PrerequisiteError(f"{folder}/config.json: {reason}; get the model's files again") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' progress bars and advice off the terminal; errors still show."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def load_tokenizer(folder: Path) -> Any:
    """The folder's fast tokenizer, with a padding token (the end token where it has none of its own)."""
    from transformers import AutoTokenizer

    check_tokenizer(folder)
    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(
            str(folder), config=load_config(folder), local_files_only=True, trust_remote_code=False
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(folder: Path, dtype: str = "float32", device: str = "cpu") -> Any:
    """The folder's causal language model in evaluation mode, attention by scaled_dot_product_attention."""
    import torch
    from transformers import AutoModelForCausalLM

    check_weights(folder)
    with quiet():
        model = AutoModelForCausalLM.from_pretrained(
            str(folder),
            config=load_config(folder),
            dtype=getattr(torch, dtype),
            attn_implementation="sdpa",
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
        )
    return model.to(device).eval()


def encode(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of rendered texts: control tokens are read as such, and nothing is added before or after."""
    if not texts:
        return []
    ids: list[list[int]] = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    return ids


def encode_after(tokenizer: Any, before: Sequence[str], texts: Sequence[str]) -> list[list[int]]:
    """Token ids of texts that follow others: as in the whole, where SentencePiece puts no space before them.

    A tokenizer of that kind writes a space before a text that it is given by itself, so an answer that is tokenised
    apart would not have the tokens that were trained in the midst of a conversation. Others are asked as ``encode``.
    """
    if not texts or not puts_a_space(tokenizer):
        return encode(tokenizer, texts)
    special = sorted(map(str, tokenizer.added_tokens_encoder), key=len, reverse=True)
    leads = [next((word for word in special if word and text.endswith(word)), _LEAD) if text else "" for text in before]
    heads = dict(zip(dict.fromkeys(leads), encode(tokenizer, list(dict.fromkeys(leads))), strict=True))
    wholes = encode(tokenizer, [lead + text for lead, text in zip(leads, texts, strict=True)])
    return [whole[len(heads[lead]) :] for lead, whole in zip(leads, wholes, strict=True)]


def decode_after(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of tokens that follow others, control tokens and the space before it included: ``encode_after``'s."""
    if not puts_a_space(tokenizer):
        text: str = tokenizer.decode(list(ids), skip_special_tokens=False)
        return text
    [head] = encode(tokenizer, [_LEAD])
    whole: str = tokenizer.decode([*head, *ids], skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return whole.removeprefix(tokenizer.decode(head, skip_special_tokens=False, clean_up_tokenization_spaces=False))


_LEAD = "\n"
"""Stands for what a text follows; nothing is ever joined with a line's end in these vocabularies."""


def puts_a_space(tokenizer: Any) -> bool:
    """Whether the tokenizer puts a space before a text that is given by itself."""
    lead, word, both = encode(tokenizer, [_LEAD, "x", f"{_LEAD}x"])
    return both != [*lead, *word] and both[: len(lead)] == lead


def decode(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of token ids, control tokens left out, spaces as they are."""
    text: str = tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text


def context_length(folder: Path) -> int:
    """The tokens that a model can read at once, as its config says; 0 where it does not."""
    path = folder / "config.json"
    value = parse_json(path.read_text(encoding="utf-8")).get("max_position_embeddings") if path.exists() else None
    return value if isinstance(value, int) and value > 0 else 0


def end_tokens(folder: Path, tokenizer: Any) -> tuple[int, ...]:
    """Every token that ends an answer, from generation_config.json, config.json and the tokenizer."""
    end_ids: list[int] = []
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        value = parse_json(path.read_text(encoding="utf-8")).get("eos_token_id") if path.exists() else None
        end_ids += value if isinstance(value, list) else [value] if value is not None else []
    if tokenizer.eos_token_id is not None:
        end_ids.append(tokenizer.eos_token_id)
    return tuple(dict.fromkeys(int(token) for token in end_ids))


def shared_prefix(prompts: Sequence[Sequence[int]], least: int = 16) -> int:
    """How many tokens all prompts begin with, short of the shortest's last; 0 where fewer than ``least``."""
    if len(prompts) < 2:
        return 0
    # Whatever the smallest and the largest in sorted order share, all between them share too.
    ordered = sorted(list(prompt) for prompt in prompts)
    low, high = ordered[0], ordered[-1]
    limit = min(len(prompt) for prompt in prompts) - 1
    count = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), limit)
    return min(count, limit) if min(count, limit) >= least else 0


def prefix_groups(prompts: Sequence[Sequence[int]], least: int = 64) -> list[list[int]]:
    """Indices of prompts that begin alike, for at least ``least`` tokens and half of each prompt; a partition.

    Decided by the prompts alone, whatever their order; indices ascend within a group, groups by their first one.
    """
    order = sorted(range(len(prompts)), key=lambda i: (list(prompts[i]), i))
    groups: list[list[int]] = []
    for i in order:
        # In sorted order, what a prompt shares with the group's first one only shrinks.
        if groups and _common(prompts[groups[-1][0]], prompts[i]) >= max(least, len(prompts[i]) // 2):
            groups[-1].append(i)
        else:
            groups.append([i])
    return sorted(sorted(group) for group in groups)


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    limit = min(len(first), len(second))
    return next((i for i in range(limit) if first[i] != second[i]), limit)
