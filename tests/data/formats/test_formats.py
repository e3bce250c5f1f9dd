"""Export: what is written is read back by our own readers to the same rows; what does not fit is told."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cai.chat import ChatTemplate, Message, ToolCall
from cai.commands.exporting import export_verb, step_rows
from cai.data.formats import FORMATS, TextOptions, export
from cai.data.readers import READERS
from cai.data.readers.shape import conversation
from cai.data.rows import Comparison, Conversation, Prompt, Row, write_rows
from cai.engines.methods.base import TrainText
from cai.engines.methods.sft import SftData, SftSettings
from cai.engines.nemo_aligner.datasets import write_sft
from cai.errors import SpecError
from cai.files.library import shipped_root

NEMO = TextOptions(ChatTemplate.from_file(shipped_root() / "prompt_templates" / "nemo_extra_id.jinja"))
USER, SYSTEM = Message("user", "Why?\n\nTell me."), Message("system", "Be kind.")
LONG = (USER, Message("assistant", "Because."), Message("user", "And é 你好?"))
PAIRS = [
    {"prompt": "Why?", "chosen": "Because.", "rejected": "No.", "system": "Be kind."},
    {"messages": [{"role": m.role, "content": m.content} for m in LONG], "chosen": "A", "rejected": "B"},
    {"prompt": "Why?", "chosen": "worse", "rejected": "better", "p_chosen": 0.2},
    {"prompt": "Why?", "chosen": "a", "rejected": "b", "p_chosen": 0.5},
    {"prompt": "Why?", "chosen": "odd", "rejected": "odd"},
]


def lines(path: Path, *values: Any) -> Path:
    path.write_text("".join(json.dumps(v) + "\n" for v in values), encoding="utf-8")
    return path


def read(path: Path, reader: str, makes: str, **options: Any) -> list[Row]:
    tally: Counter[str] = Counter()
    rows = list(READERS[reader].rows([path], makes, options, tally))
    assert not tally
    return rows


def records(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def talks() -> list[Row]:
    said = ((USER, Message("assistant", "So.")), (SYSTEM, *LONG, Message("assistant", "x")))
    return [conversation(messages) for messages in said]


@pytest.mark.parametrize("form", ["openai_messages", "nemo_sft_chat"])
def test_conversations_come_back_as_they_were(tmp_path: Path, form: str) -> None:
    written = export(tmp_path / "a.jsonl", talks(), form, NEMO)
    back = read(tmp_path / "a.jsonl", form, "conversations")
    assert [(row.id, row.messages) for row in back] == [(row.id, row.messages) for row in talks()]
    assert (written.rows, written.dropped) == (2, {})


def test_comparisons_come_back_as_they_were(tmp_path: Path) -> None:
    rows = read(lines(tmp_path / "a.jsonl", *PAIRS[:2]), "jsonl", "comparisons")
    export(tmp_path / "b.jsonl", rows, "nemo_rl_preference", NEMO)
    assert read(tmp_path / "b.jsonl", "nemo_rl_preference", "comparisons") == rows
    assert [c["rank"] for c in records(tmp_path / "b.jsonl")[0]["completions"]] == [0, 1]


def test_prompts_come_back_where_one_turn_says_all(tmp_path: Path) -> None:
    rows: list[Row] = [Prompt("1", (USER,)), Prompt("2", LONG), Prompt("3", (USER,)), Prompt("4", (SYSTEM, USER))]
    written = export(tmp_path / "a.jsonl", rows, "nemo_rl_prompts", NEMO)
    (back,) = read(tmp_path / "a.jsonl", "jsonl", "prompts", columns={"prompt": "input", "answer": "output"})
    assert back.messages == (USER,)
    assert written.dropped == {"more than one turn": 2, "repeated prompt": 1}


def test_reward_lines_alternate_and_prompts_end_with_the_header(tmp_path: Path) -> None:
    rows = read(lines(tmp_path / "a.jsonl", *PAIRS[:2]), "jsonl", "comparisons")
    assert export(tmp_path / "b.jsonl", rows, "nemo_reward", NEMO).rows == 2
    texts = [record["text"] for record in records(tmp_path / "b.jsonl")]
    start = "<extra_id_0>System\nBe kind.\n<extra_id_1>User\nWhy?\n<extra_id_1>Assistant\n"
    assert texts[:2] == [f"{start}Because.\n<extra_id_1>", f"{start}No.\n<extra_id_1>"]
    assert all(text.endswith(f"Assistant\n{a}\n<extra_id_1>") for text, a in zip(texts[2:], "AB", strict=True))
    export(tmp_path / "c.jsonl", rows, "nemo_prompts", NEMO)
    asked = [record["text"] for record in records(tmp_path / "c.jsonl")]
    assert asked[0] == start
    assert all(text.startswith(prompt) for text, prompt in zip(texts[::2], asked, strict=True))


@pytest.mark.parametrize("form", ["nemo_reward", "nemo_rl_preference"])
def test_soft_labels_become_hard_and_ties_are_told(tmp_path: Path, form: str) -> None:
    rows = read(lines(tmp_path / "a.jsonl", *PAIRS[2:4]), "jsonl", "comparisons")
    written = export(tmp_path / "b.jsonl", rows, form, NEMO)
    assert (written.rows, written.dropped) == (1, {"soft label within margin": 1})
    text = (tmp_path / "b.jsonl").read_text()
    assert 0 < text.index("better") < text.index("worse")


def test_what_breaks_a_rule_is_left_out_by_reason(tmp_path: Path) -> None:
    odd = Conversation("1", (Message("assistant", "I begin."), USER, Message("assistant", "So.")))
    written = export(tmp_path / "a.jsonl", [odd, *talks()], "nemo_sft_chat", NEMO)
    assert written.rows == 2
    assert sum(written.dropped.values()) == 1
    long = TextOptions(NEMO.template, lambda text: len(text.encode()), 120)
    assert export(tmp_path / "a.jsonl", talks(), "nemo_sft_chat", long).dropped == {"too long": 1}


CALLED = Message("assistant", "I look.", "hm", (ToolCall("find", '{"q":  "é"}', "c1"), ToolCall("find", "odd")))
RESULTS = (Message("tool", "a", tool_call_id="c1"), Message("tool", "", name="find"))
TRIP = (SYSTEM, USER, CALLED, *RESULTS, Message("assistant", "So.", "because"))
THOUGHT = (USER, Message("assistant", "So.", "because"))


def test_openai_s_messages_hold_tools_and_thinking_and_come_back(tmp_path: Path) -> None:
    rows: list[Row] = [conversation(TRIP), conversation(TRIP[:3]), conversation(THOUGHT), *talks()]
    written = export(tmp_path / "a.jsonl", rows, "openai_messages", NEMO)
    assert (written.rows, written.dropped) == (5, {})
    assert read(tmp_path / "a.jsonl", "openai_messages", "conversations") == rows
    first, _, third, plain, _ = records(tmp_path / "a.jsonl")
    assert first["messages"][2] == {
        "role": "assistant",
        "content": "I look.",
        "reasoning_content": "hm",
        "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "find", "arguments": '{"q":  "é"}'}},
            {"type": "function", "function": {"name": "find", "arguments": "odd"}},
        ],
    }
    assert first["messages"][3] == {"role": "tool", "content": "a", "tool_call_id": "c1"}
    assert third["messages"][1] == {"role": "assistant", "content": "So.", "reasoning_content": "because"}
    assert plain["messages"] == [{"role": m.role, "content": m.content} for m in talks()[0].messages]


def tool_row(kind: str, messages: tuple[Message, ...]) -> Row:
    if kind == "comparisons":
        return Comparison("tool", messages[:-1], "a", "b")
    return conversation(messages)


@pytest.mark.parametrize("form", [name for name, form in FORMATS.items() if not form.tools])
def test_a_format_without_tools_leaves_such_rows_out_and_says_so(tmp_path: Path, form: str) -> None:
    kind = (FORMATS[form].takes or ("conversations",))[0]
    plain = tool_row(kind, (Message("user", "Hm?"), Message("assistant", "No.")))
    written = export(tmp_path / "a.jsonl", [tool_row(kind, TRIP), plain], form, NEMO)
    assert (written.rows, written.dropped) == (1, {"tool turns have no place in this format": 1})
    assert "find" not in (tmp_path / "a.jsonl").read_text()


def test_thinking_that_a_format_cannot_say_is_no_part_of_it_by_order_only(tmp_path: Path) -> None:
    rows: list[Row] = [conversation(THOUGHT), conversation((USER, Message("assistant", "Plain.")))]
    written = export(tmp_path / "a.jsonl", rows, "nemo_sft_chat", NEMO)
    assert (written.rows, written.dropped) == (1, {"thinking has no place in this format": 1})
    assert "So." not in (tmp_path / "a.jsonl").read_text()
    ordered = replace(NEMO, drop_thinking=True)
    for form in ("nemo_sft_chat", "openai_messages"):
        assert export(tmp_path / "a.jsonl", rows, form, ordered).dropped == {}
        assert "because" not in (tmp_path / "a.jsonl").read_text()
    for form in ("nemo_prompts", "nemo_rl_prompts"):  # a prompt holds no thinking, so nothing is lost
        assert export(tmp_path / "a.jsonl", rows[:1], form, NEMO).dropped == {}


def test_an_engine_writes_the_same_bytes_by_the_same_table(tmp_path: Path) -> None:
    export(tmp_path / "exported.jsonl", talks(), "nemo_sft_chat", NEMO)
    texts = [TrainText(r.id, NEMO.template.spans(r.messages), NEMO.template.harmless(r.messages)) for r in talks()]
    settings = SftSettings(batch_size=1, max_length=4096)
    write_sft(tmp_path / "engine", SftData(tmp_path, texts, texts), settings, _Bytes())  # type: ignore[arg-type]
    assert (tmp_path / "engine/train.jsonl").read_bytes() == (tmp_path / "exported.jsonl").read_bytes()


class _Bytes:
    """A tokenizer that makes a token of each byte."""

    def count(self, text: str) -> int:
        return len(text.encode())


def test_the_verb_drops_thinking_where_it_is_told_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "<think>t</think>a"}]}
    data, out = lines(tmp_path / "in.jsonl", record), tmp_path / "out.jsonl"
    args = [str(data), "--reader", "openai_messages", "--format", "nemo_sft_chat", "--out", str(out)]
    with pytest.raises(SpecError, match="0 conversations are left"):
        export_verb(args)
    assert export_verb([*args, "--thinking", "drop"]) == 0
    assert [turn["value"] for turn in records(out)[0]["conversations"]] == ["q", "a"]


def test_the_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("old")

    def rows() -> Any:
        yield from talks()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(tmp_path / "a.jsonl", rows(), "openai_messages", NEMO)
    with pytest.raises(SpecError, match="0 rows are left"):
        export(tmp_path / "a.jsonl", [], "openai_messages", NEMO)
    assert (tmp_path / "a.jsonl").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_rows_of_another_kind_are_a_mistake_of_the_program(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="conversations"):
        export(tmp_path / "a.jsonl", talks(), "nemo_reward", NEMO)


def test_the_verb_exports_files_and_tells_what_was_lost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = lines(tmp_path / "in.jsonl", *PAIRS), tmp_path / "new" / "out.jsonl"
    args = [str(data), "--format", "nemo_rl_preference", "--out", str(out)]
    assert export_verb(args) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0] == f"3 rows written to {out} (nemo_rl_preference)"
    assert told[1:] == ["  1 dropped: identical_answers", "  1 dropped: soft label within margin"]
    before = out.read_bytes()
    with pytest.raises(SpecError, match="already there; give another name, or --force"):
        export_verb(args)
    assert out.read_bytes() == before
    assert export_verb([*args, "--force", "--limit", "1"]) == 0
    assert len(records(out)) == 1


def test_the_verb_takes_public_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked, twice = "\n\nHuman: Why?\n\nAssistant: ", "\n\nHuman: a\n\nHuman: b\n\nAssistant: "
    text = "".join(json.dumps({"chosen": f"{start}yes", "rejected": f"{start}no"}) + "\n" for start in (asked, twice))
    (tmp_path / "helpful-base").mkdir()
    (tmp_path / "helpful-base" / "test.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    monkeypatch.setenv("CAI_DATA", str(tmp_path))
    for form in FORMATS:
        out = tmp_path / f"{form}.jsonl"
        for more in ([], ["--option", "merge_turns=true", "--force"]):
            assert export_verb(["public:hh-rlhf/helpful-base/test", "--format", form, "--out", str(out), *more]) == 0
            said = capsys.readouterr().out
            assert ("1 dropped: not_alternating" in said) == (not more)
        assert len(records(out)) == (4 if form == "nemo_reward" else 2)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["{in}", "--format", "nemo_reward", "--reader", "openai_messages"], "makes conversations"),
        (["{in}", "--format", "nemo_reward", "--part", "train"], "--part: is of a step"),
        (["{in}", "--format", "nemo_reward", "--reader", "hh_rlfh"], "did you mean 'hh_rlhf'"),
        (["{in}", "--format", "nemo_rl_preference", "--max-tokens", "5"], "give both or neither"),
        (["{in}", "--format", "nemo_rl_preference", "--template", "nemo_extra"], "did you mean 'nemo_extra_id'"),
        (["{in}", "--format", "nemo_reward", "--limit", "0"], "--limit"),
        (["{in}", "--format", "csv"], "invalid choice"),
        (["public:hh-rlhf/helpfull", "--format", "nemo_reward"], "did you mean 'hh-rlhf/helpful'"),
        (["public:hh-rlhf/red-team-attempts", "--format", "nemo_reward"], "makes prompts"),
        (["nowhere", "--format", "nemo_reward"], "give a path, public:NAME, or RUN/STEP"),
        (["no_such_run/judge", "--format", "nemo_reward"], "no run of that name"),
    ],
)
def test_wrong_use_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    data = lines(tmp_path / "in.jsonl", *PAIRS)
    with pytest.raises(SpecError, match=said):
        export_verb([*(arg.replace("{in}", str(data)) for arg in args), "--out", "out.jsonl"])
    assert not (tmp_path / "out.jsonl").exists()


class _Step:
    """A finished step in a store of its own, as a run's plan and the store know it."""

    def __init__(self, folder: Path, makes: str, parts: dict[str, list[Row]]) -> None:
        self.path, self.makes = folder, makes
        folder.mkdir()
        for part, rows in parts.items():
            write_rows(folder / f"{part}.jsonl", rows)


