"""What tests of training share: a tiny model folder, examples in a made-up chat format, progress that can interrupt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from cai.chat import Span
from cai.engines.base import Attempt, Progress
from cai.engines.methods.base import Lora, PairText, Precision, PromptText, TrainText
from cai.engines.methods.ppo import RlSettings

WORDS = [
    "the",
    "a",
    "cat",
    "dog",
    "sun",
    "moon",
    "reads",
    "sings",
    "walks",
    "likes",
    "red",
    "blue",
    "kind",
    "rude",
    "yes",
    "no",
    "hello",
    "thanks",
    "please",
    "sorry",
]


class Interrupted(Exception):
    """Stands for a kill."""


class Watch:
    """Progress that keeps its notes, and raises when an event has come ``after`` times."""

    def __init__(self, event: str = "", after: int = 0) -> None:
        self.notes: list[tuple[str, dict[str, Any]]] = []
        self._event, self._after = event, after

    def expect(self, rows: int | None = None, tokens: int | None = None) -> None:
        self.expected = (rows, tokens)

    def advance(self, rows: int = 0, tokens: int = 0) -> None:
        pass

    def note(self, event: str, **fields: Any) -> None:
        self.notes.append((event, fields))
        if self._after and sum(e == self._event for e, _ in self.notes) == self._after:
            raise Interrupted(event)


def tiny_folder(folder: Path, family: str = "llama", seed: int = 0, **changes: Any) -> Path:
    """A model of a few thousand weights whose padding token is its end token, with a word tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    vocabulary = {w: i for i, w in enumerate(["<unk>", "<s>", "</s>", "[user]", "[bot]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>", unk_token="<unk>"
    )
    fast.add_special_tokens({"additional_special_tokens": ["[user]", "[bot]"]})
    fast.save_pretrained(folder)
    shape = {
        "vocab_size": len(vocabulary),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 64,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
        "initializer_range": 0.2,
    }
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **{**shape, **changes}), dtype=torch.float32)
    with torch.no_grad():  # norms begin as ones and biases as zeros, which would hide that they are left out
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn(parameter.shape) * 0.1)
        # The padding token begins as nothing, and it is the end of every answer here.
        embeddings = model.get_input_embeddings().weight
        embeddings[shape["pad_token_id"]] = torch.randn(embeddings.shape[1]) * 0.2
    model.save_pretrained(folder)
    return folder


def conversations(count: int) -> list[TrainText]:
    """Short exchanges of differing length; loss on the answer and its end."""
    texts = []
    for i in range(count):
        asked = " ".join(WORDS[(i * 3 + j) % len(WORDS)] for j in range(2 + i % 5))
        answer = " ".join(WORDS[(i + 7 * j) % len(WORDS)] for j in range(1 + i % 4))
        spans = (Span(f"[user] {asked} [bot] ", False), Span(f"{answer} </s>", True), Span(" thanks", False))
        texts.append(TrainText(f"c{i}", spans))
    return texts


def comparisons(count: int) -> list[PairText]:
    """Pairs whose better answer says 'kind' and whose worse one says 'rude'; every fifth is a tie."""
    pairs = []
    for i in range(count):
        asked = " ".join(WORDS[(i * 5 + j) % len(WORDS)] for j in range(2 + i % 4))
        tail = WORDS[i % len(WORDS)]
        label = 0.5 if i % 5 == 4 else 0.9
        pairs.append(PairText(f"p{i}", f"[user] {asked} [bot] ", f"kind {tail} </s>", f"rude {tail} </s>", label))
    return pairs


def questions(count: int) -> list[PromptText]:
    """Prompts of differing length."""
    return [
        PromptText(f"q{i}", f"[user] {' '.join(WORDS[(i + j) % len(WORDS)] for j in range(1 + i % 4))} [bot] ")
        for i in range(count)
    ]


def attempt_at(place: Path, progress: Progress | None = None, name: str = "out", seed: int = 1) -> Attempt:
    """An attempt whose result goes to ``name`` in ``place``, and its checkpoints to ``work`` beside it."""
    return Attempt(seed, place / name, place / "work", progress or Watch())


PPO_SETTINGS = RlSettings(
    iterations=4,
    rollouts=16,
    batch_size=8,
    micro_batch_size=4,
    ppo_epochs=2,
    learning_rate=2e-2,
    critic_learning_rate=1e-2,
    max_tokens=6,
    kl_coefficient=0.02,
    lora=Lora(rank=4, last_layers=2),
    precision=Precision.FLOAT32,
)


def likes_kind(pairs: Sequence[tuple[str, str]]) -> list[float]:
    """The share of an answer's words that are 'kind'."""
    return [a.split().count("kind") / max(1, len(a.split())) for _, a in pairs]
