"""NeMo's data files: their exact bytes, what is left out of them and why, and which chat templates they fit."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from cai.chat import ChatTemplate, Message, Span
from cai.data.formats import base
from cai.data.formats.nemo_aligner import write_chat, write_pairs, write_prompts
from cai.data.formats.nemo_chat import chat_spans, matches_nemo_chat
from cai.data.readers import READERS
from cai.engines.methods.base import PromptText, TrainText
from cai.errors import SpecError
from tests.support.nemo_rows import HEADER, TEMPLATES, TURN, dialogue, hard_pair, prompt_text, train_text
from tests.support.small_tokenizers import sentencepiece_model


def encoder(model: bytes) -> Callable[[str], list[int]]:
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    return lambda text: list(processor.encode(text))


@pytest.fixture(scope="session")
def count() -> base.Count:
    """Tokens of a text, by a tokenizer that has no piece for NeMo's control strings, as Mistral's."""
    encode = encoder(sentencepiece_model())
    return lambda text: len(encode(text))


@pytest.fixture(scope="session")
def template() -> ChatTemplate:
    return ChatTemplate.from_file(TEMPLATES / "nemo_extra_id.jinja")


def bare(*messages: Message) -> TrainText:
    """Turns that no template would take; the writer looks at them before it looks at the spans."""
    return TrainText("row", (Span("x", False),), messages)


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


# Exact bytes


def test_a_conversation_is_written_in_upstreams_format(
    tmp_path: Path, template: ChatTemplate, count: base.Count
) -> None:
    path = tmp_path / "train.jsonl"
    found = write_chat(
        path, [train_text(template, 'Say é\u2028 "it"', "It\n", system="Be kind.")], count, max_length=200
    )
    assert (
        path.read_bytes()
        == (
            '{"system":"Be kind.","conversations":[{"from":"User","value":"Say é\u2028 \\"it\\""},'
            '{"from":"Assistant","value":"It\\n"}],"mask":"User","dataset":"cai"}\n'
        ).encode()
    )
    assert (found.rows, found.samples, found.dropped) == (1, 1, {})
    whole = (
        '<extra_id_0>System\nBe kind.\n<extra_id_1>User\nSay é\u2028 "it"\n<extra_id_1>Assistant\nIt\n\n<extra_id_1>'
    )
    assert found.tokens == found.longest == count(whole)


def test_a_pair_is_two_lines_and_the_chosen_one_is_first(
    tmp_path: Path, template: ChatTemplate, count: base.Count
) -> None:
    path = tmp_path / "pairs.jsonl"
    found = write_pairs(path, [hard_pair(template), hard_pair(template, "Ho")], count, max_length=200)
    head = "<extra_id_0>System\n\n<extra_id_1>User\n"
    assert [record["text"] for record in records(path)] == [
        f"{head}{asked}\n{HEADER}{answer}\n{TURN}" for asked in ("Hi", "Ho") for answer in ("Yes", "No")
    ]
    assert (found.rows, found.samples) == (2, 2)
    assert found.tokens == sum(count(record["text"]) for record in records(path))


def test_a_prompt_ends_with_the_assistant_header(tmp_path: Path, template: ChatTemplate, count: base.Count) -> None:
    path = tmp_path / "prompts.jsonl"
    found = write_prompts(
        path, [prompt_text(template, "Hi"), prompt_text(template, "Hi", "Yes", "Why?")], count, max_length=200
    )
    assert [record["text"] for record in records(path)] == [
        f"<extra_id_0>System\n\n{TURN}User\nHi\n{HEADER}",
        f"<extra_id_0>System\n\n{TURN}User\nHi\n{HEADER}Yes\n{TURN}User\nWhy?\n{HEADER}",
    ]
    assert (found.rows, found.dropped) == (2, {})


def test_learning_the_last_answer_alone_folds_the_turns_before_it(
    tmp_path: Path, template: ChatTemplate, count: base.Count
) -> None:
    last = train_text(template, "a", "b", "c\n", " d", system="s", loss="last")
    every = train_text(template, "a", "b", "c\n", " d", system="s")
    path = tmp_path / "train.jsonl"
    write_chat(path, [last, every], count, max_length=200)
    folded, plain = records(path)
    assert [turn["value"] for turn in plain["conversations"]] == ["a", "b", "c\n", " d"]
    assert [turn["value"] for turn in folded["conversations"]] == [f"a\n{HEADER}b\n{TURN}User\nc\n", " d"]
    assert chat_spans(folded) == tuple(last.spans)
    assert chat_spans(plain) == tuple(every.spans)
    assert "".join(span.text for span in last.spans) == "".join(span.text for span in every.spans)


def test_writing_twice_gives_the_same_bytes_and_leaves_nothing_beside(
    tmp_path: Path, template: ChatTemplate, count: base.Count
) -> None:
    path = tmp_path / "train.jsonl"
    rows = [train_text(template, f"q{i}", f"a{i}") for i in range(5)]
    assert write_chat(path, iter(rows), count, max_length=200) == write_chat(path, rows, count, max_length=200)
    before = path.read_bytes()
    write_chat(path, rows, count, max_length=200)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["train.jsonl"]


def test_upstreams_index_of_the_old_file_goes_with_it(
    tmp_path: Path, template: ChatTemplate, count: base.Count
) -> None:
    for name in ("train.jsonl.idx.npy", "train.jsonl.idx.info", "other.jsonl.idx.npy"):
        (tmp_path / name).write_bytes(b"old")
    write_chat(tmp_path / "train.jsonl", [train_text(template, "a", "b")], count, max_length=200)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["other.jsonl.idx.npy", "train.jsonl"]


def test_our_own_reader_reads_a_chat_file_back(tmp_path: Path, template: ChatTemplate, count: base.Count) -> None:
    path = tmp_path / "train.jsonl"
    write_chat(path, [train_text(template, "a", "b", "c", "d", system="s")], count, max_length=200)
    (row,) = READERS["nemo_sft_chat"].rows([path], "conversations", {}, Counter())
    assert row.messages == dialogue("a", "b", "c", "d", system="s")


# What is left out


@pytest.mark.parametrize(
    ("reason", "text"),
    [
        ("system turn not first", bare(*dialogue("a", "b"), Message("system", "s"))),
        ("system turn not first", bare(Message("system", "s"), Message("system", "t"), *dialogue("a", "b"))),
        ("no user turn", bare(Message("assistant", "b"))),
        ("no user turn", bare()),
        ("roles out of order", bare(Message("assistant", "b"), *dialogue("a", "b"))),
        ("roles out of order", bare(Message("user", "a"), *dialogue("a", "b"))),
        ("ends with a user turn", bare(*dialogue("a", "b", "c"))),
        ("empty answer", bare(*dialogue("a", " \n", "c", "d"))),
        ("control token in text", bare(*dialogue("a<extra_id_1>Assistant\nb", "c"))),
        ("control token in text", bare(*dialogue("a", "c", system="<extra_id_2>"))),
        ("rendered otherwise than NeMo does", bare(*dialogue("a", "b"))),
    ],
)
def test_conversations_that_upstream_would_misread_are_left_out(
    tmp_path: Path, template: ChatTemplate, count: base.Count, reason: str, text: TrainText
) -> None:
    path = tmp_path / "train.jsonl"
    found = write_chat(
        path, [train_text(template, "a", "b"), text, train_text(template, "c", "d")], count, max_length=200
    )
    assert found.dropped == {reason: 1}
    assert found.rows == len(records(path)) == 2


def test_a_conversation_may_be_one_token_longer_than_the_sequence(
    tmp_path: Path, template: ChatTemplate, count: base.Count
) -> None:
    text = train_text(template, "a question", "an answer")
    tokens = count("".join(span.text for span in text.spans))
    path = tmp_path / "train.jsonl"
    assert write_chat(path, [text], count, max_length=tokens - 1).longest == tokens
    with pytest.raises(SpecError, match="1 too long"):
        write_chat(path, [text], count, max_length=tokens - 2)


def test_a_pair_may_be_as_long_as_the_sequence_on_both_sides(
    tmp_path: Path, template: ChatTemplate, count: base.Count
) -> None:
    path = tmp_path / "pairs.jsonl"
    for longer in (hard_pair(template, chosen="Yes, of course"), hard_pair(template, rejected="No, never at all")):
        tokens = max(count(longer.prompt + answer) for answer in (longer.chosen, longer.rejected))
        assert write_pairs(path, [longer], count, max_length=tokens).longest == tokens
        assert write_pairs(path, [longer, hard_pair(template)], count, max_length=tokens - 1).dropped == {"too long": 1}


def test_a_prompt_leaves_room_for_the_answer(tmp_path: Path, template: ChatTemplate, count: base.Count) -> None:
    path = tmp_path / "prompts.jsonl"
    text = prompt_text(template, "a rather long question")
    tokens = count(text.prompt)
    assert write_prompts(path, [text], count, max_length=tokens).longest == tokens
    assert write_prompts(path, [text, prompt_text(template, "a")], count, max_length=tokens - 1).dropped == {
        "too long": 1
    }


def test_a_tokenizer_that_merges_across_turns_is_found_out(tmp_path: Path, template: ChatTemplate) -> None:
    def merging(text: str) -> int:
        """One token a character, but a line end and the next turn's '<' are one."""
        return len(text) - text.count("\n<")

    rows = [train_text(template, "a", "b")]
    with pytest.raises(SpecError, match="1 tokens merge across turns"):
        write_chat(tmp_path / "train.jsonl", rows, merging, max_length=500)
    assert write_chat(tmp_path / "train.jsonl", rows, len, max_length=500).rows == 1


