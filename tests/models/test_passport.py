"""A model's passport, by the heads of its files alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cai.errors import PrerequisiteError
from cai.models.gguf_file import gguf_metadata
from cai.models.passport import passport_of
from cai.models.places import hub_snapshot, place_of_model
from tests.support.model_files import gguf_file, model_folder

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_what_a_folder_says_of_its_model(tmp_path: Path) -> None:
    tensors = {"model.embed_tokens.weight": ("BF16", [100, 64]), "model.layers.0.self_attn.q_proj.bias": ("F32", [64])}
    scaling = {"rope_type": "llama3", "factor": 8.0}
    folder = model_folder(tmp_path, tensors, model_type="qwen2", sliding_window=512, rope_scaling=scaling)
    passport = passport_of(folder)
    assert (passport.family, passport.activation, passport.rope) == ("qwen2", "silu", "llama3")
    assert (passport.context, passport.window, passport.vocabulary, passport.hidden) == (2048, 512, 100, 64)
    assert (passport.parameters, passport.biases, passport.tokenizer) == (6464, True, "fast")
    assert passport.heads_fit
    assert passport.training_bytes(full=True) == 4 * passport.training_bytes(full=False) == 16 * 6464


def test_what_a_gguf_file_says_of_its_model(tmp_path: Path) -> None:
    heads = {"attention.head_count": 4, "attention.head_count_kv": 2, "attention.key_length": 32}
    heads |= {"embedding_length": 64, "feed_forward_length": 96, "block_count": 2, "vocab_size": 100}
    passport = passport_of(gguf_file(tmp_path / "m.gguf", "qwen3", context_length=4096, **heads))
    assert (passport.family, passport.context, passport.tokenizer) == ("qwen3", 4096, "gguf")
    weights = 100 * 64 + 2 * (64 * 4 * 32 + 2 * 64 * 2 * 32 + 4 * 32 * 64 + 3 * 64 * 96)
    assert (passport.parameters, passport.heads_fit, passport.quantisation) == (weights, False, "")


def test_a_passport_is_read_again_when_the_files_change(tmp_path: Path) -> None:
    assert passport_of(model_folder(tmp_path)).family == "llama"
    assert passport_of(model_folder(tmp_path, model_type="gemma3")).family == "gemma3"


def test_a_passport_needs_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from cai.models.passport import passport_of; "
        f"passport_of(Path({str(model_folder(tmp_path))!r})); "
        "assert not {'torch', 'transformers', 'safetensors', 'numpy', 'gguf'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ})


@pytest.mark.parametrize(
    ("tensors", "config", "packed"),
    [
        ({"w.weight": ("BF16", [2, 2])}, {"quantization_config": {"quant_method": "gptq"}}, "gptq"),
        ({"w.weight": ("BF16", [2, 2])}, {"quantization_config": {"quant_method": "bitsandbytes"}}, "bitsandbytes"),
        ({"w.weight": ("BF16", [2, 2])}, {"compression_config": {}, "quantization_config": 7}, "a quantiser"),
        ({"w.weight": ("F8_E4M3", [2, 2])}, {}, "fp8"),
        ({"w.qweight": ("I32", [2, 2]), "w.qzeros": ("I32", [1])}, {}, "gptq or awq"),
        ({"w.weight": ("U8", [4, 1]), "w.weight.absmax": ("F32", [1])}, {}, "bitsandbytes"),
        ({"w.weight": ("I8", [2, 2])}, {}, "I8"),
        ({"w.weight": ("F16", [2, 2]), "w.inv_freq": ("I64", [1])}, {}, ""),
    ],
)
def test_packed_weights_are_known_by_what_the_files_say_or_hold(
    tmp_path: Path, tensors: dict[str, tuple[str, list[int]]], config: dict[str, object], packed: str
) -> None:
    passport = passport_of(model_folder(tmp_path, tensors, **config))
    assert passport.quantisation == packed
    message, todo = passport.unreadable()
    assert packed in message
    assert bool(todo) == bool(message) == bool(packed)


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({}, ""),
        ({"model_type": "mistral"}, ""),
        ({"hidden_act": "swish"}, ""),
        ({"model_type": "gemma3"}, "model type 'gemma3'"),
        ({"model_type": None}, "do not say of which type"),
        ({"hidden_act": "gelu"}, "activation 'gelu'"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope scaling 'dynamic'"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "rope scaling 'longrope'"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "a part of each head"),
        ({"partial_rotary_factor": 0.25}, "a part of each head"),
    ],
)
def test_what_the_embedded_engine_cannot_train(tmp_path: Path, config: dict[str, object], why: str) -> None:
    message, todo = passport_of(model_folder(tmp_path, **config)).untrainable()
    assert why in message
    assert bool(message) == bool(todo) == bool(why)


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({}, ""),
        ({"model_type": "qwen2"}, "no 'qwen2'"),
        ({"model_type": "mistral"}, "no 'mistral'"),
        ({"attention_bias": True}, "biases"),
        ({"hidden_act": "gelu"}, "activation"),
        ({"head_dim": 32}, "not as wide"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type is 'yarn'"),
    ],
)
def test_what_openvino_cannot_read(tmp_path: Path, config: dict[str, object], why: str) -> None:
    reason = passport_of(model_folder(tmp_path, **config)).unknown_to_openvino()
    assert why in reason
    assert bool(reason) == bool(why)


def test_a_damaged_head_is_named(tmp_path: Path) -> None:
    folder = model_folder(tmp_path)
    (folder / "model.safetensors").write_bytes((5).to_bytes(8, "little") + b"{nope")
    with pytest.raises(PrerequisiteError, match=r"model.safetensors: its header cannot be read"):
        passport_of(folder)
    (folder / "config.json").unlink()
    with pytest.raises(PrerequisiteError, match=r"has no config.json"):
        passport_of(folder)


@pytest.mark.parametrize("cut", range(8, 90, 7))
def test_a_gguf_head_that_ends_early_is_an_error(tmp_path: Path, cut: int) -> None:
    path = gguf_file(tmp_path / "m.gguf", context_length=128)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(PrerequisiteError, match=r"m\.gguf: "):
        gguf_metadata(path)


@pytest.mark.parametrize("place", [16, 24])
def test_a_gguf_head_that_counts_without_bound_is_an_error(tmp_path: Path, place: int) -> None:
    path = gguf_file(tmp_path / "m.gguf", context_length=128)
    raw = path.read_bytes()
    path.write_bytes(raw[:place] + b"\xff" * 8 + raw[place + 8 :])
    with pytest.raises(PrerequisiteError, match="damaged GGUF metadata"):
        gguf_metadata(path)


def test_a_gguf_head_of_nested_lists_is_bounded(tmp_path: Path) -> None:
    name = b"\x01\x00\x00\x00\x00\x00\x00\x00a"
    nested = b"\x09\x00\x00\x00" + b"\x09\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00" * 5000
    (tmp_path / "m.gguf").write_bytes(
        b"GGUF\x03\x00\x00\x00" + (0).to_bytes(8, "little") + (1).to_bytes(8, "little") + name + nested
    )
    with pytest.raises(PrerequisiteError, match="lists in one another"):
        gguf_metadata(tmp_path / "m.gguf")


def test_where_a_model_lies_already(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAI_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    folder, file = model_folder(tmp_path / "own"), gguf_file(tmp_path / "m.gguf")
    assert place_of_model(f"hf:{folder}") == folder
    assert place_of_model("hf:own") == folder.relative_to(tmp_path) or place_of_model("hf:own") == folder
    assert place_of_model(f"gguf:{file}") == file
    assert place_of_model("gguf:absent.gguf") is None
    assert place_of_model("pypi:p==1/x.gguf", sha256="ab" * 32) is None
    (tmp_path / "home/models").mkdir(parents=True)
    cached = gguf_file(tmp_path / "home/models" / ("ab" * 32))
    assert place_of_model("pypi:p==1/x.gguf", sha256="ab" * 32) == cached
    snapshot = model_folder(tmp_path / "hub/models--org--name/snapshots" / COMMIT)
    refs = tmp_path / "hub/models--org--name/refs"
    refs.mkdir()
    (refs / "main").write_text(COMMIT)
    assert hub_snapshot("org/name", COMMIT) == hub_snapshot("org/name", "main") == snapshot
    assert hub_snapshot("org/name", "other") is None
    assert hub_snapshot("../name", COMMIT) is None
    assert hub_snapshot("org/name", "../../x") is None
    assert json.loads((snapshot / "config.json").read_text())["model_type"] == "llama"
