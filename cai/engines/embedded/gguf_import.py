"""GGUF to a Hugging Face folder: weights unpacked to float32, the tokenizer rebuilt and checked.

transformers reads the tensors and the tokenizer; it does not read which pre-tokenizer the vocabulary was made with
(``tokenizer.ggml.pre``), so that is put right here.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any

from cai.engines.embedded.models import encode, quiet
from cai.errors import PrerequisiteError

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_PROBE = "<s> Hello,  world!\n\n12 eggs cost $3.50; naïve café\t\U0001f642 don't  stop\n 7\n"


def gguf_metadata(path: Path) -> dict[str, Any]:
    """The scalar metadata of a GGUF file; arrays (vocabulary, merges) are skipped, so this is quick.

    Raises:
        PrerequisiteError: when the file is no GGUF of version 2 or 3.
    """
    with path.open("rb") as file:
        head = file.read(24)
        if len(head) < 24 or head[:4] != b"GGUF" or struct.unpack("<I", head[4:8])[0] not in (2, 3):
            raise PrerequisiteError(f"{path}: no GGUF file of version 2 or 3; its first bytes are {head[:8]!r}")
        try:
            return _fields(file, struct.unpack("<Q", head[16:24])[0])
        except (struct.error, KeyError, UnicodeDecodeError) as error:
            raise PrerequisiteError(f"{path}: damaged GGUF metadata ({error}); fetch the file again") from error


def _fields(file: IO[bytes], count: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for _ in range(count):
        name = _string(file)
        value = _value(file, _number(file, "<I"))
        if value is not None:
            metadata[name] = value
    return metadata


def _number(file: IO[bytes], form: str) -> Any:
    return struct.unpack(form, file.read(struct.calcsize(form)))[0]


def _string(file: IO[bytes]) -> str:
    return file.read(_number(file, "<Q")).decode("utf-8")


def _value(file: IO[bytes], kind: int) -> Any:
    if kind == _STRING:
        return _string(file)
    if kind != _ARRAY:
        return _number(file, _SCALARS[kind])
    inner, count = _number(file, "<I"), _number(file, "<Q")
    if inner in _SCALARS:
        file.seek(count * struct.calcsize(_SCALARS[inner]), 1)
    else:
        for _ in range(count):
            if inner == _STRING:
                file.seek(_number(file, "<Q"), 1)
            else:
                _value(file, inner)
    return None


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
