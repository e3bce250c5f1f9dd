from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from cai.chat import Message
from cai.data import records
from cai.data.readers import READERS
from cai.data.readers.transcripts import turns
from cai.data.rows import Comparison, Conversation, Prompt, Row, dump_line
from cai.errors import PrerequisiteError

ASKED = (Message("user", "Why?"),)
TOLD = (*ASKED, Message("assistant", "Because."))


def read(path: Path, reader: str, makes: str, **options: Any) -> tuple[list[Row], dict[str, int]]:
    tally: Counter[str] = Counter()
    rows = list(READERS[reader].rows([path], makes, options, tally))
    return rows, dict(tally)


def lines(path: Path, *values: Any) -> Path:
    path.write_text("".join(json.dumps(v) + "\n" for v in values), encoding="utf-8")
    return path


def test_each_simple_shape_makes_its_row(tmp_path: Path) -> None:
    file = lines(tmp_path / "a.jsonl", {"prompt": "Why?", "answer": "Because.", "topic": "t", "kind": "k"})
    (asked,), _ = read(file, "jsonl", "prompts")
    (told,), _ = read(file, "jsonl", "conversations")
    assert isinstance(asked, Prompt)
    assert (asked.messages, asked.topic, asked.meta) == (ASKED, "t", {"kind": "k"})
    assert isinstance(told, Conversation)
    assert told.messages == TOLD

    pair = {"prompt": "Why?", "chosen": "Because.", "rejected": "No.", "p_chosen": 0.7, "system": "Be kind."}
    (compared,), _ = read(lines(tmp_path / "b.jsonl", pair), "jsonl", "comparisons")
    assert isinstance(compared, Comparison)
    assert compared.messages == (Message("system", "Be kind."), *ASKED)
    assert (compared.chosen, compared.rejected, compared.p_chosen) == ("Because.", "No.", 0.7)


def test_a_written_row_reads_back_as_itself(tmp_path: Path) -> None:
    file = lines(tmp_path / "a.jsonl", {"prompt": "Why?", "chosen": "A", "rejected": "B", "topic": "t", "kind": "k"})
    (row,), _ = read(file, "jsonl", "comparisons")
    (tmp_path / "b.jsonl").write_text(dump_line(row), encoding="utf-8")
    assert read(tmp_path / "b.jsonl", "jsonl", "comparisons") == ([row], {})


def test_columns_rename_and_exchanges_pair(tmp_path: Path) -> None:
    file = lines(tmp_path / "a.jsonl", {"question": "Why?", "reply": "Because."})
    (row,), _ = read(file, "jsonl", "conversations", columns={"prompt": "question", "answer": "reply"})
    assert row.messages == TOLD
    assert row.meta == {}

    exchange = [{"role": "user", "content": "Why?"}]
    good, bad = ([*exchange, {"role": "assistant", "content": c}] for c in ("Because.", "No."))
    (pair,), _ = read(lines(tmp_path / "b.jsonl", {"chosen": good, "rejected": bad}), "jsonl", "comparisons")
    assert isinstance(pair, Comparison)
    assert (pair.messages, pair.rejected) == (ASKED, "No.")


