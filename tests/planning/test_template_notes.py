"""What a template and a tokenizer make of each other is told in the plan."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cai.files.library import Library, shipped_root
from cai.planning.resolver import resolve_data
from tests.support.model_files import model_folder
from tests.support.small_experiment import raw_experiment

MINE = """{#---
description: my own
kind: chat
bos_token: "<s>"
eos_token: "</s>"
control: ["<|user|>", "<|bot|>"]
answer_end: "</s>"
stop: [%s]
---#}
%s{%% for m in messages %%}
{{ ('<|user|>' if m.role == 'user' else '<|bot|>') + m.content }}
{%%- if m.role != 'user' %%}
{{ eos_token }}
{%%- endif %%}
{%% endfor %%}
%s"""
OPENED = "{% if add_generation_prompt %}<|bot|>{% endif %}"


@pytest.fixture
def raw(tmp_path, monkeypatch):
    raw = raw_experiment(tmp_path, monkeypatch)
    Path("prompt_templates").mkdir()
    raw["template"] = {"name": "mine"}
    raw["models"]["base"] = {"source": "hf:/" + str(tmp_path / "model").lstrip("/")}
    model(["<s>", "</s>", "<|user|>", "<|bot|>"])
    template()
    return raw


def model(tokens: list[str], begins: bool = False, **config: Any) -> None:
    single = [{"SpecialToken": {"id": "<s>"}}] if begins else []
    model_folder(Path("model"))
    tokenizer = {
        "added_tokens": [{"content": token} for token in tokens],
        "post_processor": {"type": "TemplateProcessing", "single": [*single, {"Sequence": {"id": "A"}}]},
        "model": {"vocab": {}},
    }
    Path("model/tokenizer.json").write_text(json.dumps(tokenizer))
    Path("model/tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", **config}))


def template(stop: str = "", begin: str = "", end: str = OPENED) -> None:
    Path("prompt_templates/mine.jinja").write_text(MINE % (stop, begin, end))


def notes(raw: dict[str, Any]) -> dict[str, list[str]]:
    steps = resolve_data(raw, Library((Path.cwd(), shipped_root()))).steps
    return {step.name: step.notes for step in steps if step.notes}


def test_a_template_and_a_tokenizer_that_fit_are_not_mentioned(raw):
    assert notes(raw) == {}


def test_words_that_the_tokenizer_splits_are_told_once_and_with_what_to_do(raw):
    model(["<s>", "</s>"])
    ((step, (note,)),) = notes(raw).items()
    assert step == "respond"
    assert note.startswith("template 'mine' has '<|user|>', '<|bot|>', which are no tokens of 'base': its tokenizer ")
    assert "`models.base.template`" in note


def test_words_that_the_model_was_trained_on_as_they_are_are_not_told(raw):
    model(["<s>", "</s>"], chat_template="{{ '<|user|>' }} ... <|bot|>")
    assert notes(raw) == {}


def test_a_shipped_template_on_another_models_tokenizer_is_told(raw):
    raw["template"] = {"name": "chatml"}
    ((_, (note,)),) = notes(raw).items()
    assert "'<|im_start|>'" in note
    assert "'<|im_end|>'" in note


def test_a_text_that_begins_twice_is_told(raw):
    template(begin="{{ bos_token }}")
    assert notes(raw) == {}
    model(["<s>", "</s>", "<|user|>", "<|bot|>"], begins=True)
    ((_, (note,)),) = notes(raw).items()
    assert note.startswith("template 'mine' begins a text with '<s>', and so does the tokenizer of 'base'")
    template(begin="<s>{{ bos_token }}")
    assert notes(raw)["respond"] == ["template 'mine' begins a text with '<s>' twice; write it once"]


def test_a_prompt_that_does_not_open_the_assistants_turn_is_told(raw):
    template(end="")
    ((step, (note,)),) = notes(raw).items()
    assert step == "respond"
    assert note.startswith(
        "template 'mine' does not open the assistant's turn (`add_generation_prompt` changes nothing)"
    )
    assert "'<|bot|>'" in note


def test_a_template_without_a_header_for_answers_needs_none(raw):
    raw["template"] = {"name": "mine"}
    text = MINE % ("", "", "")
    Path("prompt_templates/mine.jinja").write_text(text.replace("else '<|bot|>'", "else ''"))
    assert "respond" not in notes(raw)


@pytest.mark.parametrize("where", ["template", "stage"])
def test_a_stop_that_no_turn_holds_is_told(raw, where):
    if where == "template":
        template(stop='"<|end|>"')
    else:
        raw["stages"]["respond"]["sampling"] = {"stop": ["<|end|>", "</s>", "\n\nHuman:"]}
    told = [note for step_notes in notes(raw).values() for note in step_notes if note.startswith("stop ")]
    assert told == [
        "stop '<|end|>' stands in no turn that template 'mine' writes: no answer will end with it; it writes '</s>'"
    ]


def test_a_stop_that_the_tokenizer_has_may_come(raw):
    model(["<s>", "</s>", "<|user|>", "<|bot|>", "<|end|>"])
    raw["stages"]["respond"]["sampling"] = {"stop": ["<|end|>"]}
    assert notes(raw) == {}


def test_where_the_tokenizer_is_not_here_nothing_is_said_of_it(raw):
    raw["models"]["base"] = {"source": "pypi:package==1.0/model.gguf", "sha256": "0" * 64}
    raw["template"] = {"name": "llama3"}
    assert notes(raw) == {}
