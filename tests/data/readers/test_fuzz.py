"""Every reader on what files really hold and on what nobody would write: a row or a counted reason, never a crash."""

from __future__ import annotations

import codecs
import gzip
import json
import random
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cai.data import records
from cai.data.readers import READERS
from cai.data.readers.transcripts import SCORE_KEYS
from cai.data.rows import Conversation, Row, dump_line, from_json
from cai.errors import PrerequisiteError

ROUNDS = 400
TEXTS = [
    "Why?",
    "",
    "  trailing \n\n",
    "\n\nHuman: hi\n\nAssistant: yes",
    "\n\nHuman: hi\n\nAssistant: no \n\nHuman: a\n\nHuman: b\n\nAssistant:",
    "\r\n\r\nHuman: hi\r\n\r\nAssistant: yes",
    "\n\nAssistant: first\n\nHuman: then",
    "Human:",
    "no turns at all",
    "\ud800 half",
    "\0",
    "\u2028\u2029\x85",
    "\ufeffmark",
    "4.0",
    "nan",
    "é" * 300,
    "<extra_id_1>",
    "User",
    "Assistant",
    "user",
    "assistant",
    "system",
    "pirate",
    "tool",
    "function_call",
    "<think>a</think> b",
    "<think>never",
    '{"name": "f", "arguments": {"a": 1}}',
]
ODD: list[Any] = [None, True, False, 0, -1, 7, 10**40, 0.5, 1e308, float("nan"), float("inf"), [], {}, [None], [[]], ""]
KEYS = [
    *(
        "prompt",
        "answer",
        "chosen",
        "rejected",
        "messages",
        "system",
        "topic",
        "p_chosen",
        "meta",
        "transcript",
        "rating",
    ),
    *("tags", *SCORE_KEYS, "conversations", "mask", "dataset", "context", "completions", "label", "type"),
    *("role", "content", "from", "value", "rank", "completion", "\udfff", ""),
    *(
        "tool_calls",
        "function",
        "function_call",
        "name",
        "arguments",
        "id",
        "tool_call_id",
        "reasoning_content",
        "text",
    ),
]


def value(draw: random.Random, depth: int = 0) -> Any:
    kind = draw.random()
    if kind < 0.5 or depth > 3:
        return draw.choice(TEXTS)
    if kind < 0.7:
        return draw.choice(ODD)
    if kind < 0.85:
        return [value(draw, depth + 1) for _ in range(draw.randrange(4))]
    return {draw.choice(KEYS): value(draw, depth + 1) for _ in range(draw.randrange(5))}


def turns(draw: random.Random, role: str, text: str, users: tuple[str, ...]) -> list[Any]:
    said: list[Any] = []
    for i in range(draw.randrange(5)):
        said.append({role: users[i % 2], text: f"text {draw.randrange(9)}"})
    return said


def transcript(draw: random.Random) -> str:
    return "".join(f"\n\n{('Human', 'Assistant')[i % 2]}: t{draw.randrange(4)}" for i in range(draw.randrange(5)))


def with_tools(draw: random.Random) -> list[Any]:
    """A question, calls and their results, and an answer with a thought before it."""
    calls = [
        {
            "id": f"c{i}",
            "type": "function",
            "function": {"name": "f", "arguments": draw.choice(["{}", {"a": 1}, "x"])},
        }
        for i in range(draw.randrange(3))
    ]
    results = [{"role": draw.choice(["tool", "ipython"]), "tool_call_id": c["id"], "content": "r"} for c in calls]
    return [
        {"role": "user", "content": draw.choice(["q", [{"type": "text", "text": "q"}]])},
        {"role": "assistant", "content": draw.choice([None, "I look."]), "tool_calls": calls},
        *results,
        {"role": "assistant", "content": "<think>so</think>A", "reasoning_content": draw.choice([None, "hm"])},
    ]


def nearly(draw: random.Random) -> dict[str, Any]:
    """A record that some reader would take."""
    chat = turns(draw, "role", "content", ("user", "assistant"))
    nemo = turns(draw, "from", "value", draw.choice([("User", "Assistant"), ("Ann", "Bo"), ("Human", "gpt")]))
    answers = [[{"role": "assistant", "content": f"a{draw.randrange(5)}"}] for _ in range(draw.randrange(4))]
    same = transcript(draw)
    return draw.choice(
        [
            {"prompt": "Why?", "answer": "So.", "chosen": "a", "rejected": "b", "p_chosen": 0.4, "topic": "t"},
            {"messages": chat},
            {"messages": with_tools(draw)},
            {"chosen": f"{same} c{draw.randrange(9)}", "rejected": f"{same} {draw.choice(TEXTS)}"},
            {"transcript": transcript(draw), "rating": draw.choice([3, "2"]), "tags": ["b"], SCORE_KEYS[1]: -1.5},
            {"system": "", "conversations": nemo, "mask": draw.choice(["User", "Ann", "none", None]), "dataset": "d"},
            {"context": chat, "completions": [{"rank": i, "completion": a} for i, a in enumerate(answers)]},
        ]
    )