HOSTILE: list[tuple[bytes, str]] = [
    (b'{"prompt": "cut', "not_json"),
    (b"nonsense", "not_json"),
    (b"[" * 200_000, "too_deep"),
    (b'{"a":' * 200_000, "not_json"),
    (b'{"prompt": ' + b"9" * 5000 + b"}", "not_json"),
    (b'{"prompt": "\xff\xfe"}', "not_utf8"),
    (b'{"prompt": "\\ud800"}', "not_utf8"),
    (b'{"prompt": "fine", "note": "\\udfff"}', "not_utf8"),
    (b'{"prompt": "fine", "\\udfff": 1}', "not_utf8"),
    (b'{"prompt": "fine", "meta": {"\\udfff": 1}}', "not_utf8"),
    (b'{"messages": [{"role": ' + b"[" * 60 + b"]" * 60 + b"}]}", "unknown_role"),
    (b'{"prompt": "a", "b": ' + b"[" * 64 + b"]" * 64 + b"}", "too_deep"),
    (b'{"a\\"": "\\\\", "b": ' + b"[" * 64 + b"]" * 64 + b"}", "too_deep"),
    (b'"a text"', "not_object"),
    (b"null", "not_object"),
    (b"{}", "missing_prompt"),
    (b'{"prompt": null}', "missing_prompt"),
    (b'{"prompt": 7}', "wrong_type"),
    (b'{"prompt": {"a": "b"}}', "wrong_type"),
    (b'{"prompt": "a", "topic": ["x"]}', "wrong_type"),
    (b'{"prompt": "  \\n "}', "empty_prompt"),
    (b'{"messages": "hello"}', "wrong_type"),
    (b'{"messages": ["hello"]}', "wrong_type"),
    (b'{"messages": []}', "no_turns"),
    (b'{"messages": [{"role": "pirate", "content": "arr"}]}', "unknown_role"),
    (b'{"messages": [{"role": ["user"], "content": "a"}]}', "unknown_role"),
    (b'{"messages": [{"role": "user"}]}', "missing_content"),
    (b'{"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}', "not_alternating"),
    (b'{"messages": [{"role": "user", "content": ""}, {"role": "assistant", "content": "b"}]}', "empty_prompt"),
]


@pytest.mark.parametrize(("line", "reason"), HOSTILE)
def test_a_hostile_line_is_counted_and_the_next_is_read(tmp_path: Path, line: bytes, reason: str) -> None:
    # A first good line, so that a line of brackets is not taken for an array.
    (tmp_path / "a.jsonl").write_bytes(b'{"prompt": "first"}\n' + line + b'\n\n{"prompt": "Why?"}')
    rows, tally = read(tmp_path / "a.jsonl", "jsonl", "prompts")
    assert [r.messages[0].content for r in rows] == ["first", "Why?"]
    assert tally == {reason: 1}


def test_brackets_in_a_text_are_text(tmp_path: Path) -> None:
    drawn = "[" * 500 + '"' + "[" * 500
    rows, tally = read(lines(tmp_path / "a.jsonl", {"prompt": drawn}), "jsonl", "prompts")
    assert [r.messages[0].content for r in rows] == [drawn]
    assert not tally


@pytest.mark.parametrize(
    ("pair", "reason"),
    [
        ({"chosen": "a"}, "missing_rejected"),
        ({"chosen": "a", "rejected": "a "}, "identical_answers"),
        ({"chosen": "", "rejected": "a"}, "empty_answer"),
        ({"chosen": "a", "rejected": "b", "p_chosen": 1.5}, "wrong_p_chosen"),
        ({"chosen": "a", "rejected": "b", "p_chosen": "high"}, "wrong_p_chosen"),
        ({"chosen": [], "rejected": [{"role": "user", "content": "x"}]}, "no_turns"),
    ],
)
def test_a_pair_that_compares_nothing_is_counted(tmp_path: Path, pair: dict[str, Any], reason: str) -> None:
    file = lines(tmp_path / "a.jsonl", {"prompt": "Why?", **pair})
    assert read(file, "jsonl", "comparisons") == ([], {reason: 1})


def test_duplicates_are_dropped_across_files_and_counted(tmp_path: Path) -> None:
    files = [lines(tmp_path / f"{i}.jsonl", {"prompt": "Why?"}, {"prompt": f"n{i}"}) for i in range(2)]
    tally: Counter[str] = Counter()
    rows = list(READERS["jsonl"].rows(files, "prompts", {}, tally))
    assert (len(rows), tally) == (3, {"duplicate": 1})


def test_a_record_over_the_bound_is_skipped_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "MAX_RECORD", 100)
    file = lines(tmp_path / "a.jsonl", {"prompt": "x" * 950}, {"prompt": "Why?"})
    rows, tally = read(file, "jsonl", "prompts")
    assert (rows[0].messages, len(rows), tally) == (ASKED, 1, {"too_large": 1})


