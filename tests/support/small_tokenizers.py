"""Real tokenizers trained in a moment: SentencePiece models as Mistral has them, byte-level and word-level ones."""

from __future__ import annotations

import io
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from tests.support.paths import ROOT

HELPFUL = ROOT / "cai/data/quickstart/helpful.jsonl"
SENTENCES = [
    "How do I bake bread? Mix flour, water and salt, wait, then bake it in a hot oven.",
    "I cannot help with that, but here is a safer way to reach the same end.",
    "System User Assistant extra id what is the capital of France? It is Paris.",
]


def sentencepiece_model(*symbols: str, **options: Any) -> bytes:
    """A tiny SentencePiece model like Mistral's: bytes for what it does not know, no normalisation.

    Text becomes pieces, a space is put before it; ``symbols`` become pieces of their own.
    """
    import sentencepiece

    out = io.BytesIO()
    settings = {
        "vocab_size": 400,
        "model_type": "bpe",
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "user_defined_symbols": list(symbols),
        "hard_vocab_limit": False,
        "minloglevel": 3,
        "num_threads": 1,
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 3), model_writer=out, **{**settings, **options}
    )
    return out.getvalue()


@lru_cache
def quickstart_lines() -> tuple[str, ...]:
    """A few hundred lines of the shipped data."""
    rows = [json.loads(line) for line in HELPFUL.read_text(encoding="utf-8").splitlines()]
    texts = [text for row in rows for text in (row["prompt"], row["answer"])]
    return tuple(line for text in texts for line in text.split("\n") if line)[:600]


@lru_cache
def quickstart_spm(vocab: int = 420, rule: str = "identity", symbols: tuple[str, ...] = ()) -> bytes:
    """A SentencePiece model like Mistral's: BPE, bytes for what it has not seen, white space kept."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(quickstart_lines()),
        model_writer=model,
        vocab_size=vocab,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name=rule,
        remove_extra_whitespaces=rule != "identity",
        user_defined_symbols=list(symbols),
        minloglevel=2,
    )
    return model.getvalue()


CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def byte_level_folder(folder: Path, control: tuple[str, ...] = CHATML) -> Path:
    """A Hugging Face folder, but for the weights: a byte-level tokenizer with control tokens, ChatML's by default."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, special_tokens=list(control))
    core.train_from_iterator(quickstart_lines(), trainer)
    core.add_special_tokens([AddedToken(text, special=True) for text in control])
    folder.mkdir(parents=True)
    core.save(str(folder / "tokenizer.json"))
    config = {"bos_token": control[1], "eos_token": {"content": control[-1]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": 512}))
    return folder


def word_level_folder(folder: Path) -> Path:
    """A real tokenizer that makes a token of each word and sign."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder.mkdir(parents=True)
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder
