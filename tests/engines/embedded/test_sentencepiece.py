"""Tokenizers that put a space before a text: an answer has the same tokens in training, scoring and rewards."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from cai.chat import Span
from cai.engines.embedded.models import decode_after, encode, encode_after, load_tokenizer, puts_a_space
from cai.engines.embedded.reward import pair_tokens
from cai.engines.embedded.rollouts import EndRules
from cai.engines.embedded.sft import tokenized
from cai.engines.methods.base import PairText, TrainText
from tests.support.training import WORDS, tiny_folder

PROMPTS = ("[INST] hello cat [/INST]", "Human: hello\n\nAssistant:", "</s>", "hello ", "x\n")
ANSWERS = ("yes the dog sings", " yes the dog sings", "\nyes", "5 + 5 = 10", "é sun ✓", "A")


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SentencePiece model, made by its own trainer."""
    import sentencepiece

    folder = tmp_path_factory.mktemp("spm")
    draw = random.Random(0)
    lines = ["[INST] " + " ".join(draw.choices(WORDS, k=6)) + " [/INST] yes 5 + 5 = 10 A B" for _ in range(500)]
    (folder / "lines.txt").write_text("\n".join(lines))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "lines.txt"),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=500,
        model_type="bpe",
        byte_fallback=True,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return folder / "tokenizer.model"


@pytest.fixture(scope="module", params=[True, False], ids=["as Llama 2 was first", "as Mistral"])
def tokenizer(request: pytest.FixtureRequest, vocabulary: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("model")
    (folder / "tokenizer.model").write_bytes(vocabulary.read_bytes())
    fields = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**fields, "legacy": request.param}))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return load_tokenizer(folder)


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("answer", ANSWERS)
def test_an_answer_has_the_tokens_that_it_has_in_the_whole(tokenizer: Any, prompt: str, answer: str) -> None:
    if prompt.endswith(" ") and answer.startswith("y"):
        pytest.skip("the space of the prompt and the word are one piece there: no boundary lies between them")
    [whole], [before] = encode(tokenizer, [prompt + answer]), encode(tokenizer, [prompt])
    [after] = encode_after(tokenizer, [prompt], [answer])
    if not prompt.endswith(" "):
        assert before + after == whole
    assert puts_a_space(tokenizer)


@pytest.mark.parametrize("answer", ANSWERS)
def test_what_is_read_is_what_was_written(tokenizer: Any, answer: str) -> None:
    [ids] = encode_after(tokenizer, ["[/INST]"], [answer])
    assert decode_after(tokenizer, ids) == answer


def test_sft_and_reward_read_the_same_tokens(tokenizer: Any) -> None:
    prompt, answer = "[INST] hello [/INST]", " yes the sun</s>"
    ids, loss = tokenized(tokenizer, TrainText("t", (Span(prompt, False), Span(answer, True))))
    learnt = [token for token, has_loss in zip(ids, loss, strict=True) if has_loss]
    [[first], [chosen], [rejected]] = pair_tokens(tokenizer, [PairText("p", prompt, answer, "no</s>", 1.0)])
    assert first + chosen == ids
    assert chosen == learnt
    assert rejected == encode(tokenizer, [f"{prompt}no</s>"])[0][len(first) :]


def test_a_stop_is_seen_in_the_midst_of_a_text(tokenizer: Any) -> None:
    ends = EndRules(tokenizer, (2,), ("[INST]",))
    [ids] = encode_after(tokenizer, ["[/INST]"], ["yes[INST]"])
    assert ends.over(ids)
    assert not ends.over(ids[:-1])


def test_other_tokenizers_are_asked_as_ever(tmp_path: Path) -> None:
    plain = load_tokenizer(tiny_folder(tmp_path))
    assert not puts_a_space(plain)
    assert encode_after(plain, ["hello"], ["cat"]) == encode(plain, ["cat"])