def test_an_array_streams_through_a_small_buffer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values: list[Any] = [{"prompt": f"é{i} [,]" * 9, "n": 12345} for i in range(50)]
    for value in (values, [3.25, *values, 17]):
        for text in (json.dumps(value, indent=1), json.dumps(value, ensure_ascii=False)):
            (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf\n " + text.encode())
            monkeypatch.setattr(records, "_BLOCK", 7)
            rows, tally = read(tmp_path / "a.json", "jsonl", "prompts")
            assert [r.messages[0].content for r in rows] == [v["prompt"] for v in values]
            assert tally == ({"not_object": 2} if value[0] == 3.25 else {})


@pytest.mark.parametrize(
    "text", ['[{"prompt": "a"}, {"pro', '[{"prompt": "a"} {', '[{"prompt": "a"}, nonsense]', "[" * 99999]
)
def test_a_damaged_array_is_an_error_that_names_the_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(PrerequisiteError, match=r"a\.json: "):
        read(tmp_path / "a.json", "jsonl", "prompts")


DEEP = '{"prompt": ' + "[" * 150_000 + "]" * 150_000 + "}"


@pytest.mark.parametrize(
    ("element", "reason"),
    [
        (DEEP, "not_json"),
        ('{"prompt": "quotes \\" and ] } in it", bad}', "not_json"),
        ('["\\x", {}]', "not_json"),
        ('"a\\q"', "not_json"),
        ('{"prompt": ' + "9" * 5000 + "}", "not_json"),
        (json.dumps({"prompt": 'x\\" ]}' * 900}), "too_large"),
        (json.dumps(["]" * 4000]), "too_large"),
    ],
)
@pytest.mark.parametrize("block", [7, 1 << 16])
def test_an_element_of_an_array_that_cannot_be_read_is_counted_and_the_next_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, element: str, reason: str, block: int
) -> None:
    monkeypatch.setattr(records, "_BLOCK", block)
    if reason == "too_large":
        monkeypatch.setattr(records, "MAX_RECORD", 100)
    (tmp_path / "a.json").write_text(f'[{{"prompt": "first"}}, {element} , {{"prompt": "Why?"}}]\n')
    rows, tally = read(tmp_path / "a.json", "jsonl", "prompts")
    assert [r.messages[0].content for r in rows] == ["first", "Why?"]
    assert tally == {reason: 1}


def test_what_follows_an_array_is_not_passed_over(tmp_path: Path) -> None:
    for rest in ('{"prompt": "b"}', '[{"prompt": "b"}]', "x", "\xff"):
        (tmp_path / "a.json").write_bytes(b'[{"prompt": "a"}]\n\n' + rest.encode("latin-1"))
        with pytest.raises(PrerequisiteError, match="goes on after the end of its JSON array"):
            read(tmp_path / "a.json", "jsonl", "prompts")
    packed = gzip.compress(b'[{"prompt": "a"}]')
    (tmp_path / "a.json").write_bytes(packed[:-4])
    with pytest.raises(PrerequisiteError, match="damaged"):
        read(tmp_path / "a.json", "jsonl", "prompts")


