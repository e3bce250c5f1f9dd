"""Messages with tools, thinking and parts: each spelling becomes one row, what cannot is counted by a reason."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from cai.chat import Message, ToolCall
from cai.data.readers import READERS
from cai.data.readers.shape import parts
from cai.data.rows import Comparison, Conversation, Prompt, Row, dump_line, read_rows, write_rows
from cai.identity import row_id

ASKED = {"role": "user", "content": "How is it in Paris?"}
CALLS = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}],
}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "sunny"}
ANSWER = {"role": "assistant", "content": "Sunny.", "reasoning_content": "The tool says so."}
TRIP = [ASKED, CALLS, RESULT, ANSWER]
ROW = (
    Message("user", "How is it in Paris?"),
    Message("assistant", tool_calls=(ToolCall("weather", '{"city": "Paris"}', "c1"),)),
    Message("tool", "sunny", tool_call_id="c1"),
    Message("assistant", "Sunny.", "The tool says so."),
)


def read(folder: Path, *records: Any, reader: str = "openai_messages", makes: str = "conversations") -> Any:
    path = folder / "a.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    tally: Counter[str] = Counter()
    rows = list(READERS[reader].rows([path], makes, {}, tally))
    return rows, dict(tally)


def one(folder: Path, messages: list[Any], **more: Any) -> Row:
    ((row,), tally) = read(folder, {"messages": messages}, **more)
    assert not tally
    return row


def reason(folder: Path, messages: list[Any], **more: Any) -> str:
    (rows, tally) = read(folder, {"messages": messages}, **more)
    assert not rows
    ((why, count),) = tally.items()
    assert count == 1
    return why


def test_openai_s_tool_messages_become_a_row(tmp_path: Path) -> None:
    assert one(tmp_path, TRIP).messages == ROW
    assert one(tmp_path, TRIP, reader="jsonl").messages == ROW


def test_arguments_may_be_a_text_or_an_object_and_stand_as_they_were_written(tmp_path: Path) -> None:
    def arguments(written: Any) -> str:
        call = {"function": {"name": "weather", "arguments": written}}
        row = one(tmp_path, [ASKED, {"role": "assistant", "tool_calls": [call]}])
        return row.messages[-1].tool_calls[0].arguments

    assert arguments('{"city":   "Paris"}') == '{"city":   "Paris"}'
    assert arguments({"city": "Zürich", "n": [1, None]}) == '{"city": "Zürich", "n": [1, null]}'
    assert arguments("no json") == "no json"
    assert [arguments(None), arguments("")] == ["{}", "{}"]


@pytest.mark.parametrize("role", ["tool", "function", "ipython", "observation", "Tool "])
def test_results_are_known_by_every_usual_role(tmp_path: Path, role: str) -> None:
    result = {"role": role, "name": "weather", "content": "sunny"}
    assert one(tmp_path, [ASKED, CALLS, result, ANSWER]).messages[2] == Message("tool", "sunny", name="weather")


def test_a_single_function_call_of_old_is_a_tool_call(tmp_path: Path) -> None:
    old = {"role": "assistant", "content": None, "function_call": {"name": "weather", "arguments": "{}"}}
    row = one(tmp_path, [ASKED, old, {"role": "function", "name": "weather", "content": "sunny"}, ANSWER])
    assert row.messages[1] == Message("assistant", tool_calls=(ToolCall("weather", "{}"),))
    assert one(tmp_path, [ASKED, {**ANSWER, "function_call": None, "tool_calls": []}]).messages[1].tool_calls == ()


@pytest.mark.parametrize("mask", [None, "human"])
def test_sharegpt_s_turns_are_read(tmp_path: Path, mask: str | None) -> None:
    record = {
        "system": "Be kind.",
        "mask": mask,
        "conversations": [
            {"from": "human", "value": "How is it in Paris?"},
            {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Paris"}}'},
            {"from": "observation", "value": "sunny"},
            {"from": "gpt", "value": "<think>\nThe tool says so.\n</think>\n\nSunny."},
        ],
    }
    ((row,), tally) = read(tmp_path, record, reader="nemo_sft_chat")
    assert not tally
    assert row.messages == (
        Message("system", "Be kind."),
        ROW[0],
        Message("assistant", tool_calls=(ToolCall("weather", '{"city": "Paris"}'),)),
        Message("tool", "sunny"),
        ROW[3],
    )


def test_several_calls_are_answered_by_id_or_in_their_order(tmp_path: Path) -> None:
    calls = [{"id": id, "function": {"name": "f", "arguments": "{}"}} for id in ("a", "b")]
    both = {"role": "assistant", "content": "", "tool_calls": calls}
    results = [{"role": "tool", "tool_call_id": id, "content": id} for id in ("b", "a")]
    assert len(one(tmp_path, [ASKED, both, *results, ANSWER]).messages) == 5
    nameless = [{"role": "tool", "content": "x"}, {"role": "tool", "content": ""}]
    assert one(tmp_path, [ASKED, both, *nameless, ANSWER]).messages[3].content == ""
    again = [{"role": "assistant", "content": "", "tool_calls": calls[:1]}, results[1]]
    assert len(one(tmp_path, [ASKED, both, *results, *again, ANSWER, ASKED, ANSWER]).messages) == 9


@pytest.mark.parametrize(
    ("key", "told"), [("reasoning_content", "hm"), ("reasoning", "hm"), ("thinking", "hm"), ("thinking", True)]
)
def test_thinking_is_kept_apart_under_every_name(tmp_path: Path, key: str, told: Any) -> None:
    row = one(tmp_path, [ASKED, {"role": "assistant", "content": "Sunny.", key: told}])
    assert row.messages[1] == Message("assistant", "Sunny.", "hm" if told == "hm" else "")


@pytest.mark.parametrize(
    ("content", "thinking", "said"),
    [
        ("<think>hm</think>Sunny.", "hm", "Sunny."),
        ("\n<think>\n hm \n</think>\n\nSunny.", "hm", "Sunny."),
        ("<think>\n\n</think>\n\nSunny.", "", "Sunny."),
        ("Use <think>x</think> tags.", "", "Use <think>x</think> tags."),
        ("hm\n</think>\n\nSunny.", "hm", "Sunny."),
        ("[THINK]hm[/THINK]Sunny.", "hm", "Sunny."),
        ("<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>Sunny.", "hm", "Sunny."),
    ],
)
def test_a_leading_thought_is_split_off_an_answer(tmp_path: Path, content: str, thinking: str, said: str) -> None:
    expected = Message("assistant", said, thinking)
    assert one(tmp_path, [ASKED, {"role": "assistant", "content": content}]).messages[1] == expected
    ((row,), _) = read(tmp_path, {"prompt": "q", "answer": content}, reader="jsonl")
    assert row.messages[1] == expected
    assert one(tmp_path, [{"role": "user", "content": content}, ANSWER]).messages[0].content == content.strip()


def test_parts_of_text_are_joined_and_others_have_a_reason(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "How is it "}, {"type": "text", "text": "in Paris?"}]
    assert one(tmp_path, [{"role": "user", "content": parts}, ANSWER]).messages[0] == ROW[0]
    for part in ({"type": "image_url", "image_url": {"url": "x"}}, {"type": "image", "text": "x"}, {"text": None}, 7):
        assert reason(tmp_path, [{"role": "user", "content": [part]}, ANSWER]) == "not_text"


def test_parts_that_think_call_and_answer_are_told_apart(tmp_path: Path) -> None:
    """As Anthropic's messages hold them: a call is a part of the assistant's turn, its result one of the user's."""
    call = {"type": "tool_use", "id": "c1", "name": "weather", "input": {"city": "Paris"}}
    result = {"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "sunny"}]}
    thought = {"type": "thinking", "thinking": "The tool says so.", "signature": "x"}
    exchange = [
        ASKED,
        {"role": "assistant", "content": [{"type": "text", "text": "Let me look."}, call]},
        {"role": "user", "content": [result]},
        {"role": "assistant", "content": [thought, {"type": "text", "text": "Sunny."}]},
    ]
    assert one(tmp_path, exchange).messages == (
        ROW[0],
        Message("assistant", "Let me look.", tool_calls=(ToolCall("weather", '{"city": "Paris"}', "c1"),)),
        Message("tool", "sunny", tool_call_id="c1"),
        Message("assistant", "Sunny.", "The tool says so."),
    )
    magistral = [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": "Sunny."}]
    assert one(tmp_path, [ASKED, {"role": "assistant", "content": magistral}]).messages[1].thinking == "hm"
    alone = [{"type": "thinking", "thinking": "hm"}]
    assert reason(tmp_path, [ASKED, {"role": "assistant", "content": alone}]) == "empty_answer"


@pytest.mark.parametrize(
    ("role", "parts", "why"),
    [
        ("assistant", [{"type": "tool_result", "tool_use_id": "c", "content": "x"}], "not_alternating"),
        ("user", [{"type": "tool_use", "id": "c", "name": "f", "input": {}}], "not_alternating"),
        ("user", [{"type": "thinking", "thinking": "hm"}], "not_alternating"),
        ("user", [{"type": "tool_result", "tool_use_id": "c", "content": "x"}], "result_without_call"),
        ("user", [{"type": "tool_result", "content": [{"type": "image"}]}], "not_text"),
        ("user", [{"type": "tool_result", "content": 7}], "wrong_type"),
        ("assistant", [{"type": "tool_use", "name": " "}], "not_text"),
    ],
)
def test_parts_in_the_wrong_turn_have_their_reason(tmp_path: Path, role: str, parts: list[Any], why: str) -> None:
    assert reason(tmp_path, [ASKED, {"role": role, "content": parts}, ANSWER]) == why


@pytest.mark.parametrize(
    ("messages", "why"),
    [
        ([ASKED, RESULT, ANSWER], "result_without_call"),
        ([ASKED, CALLS, RESULT, RESULT, ANSWER], "result_without_call"),
        ([ASKED, CALLS, {**RESULT, "tool_call_id": "c2"}, ANSWER], "result_without_call"),
        ([ASKED, ANSWER, RESULT, ANSWER], "result_without_call"),
        ([ASKED, CALLS, ASKED, ANSWER], "call_without_result"),
        ([ASKED, CALLS, ANSWER], "call_without_result"),
        ([ASKED, CALLS, RESULT, ASKED, ANSWER], "not_alternating"),
        ([ASKED, CALLS, RESULT, ANSWER, ANSWER], "not_alternating"),
        ([CALLS, RESULT, ANSWER], "not_alternating"),
        ([ASKED, CALLS, RESULT], "no_answer"),
        ([ASKED, CALLS, RESULT, {"role": "assistant", "content": ""}], "empty_answer"),
        ([ASKED, {"role": "assistant", "content": None}], "missing_content"),
        ([ASKED, {"role": "assistant", "content": "<think>on and on"}], "unclosed_thinking"),
        ([ASKED, {"role": "assistant", "content": "<think>only</think>"}], "empty_answer"),
        ([ASKED, {"role": "assistant", "content": "x", "thinking": ["a"]}], "wrong_type"),
        ([ASKED, {"role": "assistant", "tool_calls": [{"function": {"arguments": "{}"}}]}], "wrong_tool_call"),
        ([ASKED, {"role": "assistant", "tool_calls": [{"type": "custom", "name": "x"}]}], "wrong_tool_call"),
        ([ASKED, {"role": "assistant", "tool_calls": {"name": "x"}}], "wrong_tool_call"),
        ([ASKED, {"role": "assistant", "tool_calls": [{"name": "x", "arguments": [1]}]}], "wrong_tool_call"),
        ([ASKED, {"role": "function_call", "content": "weather(Paris)"}], "wrong_tool_call"),
    ],
)
def test_what_is_no_exchange_with_tools_has_its_reason(tmp_path: Path, messages: list[Any], why: str) -> None:
    assert reason(tmp_path, messages) == why


def test_a_conversation_may_end_with_a_call_and_a_prompt_with_a_result(tmp_path: Path) -> None:
    row = one(tmp_path, TRIP[:2])
    assert isinstance(row, Conversation)
    assert row.messages == ROW[:2]
    asked = one(tmp_path, TRIP, makes="prompts")
    assert isinstance(asked, Prompt)
    assert asked.messages == ROW[:3]
    assert one(tmp_path, TRIP[:3], makes="prompts") == asked
    assert one(tmp_path, TRIP[:2], makes="prompts").messages == ROW[:1]


def test_comparisons_hold_what_was_said(tmp_path: Path) -> None:
    pair = {"chosen": "<think>a</think>Yes.", "rejected": "<think>b</think>No.", "messages": TRIP[:3]}
    ((row,), _) = read(tmp_path, pair, reader="jsonl", makes="comparisons")
    assert isinstance(row, Comparison)
    assert (row.messages, row.chosen, row.rejected) == (ROW[:3], "Yes.", "No.")
    whole = {"chosen": [*TRIP[:3], ANSWER], "rejected": [*TRIP[:3], {"role": "assistant", "content": "Rain."}]}
    ((row,), _) = read(tmp_path, whole, reader="jsonl", makes="comparisons")
    assert (row.chosen, row.rejected) == ("Sunny.", "Rain.")
    called = {"chosen": [ASKED, CALLS], "rejected": [ASKED, ANSWER]}
    assert read(tmp_path, called, reader="jsonl", makes="comparisons")[1] == {"answer_is_tool_call": 1}


def test_ids_of_plain_rows_are_as_ever_and_those_of_others_tell_them_apart(tmp_path: Path) -> None:
    plain = one(tmp_path, [ASKED, {"role": "assistant", "content": "Sunny."}])
    assert plain.id == row_id("user", "How is it in Paris?", "assistant", "Sunny.")
    assert plain.id == "678e89df127090b3"
    other_calls = {**CALLS, "tool_calls": [{"id": "c1", "function": {"name": "weather", "arguments": "{}"}}]}
    other_thought = {**ANSWER, "reasoning_content": "x"}
    talks = [[ASKED, ANSWER], TRIP, [ASKED, other_calls, RESULT, ANSWER], [*TRIP[:3], other_thought]]
    ids = {plain.id, *(one(tmp_path, talk).id for talk in talks)}
    assert len(ids) == 5
    assert parts(plain.messages) == ["user", "How is it in Paris?", "assistant", "Sunny."]


def test_rows_with_everything_travel_through_files_and_readers(tmp_path: Path) -> None:
    row = one(tmp_path, TRIP)
    write_rows(tmp_path / "rows.jsonl", [row])
    assert list(read_rows(tmp_path / "rows.jsonl", Conversation)) == [row]
    (tmp_path / "b.jsonl").write_text(dump_line(row), encoding="utf-8")
    assert read(tmp_path, json.loads(dump_line(row)), reader="jsonl") == ([row], {})


def test_rows_of_an_older_program_are_read_as_they_are(tmp_path: Path) -> None:
    line = (
        '{"id":"678e89df127090b3","messages":[{"role":"user","content":"How is it in Paris?"},'
        '{"role":"assistant","content":"<think>kept</think> Sunny."}],"topic":"","meta":{}}\n'
    )
    (tmp_path / "rows.jsonl").write_text(line, encoding="utf-8")
    (row,) = read_rows(tmp_path / "rows.jsonl", Conversation)
    assert isinstance(row, Conversation)
    assert row.messages[1] == Message("assistant", "<think>kept</think> Sunny.")
    assert dump_line(row) == line
