"""What the browser of samples shows of an exchange: its parts, apart; plain rows as they always were."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cai.chat import Message, ToolCall
from cai.chat.messages import message_to_plain
from cai.report.exchange import SamplePart, exchange
from cai.report.samples import READERS
from cai.run.ledger import iter_rows
from cai.text import json_text
from tests.support.report_runs import assistant, make_run, refill, tool_rows, user

CALL = ToolCall("find", '{"q": 1}', "c1")
TURNS = (
    Message("system", "Be kind."),
    Message("user", "One?"),
    Message("assistant", "1", "hm"),
    Message("user", "Two?"),
    Message("assistant", "", "look", (CALL,)),
    Message("tool", "found", tool_call_id="c1"),
    Message("assistant", "2", "easy"),
)


def plain(*turns: Message) -> list[dict[str, Any]]:
    return [message_to_plain(turn) for turn in turns]


def test_what_follows_the_last_question_is_told_in_parts() -> None:
    shown = exchange(plain(*TURNS))
    assert shown.prompt == "Two?"
    assert shown.earlier == "system: Be kind.\n\nuser: One?\n\nassistant (thought, not said): hm\n\nassistant: 1"
    assert [(part.kind, part.label, part.text, part.note) for part in shown.parts] == [
        ("thought", "thought before the tool call", "look", "no part of the answer"),
        ("call", "tool call", '{"q": 1}', "find"),
        ("result", "tool result", "found", "find"),
        ("thought", "thought before the answer", "easy", "no part of the answer"),
        ("", "answer", "2", ""),
    ]


def test_earlier_calls_and_results_are_lines_of_the_transcript() -> None:
    earlier = exchange(plain(*TURNS, Message("user", "Three?"))).earlier
    assert 'assistant: [calls the tool find: {"q": 1}]\n\ntool: [result of the tool find]\nfound' in earlier


def test_plain_rows_are_shown_as_ever() -> None:
    assert exchange([user("a"), assistant("b"), user("c")]) == type(exchange([]))("c", "user: a\n\nassistant: b")
    assert exchange([user("a"), assistant("b")]).parts == (SamplePart("answer", "b"),)
    assert exchange([]).prompt == ""


def test_each_kind_of_row_shows_the_tools_before_its_answers() -> None:
    asked = plain(*TURNS[3:6])
    judged = {"id": "a", "messages": asked, "chosen": "x", "rejected": "y", "p_chosen": 0.8, "meta": {}}
    sampled = {"id": "a", "messages": asked, "answers": ["x", "y"]}
    labels = {"judge": ["preferred", "other"], "sample": ["answer 1", "answer 2"]}
    for kind, row in (("judge", judged), ("sample", sampled)):
        shown = READERS[kind][1](row)
        assert [part.label for part in shown.parts][:3] == ["thought before the tool call", "tool call", "tool result"]
        assert [part.label for part in shown.parts][3:] == labels[kind]
    turn = {"round": 1, "principle": "p", "critique": "c", "revision": "r"}
    revised = {"id": "a", "messages": [*asked, assistant("r")], "meta": {"response": "first", "rounds": [turn]}}
    parts = READERS["revise"][1](revised).parts
    (revision,) = (part for part in parts if part.label == "revision")
    assert parts[revision.against].label == "first answer"


def test_rows_as_they_are_printed_have_every_part_and_obey_nothing(tmp_path: Path) -> None:
    run = make_run(tmp_path, kinds=("fetch", "read", "respond"))
    refill(run, "respond", tool_rows(6))
    ((_, artifact),) = run.steps("respond")
    shown = [json_text(row) for row in iter_rows(artifact)]
    assert [json.loads(line) for line in shown] == tool_rows(6)
    assert '"thinking": "That was easy."' in shown[0]
    assert '"tool_calls": [{"name": "look_up_' in shown[0]
    assert "\x1b" not in shown[5]
    assert "\\u001b[31mred" in shown[5]
