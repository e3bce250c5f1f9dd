"""Facts of tokenizers from their files alone: folders, the hub's cache, GGUF heads; hostile files give none."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cai.models.tokenizer_facts import tokenizer_facts
from tests.support.paths import ROOT
from tests.support.small_tokenizers import sentencepiece_model

BEGINS = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
}
ENDS = {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A"}}, {"SpecialToken": {"id": "<s>"}}]}


def folder(path: Path, **files: Any) -> Path:
    path.mkdir(exist_ok=True)
    for name, content in files.items():
        (path / f"{name}.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def fast(**more: Any) -> dict[str, Any]:
    added = [{"id": 0, "content": "<s>", "special": True}, {"id": 1, "content": "</s>", "special": True}]
    return {"version": "1.0", "added_tokens": added, **more, "model": {"type": "BPE", "vocab": {"he": 2, "[INST]": 3}}}


def test_added_tokens_and_pieces_of_the_vocabulary_are_tokens(tmp_path: Path) -> None:
    facts = tokenizer_facts(folder(tmp_path, tokenizer=fast(), tokenizer_config={"bos_token": {"content": "<s>"}}))
    assert facts is not None
    assert facts.bos == "<s>"
    assert [word for word in ("<s>", "</s>", "[INST]", "<|im_start|>") if facts.is_token(word)] == [
        "<s>",
        "</s>",
        "[INST]",
    ]


@pytest.mark.parametrize(
    ("files", "adds"),
    [
        ({"tokenizer": fast(post_processor=BEGINS)}, True),
        ({"tokenizer": fast(post_processor={"type": "Sequence", "processors": [{"type": "ByteLevel"}, BEGINS]})}, True),
        ({"tokenizer": fast(post_processor=ENDS)}, False),
        ({"tokenizer": fast(post_processor=None)}, False),
        ({"tokenizer": fast(post_processor=None), "tokenizer_config": {"add_bos_token": True}}, True),
        ({"vocab": {"<s>": 0}, "tokenizer_config": {"bos_token": "<s>", "add_bos_token": True}}, True),
        ({"vocab": {"<s>": 0}, "tokenizer_config": {"bos_token": "<s>", "add_bos_token": False}}, False),
        ({"vocab": {"<s>": 0}, "tokenizer_config": {"bos_token": "<s>"}}, None),
    ],
)
def test_whether_a_text_is_begun_is_told_by_the_files(tmp_path: Path, files: dict[str, Any], adds: bool | None) -> None:
    facts = tokenizer_facts(folder(tmp_path, **{"special_tokens_map": {"bos_token": "<s>"}, **files}))
    assert facts is not None
    assert facts.adds_bos is adds


def test_the_facts_are_those_that_the_tokenizer_itself_has(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    real = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))
    real.add_special_tokens(["<s>", "<|end|>"])
    real.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 3)])
    real.save(str(tmp_path / "tokenizer.json"))
    folder(tmp_path, tokenizer_config={"bos_token": "<s>"})
    facts = tokenizer_facts(tmp_path)
    assert facts is not None
    assert facts.adds_bos is (real.encode("ab").tokens[0] == "<s>")
    assert facts.is_token("<|end|>") is (len(real.encode("<|end|>", add_special_tokens=False).tokens) == 1)
    assert not facts.is_token("<|start|>")


def test_pieces_of_a_sentencepiece_model_are_tokens(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model("<extra_id_0>", "<extra_id_1>"))
    facts = tokenizer_facts(tmp_path)
    assert facts is not None
    assert facts.is_token("<extra_id_1>")
    assert facts.is_token("</s>")
    assert not facts.is_token("<|im_start|>")


def test_the_models_own_template_is_read_wherever_it_stands(tmp_path: Path) -> None:
    for config, text in (
        ({"chat_template": "[INST]"}, "[INST]"),
        ({"chat_template": [{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}]}, "a\nb"),
        ({}, ""),
    ):
        facts = tokenizer_facts(folder(tmp_path, tokenizer=fast(), tokenizer_config=config))
        assert facts is not None
        assert facts.chat_template == text
    (tmp_path / "chat_template.jinja").write_text("in a file")
    facts = tokenizer_facts(tmp_path)
    assert facts is not None
    assert facts.chat_template == "in a file"


def test_a_change_of_the_files_is_seen(tmp_path: Path) -> None:
    before = tokenizer_facts(folder(tmp_path, tokenizer=fast()))
    after = tokenizer_facts(folder(tmp_path, added_tokens={"<|im_start|>": 9}))
    assert before is not None
    assert after is not None
    assert (before.is_token("<|im_start|>"), after.is_token("<|im_start|>")) == (False, True)


# ---- GGUF ------------------------------------------------------------------------------------------------------------


def text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def gguf(*entries: bytes) -> bytes:
    return struct.pack("<4sIQQ", b"GGUF", 3, 0, len(entries)) + b"".join(entries)


def words(*values: str) -> bytes:
    return text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, len(values)) + b"".join(map(text, values))


def test_a_gguf_head_tells_its_tokens(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(
        gguf(
            text("general.name") + struct.pack("<I", 8) + text("small"),
            text("general.floats") + struct.pack("<IIQ3f", 9, 6, 3, 1, 2, 3),
            words("<s>", "</s>", "a"),
            text("tokenizer.ggml.bos_token_id") + struct.pack("<II", 4, 0),
            text("tokenizer.ggml.eos_token_id") + struct.pack("<II", 4, 1),
            text("tokenizer.ggml.add_bos_token") + struct.pack("<I?", 7, True),
            text("tokenizer.chat_template") + struct.pack("<I", 8) + text("{{ x }}"),
        )
    )
    facts = tokenizer_facts(path)
    assert facts is not None
    assert (facts.bos, facts.eos, facts.adds_bos, facts.chat_template) == ("<s>", "</s>", True, "{{ x }}")
    assert facts.is_token("a")
    assert not facts.is_token("<|im_start|>")


# ---- files that say nothing ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"GGUF",
        struct.pack("<4sIQQ", b"GGUF", 3, 0, 2**60),
        gguf(text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 2**50)),
        gguf(text("x") + struct.pack("<IIQ", 9, 77, 3)),
        gguf(struct.pack("<Q", 2**61)),
        gguf(struct.pack("<Q", 2**64 - 1)),
        gguf(text("x") + struct.pack("<IIQ", 9, 10, 2**64 - 1), words("a")),
        gguf(words("a"))[:-3],
    ],
)
def test_a_damaged_or_hostile_gguf_file_has_no_facts(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    facts = tokenizer_facts(path)
    assert facts is None or facts.tokens <= {""}


@pytest.mark.parametrize("content", ["{", "[]", "3", '{"added_tokens": 3}', "[" * 100_000, '{"added_tokens": [[]]}'])
def test_a_damaged_or_hostile_folder_says_nothing_wrong(tmp_path: Path, content: str) -> None:
    facts = tokenizer_facts(folder(tmp_path, tokenizer=content, tokenizer_config="{}"))
    assert facts is None or not facts.tokens


def test_what_is_not_here_has_no_facts(tmp_path: Path) -> None:
    assert tokenizer_facts(tmp_path / "nowhere") is None
    assert tokenizer_facts(tmp_path) is None


def test_nothing_heavy_is_imported() -> None:
    heavy = ("torch", "transformers", "tokenizers", "sentencepiece", "gguf", "huggingface_hub")
    code = f"import sys, cai.models.tokenizer_facts; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stderr
