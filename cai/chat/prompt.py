"""Prompt templates: the texts of critique, revision and comparison requests, with the same front matter and guard."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cai.chat.guard import Guard
from cai.chat.messages import ROLES, Message, transcript
from cai.chat.template import read_text
from cai.chat.template_file import Format, Header, TemplateBody, TemplateKind, read_header
from cai.errors import Problem, SpecError, did_you_mean
from cai.identity import text_digest


@dataclass(frozen=True)
class PromptTemplate:
    """A Jinja file that turns named values into one prompt. Control strings inside the values are broken."""

    name: str = field(compare=False)
    text: str
    where: str = field(compare=False)
    guard: tuple[str, ...] = ()
    header: Header = field(init=False, repr=False, compare=False)
    _body: TemplateBody = field(init=False, repr=False, compare=False)
    _guard: Guard = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        header = read_header(self.text, self.where)
        if header.kind is not TemplateKind.PROMPT:
            raise SpecError(Problem(self.where, "is a chat template, not a prompt template", "wants kind: prompt"))
        object.__setattr__(self, "header", header)
        object.__setattr__(self, "_body", TemplateBody(self.text, self.where))
        object.__setattr__(self, "_guard", Guard((*header.controls, *self.guard), self.where))

    def __reduce__(self) -> tuple[Any, ...]:
        return PromptTemplate, (self.name, self.text, self.where, self.guard)

    @classmethod
    def from_text(cls, name: str, text: str, where: str = "", guard: Sequence[str] = ()) -> PromptTemplate:
        """A template from its file's text, front matter included; ``where`` names it in errors.

        Raises:
            SpecError: every problem in the front matter, or the first in the body, with the line.
        """
        return cls(name, text, where or name, tuple(dict.fromkeys(guard)))

    @classmethod
    def from_file(cls, path: Path, guard: Sequence[str] = ()) -> PromptTemplate:
        """A template from a file (UTF-8); its name is the file's without suffix."""
        return cls.from_text(path.stem, read_text(path), str(path), guard)

    @property
    def format(self) -> Format:
        """Whether the text is completed as it is or becomes a user message."""
        return self.header.format

    @property
    def stops(self) -> tuple[str, ...]:
        """Strings that end a completion of this prompt."""
        return self.header.stops

    def identity(self) -> dict[str, Any]:
        """What decides the rendered text: the file's bytes, and extra control strings where there are any."""
        return {"sha256": text_digest(self.text)} | ({"guard": sorted(self.guard)} if self.guard else {})

    def variables(self) -> frozenset[str]:
        """Every variable that the template reads, optional ones included."""
        return self._body.inspection.every - {"bos_token", "eos_token"}

    def required(self) -> frozenset[str]:
        """The variables without ``is defined`` or ``default`` anywhere; ``render`` must be given these."""
        return self._body.inspection.required - {"bos_token", "eos_token"}

    def render(self, **values: Any) -> str:
        """The prompt. Values are plain data: texts, numbers, none, messages, and lists and mappings of them.

        Raises:
            SpecError: a value is missing or is no plain data, or the template fails, with file and line.
        """
        missing = sorted(self.required() - values.keys())
        if missing:
            raise SpecError([Problem(self.where, f"no value for {n!r}", did_you_mean(n, values)) for n in missing])
        header = self.header
        plain_values = {name: self._plain(value, name) for name, value in values.items()}

        def render(variables: dict[str, Any]) -> str:
            return self._body.render({"bos_token": header.bos_token, "eos_token": header.eos_token, **variables}).text

        return self._guard.apply(plain_values, _each, render, always=self._body.inspection.alters, where=self.where)[1]

    def _plain(self, value: Any, name: str) -> Any:
        if isinstance(value, Message):
            return transcript((value,))[0]
        if isinstance(value, Mapping):
            return {str(k): self._plain(v, f"{name}.{k}") for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [self._plain(v, f"{name}[{n}]") for n, v in enumerate(value)]
        if value is None or isinstance(value, str | int | float):
            return value
        raise SpecError(
            Problem(self.where, f"{name} is a {type(value).__name__}", "give texts, numbers, lists, mappings")
        )


def _each(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):  # a known role is no content: templates compare it
        return {k: v if k == "role" and v in ROLES else _each(v, change) for k, v in value.items()}
    return [_each(v, change) for v in value] if isinstance(value, list) else value
