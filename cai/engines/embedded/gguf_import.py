"""GGUF to a Hugging Face folder: weights unpacked to float32, the tokenizer rebuilt and checked.

transformers reads the tensors and the tokenizer; it does not read which pre-tokenizer the vocabulary was made with
(``tokenizer.ggml.pre``), so that is put right here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from cai.engines.embedded.models import encode, quiet
from cai.errors import PrerequisiteError
from cai.models.gguf_file import gguf_metadata

_PROBE = "<s> Hello,  world!\n\n12 eggs cost $3.50; naïve café\t\U0001f642 don't  stop\n 7\n"


def gguf_to_folder(path: Path, dest: Path) -> dict[str, Any]:
    """Write the model of a GGUF file to ``dest`` as float32 safetensors with tokenizer and configurations.

    Returns:
        licence and name as the file states them.

    Raises:
        PrerequisiteError: the file is no GGUF, or one that transformers cannot read.
    """
    metadata = gguf_metadata(path)
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GgufConfig

    load_arguments = {
        "pretrained_model_name_or_path": str(path.parent),
        "gguf_file": path.name,
        "local_files_only": True,
        "trust_remote_code": False,
    }
    with quiet(), _no_bar():
        try:
            tokenizer = AutoTokenizer.from_pretrained(**load_arguments)
            unpack = GgufConfig(dequantize=True)
            model = AutoModelForCausalLM.from_pretrained(
                **load_arguments, dtype=torch.float32, quantization_config=unpack
            )
        except (ValueError, KeyError, NotImplementedError, OSError) as error:
            raise PrerequisiteError(
                f"{path}: transformers cannot read this GGUF ({error}); give the model as a Hugging Face folder"
            ) from error
        _put_right(tokenizer, metadata)
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        # The end and padding tokens only: sampling belongs to the experiment, never to a model's folder.
        ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
        model.generation_config = GenerationConfig(bos_token_id=tokenizer.bos_token_id, **ends)
        model.config.eos_token_id = tokenizer.eos_token_id
        model.config.pad_token_id = tokenizer.pad_token_id
        model.save_pretrained(dest)
        tokenizer.save_pretrained(dest)
    _check_tokenizer(path, tokenizer)
    return {"licence": str(metadata.get("general.license", "")), "name": str(metadata.get("general.name", ""))}


@contextmanager
def _no_bar() -> Iterator[None]:
    """Switch off the bar of the unpacking, which transformers draws whatever its own setting says."""
    from transformers import modeling_gguf_pytorch_utils as unpacking

    bar = unpacking.tqdm
    unpacking.tqdm = partial(bar, disable=True)
    try:
        yield
    finally:
        unpacking.tqdm = bar


def _put_right(tokenizer: Any, metadata: dict[str, Any]) -> None:
    """Restore what the conversion loses: the pre-tokenizer, and a padding token."""
    from tokenizers import pre_tokenizers

    if metadata.get("tokenizer.ggml.pre") == "smollm":
        # Digits stand alone before words are split, so that "\n\n7" is "\n\n", "7" and not "\n", "\n", "7".
        digits, words = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token


def _check_tokenizer(path: Path, tokenizer: Any) -> None:
    if tokenizer.eos_token_id is None:
        raise PrerequisiteError(f"{path}: the tokenizer has no end token; such a model never ends an answer")
    ids = encode(tokenizer, [_PROBE])[0]
    back = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    if back != _PROBE:
        raise PrerequisiteError(f"{path}: its tokenizer does not give text back: {_PROBE!r} became {back!r}")