def test_a_tokenizer_that_merges_a_name_with_its_answer_is_found_out(tmp_path: Path, template: ChatTemplate) -> None:
    def merging(text: str) -> int:
        return len(text) - text.count("\n\n")

    rows = [train_text(template, "a", "\nb", system="s"), train_text(template, "a", "b", system="s")]
    found = write_chat(tmp_path / "train.jsonl", rows, merging, max_length=500)
    assert (found.rows, found.dropped) == (1, {"tokens merge across turns": 1})


@pytest.mark.parametrize(
    ("reason", "changes"),
    [
        ("identical answers", {"rejected": f"Yes\n{TURN}"}),
        ("empty answer", {"rejected": f" \n{TURN}"}),
        ("answer without end of turn", {"chosen": "Yes\n"}),
        ("control token in text", {"chosen": f"Yes\n{TURN}User\nSo?\n{TURN}"}),
        ("prompt without assistant header", {"prompt": f"<extra_id_0>System\n\n{TURN}User\nHi\n"}),
    ],
)
def test_pairs_that_teach_nothing_or_end_wrongly_are_left_out(
    tmp_path: Path, template: ChatTemplate, count: base.Count, reason: str, changes: dict[str, str]
) -> None:
    path = tmp_path / "pairs.jsonl"
    odd = replace(hard_pair(template), **changes)
    found = write_pairs(path, [hard_pair(template), odd, hard_pair(template, "Ho")], count, max_length=200)
    assert found.dropped == {reason: 1}
    assert [record["text"].splitlines()[5] for record in records(path)] == ["Yes", "No", "Yes", "No"]


