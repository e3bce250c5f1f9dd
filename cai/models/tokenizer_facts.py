"""What a model's own files say of its tokenizer: which words are one token, which begins a text, its chat template.

Only files on this disk are read, and only as data: a Hugging Face folder (also in the hub's cache) or a GGUF file's
head. Neither torch nor ``tokenizers`` is loaded, so planning can ask. A tokenizer whose files are not here, or are not
readable, has no facts: whoever asks then says nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from cai.errors import PrerequisiteError
from cai.models.gguf_file import gguf_metadata

MOST = 64 << 20
"""Bytes of a tokenizer's file that are read; the largest there are have 35 MB."""
_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json")


@dataclass(frozen=True)
class TokenizerFacts:
    """``tokens`` are words that are one token whatever stands around them; ``bos`` and ``eos`` are empty where there is
    none. ``adds_bos``: whether a ``bos`` is put before a text that is encoded as it stands; None where that is not
    said. ``chat_template`` is the model's own, empty where it has none."""

    tokens: frozenset[str]
    bos: str = ""
    eos: str = ""
    adds_bos: bool | None = None
    chat_template: str = ""
    vocabulary_files: tuple[Path, ...] = field(default=(), repr=False)

    def is_token(self, word: str) -> bool:
        """Whether a word is one token: an added one, or a piece of the vocabulary."""
        return word in self.tokens or word in self._vocabulary or any(_is_piece(p, word) for p in self._sentencepiece)

    @cached_property
    def _vocabulary(self) -> frozenset[str]:
        """Read when first asked for: it is most of the files, and special words are seldom in it."""
        for path in self.vocabulary_files:
            if path.suffix == ".json":
                raw = _json(path)
                model = raw.get("model") if path.name == "tokenizer.json" else {"vocab": raw}
                vocab = model.get("vocab") if isinstance(model, Mapping) else None
                if isinstance(vocab, Mapping):
                    return frozenset(map(str, vocab))
                if isinstance(vocab, list):
                    return frozenset(str(entry[0]) for entry in vocab if isinstance(entry, list) and entry)
        return frozenset()

    @property
    def _sentencepiece(self) -> tuple[Path, ...]:
        return tuple(path for path in self.vocabulary_files if path.suffix == ".model")


def tokenizer_facts(path: Path) -> TokenizerFacts | None:
    """The facts of a model's folder or GGUF file; None where there is no tokenizer in it that can be read."""
    try:
        if path.is_dir():
            return _folder_facts(path, _stamp(path))
        return _gguf_facts(path, _stamp(path)) if path.is_file() else None
    except (OSError, ValueError, OverflowError, RecursionError, PrerequisiteError):
        return None


def _stamp(path: Path) -> tuple[tuple[str, int, int], ...]:
    """What of the files changes when they do."""
    files = sorted(path.glob("*token*")) + sorted(path.glob("*.jinja")) + sorted(path.glob("vocab.json"))
    stats = [(file.name, file.stat()) for file in files or [path]]
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)


# ---- folders ---------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=16)
def _folder_facts(folder: Path, stamp: tuple[tuple[str, int, int], ...]) -> TokenizerFacts | None:
    config, specials = _json(folder / "tokenizer_config.json"), _json(folder / "special_tokens_map.json")
    vocabularies = tuple(folder / name for name in _VOCABULARIES if (folder / name).is_file())
    if not vocabularies:
        return None
    head = _json_head(folder / "tokenizer.json")
    bos, eos = (_word(config.get(name)) or _word(specials.get(name)) for name in ("bos_token", "eos_token"))
    tokens = {bos, eos, *_added(config, specials, head), *_json(folder / "added_tokens.json")}
    return TokenizerFacts(
        tokens=frozenset(tokens - {""}),
        bos=bos,
        eos=eos,
        adds_bos=_adds_bos(config, head, bos),
        chat_template=_chat_template(folder, config),
        vocabulary_files=vocabularies,
    )


def _added(config: Mapping[str, Any], specials: Mapping[str, Any], head: Mapping[str, Any]) -> Iterator[str]:
    decoder, added = config.get("added_tokens_decoder"), head.get("added_tokens")
    yield from map(_word, decoder.values() if isinstance(decoder, Mapping) else ())
    yield from map(_word, added if isinstance(added, list) else ())
    for raw in (config, specials):
        more = raw.get("additional_special_tokens")
        yield from map(_word, more if isinstance(more, list) else ())
        yield from (_word(value) for name, value in raw.items() if name.endswith("_token"))


