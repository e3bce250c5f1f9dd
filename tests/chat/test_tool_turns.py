"""Thinking, tool calls and tool results: what templates render of them, where loss lies, that none can forge a turn."""

from __future__ import annotations

import json
import random
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from cai.chat import ChatTemplate, Message, PromptTemplate, ToolCall, TurnError
from cai.chat.guard import BREAK
from cai.chat.messages import message_from_plain, message_to_plain, question, transcript
from cai.errors import SpecError
from tests.chat.test_guard import controls_in, nasty
from tests.support.hf_templates import ENDLESS, TEMPLATES
from tests.support.paths import ROOT

FOLDER = ROOT / "prompt_templates"
WITH_TOOLS = ("chatml_tools", "llama3_tools", "mistral_tools")
WITHOUT = ("chatml", "smollm2", "llama3", "mistral_instruct", "nemo_extra_id", "human_assistant")


def user(text: str) -> Message:
    return Message("user", text)


def call(text: str = '{"city": "Paris", "days": 2}', name: str = "weather", thinking: str = "") -> Message:
    return Message("assistant", "", thinking, (ToolCall(name, text, "call00001"),))


def result(text: str = "sunny result") -> Message:
    return Message("tool", text, tool_call_id="call00001")


ASKED = user("How is it in Paris?")
ANSWERED = Message("assistant", "Sunny, all week.", "The tool says sunny.")
TRIP = (ASKED, call(thinking="I must look."), result(), ANSWERED)
TWO_TRIPS = (*TRIP, user("And Rome?"), call('{"city": "Rome"}'), result("rain result"), Message("assistant", "Rain."))
THOUGHT = (user("2 + 2?"), Message("assistant", "4", "Two and two."), user("3 + 3?"), Message("assistant", "6", "Six."))
PLAIN = (user("hi"), Message("assistant", "yo"), user("and"), Message("assistant", "so"))
ENDS_WITH_CALL = TRIP[:2]


@cache
def template(name: str) -> ChatTemplate:
    if name in TEMPLATES:
        return ChatTemplate.from_text(name, TEMPLATES[name])
    return ChatTemplate.from_file(FOLDER / f"{name}.jinja")


def learnt(spans: Any) -> list[str]:
    return [span.text for span in spans if span.loss]


def test_chatml_writes_tools_and_thinking_as_qwen_does() -> None:
    text = template("chatml_tools").render(TRIP, thinking=True)
    assert text == (
        "<|im_start|>user\nHow is it in Paris?<|im_end|>\n"
        "<|im_start|>assistant\n<think>\nI must look.\n</think>\n\n"
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris", "days": 2}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\nsunny result\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n<think>\nThe tool says sunny.\n</think>\n\nSunny, all week.<|im_end|>\n"
    )


def test_llama_writes_results_in_ipython_turns_and_mistral_between_its_marks() -> None:
    assert template("llama3_tools").render(TRIP) == (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHow is it in Paris?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
        '{"name": "weather", "parameters": {"city": "Paris", "days": 2}}<|eot_id|>'
        "<|start_header_id|>ipython<|end_header_id|>\n\nsunny result<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nSunny, all week.<|eot_id|>"
    )
    assert template("mistral_tools").render(TRIP) == (
        "<s>[INST] How is it in Paris?[/INST]"
        '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Paris", "days": 2}, "id": "call00001"}]</s>'
        '[TOOL_RESULTS] {"content": "sunny result", "call_id": "call00001"}[/TOOL_RESULTS]'
        " Sunny, all week.</s>"
    )


def test_results_of_one_turn_share_a_turn_and_calls_stand_below_each_other() -> None:
    both = Message("assistant", "Looking.", tool_calls=(ToolCall("a", "{}", "1"), ToolCall("b", "[1]", "2")))
    results = (Message("tool", "x", tool_call_id="1"), Message("tool", "y", tool_call_id="2"))
    text = template("chatml_tools").prompt((ASKED, both, *results))
    assert (
        'Looking.\n<tool_call>\n{"name": "a", "arguments": {}}\n</tool_call>\n'
        '<tool_call>\n{"name": "b", "arguments": "[1]"}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\nx\n</tool_response>\n<tool_response>\ny\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n"
    ) in text
    with pytest.raises(TurnError, match="one tool a turn"):
        template("llama3_tools").prompt((ASKED, both, *results))


@pytest.mark.parametrize("name", WITHOUT)
@pytest.mark.parametrize("messages", [TRIP, ENDS_WITH_CALL])
def test_a_template_that_knows_no_tools_says_so(name: str, messages: tuple[Message, ...]) -> None:
    assert not template(name).speaks_tools
    for action in (template(name).render, template(name).spans, template(name).harmless):
        with pytest.raises(TurnError, match="message 2: this template has no tool turns; use template=chatml_tools"):
            action(messages)
    with pytest.raises(TurnError, match="no tool turns"):
        template(name).prompt(TRIP[:3])


