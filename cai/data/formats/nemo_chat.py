"""NeMo's chat format: what its chat data set makes of a record, and whether a chat template writes the same.

Facts, read in NeMo v2.1.0 (``GPTSFTChatDataset``) and tried against it by tests/lab/test_training.py:

- The header is ``<extra_id_0>System\\n{system}\\n``, a turn ``<extra_id_1>{from}\\n{value}\\n``. Where the last turn is
  not of the role ``mask``, ``<extra_id_1>`` follows. Nothing is stripped, no BOS or EOS is added.
- The first turn is never learnt. Of an answer, what follows the line with its name is learnt; of a later turn of the
  ``mask`` role, its ``<extra_id_1>``, which ends the answer before it.
- Places in the loss mask come from token counts of the header and of each turn, counted alone behind a NUL. Where a
  tokenizer merges across them, the mask is shifted with a mere warning, or the header fails an assertion.
- A text of more than ``max_seq_length`` + 1 tokens loses its right end, perhaps all that is learnt. A ``mask`` role
  that does not speak, or nothing to learn, is an assertion in the middle of training.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from cai.chat import ChatTemplate, Message, Span
from cai.errors import SpecError

SYSTEM_START, TURN_START, LABEL_START = "<extra_id_0>", "<extra_id_1>", "<extra_id_2>"
CONTROL = (SYSTEM_START, TURN_START, LABEL_START)
CHAT_TOKENS: Mapping[str, str] = {
    "system_turn_start": SYSTEM_START,
    "turn_start": TURN_START,
    "label_start": LABEL_START,
    "end_of_turn": "\n",
    "end_of_name": "\n",
}
"""``model.data.chat_prompt_tokens``, with which upstream writes what these files mean; its own default is another."""

ANSWER_HEADER, ANSWER_END = TURN_START + "Assistant\n", "\n" + TURN_START
_NAMES = {"user": "User", "assistant": "Assistant"}


def chat_record(messages: Sequence[Message], dataset: str) -> dict[str, Any]:
    """Upstream's record of a conversation whose turns are in order."""
    system = messages[0].content if messages[0].role == "system" else ""
    turns = [{"from": _NAMES[m.role], "value": m.content} for m in messages if m.role != "system"]
    return {"system": system, "conversations": turns, "mask": "User", "dataset": dataset}


def folded(record: dict[str, Any]) -> dict[str, Any]:
    """The same text with loss on the last answer alone: earlier turns become part of the first, never learnt, one."""
    *earlier, answer = record["conversations"]
    text = "".join(turn_text(turn["from"], turn["value"]) for turn in earlier)
    # The first turn writes its own start and its own last line end.
    prompt = text.removeprefix(turn_text("User", "")[:-1]).removesuffix("\n")
    return {**record, "conversations": [{"from": "User", "value": prompt}, answer]}


def header_text(system: str) -> str:
    """The system turn."""
    return f"{SYSTEM_START}System\n{system}\n"


def turn_text(name: str, value: str) -> str:
    """One turn with its line end."""
    return f"{TURN_START}{name}\n{value}\n"


def joined(spans: Iterable[Span]) -> tuple[Span, ...]:
    """Spans of which no two neighbours agree in ``loss`` and none is empty."""
    merged: list[Span] = []
    for span in spans:
        if merged and merged[-1].loss == span.loss:
            merged[-1] = Span(merged[-1].text + span.text, span.loss)
        elif span.text:
            merged.append(span)
    return tuple(merged)


def chat_spans(record: Mapping[str, Any]) -> tuple[Span, ...]:
    """What upstream's chat data set makes of one of our records: its text, and where it takes loss."""
    pieces = [Span(header_text(record["system"]), False)]
    for i, turn in enumerate(record["conversations"]):
        learnt, name = turn["from"] != record["mask"], f"{turn['from']}\n"
        pieces.append(Span(TURN_START, i > 1 and not learnt))
        pieces += [Span(name, False), Span(turn["value"] + "\n", learnt and i > 0)]
    if record["conversations"][-1]["from"] != record["mask"]:
        pieces.append(Span(TURN_START, True))
    return joined(pieces)


def matches_nemo_chat(template: ChatTemplate) -> str:
    """Empty when ``template`` renders what NeMo's chat data set does, else the first difference in words.

    Prompts, answers and what is learnt are compared on conversations with and without a system text, of one turn and
    of several, with contents that templates are known to change; and messages must not be able to forge a turn.
    """
    for messages in _probes():
        record = chat_record(messages, "probe")
        about = f"{len(record['conversations'])} turns" + (" and a system text" if messages[0].role == "system" else "")
        expected_text = "".join(span.text for span in chat_spans(record))
        answer = messages[-1].content + ANSWER_END
        try:
            comparisons = (
                ("prompt", template.prompt(messages[:-1]), expected_text.removesuffix(answer)),
                ("answer", template.answer(messages[:-1], messages[-1].content), answer),
                ("conversation", template.render(messages), expected_text),
            )
            spans = joined(template.spans(messages))
        except SpecError as error:
            return f"a conversation of {about} is refused: {error}"
        for subject, actual, expected in comparisons:
            if actual != expected:
                return f"the {subject} of {about} {_difference(actual, expected)}"
        if spans != chat_spans(record):
            return f"in a conversation of {about}, other pieces are learnt than NeMo learns"
    for control in CONTROL:
        text = template.render((Message("user", f"a{control}b"), Message("assistant", "c")))
        if f"a{control}b" in text:
            return f"a message can hold {control!r}; add it to the template's `control`"
    return ""


def _probes() -> Iterator[tuple[Message, ...]]:
    odd = (
        "plain",
        " spaces around ",
        "\nlines\n\n",
        "a\tb\u00a0c",
        '{{ x }} {% y %} <b>"&amp;"</b> \\n',
        "é 你好 🙂",
        "'",
    )
    for i, content in enumerate(odd):
        answer = odd[(i + 1) % len(odd)]
        for turns in (1, 2, 3):
            conversation = (Message("user", content), Message("assistant", answer)) * turns
            yield conversation
            yield (Message("system", answer), *conversation)
    yield (Message("system", ""), Message("user", "a"), Message("assistant", "b"))


def _difference(actual: str, expected: str) -> str:
    same = (a == b for a, b in zip(actual, expected, strict=False))
    index = next((i for i, equal in enumerate(same) if not equal), min(len(actual), len(expected)))
    around = f" after {expected[max(0, index - 20) : index]!r}" if index else ""
    return f"differs{around}: has {actual[index : index + 24]!r}, NeMo writes {expected[index : index + 24]!r}"
