"""Overrides against upstream's configs: small ones written here, and the real ones where CAI_UPSTREAM names them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf

from cai.engines.nemo_aligner import upstream
from cai.engines.nemo_aligner.overrides import Env, Override
from cai.engines.nemo_aligner.settings import NemoAlignerSettings
from cai.engines.nemo_aligner.upstream import UNKNOWN, Effective, check_override
from cai.engines.nemo_aligner.upstream_types import expected

SMALL = """
defaults:
  - optional nothing@model.nothing:
  - _self_
trainer:
  devices: 8
  precision: bf16
  ppo:
    port: 5556
    max_steps: ${multiply:${trainer.devices}, 2}
    inference_micro_batch_size: ${model.micro_batch_size}
    trt: {enable: false}
model:
  restore_from_path: ???
  micro_batch_size: 2
  forward_micro_batch_size: ${.micro_batch_size}
  trt: ${trainer.ppo.trt}
  amp: true
  activations_checkpoint_method: null
  data: {data_prefix: null}
  optim: {name: adam, lr: 3e-5, betas: [0.9, 0.98]}
  from_checkpoint: ${multiply:${model.tensor_model_parallel_size}, 2}
"""
NAMES = (
    "gpt_sft.yaml",
    "training_rm.yaml",
    "gpt_ppo_actor.yaml",
    "gpt_ppo_critic.yaml",
    "megatron_gpt_inference.yaml",
)


@pytest.fixture
def small(tmp_path) -> DictConfig:
    (tmp_path / "small.yaml").write_text(SMALL)
    found = upstream.find(NemoAlignerSettings(upstream=str(tmp_path)), ["small.yaml"])
    assert found.missing == ()
    assert found.problems == ()
    return found.files["small.yaml"]


@pytest.fixture
def real() -> dict[str, DictConfig]:
    if not os.environ.get("CAI_UPSTREAM"):
        pytest.skip("CAI_UPSTREAM names no folder with upstream's configs")
    found = upstream.find(NemoAlignerSettings(), NAMES)
    assert found.missing == ()
    return dict(found.files)


RIGHT = [
    Override("trainer.devices", 4),
    Override("trainer.ppo.max_steps", 4),
    Override("trainer.ppo.inference_micro_batch_size", 4),
    Override("trainer.ppo.inference_micro_batch_size", [4, 8]),
    Override("trainer.precision", 32),
    Override("trainer.precision", "bf16-mixed"),
    Override("model.restore_from_path", "/m.nemo"),
    Override("model.restore_from_path", Env("HOST")),
    Override("model.optim.lr", 1),
    Override("model.optim.lr", 1e-6),
    Override("model.optim.betas", [0, 0.95]),
    Override("model.activations_checkpoint_method", "uniform"),
    Override("model.activations_checkpoint_method", None),
    Override("model.data.data_prefix", {"train": ["a"], "validation": ["b"]}),
    Override("model.data.data_prefix", ["a", "b"]),
    Override("model.activations_checkpoint_granularity", "full", add=True),
    Override("model.new", "anything", add=True),
    Override("new.section.key", 3, add=True),
    Override("model.optim", {"lr": 0.1}),
    Override("hydra.run.dir", "here"),
]

WRONG = [
    (Override("model.foo", 1), "has no model.foo", "write '++model.foo' to add it"),
    (Override("model.micro_batch", 1), "has no model.micro_batch", "did you mean 'model.micro_batch_size'?"),
    (Override("modle.amp", True), "has no modle.amp", "did you mean 'model'?"),
    (Override("model.amp", False, add=True), "'++' is not needed", "write 'model.amp'"),
    (Override("model.micro_batch_size", "banana"), "cannot be banana", "give a whole number"),
    (Override("model.micro_batch_size", "8"), "cannot be '8'", "give a whole number"),
    (Override("model.micro_batch_size", 1.5), "cannot be 1.5", "give a whole number"),
    (Override("model.micro_batch_size", True), "cannot be True", "give a whole number"),
    (Override("model.micro_batch_size", None), "cannot be null", "give a whole number"),
    (Override("model.forward_micro_batch_size", "x"), "cannot be x", "give a whole number"),
    (Override("trainer.ppo.max_steps", 0.5), "cannot be 0.5", "give a whole number"),
    (Override("model.amp", 1), "cannot be 1", "give true or false"),
    (Override("model.optim.lr", "fast"), "cannot be fast", "give a number"),
    (Override("model.optim.lr", True), "cannot be True", "give a number"),
    (Override("model.optim.betas", [0.9, "x"]), "cannot be [0.9,x]", "give a list of numbers"),
    (Override("model.optim.betas", 0.9), "cannot be 0.9", "give a list of numbers"),
    (Override("model.restore_from_path", 3), "cannot be 3", "give a text"),
    (Override("trainer.precision", "half"), "cannot be half", "bf16-mixed"),
    (Override("trainer.precision", True), "cannot be True", "bf16-mixed"),
    (Override("model.activations_checkpoint_method", "some"), "cannot be some", "uniform, block or null"),
    (
        Override("model.activations_checkpoint_granularity", "half", add=True),
        "cannot be half",
        "selective, full or null",
    ),
    (Override("model.tensor_model_parallel_size", "2", add=True), "cannot be '2'", "give a whole number"),
    (Override("model.optim", 3), "is a section", "set a key of it: name, lr, betas"),
    (Override("model.optim", {"rate": 3}), "has no model.optim.rate", "'++model.optim.rate'"),
    (Override("model.optim.lr.x", 3), "model.optim.lr is a value", "write 'model.optim.lr=...'"),
    (Override("model.optim.lr.x", 3, add=True), "model.optim.lr is a value", "write 'model.optim.lr=...'"),
    (Override("model.amp", {"a": 1}), "is a value", "give true or false"),
    (Override("model.trt.enable", True), "a reference to trainer.ppo.trt", "write 'trainer.ppo.trt.enable'"),
    (Override("+model.foo", 1), "is no key", "'++KEY' to add one"),
    (Override("model..foo", 1), "is no key", ""),
]


@pytest.mark.parametrize("override", RIGHT, ids=Override.text)
def test_a_right_override_passes(small, override):
    assert check_override(small, "small.yaml", override) is None


@pytest.mark.parametrize(("override", "what", "following"), WRONG, ids=[o.text() for o, _, _ in WRONG])
def test_a_wrong_override_says_what_and_what_next(small, override, what, following):
    found = check_override(small, "small.yaml", override)
    assert found is not None
    assert what in found[0]
    assert following in found[1]


def test_the_keys_it_refuses_are_those_that_hydra_refuses(small, tmp_path):
    """Types aside, which Hydra does not look at, and ``++``, which it always takes."""
    (tmp_path / "small.yaml").write_text(SMALL)
    keys = ["model.foo", "model.optim.lr", "model.optim.lrr", "trainer.ppo.port", "new", "model.trt.enable"]
    keys += [
        "model.restore_from_path",
        "model.data.data_prefix.train",
        "model.forward_micro_batch_size",
        "model.optim.lr.x",
    ]
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        for key in keys:
            word = f"{key}=1"
            try:
                compose("small", [word])
                accepted = True
            except HydraException:
                accepted = False
            found = check_override(small, "small.yaml", Override(key, 1))
            ours = found is None or "cannot be" in found[0]
            assert ours == accepted, (key, found)


def test_a_config_is_looked_for_below_the_folder_where_upstream_keeps_it(tmp_path, monkeypatch):
    monkeypatch.delenv("CAI_UPSTREAM", raising=False)
    for place, port in (("build/old", 1), ("repo/examples/nlp/gpt/conf", 2), (".git/examples/nlp/gpt/conf", 3)):
        folder = tmp_path / place
        folder.mkdir(parents=True)
        (folder / "small.yaml").write_text(f"port: {port}\n")
    found = upstream.find(NemoAlignerSettings(upstream=str(tmp_path)), ["small.yaml"])
    assert found.files["small.yaml"].port == 2
    installed = upstream.find(NemoAlignerSettings(aligner=str(tmp_path), nemo=str(tmp_path / "no")), ["small.yaml"])
    assert installed.files["small.yaml"].port == 2


def test_the_variable_is_used_where_the_setting_is_empty(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / "small.yaml").write_text("port: 1\n")
    (tmp_path / "b" / "small.yaml").write_text("port: 2\n")
    monkeypatch.setenv("CAI_UPSTREAM", str(tmp_path / "a"))
    assert upstream.find(NemoAlignerSettings(), ["small.yaml"]).files["small.yaml"].port == 1
    named = NemoAlignerSettings(upstream=str(tmp_path / "b"))
    assert upstream.find(named, ["small.yaml"]).files["small.yaml"].port == 2


def test_a_folder_that_is_not_there_or_lacks_a_file_is_a_problem(tmp_path, monkeypatch):
    monkeypatch.setenv("CAI_UPSTREAM", str(tmp_path / "none"))
    (problem,) = upstream.find(NemoAlignerSettings(), ["small.yaml"]).problems
    assert problem[0] == "CAI_UPSTREAM"
    assert "no folder" in problem[1]
    (problem,) = upstream.find(NemoAlignerSettings(upstream=str(tmp_path)), ["small.yaml"]).problems
    assert problem[0] == "engine.upstream"
    assert "holds no small.yaml" in problem[1]


@pytest.mark.parametrize("text", ["a: [1, 2\n", "- 1\n", "a: 1\na: {\n"])
def test_a_file_that_is_no_config_is_a_problem_not_a_crash(tmp_path, text):
    (tmp_path / "small.yaml").write_text(text)
    found = upstream.find(NemoAlignerSettings(upstream=str(tmp_path)), ["small.yaml"])
    assert found.files == {}
    assert "small.yaml" in found.problems[0][1]


def test_nothing_installed_is_no_problem(tmp_path, monkeypatch):
    monkeypatch.delenv("CAI_UPSTREAM", raising=False)
    settings = NemoAlignerSettings(aligner=str(tmp_path / "a"), nemo=str(tmp_path / "b"))
    found = upstream.find(settings, ["small.yaml"])
    assert found.problems == ()
    assert found.missing == ("small.yaml",)


def test_effective_values_are_resolved_with_the_overrides_in(small):
    values = Effective([Override("trainer.devices", 4), Override("model.micro_batch_size", 8)], small)
    assert values("trainer.ppo.max_steps") == 8
    assert values("model.forward_micro_batch_size") == 8
    assert values.whole("trainer.ppo.port") == 5556
    assert values("model.from_checkpoint") is UNKNOWN
    assert values("model.restore_from_path") is UNKNOWN
    assert values.number("model.optim.lr") == 3e-5
    assert values("trainer.ppo.inference_micro_batch_size") == 8
    assert values("trainer.ppo.nothing") is UNKNOWN
    assert small.trainer.devices == 8
    assert Effective([Override("model.data.data_prefix", {"train": ["a"]})], small)("model.data.data_prefix.train") == [
        "a"
    ]
    alone = Effective([Override("trainer.devices", 4)])
    assert alone("trainer.devices") == 4
    assert alone("trainer.ppo.port") is UNKNOWN


# ---- upstream's own files --------------------------------------------------------------------------------------------


def leaves(node: DictConfig | ListConfig, path: str = "") -> list[str]:
    if isinstance(node, ListConfig):
        return [path]
    found: list[str] = []
    for key in node:
        inner = node._get_node(key)
        full = f"{path}.{key}" if path else str(key)
        section = isinstance(inner, DictConfig) and not inner._is_none() and not inner._is_interpolation()
        found += leaves(inner, full) if section else [full]
    return found


@pytest.mark.parametrize("name", NAMES)
def test_every_value_that_upstream_ships_is_one_that_we_accept(real, name):
    """A kind in the table that is too narrow would refuse what upstream itself uses."""
    config = real[name]
    keys = leaves(config)
    assert len(keys) > 20
    for key in keys:
        value = upstream._value(config, key)
        # null there means that one must be given
        if key == "pretrained_checkpoint.restore_from_path" or value is UNKNOWN or isinstance(value, DictConfig):
            continue
        plain = OmegaConf.to_container(value) if isinstance(value, ListConfig) else value
        assert check_override(config, name, Override(key, plain)) is None, key
        wanted = expected(key, plain)
        if wanted is not None and plain is not None:
            assert wanted.wrong(plain) == "", key


def test_what_the_checkpoint_decides_needs_two_pluses_in_the_right_files(real):
    granularity = "model.activations_checkpoint_granularity"
    for name, key, add in (
        ("gpt_sft.yaml", granularity, False),
        ("training_rm.yaml", granularity, True),
        ("gpt_ppo_actor.yaml", granularity, True),
        ("gpt_ppo_critic.yaml", granularity, True),
        ("gpt_sft.yaml", "model.sequence_parallel", False),
        ("gpt_ppo_actor.yaml", "model.sequence_parallel", False),
        ("training_rm.yaml", "model.sequence_parallel", True),
        ("gpt_ppo_critic.yaml", "model.tensor_model_parallel_size", True),
    ):
        value = "full" if key == granularity else True if key.endswith("parallel") else 2
        assert check_override(real[name], name, Override(key, value, add)) is None
        assert check_override(real[name], name, Override(key, value, not add)) is not None


def test_the_search_does_not_leave_the_folder_tree_unbounded(tmp_path):
    deep = tmp_path.joinpath(*(["d"] * (upstream.DEPTH + 2)))
    deep.mkdir(parents=True)
    (deep / "small.yaml").write_text("a: 1\n")
    assert upstream.find(NemoAlignerSettings(upstream=str(tmp_path)), ["small.yaml"]).missing == ("small.yaml",)


def test_the_folder_may_be_written_with_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    Path(tmp_path / "up").mkdir()
    (tmp_path / "up" / "small.yaml").write_text("a: 1\n")
    assert upstream.find(NemoAlignerSettings(upstream="~/up"), ["small.yaml"]).files["small.yaml"].a == 1
