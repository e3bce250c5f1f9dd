"""Short texts of every kind that NeMo's data files hold, rendered in a chat template."""

from __future__ import annotations

from typing import Any

from cai.chat import ChatTemplate, Message
from cai.data.formats.nemo_aligner import HardPair
from cai.engines.methods.base import PromptText, TrainText
from cai.files.library import shipped_root

TEMPLATES = shipped_root() / "prompt_templates"
TURN = "<extra_id_1>"
HEADER = f"{TURN}Assistant\n"


def dialogue(*contents: str, system: str | None = None) -> tuple[Message, ...]:
    """Turns from the user's on, by turns."""
    first = () if system is None else (Message("system", system),)
    return first + tuple(Message(("user", "assistant")[i % 2], content) for i, content in enumerate(contents))


def train_text(template: ChatTemplate, *contents: str, system: str | None = None, loss: Any = "all") -> TrainText:
    """A conversation to learn from."""
    messages = dialogue(*contents, system=system)
    return TrainText("row", template.spans(messages, loss), messages)


def hard_pair(template: ChatTemplate, asked: str = "Hi", chosen: str = "Yes", rejected: str = "No") -> HardPair:
    """A better and a worse answer to one question."""
    prompt = template.prompt(dialogue(asked))
    return HardPair("row", prompt, *(template.answer(dialogue(asked), text) for text in (chosen, rejected)))


def prompt_text(template: ChatTemplate, *contents: str) -> PromptText:
    """A prompt to go on from."""
    return PromptText("row", template.prompt(dialogue(*contents)))
