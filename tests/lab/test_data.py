"""Our data files read by NeMo's own classes: nothing replaced, masked, cut or shifted; and its rules are as we say."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from cai.chat import ChatTemplate, Message
from cai.data.formats.base import Written
from cai.data.formats.nemo_aligner import HardPair, write_chat, write_pairs, write_prompts
from cai.data.formats.nemo_chat import CHAT_TOKENS, chat_spans
from cai.data.nemo_tokens import open_tokenizer
from cai.engines.methods.base import PromptText, TrainText
from cai.errors import SpecError
from tests.support.nemo_rows import TEMPLATES, dialogue, hard_pair, prompt_text, train_text
from tests.support.small_tokenizers import sentencepiece_model

_CONTENTS = [
    "plain words",
    " spaces around ",
    "\nlines\n\n",
    "a\tb\u00a0c",
    "{{ x }} <b>&amp;</b> \\n",
    "é 你好 🙂",
    "'",
    "<",
    "x" * 60,
]


MERGED = "tokens merge across turns"


@pytest.fixture(scope="module", params=["text", "pieces", "unigram", "bytes"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """NeMo's tokenizers: control strings as plain text (Mistral's), as pieces, by another model; GPT's byte pairs.

    The last one merges line ends with what follows them, so some conversations cannot be learnt where they should.
    """
    from nemo.collections.common.tokenizers.huggingface.auto_tokenizer import AutoTokenizer
    from nemo.collections.common.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    if request.param == "bytes":
        _byte_pairs().save_pretrained(folder)
        made = AutoTokenizer(str(folder), use_fast=True)
        made.folder = folder
        return made
    symbols = ("<extra_id_0>", "<extra_id_1>", "<extra_id_2>") if request.param == "pieces" else ()
    options = {"model_type": "unigram"} if request.param == "unigram" else {}
    file = folder / "tokenizer.model"
    file.write_bytes(sentencepiece_model(*symbols, **options))
    made = SentencePieceTokenizer(str(file))
    made.folder = folder
    return made


def _byte_pairs() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=350, special_tokens=["</s>"], initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(["What?\n\n\nThis.\n\nSo it is: <extra_id_1>User\n\n\n\n"] * 5, trainer)
    names = dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), "</s>")
    return PreTrainedTokenizerFast(tokenizer_object=core, **names)


@pytest.fixture(scope="module")
def template() -> ChatTemplate:
    return ChatTemplate.from_file(TEMPLATES / "nemo_extra_id.jinja")


def counted(tokenizer: Any) -> Any:
    return lambda text: len(tokenizer.text_to_ids(text))


def surface(tokenizer: Any, ids: Sequence[int], start: bool = False) -> str:
    """The text of some tokens with every space; ``start`` drops the one that SentencePiece puts before a text."""
    tokens = tokenizer.ids_to_tokens([int(i) for i in ids])
    if not hasattr(tokenizer, "spm_separator"):
        from tokenizers import decoders

        return str(decoders.ByteLevel().decode(tokens))
    parts = (bytes([int(t[3:5], 16)]) if t.startswith("<0x") else t.replace("▁", " ").encode() for t in tokens)
    text = b"".join(parts).decode()
    return text.removeprefix(" ") if start else text


def learnt(tokenizer: Any, ids: Any, mask: Any) -> list[str]:
    """The texts on which loss is taken, each unbroken run of tokens by itself."""
    runs = groupby(zip(ids.tolist(), mask.tolist(), strict=True), key=lambda item: bool(item[1]))
    return [surface(tokenizer, [i for i, _ in run]) for inside, run in runs if inside]


def conversations(template: ChatTemplate, count: int) -> list[TrainText]:
    draw = random.Random(7)
    texts = []
    for i in range(count):
        contents = [draw.choice(_CONTENTS) for _ in range(2 * draw.randint(1, 3))]
        system = draw.choice([None, "", *_CONTENTS])
        text = train_text(template, *contents, system=system, loss=draw.choice(["all", "last"]))
        texts.append(TrainText(f"row{i}", text.spans, text.messages))
    return texts


def chat_set(path: Path, tokenizer: Any, max_length: int) -> Any:
    """Upstream's data set, built as its training script does with the chat tokens of our overrides."""
    from nemo_aligner.data.nlp.builders import build_sft_dataset
    from omegaconf import OmegaConf

    config = {"file_path": str(path), "max_seq_length": max_length, "min_seq_length": 1, "memmap_workers": 1}
    config |= {"label_key": "output", "add_eos": True, "truncation_field": "input", "hf_dataset": False}
    tokens = OmegaConf.create(dict(CHAT_TOKENS))
    return build_sft_dataset(OmegaConf.create(config), tokenizer, None, is_chat=True, special_tokens=tokens)