@pytest.mark.parametrize("name", [*WITHOUT, *WITH_TOOLS, *TEMPLATES])
def test_thinking_is_never_rendered_unless_it_is_asked_for(name: str) -> None:
    for messages in (THOUGHT, *((TRIP, TWO_TRIPS) if template(name).speaks_tools else ())):
        silent = tuple(Message(m.role, m.content, "", m.tool_calls, m.tool_call_id, m.name) for m in messages)
        assert template(name).render(messages) == template(name).render(silent)
        assert template(name).spans(messages) == template(name).spans(silent)
        assert template(name).harmless(messages) == silent
        assert template(name).prompt(messages[:-1]) == template(name).prompt(silent[:-1])
    heard = template(name).render(THOUGHT, thinking=True)
    assert ("Six." in heard) == template(name).speaks_thinking


def test_which_templates_write_thinking() -> None:
    speaking = {n for n in (*WITHOUT, *WITH_TOOLS, *TEMPLATES) if template(n).speaks_thinking}
    assert speaking == {"chatml_tools", "hermes", "qwen", "channels"}
    assert {n for n in (*WITHOUT, *WITH_TOOLS, *TEMPLATES) if template(n).speaks_tools} == {*WITH_TOOLS, *TEMPLATES}


@pytest.mark.parametrize("name", [*WITH_TOOLS, *TEMPLATES])
def test_loss_covers_calls_and_answers_and_never_results_or_questions(name: str) -> None:
    spans = template(name).spans(TWO_TRIPS)
    assert "".join(span.text for span in spans) == template(name).render(TWO_TRIPS)
    pieces = learnt(spans)
    assert len(pieces) == 4
    assert "weather" in pieces[0]
    assert "Paris" in pieces[0]
    assert "Sunny, all week." in pieces[1]
    assert "Rome" in pieces[2]
    assert "Rain." in pieces[3]
    for text in ("sunny result", "rain result", "How is it", "And Rome?"):
        assert not any(text in piece for piece in pieces)
        assert any(text in span.text for span in spans if not span.loss)


@pytest.mark.parametrize("name", [*WITH_TOOLS, *TEMPLATES])
def test_the_last_answer_begins_with_the_calls_that_led_to_it(name: str) -> None:
    pieces = learnt(template(name).spans(TWO_TRIPS, loss="last"))
    assert len(pieces) == 2
    assert "Rome" in pieces[0]
    assert "Rain." in pieces[1]
    assert len(learnt(template(name).spans(PLAIN, loss="last"))) == 1
    assert len(learnt(template(name).spans((*PLAIN[:2], *ENDS_WITH_CALL), loss="last"))) == 1


@pytest.mark.parametrize("name", ["chatml_tools", "hermes", "channels"])
def test_thinking_is_learnt_with_its_answer_where_it_is_asked_for(name: str) -> None:
    pieces = learnt(template(name).spans(TRIP, thinking=True))
    assert "I must look." in pieces[0]
    assert "Paris" in pieces[0]
    assert "The tool says sunny." in pieces[1]
    assert "Sunny, all week." in pieces[1]


def test_a_template_that_forgets_earlier_thoughts_learns_those_of_the_last_answer() -> None:
    pieces = learnt(template("qwen").spans((*THOUGHT, *TRIP), thinking=True))
    assert ["Two and two." in "".join(pieces), "Six." in "".join(pieces)] == [False, False]
    assert "I must look." in pieces[2]
    assert "The tool says sunny." in pieces[3]


# ---- the end of a turn is learnt: with the embedded engine's own masks and a real tokenizer ----------------------


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> Any:
    transformers = pytest.importorskip("transformers")
    from tests.support.small_tokenizers import byte_level_folder

    @cache
    def tokenizer_of(name: str) -> Any:
        folder = byte_level_folder(tmp_path_factory.mktemp("t") / name, control=_special_tokens(template(name)))
        return transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))

    return tokenizer_of


def _special_tokens(chat: ChatTemplate) -> tuple[str, ...]:
    header = chat.header
    return ("<|pad|>", header.bos_token or "<|first|>", *(c for c in header.controls if not c.isspace()))


def _masks(chat: ChatTemplate, tokenizer: Any, spans: Any) -> tuple[list[bool], list[bool], str]:
    """For each learnt piece, whether its end is learnt; the loss of each token; the text of the tokens without loss."""
    from cai.engines.embedded.sft import learnt_ends, tokenized
    from cai.engines.methods.base import TrainText

    text = TrainText("x", spans)
    ids, loss = tokenized(tokenizer, text)
    silent = tokenizer.decode([i for i, taken in zip(ids, loss, strict=True) if not taken])
    return learnt_ends(tokenizer, text, chat.header.answer_end), loss, silent


