"""``plan`` and ``validate`` refuse the same, in the same words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from cai.commands.planning import plan_verb, validate_verb
from cai.errors import CaiError
from tests.support.small_experiment import raw_experiment


def _gone(raw: dict[str, Any], *path: Any) -> None:
    *way, last = path
    for part in way:
        raw = raw[part]
    del raw[last]


BROKEN = {
    "unknown field": lambda raw: raw["stages"]["sft"].update(lr=1e-4),
    "unknown kind": lambda raw: raw["stages"]["sft"].update(kind="sftt"),
    "unknown stage": lambda raw: raw["stages"]["revise"].update(responses="respnd"),
    "unknown model": lambda raw: raw["stages"]["revise"].update(model="bse"),
    "unknown data": lambda raw: raw["stages"]["respond"].update(prompts="aksed.sl"),
    "unknown engine": lambda raw: raw["engine"].update(kind="embeded"),
    "unknown top": lambda raw: raw.update(stags={}),
    "wrong value": lambda raw: raw["stages"]["respond"].update(limit="many"),
    "missing field": lambda raw: _gone(raw, "stages", "respond", "model"),
    "missing data": lambda raw: raw["data"]["asked"].update(path="nowhere.jsonl"),
    "unpinned hub data": lambda raw: raw["data"]["asked"].update(path="hf:a/b:x.jsonl"),
    "empty data": lambda raw: Path("prompts.jsonl").write_text(""),
    "other columns": lambda raw: Path("prompts.jsonl").write_text('{"question": "q", "answer": "a"}\n' * 3),
    "damaged data": lambda raw: Path("prompts.jsonl").write_bytes(b"\x1f\x8b\x08\x00broken"),
    "few topics": lambda raw: raw["data"]["asked"].update(
        split_by="topic", splits=dict.fromkeys(["sl", "rl", *"abcdef"], 1.0)
    ),
    "no rows": lambda raw: raw["data"]["asked"].update(splits={"sl": 1e-6, "rl": 1.0}),
    "unpinned model": lambda raw: raw["models"]["base"].update(source="hf:some/name"),
    "missing model": lambda raw: raw["models"]["base"].update(source="gguf:/no/such.gguf"),
    "missing template": lambda raw: raw.update(template={"name": "nothing"}),
    "missing prompt": lambda raw: raw["stages"]["revise"].update(critique="nothing"),
    "no constitution": lambda raw: raw.update(constitution=None),
    "bare principle": lambda raw: raw["constitution"]["principles"][0].update(comparison=""),
    "a circle": lambda raw: raw["stages"]["judge"].update(candidates="reward"),
    "wrong kind": lambda raw: raw["stages"]["sft"].update(data="base"),
    "unthought": lambda raw: raw["stages"]["sft"].update(thinking="train"),
}


def refusal(verb: Any, experiment: str) -> tuple[int, str]:
    try:
        verb([f"experiment={experiment}"])
    except CaiError as error:
        return error.exit_code, str(error)
    return 0, ""


@pytest.fixture
def raw(tmp_path, monkeypatch):
    monkeypatch.setenv("CAI_HOME", str(tmp_path / "home"))
    Path(tmp_path / "experiments").mkdir()
    return raw_experiment(tmp_path, monkeypatch)


def write(raw: dict[str, Any]) -> None:
    Path("experiments/mine.yaml").write_text(yaml.safe_dump(raw))


@pytest.mark.parametrize("name", BROKEN)
def test_what_one_refuses_the_other_refuses_with_the_same_words(raw, name, capsys):
    BROKEN[name](raw)
    write(raw)
    code, words = refusal(validate_verb, "mine")
    assert code == 2, words
    assert len(words.splitlines()) == (2 if name == "no constitution" else 1), words
    assert refusal(plan_verb, "mine") == (code, words)
    assert validate_verb(["--all"]) == 2
    listed = capsys.readouterr().out
    assert all(line in listed for line in words.splitlines())


def test_what_both_take_both_take(raw, capsys):
    write(raw)
    assert refusal(validate_verb, "mine") == refusal(plan_verb, "mine") == (0, "")
