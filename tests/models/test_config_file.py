"""What a model's folder may say to a loader. The folders are real ones, changed as a stranger would."""

from __future__ import annotations

import json
import struct

import pytest
import torch

from cai.cli import main
from cai.engines.base import ModelSource
from cai.engines.embedded.model_sources import fetch
from cai.engines.embedded.models import load_config, load_model, load_tokenizer
from cai.engines.embedded.trunk import Trunk
from cai.errors import PrerequisiteError, SpecError
from cai.models.config_file import checked_config


@pytest.fixture
def folder(tmp_path, tiny_model):
    """A copy of a model that can be loaded."""
    copy = tmp_path / "model"
    copy.mkdir()
    for file in tiny_model.iterdir():
        if file.is_file():
            (copy / file.name).write_bytes(file.read_bytes())
    return copy


def edit(folder, name="config.json", **fields):
    path = folder / name
    data = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**data, **fields}))


class Quiet:
    def note(self, event, **data):
        pass


LOADERS = {
    "fetch": lambda folder: fetch(ModelSource(f"hf:{folder}", "", ""), folder.parent / "out", Quiet()),
    "model": load_model,
    "training": lambda folder: Trunk(folder, "float32", "cpu"),
}


@pytest.mark.parametrize("loader", ["model", "training"])
def test_the_attention_is_the_programs_choice(folder, loader):
    edit(folder, _attn_implementation="evil/repo:x", attn_implementation="evil/repo:x")
    LOADERS[loader](folder)
    assert load_config(folder)._attn_implementation != "evil/repo:x"
    assert load_model(folder).config._attn_implementation == "sdpa"


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"auto_map": {"AutoConfig": "configuration_x.X"}}, "auto_map"),
        ({"auto_map": {"AutoModelForCausalLM": "evil/repo--modeling.X"}}, "auto_map"),
        ({"custom_generate": "evil/repo"}, "code of its own"),
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, "quantised"),
        ({"num_hidden_layers": 10**12}, "num_hidden_layers is '1000000000000'"),
        ({"num_hidden_layers": True}, "num_hidden_layers is 'True'"),
        ({"hidden_size": -1}, "hidden_size"),
        ({"vocab_size": "300"}, "vocab_size"),
        ({"model_type": None}, "model_type"),
    ],
)
def test_what_would_choose_code_or_take_all_memory_is_refused(folder, loader, fields, told):
    edit(folder, **fields)
    with pytest.raises(PrerequisiteError, match=told):
        LOADERS[loader](folder)


@pytest.mark.parametrize("loader", ["model", "training"])
@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"hidden_act": "os.system"}, "no activation 'os.system'"),
        ({"hidden_act": ["silu"]}, "no activation"),
        ({"model_type": "evil"}, "no model type 'evil'"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": "much"}}, "config.json"),
    ],
)
def test_what_transformers_does_not_know_is_told(folder, loader, fields, told):
    edit(folder, **fields)
    with pytest.raises(PrerequisiteError, match=told):
        LOADERS[loader](folder)


def test_an_activation_that_is_not_the_trainers_own_is_not_trained(folder):
    edit(folder, hidden_act="gelu")
    load_model(folder)
    with pytest.raises(SpecError, match="activation 'gelu' cannot be trained by the embedded engine"):
        Trunk(folder, "float32", "cpu")


@pytest.mark.parametrize("name", ["tokenizer_config.json", "generation_config.json"])
def test_a_tokenizer_brings_no_code_either(folder, name):
    edit(folder, name, auto_map={"AutoTokenizer": ["tokenization_x.X", None]})
    for load in (load_tokenizer, LOADERS["fetch"]):
        with pytest.raises(PrerequisiteError, match="auto_map"):
            load(folder)


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("length", [2**63, 2**40, 33 * 2**20])
def test_the_header_of_the_weights_is_bounded(folder, loader, length):
    (weights,) = folder.glob("*.safetensors")
    weights.write_bytes(struct.pack("<Q", length) + weights.read_bytes()[8:])
    with pytest.raises(PrerequisiteError, match="its header cannot be"):
        LOADERS[loader](folder)


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, "null"])
@pytest.mark.parametrize("loader", LOADERS)
def test_a_broken_configuration_is_told(folder, loader, text):
    (folder / "config.json").write_text(text)
    with pytest.raises(PrerequisiteError, match=r"config\.json"):
        LOADERS[loader](folder)


@pytest.mark.parametrize("loader", ["fetch", "model"])
def test_pickles_are_not_read(folder, loader):
    class Planted:
        def __reduce__(self):
            return (open, (str(folder / "ran"), "w"))

    (weights,) = folder.glob("*.safetensors")
    weights.unlink()
    torch.save({"model.norm.weight": Planted()}, folder / "pytorch_model.bin")
    with pytest.raises((PrerequisiteError, OSError)):
        LOADERS[loader](folder)
    assert not (folder / "ran").exists()


def test_parts_of_a_model_choose_no_code_either(folder):
    edit(folder, text_config={"_attn_implementation": "evil/repo:x", "hidden_size": 8})
    assert checked_config(folder)["text_config"] == {"hidden_size": 8}


def test_what_is_downloaded_for_other_loaders_is_looked_at_too(folder, monkeypatch):
    import huggingface_hub

    edit(folder, auto_map={"AutoConfig": "x.X"})
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **more: str(folder))
    assert main(["download", f"hf:org/model@{'a' * 40}", "--to", str(folder)]) == 2
