"""Estimates of a GPU's memory: their parts, how they shrink, and what is guessed where little is known."""

from __future__ import annotations

import pytest

from cai.engines.nemo_aligner import memory
from cai.engines.nemo_aligner.settings import Checkpointing, ServerLayout, StepLayout


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("hf:mistralai/Mistral-7B-v0.1", 7e9),
        ("hf:org/SmolLM2-135M-Instruct", 135e6),
        ("hf:org/Llama-3.2-1.5b", 1.5e9),
        ("hf:mistralai/Mixtral-8x7B-Instruct-v0.1", 47.2e9),
        ("hf:/models/checkpoint", 0.0),
        ("hf:org/gpt2", 0.0),
    ],
)
def test_parameters_are_guessed_from_a_name(name, parameters):
    assert memory.parameters_of(name) == pytest.approx(parameters, rel=0.01)


def test_a_config_says_exactly_how_large_a_llama_is():
    mistral = {
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 14336,
        "vocab_size": 32000,
    }
    assert memory.counted(mistral) == 7_241_732_096
    assert memory.counted({}) == 0


def test_the_certain_part_is_16_bytes_a_parameter_on_one_gpu_and_shards_over_ranks():
    one = memory.estimate("sft", 1e9, StepLayout(), devices=1, micro=1, length=1024)
    assert one.sure == pytest.approx(16e9)
    eight = memory.estimate("sft", 1e9, StepLayout(), devices=8, micro=1, length=1024)
    assert eight.sure == pytest.approx(4e9 + 12e9 / 8)
    split = memory.estimate("sft", 1e9, StepLayout(tensor_parallel=8), devices=8, micro=1, length=1024)
    assert split.sure == pytest.approx(2e9)
    assert memory.estimate("sft", 1e9, StepLayout(), devices=1, micro=1, length=1024, fp32=True).sure == pytest.approx(
        16e9
    )


def test_recomputation_and_sequence_parallel_shrink_activations():
    shape = memory.shape_of(7e9)
    plain, tensor = StepLayout(), StepLayout(tensor_parallel=4)
    full = StepLayout(activation_checkpointing=Checkpointing.FULL)
    whole = memory.activations(shape, plain, 1, 4096)
    assert memory.activations(shape, full, 1, 4096) < whole / 8
    both = StepLayout(tensor_parallel=4, sequence_parallel=True)
    assert memory.activations(shape, both, 1, 4096) == pytest.approx(whole / 4)
    assert whole / 4 < memory.activations(shape, tensor, 1, 4096) < whole
    assert memory.activations(shape, plain, 2, 4096) == pytest.approx(2 * whole)


def test_a_server_s_cache_is_that_of_its_key_value_heads():
    shape = memory.Shape(7.24e9, 32, 4096, 32, 8, exact=True)
    # Mistral-7B: 2 x 32 layers x 8 groups x 128 x 2 bytes = 128 KiB a token.
    assert memory.cache(shape, ServerLayout(), 1, 1) == 128 * 1024
    assert memory.cache(shape, ServerLayout(tensor_parallel=4), 1, 1) == 32 * 1024
    assert memory.cache(shape, ServerLayout(tensor_parallel=16), 1, 1) == 16 * 1024
    known = memory.estimate(
        "server", 7.24e9, ServerLayout(), devices=1, micro=1, length=1000, sequences=10, shape=shape
    )
    assert known.sure == known.total
    guessed = memory.estimate("server", 7.24e9, ServerLayout(), devices=1, micro=1, length=1000, sequences=10)
    assert guessed.sure == pytest.approx(2 * 7.24e9)


@pytest.mark.parametrize("parameters", [135e6, 1e9, 7e9, 70e9])
def test_a_guessed_shape_has_about_the_parameters_it_was_guessed_from(parameters):
    shape = memory.shape_of(parameters)
    assert 12 * shape.layers * shape.width**2 == pytest.approx(parameters, rel=0.1)