def _word(raw: Any) -> str:
    """A token as these files write it: its text, or an object that holds it."""
    content = raw.get("content") if isinstance(raw, Mapping) else raw
    return content if isinstance(content, str) else ""


def _adds_bos(config: Mapping[str, Any], head: Mapping[str, Any], bos: str) -> bool | None:
    """The post-processor decides where there is one: what a fast tokenizer's ``add_bos_token`` once said is in it."""
    if processor := head.get("post_processor"):
        return bool(bos) and any(token == bos for token in _leading(processor))
    added = config.get("add_bos_token")
    return added if isinstance(added, bool) else False if "post_processor" in head else None


def _leading(processor: Any) -> Iterator[str]:
    """The special tokens that a post-processor puts before a single text."""
    if not isinstance(processor, Mapping):
        return
    inner = processor.get("processors")
    for each in inner if isinstance(inner, list) else ():
        yield from _leading(each)
    single = processor.get("single")
    for piece in single if isinstance(single, list) else ():
        if not isinstance(piece, Mapping) or "SpecialToken" not in piece:
            return
        token = piece["SpecialToken"]
        yield str(token.get("id", "")) if isinstance(token, Mapping) else ""


def _chat_template(folder: Path, config: Mapping[str, Any]) -> str:
    file, raw = folder / "chat_template.jinja", config.get("chat_template")
    if file.is_file():
        return _bytes(file).decode("utf-8", "replace")
    if isinstance(raw, list):  # several, each with its name
        return "\n".join(str(each.get("template", "")) for each in raw if isinstance(each, Mapping))
    return raw if isinstance(raw, str) else ""


def _bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        content = file.read(MOST + 1)
    if len(content) > MOST:
        raise ValueError(f"{path}: more than {MOST:,} bytes")
    return content


def _json(path: Path) -> Mapping[str, Any]:
    """A JSON object; an empty one where there is no such file, or it holds anything else."""
    raw = json.loads(_bytes(path)) if path.is_file() else {}
    return raw if isinstance(raw, Mapping) else {}


def _json_head(path: Path) -> dict[str, Any]:
    """The fields of ``tokenizer.json`` before ``model``, which is nearly all of it and holds the vocabulary."""
    if not path.is_file():
        return {}
    text, decoder, fields = _bytes(path).decode(), json.JSONDecoder(), dict[str, Any]()
    position = _past(text, 0, "{")
    while position < len(text) and text[position] == '"':
        name, position = decoder.raw_decode(text, position)
        if name == "model":
            break
        fields[name], position = decoder.raw_decode(text, _past(text, position, ":"))
        position = _past(text, position, ",")
    return fields


def _past(text: str, position: int, mark: str) -> int:
    """The place behind a mark and the white space around it."""
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    position += text.startswith(mark, position)
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position


def _is_piece(path: Path, word: str) -> bool:
    """Whether a SentencePiece model has the word as a piece: field 1 of a message, so its tag and length come first."""
    raw = word.encode()
    return len(raw) < 128 and b"\x0a" + bytes([len(raw)]) + raw in _bytes(path)


# ---- GGUF ------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=16)
def _gguf_facts(path: Path, stamp: tuple[tuple[str, int, int], ...]) -> TokenizerFacts | None:
    values = gguf_metadata(path, texts=("tokenizer.ggml.tokens",))
    words = values.get("tokenizer.ggml.tokens")
    if not isinstance(words, list):
        return None

    def word(name: str) -> str:
        number = values.get(f"tokenizer.ggml.{name}_token_id")
        return words[number] if isinstance(number, int) and 0 <= number < len(words) else ""

    adds, template = values.get("tokenizer.ggml.add_bos_token"), values.get("tokenizer.chat_template")
    return TokenizerFacts(
        tokens=frozenset(words),
        bos=word("bos"),
        eos=word("eos"),
        adds_bos=adds if isinstance(adds, bool) else None,
        chat_template=template if isinstance(template, str) else "",
    )