@pytest.mark.parametrize(
    ("reason", "text"),
    [
        ("prompt without assistant header", "Hi"),
        ("prompt without system header", f"{TURN}User\nHi\n{HEADER}"),
        ("roles out of order", f"<extra_id_0>System\n\n{HEADER}Hi\n{HEADER}"),
        ("roles out of order", f"<extra_id_0>System\n\n{TURN}User\nHi\n{HEADER}a\n{HEADER}"),
        ("empty prompt", f"<extra_id_0>System\n\n{TURN}User\n \n{HEADER}"),
        ("control token in text", f"<extra_id_0>System\n<extra_id_0>\n{TURN}User\nHi\n{HEADER}"),
        ("not utf-8", f"<extra_id_0>System\n\n{TURN}User\n\udc80\n{HEADER}"),
    ],
)
def test_prompts_that_are_none_are_left_out(
    tmp_path: Path, template: ChatTemplate, count: base.Count, reason: str, text: str
) -> None:
    path = tmp_path / "prompts.jsonl"
    found = write_prompts(path, [PromptText("odd", text), prompt_text(template, "Hi")], count, max_length=200)
    assert found.dropped == {reason: 1}
    assert len(records(path)) == 1


def test_a_huge_line_is_left_out_before_its_tokens_are_counted(
    tmp_path: Path, template: ChatTemplate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "MAX_LINE", 200)

    def count(text: str) -> int:
        assert len(text) < 300
        return len(text)

    found = write_prompts(
        tmp_path / "prompts.jsonl",
        [prompt_text(template, "x" * 300), prompt_text(template, "Hi")],
        count,
        max_length=1000,
    )
    assert found.dropped == {"line too large": 1}


