"""Shipped chat templates: what they render, where loss lies, and that they are Hugging Face's own dialect."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from cai.chat import ChatTemplate, Message, TurnError, description_of
from cai.errors import SpecError
from tests.support.paths import ROOT

FOLDER = ROOT / "prompt_templates"
TOOL_NAMES = ("chatml_tools", "llama3_tools", "mistral_tools")
NAMES = ("chatml", "smollm2", "llama3", "mistral_instruct", "nemo_extra_id", "human_assistant", *TOOL_NAMES)

HEAD = """{#---
description: test
kind: chat
eos_token: "<|end|>"
answer_end: "<|end|>"
control: ["<|turn|>"]
---#}
"""


def user(text: str) -> Message:
    return Message("user", text)


def assistant(text: str) -> Message:
    return Message("assistant", text)


def system(text: str) -> Message:
    return Message("system", text)


CONVERSATIONS = (
    (user("hi"), assistant("hello")),
    (system("Be kind."), user("hi"), assistant("hello")),
    (user("same"), assistant("same"), user("same"), assistant("same")),
    (system("s"), user("  a \n"), assistant("x\n"), user("é 🙂 { } {{ 7 * 7 }} {% if %}"), assistant(" last ")),
    (user(""), assistant("")),
)
ONE = (user("hi"), assistant("yo"), user("and"), assistant("so"))
EXPECTED = {
    "chatml": "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nyo<|im_end|>\n"
    "<|im_start|>user\nand<|im_end|>\n<|im_start|>assistant\nso<|im_end|>\n",
    "smollm2": "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nyo<|im_end|>\n"
    "<|im_start|>user\nand<|im_end|>\n<|im_start|>assistant\nso<|im_end|>\n",
    "llama3": "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nyo<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nand<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nso<|eot_id|>",
    "mistral_instruct": "<s>[INST] hi [/INST] yo</s>[INST] and [/INST] so</s>",
    "nemo_extra_id": "<extra_id_0>System\n\n<extra_id_1>User\nhi\n<extra_id_1>Assistant\nyo\n"
    "<extra_id_1>User\nand\n<extra_id_1>Assistant\nso\n<extra_id_1>",
    "human_assistant": "\n\nHuman: hi\n\nAssistant: yo\n\nHuman: and\n\nAssistant: so\n\nHuman:",
}
EXPECTED |= {  # without tools, what the templates write that know none
    "chatml_tools": EXPECTED["chatml"],
    "llama3_tools": EXPECTED["llama3"],
    "mistral_tools": "<s>[INST] hi[/INST] yo</s>[INST] and[/INST] so</s>",
}


@pytest.fixture(params=NAMES)
def template(request: pytest.FixtureRequest) -> ChatTemplate:
    return ChatTemplate.from_file(FOLDER / f"{request.param}.jinja")


def test_each_template_renders_its_published_format(template: ChatTemplate) -> None:
    assert template.render(ONE) == EXPECTED[template.name]


def test_system_turns_go_where_the_format_has_them() -> None:
    turns = (system("Be kind."), user("hi"))
    mistral = ChatTemplate.from_file(FOLDER / "mistral_instruct.jinja")
    assert mistral.prompt(turns) == "<s>[INST] Be kind.\n\nhi [/INST]"
    nemo = ChatTemplate.from_file(FOLDER / "nemo_extra_id.jinja")
    assert nemo.prompt(turns) == "<extra_id_0>System\nBe kind.\n<extra_id_1>User\nhi\n<extra_id_1>Assistant\n"


@pytest.mark.parametrize("messages", CONVERSATIONS)
def test_prompt_and_answer_join_to_the_conversation(template: ChatTemplate, messages: tuple[Message, ...]) -> None:
    prompt, answer = template.prompt(messages[:-1]), template.answer(messages[:-1], messages[-1].content)
    whole = template.render(messages)
    assert whole.startswith(prompt + answer)
    assert answer.endswith(template.header.answer_end)
    assert whole[len(prompt + answer) :].strip() == ""


@pytest.mark.parametrize("messages", CONVERSATIONS)
def test_loss_is_on_answers_and_their_end_only(template: ChatTemplate, messages: tuple[Message, ...]) -> None:
    spans = template.spans(messages)
    assert "".join(s.text for s in spans) == template.render(messages)
    learnt = [s.text for s in spans if s.loss]
    said = [m.content for m in messages if m.role == "assistant"]
    assert len(learnt) == len(said)
    for text, content in zip(learnt, said, strict=True):
        assert text.endswith(template.header.answer_end)
        assert text.removesuffix(template.header.answer_end).strip() == content.strip()
    at = 0
    for i, span in enumerate(spans):  # each learnt piece begins exactly where the model would be asked to write
        if span.loss:
            before = sum(s.loss for s in spans[:i])
            turn = [n for n, m in enumerate(messages) if m.role == "assistant"][before]
            assert at == len(template.prompt(messages[:turn]))
        at += len(span.text)
    assert [s.text for s in template.spans(messages, loss="last") if s.loss] == learnt[-1:]


def test_spans_of_a_prompt_have_no_loss(template: ChatTemplate) -> None:
    assert not any(s.loss for s in template.spans((user("only a question"),)))


def test_generation_blocks_mark_the_same_text() -> None:
    plain = (FOLDER / "chatml.jinja").read_text(encoding="utf-8")
    head = plain[: plain.index("---#}\n") + 6]
    body = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}"
        "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] + '<|im_end|>' }}{% endgeneration %}"
        "{% else %}{{ m['content'] + '<|im_end|>' }}{% endif %}{{ '\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )
    unmarked = ChatTemplate.from_text("plain", plain)
    for text in (body, body.replace(" + '<|im_end|>' }}{% endgeneration %}", " }}{% endgeneration %}<|im_end|>")):
        marked = ChatTemplate.from_text("marked", head + text)
        for messages in CONVERSATIONS:
            for loss in ("all", "last"):
                assert marked.spans(messages, loss=loss) == unmarked.spans(messages, loss=loss)  # type: ignore[arg-type]


def test_a_template_that_rewrites_earlier_turns_needs_generation_blocks() -> None:
    body = (
        "{% for m in messages %}<|turn|>{{ m.role }}:"
        "{% if m.role == 'assistant' and not loop.last %}short{% else %}{{ m.content }}{% endif %}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|turn|>assistant:{% endif %}"
    )
    template = ChatTemplate.from_text("rewrites", HEAD + body)
    with pytest.raises(SpecError, match="generation"):
        template.spans(ONE)
    assert [s.text for s in template.spans(ONE, loss="last") if s.loss] == ["so<|end|>"]


def test_an_unclosed_answer_is_not_stretched_into_the_next_turn() -> None:
    body = (
        "{% for m in messages %}<|turn|>{{ m.role }}:{{ m.content }}"
        "{% if m.role != 'assistant' or loop.last %}<|end|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|turn|>assistant:{% endif %}"
    )
    with pytest.raises(SpecError, match="answer in turn 2 is not closed"):
        ChatTemplate.from_text("unclosed", HEAD + body).spans(ONE)


@pytest.mark.parametrize(
    "messages",
    [(user("a"), user("b")), (assistant("a"), user("b")), (user("a"), assistant("b"), system("c"), user("d"))],
)
def test_mistral_demands_alternation_and_says_where(messages: tuple[Message, ...]) -> None:
    template = ChatTemplate.from_file(FOLDER / "mistral_instruct.jinja")
    with pytest.raises(TurnError, match=r"mistral_instruct\.jinja:\d+: (turns must alternate|a system turn)"):
        template.render(messages)


def test_unknown_roles_and_unanswerable_prompts_are_errors(template: ChatTemplate) -> None:
    with pytest.raises(TurnError, match="message 2: unknown role 'sytem'; did you mean 'system'"):
        template.render((user("a"), Message("sytem", "b")))
    with pytest.raises(TurnError, match="end it with a user or system turn"):
        template.prompt((user("a"), assistant("b")))
    with pytest.raises(TurnError, match="no messages"):
        template.prompt(())


def test_stops_hold_the_end_of_an_answer_once(template: ChatTemplate) -> None:
    assert template.stops[0] == template.header.answer_end
    assert len(set(template.stops)) == len(template.stops)
    if template.header.eos_token:
        assert template.header.eos_token in template.stops


def test_identity_is_the_bytes_and_the_guard_not_the_name(template: ChatTemplate) -> None:
    again = ChatTemplate.from_text("other", template.text, "elsewhere.jinja")
    assert again.identity() == template.identity()
    assert again == template
    assert ChatTemplate.from_text("x", template.text + "{# note #}", "w").identity() != template.identity()
    assert template.guarded(("<tool>",)).identity() != template.identity()


def test_templates_travel_between_processes(template: ChatTemplate) -> None:
    assert pickle.loads(pickle.dumps(template)).render(ONE) == template.render(ONE)


def test_bodies_render_alike_in_hugging_faces_compiler(template: ChatTemplate) -> None:
    utils = pytest.importorskip("transformers.utils.chat_template_utils")
    compiled = utils._compile_jinja_template(template.text)
    for messages in CONVERSATIONS:
        for turns, ask in ((messages, False), (messages[:-1], True)):
            theirs = compiled.render(
                messages=[{"role": m.role, "content": m.content} for m in turns],
                add_generation_prompt=ask,
                bos_token=template.header.bos_token,
                eos_token=template.header.eos_token,
            )
            assert template.render(turns, add_generation_prompt=ask) == theirs


def test_every_shipped_template_is_described() -> None:
    for path in FOLDER.glob("*.jinja"):
        assert description_of(path.read_text(encoding="utf-8")), path.name
    assert description_of("no front matter") == ""


def test_every_problem_of_the_front_matter_is_told_with_its_line() -> None:
    text = "{#---\ndescription: 3\nkind: chta\nstops: []\ncontrol: [1]\n---#}\nx"
    with pytest.raises(SpecError) as caught:
        ChatTemplate.from_text("bad", text, "bad.jinja")
    told = str(caught.value)
    assert "bad.jinja:2: description: must be text" in told
    assert "bad.jinja:3: kind: 'chta' is unknown; did you mean 'chat'?" in told
    assert "bad.jinja:4: stops: unknown field; did you mean 'stop'?" in told
    assert "bad.jinja:5: control" in told


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{{ messages }}", r"w:1: no front matter"),
        ("{#---\na: [\n---#}", r"w:\d: front matter is not YAML"),
        ("{#---\n- a\n---#}", r"not a mapping"),
        ("{#---\ndescription: d\nkind: chat\n---#}", r"answer_end: missing"),
        ("{#---\ndescription: d\nkind: prompt\n---#}", r"is a prompt template"),
        (HEAD + "{% for m in messages %}\n{{ m.content }", r"w:\d+: "),
        (HEAD + "{{ mesages[0].content }}", r"unknown variable 'mesages'; did you mean 'messages'"),
        (HEAD + "constant", r"answer in turn 2 is not closed"),
        (HEAD.replace("<|turn|>", "x"), r"'x' is one character"),
    ],
)
def test_bad_files_are_refused_when_loaded(text: str, told: str) -> None:
    with pytest.raises(SpecError, match=told):
        ChatTemplate.from_text("w", text, "w")


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="cannot be read"):
        ChatTemplate.from_file(tmp_path / "none.jinja")
    (tmp_path / "latin.jinja").write_bytes(b"\xff\xfe\xe9")
    with pytest.raises(SpecError, match="cannot be read"):
        ChatTemplate.from_file(tmp_path / "latin.jinja")


@pytest.fixture(scope="module")
def tokenizer(smollm2_folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(smollm2_folder)


def as_dicts(messages: tuple[Message, ...]) -> list[dict[str, str]]:
    return [{"role": m.role, "content": m.content} for m in messages]


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_rendering_equals_apply_chat_template(tokenizer: Any, name: str) -> None:
    template = ChatTemplate.from_file(FOLDER / f"{name}.jinja")
    tokens = {"bos_token": template.header.bos_token, "eos_token": template.header.eos_token}
    for messages in CONVERSATIONS:
        for turns, ask in ((messages, False), (messages[:-1], True)):
            theirs = tokenizer.apply_chat_template(
                as_dicts(turns), chat_template=template.text, tokenize=False, add_generation_prompt=ask, **tokens
            )
            assert template.render(turns, add_generation_prompt=ask) == theirs


@pytest.mark.long
def test_smollm2_equals_the_models_own_template(tokenizer: Any) -> None:
    template = ChatTemplate.from_file(FOLDER / "smollm2.jinja")
    assert (tokenizer.bos_token, tokenizer.eos_token) == (template.header.bos_token, template.header.eos_token)
    for messages in CONVERSATIONS:
        for ask in (False, True):
            theirs = tokenizer.apply_chat_template(as_dicts(messages), tokenize=False, add_generation_prompt=ask)
            assert template.render(messages, add_generation_prompt=ask) == theirs


@pytest.mark.long
@pytest.mark.parametrize("name", ["chatml", "smollm2"])
def test_no_token_straddles_a_span(tokenizer: Any, name: str) -> None:
    template = ChatTemplate.from_file(FOLDER / f"{name}.jinja")
    for messages in CONVERSATIONS:
        spans = template.spans(messages)
        text = "".join(s.text for s in spans)
        encoded = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
        bounds, at = [], 0
        for span in spans:
            bounds.append((at, at := at + len(span.text), span.loss))
        learnt = []
        for token, (start, end) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
            inside = [loss for low, high, loss in bounds if low <= start and end <= high]
            assert len(inside) == 1
            learnt += [token] if inside[0] else []
        wanted = "".join(m.content + "<|im_end|>" for m in messages if m.role == "assistant")
        assert tokenizer.decode(learnt) == wanted


@pytest.mark.parametrize(
    "front",
    [
        "description: " + "[" * 8000,
        "description: " + "[" * 60_000,
        "kind: chat\ndescription: 2026-99-99",
        "? {a: 1}\n: b",
    ],
)
def test_front_matter_that_yaml_chokes_on_is_an_error(front: str) -> None:
    with pytest.raises(SpecError, match=r"^bad\.jinja:\d: front matter"):
        ChatTemplate.from_text("bad", f"{{#---\n{front}\n---#}}\nx", "bad.jinja")
