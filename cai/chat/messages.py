"""What goes into a chat template and what comes out: turns in, pieces of text out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True)
class Message:
    """One turn: ``role`` is ``system``, ``user`` or ``assistant``."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of rendered text; ``loss`` says whether training learns to produce it."""

    text: str
    loss: bool


def transcript(messages: Sequence[Message]) -> list[dict[str, str]]:
    """Messages as the prompt templates read them."""
    return [{"role": message.role, "content": message.content} for message in messages]