@pytest.mark.parametrize(("makes", "form"), [("revisions", "openai_messages"), ("conversations", "nemo_rl_prompts")])
def test_rows_of_a_step_are_exported_by_part(tmp_path: Path, makes: str, form: str) -> None:
    one, two = (
        _Step(tmp_path / "one", makes, {"rows": talks()}),
        _Step(tmp_path / "two", makes, {"train": talks()[:1], "val": talks()}),
    )
    assert [row.messages for row in step_rows(one, "s", form, None)] == [row.messages for row in talks()]
    assert len(list(step_rows(two, "s", form, "train"))) == 1
    with pytest.raises(SpecError, match="has the parts train, val; choose one with --part"):
        step_rows(two, "s", form, None)
    with pytest.raises(SpecError, match="no part 'vall'; did you mean 'val'"):
        step_rows(two, "s", form, "vall")


def test_a_step_that_holds_something_else_says_which_formats_fit(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="this makes conversations; formats for conversations: nemo_sft_chat"):
        step_rows(_Step(tmp_path / "a", "revisions", {"rows": talks()}), "s", "nemo_reward", None)
    with pytest.raises(SpecError, match="holds rows, but this makes model"):
        step_rows(_Step(tmp_path / "b", "model", {}), "s", "nemo_prompts", None)