def spoiled(draw: random.Random, record: Any) -> Any:
    """The record with one value somewhere in it replaced, removed or added."""
    if isinstance(record, dict) and record and draw.random() < 0.8:
        changed = dict(record)
        key = draw.choice(list(changed))
        how = draw.random()
        if how < 0.15:
            del changed[key]
        elif how < 0.3:
            changed[draw.choice(KEYS)] = value(draw)
        else:
            changed[key] = spoiled(draw, changed[key])
        return changed
    if isinstance(record, list) and record and draw.random() < 0.8:
        place = draw.randrange(len(record))
        return [*record[:place], spoiled(draw, record[place]), *record[place + 1 :]]
    return value(draw)


def some_record(draw: random.Random) -> Any:
    record: Any = nearly(draw)
    for _ in range(draw.randrange(3)):
        record = spoiled(draw, record)
    return record if draw.random() < 0.9 else value(draw)


def checked_rows(path: Path, reader: str, makes: str, options: dict[str, Any]) -> tuple[int, Counter[str]]:
    tally: Counter[str] = Counter()
    rows: list[Row] = []
    for row in READERS[reader].rows([path], makes, options, tally):
        line = dump_line(row)
        line.encode()
        assert from_json(type(row), json.loads(line)) == row
        # What every stage relies on: a conversation ends with the assistant, whatever else with who asks it.
        assert (row.messages[-1].role == "assistant") == isinstance(row, Conversation)
        rows.append(row)
    assert len({row.id for row in rows}) == len(rows)
    assert all(reason and reason == reason.strip() and count > 0 for reason, count in tally.items())
    return len(rows), tally


# Safety sets are read by records of their own, which tests/data/readers/test_safety.py spoils.
CASES = [
    (name, makes)
    for name, reader in READERS.items()
    if reader.records is records.json_records
    for makes in reader.makes
]
OPTIONS: dict[str, dict[str, Any]] = {
    "jsonl": {"columns": {"prompt": "content", "answer": "value"}},
    "hh_rlhf": {"merge_turns": True},
    "hh_red_team": {"min_rating": 1, "max_rating": 3.5, "max_score": 0, "exclude_tags": ["a"], "merge_turns": True},
}


@pytest.mark.parametrize("array", [False, True])
@pytest.mark.parametrize(("reader", "makes"), CASES)
def test_records_of_any_shape_become_rows_or_reasons(tmp_path: Path, reader: str, makes: str, array: bool) -> None:
    draw = random.Random(f"{reader}/{makes}")
    wanted = [some_record(draw) for _ in range(ROUNDS)]
    texts = [json.dumps(record, ensure_ascii=True) for record in wanted]
    file = tmp_path / "a"
    # A first line that is no array, so that a record which is a list is not taken for one.
    file.write_text("[" + ",\n".join(texts) + "]" if array else "\n".join(["{}", *texts]))
    for options in ({}, OPTIONS.get(reader, {})):
        count, tally = checked_rows(file, reader, makes, options)
        assert count + tally.total() == ROUNDS + (not array)
        assert count > 0 or options


def shuffled_bytes(draw: random.Random, data: bytes) -> bytes:
    spoilt = bytearray(data)
    for _ in range(draw.randrange(1, 8)):
        place = draw.randrange(len(spoilt) + 1)
        how = draw.random()
        if how < 0.4:
            spoilt[place : place + 1] = bytes([draw.randrange(256)])
        elif how < 0.6:
            del spoilt[place : place + draw.randrange(1, 40)]
        elif how < 0.8:
            spoilt[place:place] = bytes(draw.choice(b'[]{}",:\\\n\r\xff\x00 ') for _ in range(draw.randrange(1, 5)))
        else:
            spoilt[place:place] = codecs.BOM_UTF8
    return bytes(spoilt)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("array", [False, True])
@pytest.mark.parametrize("block", [5, 1 << 16])
def test_spoilt_bytes_become_reasons_or_an_error_that_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, array: bool, block: int, packed: bool
) -> None:
    monkeypatch.setattr(records, "_BLOCK", block)
    draw = random.Random(f"{array} {block} {packed}")
    told: list[str] = []
    for turn in range(150):
        texts = [json.dumps(nearly(draw)) for _ in range(draw.randrange(1, 9))]
        data = ("[" + ",".join(texts) + "]" if array else "\n".join(texts)).encode()
        steps = [partial(shuffled_bytes, draw), partial(gzip.compress, mtime=0) if packed else bytes]
        for step in steps if turn % 2 else reversed(steps):
            data = step(data)
        (tmp_path / "a").write_bytes(data)
        try:
            checked_rows(tmp_path / "a", "jsonl", "prompts", {})
        except PrerequisiteError as error:
            told.append(str(error))
    assert all(text.startswith(f"{tmp_path / 'a'}: ") for text in told)
    # Lines are lost one by one; a whole JSONL file only where its packing, or its first bracket, is.
    assert len(told) < (150 if array or packed else 10)


def test_parquet_values_of_any_kind_become_rows_or_reasons(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet")

    texts = [b"fine", b"\xff\xfe", None, b"good", b""]
    column = pyarrow.Array.from_buffers(pyarrow.string(), len(texts), pyarrow.array(texts, pyarrow.binary()).buffers())
    dates = pyarrow.array([0, 1, 2, 2**62, 4], pyarrow.timestamp("us"))
    table = pyarrow.table({"prompt": column, "when": dates, "n": [1, None, 3, 4, 5]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    count, tally = checked_rows(tmp_path / "a.parquet", "parquet", "prompts", {})
    assert (count, tally) == (1, {"not_utf8": 1, "missing_prompt": 1, "wrong_type": 1, "empty_prompt": 1})