@pytest.mark.parametrize("data", [b"", b"\n\n", b"\xef\xbb\xbf", b"[]", b" [ ]\n", gzip.compress(b"", mtime=0)])
def test_a_file_with_nothing_in_it_makes_nothing(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a").write_bytes(data)
    assert read(tmp_path / "a", "jsonl", "prompts") == ([], {})


def test_marks_and_line_ends_of_windows_do_not_matter(tmp_path: Path) -> None:
    mark = "\ufeff".encode()
    (tmp_path / "a").write_bytes(mark + b'{"prompt": "a"}\r\n\r\n' + mark + b'{"prompt": "b"}\r\n')
    rows, tally = read(tmp_path / "a", "jsonl", "prompts")
    assert ([r.messages[0].content for r in rows], tally) == (["a", "b"], {})


def test_bytes_that_are_no_text_are_counted_inside_an_array(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'[{"prompt": "\xff"}, {"prompt": "Why?"}]')
    rows, tally = read(tmp_path / "a.json", "jsonl", "prompts")
    assert ([r.messages for r in rows], tally) == ([ASKED], {"not_utf8": 1})


def test_a_cut_gzip_file_is_an_error(tmp_path: Path) -> None:
    packed = gzip.compress(b"".join(b'{"prompt": "%d"}\n' % (i * i) for i in range(500)))
    (tmp_path / "a.jsonl.gz").write_bytes(packed[:-200])
    with pytest.raises(PrerequisiteError, match="damaged"):
        read(tmp_path / "a.jsonl.gz", "jsonl", "prompts")
    (tmp_path / "a.jsonl.gz").write_bytes(packed)
    assert len(read(tmp_path / "a.jsonl.gz", "jsonl", "prompts")[0]) == 500


def hh(*said: str) -> str:
    return "".join(f"\n\n{('Human', 'Assistant')[i % 2]}: {s}" for i, s in enumerate(said))


def test_hh_pairs_become_comparisons_and_odd_ones_are_counted(tmp_path: Path) -> None:
    good = {"chosen": hh("Hi", "Yes?", "Why?\n\nTell", "A"), "rejected": hh("Hi", "Yes?", "Why?\n\nTell", "B")}
    file = lines(
        tmp_path / "a.jsonl",
        good,
        {"chosen": hh("Hi", "A"), "rejected": hh("Ho", "B")},
        {"chosen": hh("Hi", ""), "rejected": hh("Hi", "B")},
        {"chosen": hh("Hi", "A"), "rejected": hh("Hi", "A")},
        {"chosen": hh("Hi"), "rejected": hh("Hi", "A")},
        {"chosen": "Well. " + hh("Hi", "A"), "rejected": hh("Hi", "A")},
        {
            "chosen": "\n\nHuman: Hi\n\nHuman: Hello\n\nAssistant: A",
            "rejected": "\n\nHuman: Hi\n\nHuman: Hello\n\nAssistant: B",
        },
    )
    rows, tally = read(file, "hh_rlhf", "comparisons")
    assert [(m.role, m.content) for m in rows[0].messages] == [
        ("user", "Hi"),
        ("assistant", "Yes?"),
        ("user", "Why?\n\nTell"),
    ]
    reasons = (
        "prompts_differ",
        "empty_answer",
        "identical_answers",
        "no_answer",
        "text_before_turns",
        "not_alternating",
    )
    assert len(rows) == 1
    assert tally == dict.fromkeys(reasons, 1)

    merged, tally = read(file, "hh_rlhf", "comparisons", merge_turns=True)
    assert merged[1].messages == (Message("user", "Hi\n\nHello"),)
    assert "not_alternating" not in tally
    assert len(read(file, "hh_rlhf", "prompts")[0]) == 2
    assert len(read(file, "hh_rlhf", "conversations")[0]) == 2


def test_a_prompt_ends_with_the_user_also_where_two_answers_end_the_exchange(tmp_path: Path) -> None:
    text = "\n\nHuman: Why?\n\nAssistant: So.\n\nAssistant: And so."
    file = lines(tmp_path / "a.jsonl", {"chosen": text, "rejected": text})
    assert read(file, "hh_rlhf", "prompts") == ([], {"not_alternating": 1})
    assert read(file, "hh_rlhf", "prompts", merge_turns=True)[0][0].messages == ASKED


def test_a_speaker_inside_a_line_is_no_turn() -> None:
    assert turns("\n\nHuman: Say Human: twice\nAssistant: no\n\nAssistant: ok")[0].content.endswith("Assistant: no")


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("array", [False, True])
def test_red_team_attempts_in_both_layouts_and_spellings(tmp_path: Path, array: bool, packed: bool) -> None:
    attempts = [
        {
            "transcript": hh("Bad?", "No.", "Please"),
            "rating": 4,
            "tags": None,
            "task_descripton_harmlessness_score": -2.0,
        },
        {
            "transcript": hh("Worse?", "No."),
            "rating": 1,
            "tags": ["Theft", "Mild"],
            "task_description_harmlessness_score": 1,
        },
        {"transcript": hh("Third?", "No."), "rating": None, "tags": "Theft"},
    ]
    text = json.dumps(attempts) if array else "".join(json.dumps(a) + "\n" for a in attempts)
    (tmp_path / "a").write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    rows, tally = read(tmp_path / "a", "hh_red_team", "prompts")
    assert [r.messages[0].content for r in rows] == ["Bad?", "Worse?"]
    assert tally == {"wrong_type": 1}
    assert [(r.topic, r.meta.get("score"), r.meta["rating"]) for r in rows] == [("", -2.0, 4), ("Theft", 1, 1)]

    for options, kept in (({"min_rating": 2}, "Bad?"), ({"max_rating": 3}, "Worse?"), ({"max_score": 0}, "Bad?")):
        rows, tally = read(tmp_path / "a", "hh_red_team", "prompts", **options)
        assert [r.messages[0].content for r in rows] == [kept]
        assert tally["filtered"] == 1
    assert len(read(tmp_path / "a", "hh_red_team", "prompts", exclude_tags=["Mild"])[0]) == 1


@pytest.mark.parametrize("reader", ["sft_datablend", "nemo_sft_chat"])
def test_nemo_chats_know_the_user_by_the_mask(tmp_path: Path, reader: str) -> None:
    said = [{"from": "Ann", "value": "Why?", "label": None}, {"from": "Bot", "value": "Because.", "label": "q:4"}]
    chat = {"system": "Be kind.", "conversations": said, "mask": "Ann", "dataset": "d"}
    plain = {"system": "", "conversations": [{"from": "User", "value": "Hm?"}, {"from": "Assistant", "value": "So."}]}
    rows, tally = read(
        lines(tmp_path / "a.jsonl", chat, plain, {"conversations": 3}, {"mask": "x"}), reader, "conversations"
    )
    assert rows[0].messages == (Message("system", "Be kind."), *TOLD)
    assert rows[0].meta == {"dataset": "d", "label": "q:4"}
    assert [m.role for m in rows[1].messages] == ["user", "assistant"]
    assert tally == {"wrong_type": 1, "missing_conversations": 1}


def test_openai_messages_make_prompts_and_conversations(tmp_path: Path) -> None:
    said = [{"role": m.role, "content": m.content} for m in TOLD]
    file = lines(tmp_path / "a.jsonl", {"messages": said}, {"prompt": "no"}, {"messages": said[:1]})
    assert read(file, "openai_messages", "conversations")[1] == {"missing_messages": 1, "no_answer": 1}
    assert read(file, "openai_messages", "prompts")[1] == {"missing_messages": 1, "duplicate": 1}


def test_nemo_rl_preferences_compare_best_and_worst(tmp_path: Path) -> None:
    def completion(rank: Any, text: str) -> dict[str, Any]:
        return {"rank": rank, "completion": [{"role": "assistant", "content": text}]}

    context = [{"role": "user", "content": "Why?"}]
    file = lines(
        tmp_path / "a.jsonl",
        {"context": context, "completions": [completion(1, "mid"), completion(2, "worst"), completion(0, "best")]},
        {"context": context, "completions": [completion(0, "a"), completion(0, "b")]},
        {"context": context, "completions": [completion(0, "a")]},
        {"context": context, "completions": [completion("0", "a")]},
        {"completions": []},
    )
    (row,), tally = read(file, "nemo_rl_preference", "comparisons")
    assert isinstance(row, Comparison)
    assert (row.messages, row.chosen, row.rejected) == (ASKED, "best", "worst")
    assert tally == dict.fromkeys(("tie", "one_completion", "wrong_type", "missing_context"), 1)


def test_parquet_reads_like_jsonl(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet")

    values = [{"q": "Why?", "answer": "Because."}, {"q": None, "answer": "x"}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(values), tmp_path / "a.parquet")
    (row,), tally = read(tmp_path / "a.parquet", "parquet", "conversations", columns={"prompt": "q"})
    assert row.messages == TOLD
    assert tally == {"missing_prompt": 1}
    (tmp_path / "b.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(PrerequisiteError, match="parquet"):
        read(tmp_path / "b.parquet", "parquet", "conversations")