@pytest.mark.parametrize("name", [*WITHOUT, *WITH_TOOLS, *TEMPLATES])
@pytest.mark.parametrize("loss", ["all", "last"])
@pytest.mark.parametrize("thinking", [False, True])
def test_the_end_of_every_trained_turn_carries_loss(tokenizers: Any, name: str, loss: Any, thinking: bool) -> None:
    chat, tokenizer = template(name), tokenizers(name)
    talks = [PLAIN, THOUGHT] + ([TRIP, TWO_TRIPS, ENDS_WITH_CALL] if chat.speaks_tools else [])
    for messages in talks:
        ends, token_loss, silent = _masks(chat, tokenizer, chat.spans(messages, loss, thinking=thinking))
        turns = [i for i, m in enumerate(messages) if m.role == "assistant"]
        if loss == "last":
            turns = [i for i in turns if "user" not in [m.role for m in messages[i:]]]
        assert ends == [True] * len(turns)
        assert any(token_loss)
        assert not all(token_loss)
        for message in messages:
            if message.role in ("tool", "user"):
                assert message.content in silent


def test_a_template_whose_blocks_leave_the_end_out_is_found(tokenizers: Any) -> None:
    from cai.engines.embedded.sft import check_ends
    from cai.engines.methods.base import TrainText

    tokenizer = tokenizers("hermes")
    good = [TrainText("x", template("hermes").spans(TRIP))]
    bad = [TrainText("x", ChatTemplate.from_text("endless", ENDLESS).spans(TRIP))]
    check_ends(tokenizer, good, "<|im_end|>")
    with pytest.raises(SpecError, match=r"no answer's end is learnt: loss lies on no '<\|im_end\|>'"):
        check_ends(tokenizer, bad, "<|im_end|>")
    check_ends(tokenizer, [*bad, *good], "<|im_end|>")
    check_ends(tokenizer, bad, "")  # whoever trains without a template says nothing of ends


# ---- nothing can forge a turn ------------------------------------------------------------------------------------


def _dressed(word: Any) -> tuple[Message, ...]:
    """A conversation whose every text, argument, key and name is a call of ``word``; none holds white space only."""
    first = Message(
        "assistant", "", word(), (ToolCall(word(), json.dumps({word(): word(), "n": [1, word()]}), "call00001"),)
    )
    answer = Message("tool", word(), tool_call_id="call00001", name=word())
    return (Message("user", word()), first, answer, Message("assistant", word(), word()))


@pytest.mark.parametrize("name", [*WITH_TOOLS, *TEMPLATES])
@pytest.mark.parametrize("thinking", [False, True])
def test_no_argument_result_name_or_thought_changes_the_control_strings(name: str, thinking: bool) -> None:
    chat = template(name)
    thinking = thinking and chat.speaks_thinking
    expected = controls_in(chat, chat.render(_dressed(lambda: "word"), thinking=thinking))
    rng = random.Random(5)
    for _ in range(60):
        messages = _dressed(lambda: f"a{nasty(chat.header.controls, rng)}b")
        text = chat.render(messages, thinking=thinking)
        assert controls_in(chat, text) == expected
        assert "".join(s.text for s in chat.spans(messages, thinking=thinking)) == text
        for message in chat.harmless(messages):
            plain = json.dumps(message_to_plain(message), ensure_ascii=False)
            assert not any(control in plain for control in chat.header.controls if '"' not in control)


def test_harmless_messages_keep_what_was_harmless_byte_for_byte() -> None:
    odd = call('{"a":1,   "b" : "é"}', "tool_name")
    messages = (ASKED, odd, result(), Message("assistant", "x"))
    assert template("chatml_tools").harmless(messages) == messages
    broken = template("chatml_tools").harmless((ASKED, call('{"<|im_end|>": "</tool_call>"}')))[1].tool_calls[0]
    assert json.loads(broken.arguments) == {f"<{BREAK}|im_end|>": f"<{BREAK}/tool_call>"}
    text = call("not json <|im_end|>")
    assert template("chatml_tools").harmless((ASKED, text))[1].tool_calls[0].arguments == f"not json <{BREAK}|im_end|>"


def test_keys_that_become_one_when_they_are_cleaned_stay_two() -> None:
    keys = {"<|im_end|>": 1, f"<{BREAK}|im_end|>": 2}
    (_, message) = template("chatml_tools").harmless((ASKED, call(json.dumps(keys))))
    assert sorted(json.loads(message.tool_calls[0].arguments).values()) == [1, 2]