def test_replicas_of_one_row_count_as_one_row(tmp_path: Path, template: ChatTemplate, count: base.Count) -> None:
    kept, long = hard_pair(template), hard_pair(template, chosen="very " * 40)
    rows = [replace(row, replica=k) for row in (kept, long) for k in range(3)]
    found = write_pairs(tmp_path / "pairs.jsonl", rows, count, max_length=100, at_least=3)
    assert (found.rows, found.samples, found.dropped) == (1, 3, {"too long": 1})
    assert len(records(tmp_path / "pairs.jsonl")) == 6


def test_fewer_rows_than_a_batch_are_refused_and_the_old_file_stays(
    tmp_path: Path, template: ChatTemplate, count: base.Count
) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text("old\n")
    rows = [train_text(template, "a", "b"), bare(*dialogue("a", "b", "c"))]
    with pytest.raises(SpecError) as error:
        write_chat(path, rows, count, max_length=200, at_least=2)
    assert "train.jsonl: 1 conversations are left for a batch of 2 (1 ends with a user turn)" in str(error.value)
    assert path.read_text() == "old\n"
    assert [file.name for file in tmp_path.iterdir()] == ["train.jsonl"]
    with pytest.raises(SpecError, match="0 prompts"):
        write_prompts(tmp_path / "none.jsonl", [], count, max_length=200, at_least=0)


# Templates


def test_the_shipped_template_is_nemos(template: ChatTemplate) -> None:
    assert matches_nemo_chat(template) == ""


@pytest.mark.parametrize("name", ["chatml", "mistral_instruct", "llama3", "human_assistant", "smollm2"])
def test_other_shipped_templates_are_not(name: str) -> None:
    assert matches_nemo_chat(ChatTemplate.from_file(TEMPLATES / f"{name}.jinja"))


@dataclass(frozen=True)
class Edit:
    """One change to the shipped template, and what must be said about it."""

    old: str
    new: str
    says: str


@pytest.mark.parametrize(
    "edit",
    [
        Edit("message['content'] + '\\n'", "message['content'] | trim + '\\n'", "differs"),
        Edit("<extra_id_0>System\\n", "<extra_id_0>system\\n", "has 'system"),
        Edit("said.system + '\\n'", "(said.system + '\\n' if said.system else '')", "the prompt of 2 turns differs"),
        Edit("'User' if", "'Human' if", "has 'Human"),
        Edit('control: ["<extra_id_0>", "<extra_id_1>", "<extra_id_2>"]', "control: []", "a message can hold"),
        Edit("<extra_id_1>", "<extra_id_9>", "has '9>User"),
    ],
)
def test_the_first_difference_is_told(template: ChatTemplate, edit: Edit) -> None:
    assert edit.old in template.text
    changed = ChatTemplate.from_text("changed", template.text.replace(edit.old, edit.new))
    assert edit.says in matches_nemo_chat(changed)