def prefix_set(kind: str, path: Path, tokenizer: Any, length: int, answer: int = 0) -> Any:
    """Upstream's reward (``rm``) or prompt (``rlhf``) data set, from a dictionary of files as our overrides give it."""
    from nemo_aligner.data.nlp import builders
    from omegaconf import OmegaConf

    files = {part: [str(path)] for part in ("train", "validation", "test")}
    config: dict[str, Any] = {"data": {"data_impl": "jsonl", "splits_string": None, "data_prefix": files}}
    if answer:
        config["length_params"] = {"max_length": answer}
    cfg = OmegaConf.create(config)
    build = getattr(builders, f"build_train_valid_test_{kind}_datasets")
    train, _, _ = build(cfg, cfg.data.data_prefix, "jsonl", None, [-1, -1, -1], length, 1234, tokenizer)
    return train


def test_we_count_tokens_as_nemo_does(template: ChatTemplate, tokenizer: Any) -> None:
    pieces = open_tokenizer(tokenizer.folder)
    for text in conversations(template, 60):
        whole = "".join(span.text for span in text.spans)
        assert pieces.ids(whole) == tokenizer.text_to_ids(whole)
        assert pieces.count("\0" + whole) == len(tokenizer.text_to_ids("\0" + whole))


# Chat


def test_every_conversation_is_learnt_where_our_spans_say(
    tmp_path: Path, template: ChatTemplate, tokenizer: Any
) -> None:
    texts, path = conversations(template, 150), tmp_path / "train.jsonl"
    found = write_chat(path, texts, counted(tokenizer), max_length=4096)
    assert found.rows + sum(found.dropped.values()) == 150
    if hasattr(tokenizer, "spm_separator"):
        assert found.dropped == {}
    else:
        assert set(found.dropped) == {MERGED}
        assert found.rows > 50
    spans = [chat_spans(json.loads(line)) for line in path.read_bytes().splitlines()]
    meant = iter([tuple(text.spans) for text in texts])
    assert all(row in meant for row in spans)  # in order, each as our template has it
    # The tightest sequence that holds all: nothing may be cut.
    data = chat_set(path, tokenizer, found.longest - 1)
    assert len(data) == found.rows
    items = [data[i] for i in range(found.rows)]
    for row, item in zip(spans, items, strict=True):
        assert surface(tokenizer, item["input_ids"], start=True) == "".join(span.text for span in row)
        assert learnt(tokenizer, item["input_ids"], item["mask"]) == [span.text for span in row if span.loss]
    assert sum(len(item["input_ids"]) for item in items) == found.tokens
    batch = data.collate_fn(items)
    assert batch["tokens"].shape[1] == found.longest - 1
    assert int(batch["loss_mask"].sum()) == sum(int(item["mask"].sum()) for item in items)
    assert (batch["loss_mask"].sum(1) > 0).all()


def test_what_we_leave_out_for_merging_would_be_learnt_elsewhere(
    tmp_path: Path, template: ChatTemplate, tokenizer: Any
) -> None:
    if hasattr(tokenizer, "spm_separator"):
        pytest.skip("SentencePiece models like Mistral's merge nothing across line ends")
    text, path = train_text(template, "a", "b\n\n\n", "c", "d", system="s"), tmp_path / "train.jsonl"
    write_chat(path, [text], len, max_length=4096)  # let through by a count of characters
    item = chat_set(path, tokenizer, 4096)[0]
    assert learnt(tokenizer, item["input_ids"], item["mask"]) != [span.text for span in text.spans if span.loss]
    with pytest.raises(SpecError, match=MERGED):
        write_chat(path, [text], counted(tokenizer), max_length=4096)