# ---- Hugging Face's own way ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*WITH_TOOLS, *TEMPLATES])
def test_bodies_with_tools_render_alike_in_hugging_faces_compiler(name: str) -> None:
    utils = pytest.importorskip("transformers.utils.chat_template_utils")
    chat = template(name)
    compiled = utils._compile_jinja_template(chat.text)
    for messages in (PLAIN, TRIP, TWO_TRIPS):
        turns: list[dict[str, Any]] = []
        for message in messages:
            turn: dict[str, Any] = {"role": message.role, "content": message.content}
            if message.tool_calls:
                turn["tool_calls"] = [
                    {"type": "function", "id": c.id, "function": {"name": c.name, "arguments": json.loads(c.arguments)}}
                    for c in message.tool_calls
                ]
            if message.role == "tool":
                turn |= {"tool_call_id": message.tool_call_id, "name": "weather"}
            turns.append(turn)
        theirs = compiled.render(
            messages=turns,
            add_generation_prompt=False,
            bos_token=chat.header.bos_token,
            eos_token=chat.header.eos_token,
        )
        assert chat.render(messages) == theirs


def test_a_field_that_a_message_lacks_may_be_asked_for_and_not_be_written() -> None:
    body = "{% for m in messages %}{{ m.role }}:{{ m.content }}{% if m.WHAT %}!{% endif %}<|im_end|>{% endfor %}"
    head = (FOLDER / "chatml.jinja").read_text(encoding="utf-8").partition("---#}\n")[0] + "---#}\n"
    body += "{% if add_generation_prompt %}assistant:{% endif %}"
    assert ChatTemplate.from_text("asks", head + body).render(PLAIN[:1]) == "user:hi<|im_end|>"
    for wrong in ("{{ m.nme }}", "{{ 'x' ~ m.nme }}", "{{ m.nme + 'x' }}"):
        with pytest.raises(SpecError, match="nme"):
            ChatTemplate.from_text("writes", head + body.replace("{{ m.content }}", "{{ m.content }}" + wrong))
    with pytest.raises(SpecError, match="mising"):
        ChatTemplate.from_text("variable", head + body.replace("m.WHAT", "mising"))


# ---- as text -----------------------------------------------------------------------------------------------------


def test_a_transcript_tells_calls_and_results_and_no_thoughts() -> None:
    assert transcript(TRIP) == [
        {"role": "user", "content": "How is it in Paris?"},
        {"role": "assistant", "content": '[calls the tool weather: {"city": "Paris", "days": 2}]'},
        {"role": "assistant", "content": "[result of the tool weather]\nsunny result"},
        {"role": "assistant", "content": "Sunny, all week."},
    ]
    assert transcript(PLAIN) == [{"role": m.role, "content": m.content} for m in PLAIN]
    speaking = Message("assistant", "Wait.", "hm", (ToolCall("f"), ToolCall("g")))
    assert transcript((speaking,))[0]["content"] == "Wait.\n[calls the tool f: {}]\n[calls the tool g: {}]"
    assert transcript((Message("tool", "x"),))[0]["content"] == "[result of a tool]\nx"


def test_the_question_of_a_prompt_is_what_a_person_asked() -> None:
    assert question(TRIP[:3]) == "How is it in Paris?"
    assert question(PLAIN[:3]) == "and"
    assert question((Message("system", "s"),)) == "s"


def test_prompt_templates_never_see_a_thought() -> None:
    comparison = PromptTemplate.from_file(FOLDER / "comparison.jinja")
    values = {"first": "a", "second": "b", "principle": "p", "options": ["(A)", "(B)"]}
    more = {"think": False, "reasoning": "", "tie_option": ""}
    for messages in (transcript(TRIP), list(TRIP)):
        text = comparison.render(messages=messages, **values, **more)
        assert "I must look." not in text
        assert "The tool says" not in text
        assert 'Assistant: [calls the tool weather: {"city": "Paris", "days": 2}]' in text
        assert "Person: [result" not in text


def test_messages_travel_through_plain_data() -> None:
    for message in (*TRIP, Message("tool", "", name="f"), Message("assistant", "", "t", (ToolCall("f", "x"),))):
        assert message_from_plain(json.loads(json.dumps(message_to_plain(message)))) == message
    assert message_to_plain(ASKED) == {"role": "user", "content": ASKED.content}


def test_tool_templates_load_from_paths_of_users(tmp_path: Path) -> None:
    path = tmp_path / "mine.jinja"
    path.write_text(TEMPLATES["qwen"], encoding="utf-8")
    assert ChatTemplate.from_file(path).render(TRIP) == template("qwen").render(TRIP)


def test_a_plain_message_is_shown_as_before_there_were_others() -> None:
    assert repr(Message("user", "Hi")) == "Message(role='user', content='Hi')"
    assert repr(Message("assistant", "", thinking="Hm")) == "Message(role='assistant', content='', thinking='Hm')"
