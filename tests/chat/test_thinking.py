"""What a model thought is split off what it said, in every form in which models write it."""

from __future__ import annotations

import itertools

import pytest

from cai.chat import ToolCall
from cai.chat.thinking import MARKS, Spoken, prefilled, said_so_far, spoken

THOUGHT, ANSWER = "They ask for 2 + 2.", "It is 4."


@pytest.mark.parametrize(("opening", "closing"), MARKS)
def test_a_thought_between_its_marks_is_no_part_of_the_answer(opening: str, closing: str) -> None:
    whole = f"{opening}\n{THOUGHT}\n{closing}\n\n{ANSWER}"
    assert spoken(whole) == Spoken(ANSWER, THOUGHT)
    assert spoken(f"\n {whole}") == Spoken(ANSWER, THOUGHT)
    assert spoken(f"{THOUGHT}\n{closing}\n{ANSWER}") == Spoken(ANSWER, THOUGHT), "the template opened it"
    assert spoken(f"{THOUGHT}{closing}{ANSWER}", opened=True) == Spoken(ANSWER, THOUGHT)
    assert spoken(whole, opened=True) == Spoken(ANSWER, THOUGHT), "the model opened it again"
    assert spoken(f"{opening}{THOUGHT}") == Spoken("", THOUGHT, open=True)
    assert spoken(opening) == Spoken("", "", open=True)
    assert spoken(THOUGHT, opened=True) == Spoken("", THOUGHT, open=True)
    assert spoken(f"{opening}{closing}{ANSWER}") == Spoken(ANSWER), "an empty thought"


def test_a_second_thought_is_one_too() -> None:
    assert spoken("<think>a</think>x <think>b</think>y") == Spoken("x y", "a\n\nb")
    assert spoken("a</think>x <think>b</think>y") == Spoken("x y", "a\n\nb")
    assert spoken("Hello. <think>b</think>More.") == Spoken("Hello. More.", "b")
    assert spoken("<think>a</think><think>b") == Spoken("", "a\n\nb", open=True)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  an answer\n",
        "Write <think> before a thought.",
        "a < b > c",
        "analysis of the case",
        "[thinking] of you",
        "<b>think</b>",
    ],
)
def test_a_text_without_a_thought_keeps_its_bytes(text: str) -> None:
    assert spoken(text) == Spoken(text)


def test_harmony_has_channels() -> None:
    final = "<|start|>assistant<|channel|>final<|message|>It is 4.<|return|>"
    thought = "<|channel|>analysis<|message|>They ask for 2 + 2.<|end|>"
    assert spoken(thought + final) == Spoken(ANSWER, THOUGHT)
    assert spoken("<|channel|>final<|message|>It is 4.") == Spoken(ANSWER)
    assert spoken(thought) == Spoken("", THOUGHT, open=True)
    assert spoken(thought[:-7]) == Spoken("", THOUGHT, open=True)
    call = '<|start|>assistant<|channel|>commentary to=functions.add <|constrain|>json<|message|>{"a": 2}<|call|>'
    assert spoken(thought + call) == Spoken("", THOUGHT, tool_calls=(ToolCall("add", '{"a": 2}'),))
    # As it reads where a server leaves special tokens out.
    assert spoken("analysisThey ask for 2 + 2.assistantfinalIt is 4.") == Spoken(ANSWER, THOUGHT)
    assert spoken("analysisThey ask for 2 + 2.") == Spoken("", THOUGHT, open=True)


def test_a_prompt_may_have_opened_the_thought() -> None:
    assert prefilled("<|im_start|>assistant\n<think>\n")
    assert prefilled("[THINK]")
    assert not prefilled("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert not prefilled("")


@pytest.mark.parametrize(
    "piece", ["<think>", "</think>", "<think></thinking>", "[THINK]</think>", "<|channel|>x", "analysisA"]
)
def test_a_hostile_text_takes_time_in_proportion(piece: str) -> None:
    whole = spoken(piece * 200_000)
    assert len(whole.text) + len(whole.thinking) <= len(piece) * 200_000 + 400_000


@pytest.mark.parametrize(
    ("text", "opened", "said"),
    [
        ("<think>Two and two.</think>\n\nIt is 4.", False, "It is 4."),
        ("Two and two.\n</think>\nIt is 4.", True, "It is 4."),
        ("It is 4 < 5, I think>.", False, "It is 4 < 5, I think>."),
        ("Hello. <think>b</think>More.", False, "Hello. More."),
        ("analysisTwo and two.assistantfinalIt is 4.", False, "It is 4."),
        ("analysis of the case", False, "analysis of the case"),
        ("<|channel|>analysis<|message|>Two.<|end|><|start|>assistant<|channel|>final<|message|>4.", False, "4."),
        ("[THINK]a[/THINK]b", False, "b"),
    ],
)
def test_a_text_that_grows_shows_only_what_will_be_said(text: str, opened: bool, said: str) -> None:
    shown = [said_so_far(text[:n], opened) for n in range(len(text) + 1)]
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(shown))
    assert spoken(text, opened).text == said
    assert said.startswith(shown[-1])
    assert len(said) - len(shown[-1]) <= 1


def test_a_persons_text_may_speak_of_marks() -> None:
    text = "Use <think>x</think> tags."
    assert spoken(text, leading=True) == Spoken(text)
    assert spoken("<think>a</think><think>b</think>Use <think>x</think>.", leading=True) == Spoken(
        "Use <think>x</think>.", "a\n\nb"
    )
    assert spoken("a</think>Use <think>x</think>.", leading=True) == Spoken("Use <think>x</think>.", "a")