def test_an_empty_system_text_crashes_upstream_with_a_tokenizer_that_merges_line_ends(
    tmp_path: Path, template: ChatTemplate, tokenizer: Any
) -> None:
    text, path = train_text(template, "a", "b"), tmp_path / "train.jsonl"
    write_chat(path, [text], len, max_length=4096)
    data = chat_set(path, tokenizer, 4096)
    if hasattr(tokenizer, "spm_separator"):
        assert learnt(tokenizer, data[0]["input_ids"], data[0]["mask"]) == ["b\n<extra_id_1>"]
        return
    with pytest.raises(AssertionError):
        data[0]
    with pytest.raises(SpecError, match=MERGED):
        write_chat(path, [text], counted(tokenizer), max_length=4096)


def test_a_longer_conversation_than_we_let_through_loses_its_end(
    tmp_path: Path, template: ChatTemplate, tokenizer: Any
) -> None:
    path = tmp_path / "train.jsonl"
    found = write_chat(
        path, [train_text(template, "a question", "an answer", system="s")], counted(tokenizer), max_length=4096
    )
    whole, cut = (chat_set(path, tokenizer, found.longest - k) for k in (1, 2))
    full = int(whole[0]["mask"].sum())
    assert int(whole.collate_fn([whole[0]])["loss_mask"].sum()) == full
    assert int(cut.collate_fn([cut[0]])["loss_mask"].sum()) == full - 1
    short = chat_set(path, tokenizer, 20)
    assert int(short.collate_fn([short[0]])["loss_mask"].sum()) == 0  # all that was to be learnt is gone


def test_a_file_written_anew_is_read_anew(tmp_path: Path, template: ChatTemplate, tokenizer: Any) -> None:
    path, count = tmp_path / "train.jsonl", counted(tokenizer)
    write_chat(path, [train_text(template, "a", f"first {i}", system="s") for i in range(3)], count, max_length=4096)
    assert len(chat_set(path, tokenizer, 4096)) == 3
    assert path.with_name("train.jsonl.idx.npy").exists()
    write_chat(
        path,
        [train_text(template, "a longer question", f"second {i}", system="s") for i in range(5)],
        count,
        max_length=4096,
    )
    data = chat_set(path, tokenizer, 4096)
    assert len(data) == 5
    assert learnt(tokenizer, data[4]["input_ids"], data[4]["mask"]) == ["second 4\n<extra_id_1>"]


def test_upstream_reads_a_new_file_by_a_stale_index(tmp_path: Path, template: ChatTemplate, tokenizer: Any) -> None:
    path, other = tmp_path / "train.jsonl", tmp_path / "other.jsonl"
    write_chat(path, [train_text(template, "a", "b", system="s")], counted(tokenizer), max_length=4096)
    write_chat(
        other, [train_text(template, text, "b", system="s") for text in "ac"], counted(tokenizer), max_length=4096
    )
    chat_set(path, tokenizer, 4096)
    path.write_bytes(other.read_bytes())
    assert len(chat_set(path, tokenizer, 4096)) == 1


@pytest.mark.parametrize("turns", [["Assistant"], ["User"]])
def test_upstream_crashes_on_what_we_leave_out(tmp_path: Path, tokenizer: Any, turns: list[str]) -> None:
    path = tmp_path / "train.jsonl"
    record = {"system": "s", "conversations": [{"from": name, "value": "x"} for name in turns], "mask": "User"}
    path.write_text(json.dumps(record) + "\n")
    with pytest.raises(AssertionError, match="mask"):
        chat_set(path, tokenizer, 4096)[0]


# Comparisons


def comparisons(template: ChatTemplate) -> list[HardPair]:
    draw = random.Random(3)
    found = []
    for i in range(40):
        better, worse = draw.sample(_CONTENTS, 2)
        found.append(hard_pair(template, f"question {i} {draw.choice(_CONTENTS)}", better, worse))
    return found


def test_pairs_alternate_and_none_is_replaced(tmp_path: Path, template: ChatTemplate, tokenizer: Any) -> None:
    pairs, path = comparisons(template), tmp_path / "pairs.jsonl"
    found = write_pairs(path, pairs, counted(tokenizer), max_length=4096)
    data = prefix_set("rm", path, tokenizer, found.longest)
    assert len(data) == found.samples == 40
    for i, hard in enumerate(pairs):
        item = data[i]
        for side, answer in (("chosen", hard.chosen), ("rejected", hard.rejected)):
            ids = item[side][: item[f"{side}_length"]]
            assert surface(tokenizer, ids, start=True) == hard.prompt + answer
            assert len(item[side]) == found.longest


