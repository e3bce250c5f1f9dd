"""Prompts that a model is asked: a template that users edit, filled in, as raw text or as a chat turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from cai.chat import ChatTemplate, Message, PromptTemplate
from cai.chat.guard import BREAK
from cai.clients.base import Request, Sampling
from cai.errors import Problem, SpecError, did_you_mean


@dataclass(frozen=True, slots=True)
class Filled:
    """A prompt as a model reads it, and the turns that it renders; none where it is text to be completed."""

    text: str
    messages: tuple[Message, ...] = ()


@dataclass(frozen=True, slots=True)
class Asking:
    """A prompt template ready to be filled in. A ``chat`` template's text becomes a user turn."""

    template: PromptTemplate
    chat: ChatTemplate | None
    stops: tuple[str, ...]

    def text(self, **variables: Any) -> str:
        """What the model reads."""
        return self.fill(**variables).text

    def fill(self, **variables: Any) -> Filled:
        """The rendered text, and the turns before this chat template had its say.

        The turns hold the contents raw, without the breaks that keep them from forging a turn or ending an answer in
        the rendered text: whoever takes them has a chat template of its own. The prompt's own control strings stay
        broken.
        """
        filled = self.template.render(**variables)
        if self.chat is None:
            return Filled(filled)
        # Most contents hold nothing that was broken, and then both texts are the same.
        raw = filled if BREAK not in filled else replace(self.template, guard=()).render(**variables)
        return Filled(self.chat.prompt((Message("user", filled.strip()),)), (Message("user", raw.strip()),))

    def request(self, id: str, sampling: Sampling, seed: int, /, **variables: Any) -> Request:
        """The prompt as a request to any client."""
        filled = self.fill(**variables)
        return Request(id, filled.text, sampling, seed, filled.messages)

    def continuation(self, prompt: str, answer: str) -> str:
        """An answer as it would go on from ``prompt``: after a word or a colon a space comes first."""
        return answer if not prompt or prompt[-1].isspace() or self.chat is not None else f" {answer}"


def read_records(text: str, where: str, section: str, fields: Sequence[str]) -> list[dict[str, str]]:
    """The list ``section`` of a YAML text; each item has all ``fields`` as text. ``where`` names the text in errors.

    Raises:
        SpecError: with every problem, when the file holds anything else.
    """
    import yaml

    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SpecError(Problem(where, f"is no YAML ({' '.join(str(error).split())})")) from error
    items = raw.get(section) if isinstance(raw, dict) else None
    if not isinstance(items, list) or not items:
        raise SpecError(Problem(where, f"has no list '{section}'", f"{section}: [{{{', '.join(fields)}}}]"))
    problems = []
    for i, item in enumerate(items):
        place = f"{where}: {section}[{i}]"
        if not isinstance(item, dict):
            problems.append(Problem(place, "must be a mapping of fields"))
            continue
        problems += [
            Problem(f"{place}.{key}", "unknown field", did_you_mean(str(key), fields))
            for key in item
            if key not in fields
        ]
        problems += [
            Problem(f"{place}.{key}", "must be a text that is not empty")
            for key in fields
            if not isinstance(item.get(key), str) or not item[key].strip()
        ]
    if problems:
        raise SpecError(problems)
    return [{key: item[key].strip() for key in fields} for item in items]