def test_upstream_replaces_a_pair_that_we_leave_out(tmp_path: Path, template: ChatTemplate, tokenizer: Any) -> None:
    pairs, path, count = comparisons(template), tmp_path / "pairs.jsonl", counted(tokenizer)
    pairs = [hard_pair(template, "x" * 300), *pairs[:2], hard_pair(template, "x" * 300)]
    found = write_pairs(path, pairs, count, max_length=4096)
    limit = found.longest - 1
    data = prefix_set("rm", path, tokenizer, limit)
    assert len(data) == 4
    assert data[0]["chosen"].tolist() == data[2]["chosen"].tolist()  # the pair two places on, twice
    with pytest.raises(IndexError):
        data[3]
    filtered = write_pairs(path, pairs, count, max_length=limit)
    assert (filtered.rows, filtered.dropped) == (2, {"too long": 2})
    data = prefix_set("rm", path, tokenizer, limit)
    assert [
        surface(tokenizer, data[i]["chosen"][: data[i]["chosen_length"]], start=True) for i in range(len(data))
    ] == [hard.prompt + hard.chosen for hard in pairs[1:3]]


# Prompts


def questions(template: ChatTemplate) -> list[PromptText]:
    texts = [prompt_text(template, content) for content in _CONTENTS]
    texts += [prompt_text(template, content, "an answer", "and then?") for content in _CONTENTS]
    return texts + [PromptText("s", template.prompt((Message("system", c), *dialogue("a")))) for c in _CONTENTS]


def test_prompts_keep_their_length_and_none_is_masked(tmp_path: Path, template: ChatTemplate, tokenizer: Any) -> None:
    texts, path = questions(template), tmp_path / "prompts.jsonl"
    found = write_prompts(path, texts, counted(tokenizer), max_length=4096)
    assert found.dropped == {}
    data = prefix_set("rlhf", path, tokenizer, found.longest + 100, answer=100)
    assert len(data) == found.rows == len(texts)
    for i, text in enumerate(texts):
        assert surface(tokenizer, data[i]["text"], start=True) == text.prompt
        assert data[i]["length"] == len(tokenizer.text_to_ids(text.prompt))
        assert data[i]["loss_multiplier"] == 1


def test_upstream_masks_a_prompt_that_we_leave_out(tmp_path: Path, template: ChatTemplate, tokenizer: Any) -> None:
    texts, path, count = (
        [prompt_text(template, "x" * 200), prompt_text(template, "a")],
        tmp_path / "p.jsonl",
        counted(tokenizer),
    )
    found = write_prompts(path, texts, count, max_length=4096)
    data = prefix_set("rlhf", path, tokenizer, found.longest + 99, answer=100)
    assert [bool(data[i]["loss_multiplier"]) for i in range(2)] == [False, True]
    assert data[0]["text"].tolist() == data[1]["text"].tolist()
    filtered: Written = write_prompts(path, texts, count, max_length=found.longest - 1)
    assert (filtered.rows, filtered.dropped) == (1, {"too long": 1})


# Batches


@pytest.mark.parametrize(("rows", "batches"), [(8, 1), (15, 1), (16, 2)])
def test_upstream_drops_the_last_partial_batch(rows: int, batches: int) -> None:
    assert len(list(_sampler(rows))) == batches


def test_fewer_rows_than_a_batch_end_in_a_division_by_zero() -> None:
    with pytest.raises(ZeroDivisionError):
        next(iter(_sampler(7)))


def _sampler(rows: int) -> Any:
    from nemo.collections.nlp.data.language_modeling.megatron.megatron_batch_samplers import (
        MegatronPretrainingRandomBatchSampler,
    )

    return MegatronPretrainingRandomBatchSampler(
        total_samples=rows,
        consumed_samples=0,
        micro_batch_size=1,
        global_batch_size=8,
        data_parallel_rank=0,
        data_parallel_size=1,
        drop_last=True,
    )
