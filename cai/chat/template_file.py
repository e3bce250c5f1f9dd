"""A template file: front matter that says what the text means, and a Jinja body. Loading checks all of it.

The front matter is YAML inside the first Jinja comment, so that the whole file is also a valid Hugging Face template::

    {#---
    description: ChatML without a default system message
    kind: chat                     # chat | prompt
    bos_token: ""
    eos_token: "<|im_end|>"
    control: ["<|im_start|>"]      # strings that no message can produce; bos, eos and answer_end are added
    answer_end: "<|im_end|>"       # closes an assistant turn; learnt
    stop: []                       # more strings that end a completion; answer_end and eos are added
    ---#}

White space after ``---#}`` is no part of the text, nor is the line end after a ``{% %}`` tag (``trim_blocks``).
A prompt has ``format: text`` (completed as it is) or ``format: chat`` (becomes a user message) instead of
``answer_end``. Errors carry the file and the line.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from enum import Enum
from functools import cached_property
from typing import Any, Protocol

import yaml

from cai.chat import sandbox
from cai.chat.isolation import PROCESS
from cai.chat.sandbox import MAX_SOURCE, Inspection, Rendered, TemplateFailure
from cai.chat.shipped import SHIPPED
from cai.errors import Problem, SpecError, did_you_mean
from cai.identity import text_digest

_FRONT = re.compile(r"\s*\{#---[ \t]*\r?\n(.*?)(?:\r?\n)?---#\}", re.DOTALL)


class TurnError(SpecError):
    """The template does not take these messages: wrong order, wrong role, nothing to answer."""


class TemplateKind(str, Enum):
    """What a template file makes."""

    CHAT = "chat"
    PROMPT = "prompt"


class Format(str, Enum):
    """What a rendered prompt is: text to be completed as it stands, or the content of a user message."""

    TEXT = "text"
    CHAT = "chat"


@dataclass(frozen=True)
class Header:
    """The front matter."""

    description: str
    kind: TemplateKind
    format: Format = Format.CHAT
    bos_token: str = ""
    eos_token: str = ""
    answer_end: str = ""
    control: tuple[str, ...] = ()
    stop: tuple[str, ...] = ()

    @property
    def controls(self) -> tuple[str, ...]:
        """Every string that contents must not produce."""
        return (*self.control, *filter(None, (self.bos_token, self.eos_token, self.answer_end)))

    @property
    def stops(self) -> tuple[str, ...]:
        """Every string that ends a completion, each once."""
        return tuple(dict.fromkeys(filter(None, (self.answer_end, self.eos_token, *self.stop))))


class TemplateBody:
    """A template that compiles. Holds no state between renders; safe to share between threads.

    One that ships renders here, any other in a process of its own (``cai.chat.isolation``).
    """

    def __init__(self, text: str, where: str) -> None:
        self.where = where
        self._text = text
        if len(text) > MAX_SOURCE:
            raise SpecError(Problem(where, f"template of {len(text):,} characters; at most {MAX_SOURCE:,}"))
        self._renderer: _Renderer = sandbox if text_digest(text) in SHIPPED else PROCESS
        try:
            self._renderer.check(text)
        except TemplateFailure as error:
            raise SpecError(Problem(self._place(error), error.message)) from error

    @cached_property
    def inspection(self) -> Inspection:
        """What the source says of itself; found when first asked for, which planning seldom does."""
        return self._renderer.inspect(self._text)

    def render(self, values: dict[str, Any]) -> Rendered:
        """The text, and where ``generation`` blocks lie in it.

        Raises:
            TurnError: the body called ``raise_exception``.
            SpecError: anything else that goes wrong while rendering, with file and line.
        """
        try:
            return self._renderer.render(self._text, values)
        except TemplateFailure as error:
            failure = TurnError if error.refused else SpecError
            raise failure(Problem(self._place(error), error.message)) from error

    def _place(self, error: TemplateFailure) -> str:
        return f"{self.where}:{error.line}" if error.line else self.where


class _Renderer(Protocol):
    """``cai.chat.sandbox``, here or in another process."""

    def check(self, text: str) -> None: ...

    def inspect(self, text: str) -> Inspection: ...

    def render(self, text: str, values: dict[str, Any]) -> Rendered: ...


MAX_FRONT = 8192
"""Characters of front matter."""

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_header(text: str, where: str) -> Header:
    """The front matter of a template's text; every problem in it at once.

    Raises:
        SpecError: missing, not YAML, unknown fields, wrong types.
    """
    match = _FRONT.match(text)
    if match is None:
        raise SpecError(Problem(f"{where}:1", "no front matter", "open the file with {#--- and YAML, closed by ---#}"))
    offset = text[: match.start(1)].count("\n")
    if len(match.group(1)) > MAX_FRONT:
        message = f"front matter of {len(match.group(1)):,} characters; at most {MAX_FRONT:,}"
        raise SpecError(Problem(f"{where}:{offset + 1}", message))
    try:
        raw = yaml.load(match.group(1), Loader=_Loader)
    except (RecursionError, ValueError, TypeError, OverflowError) as error:  # nests deep; a date that there is not
        raise SpecError(Problem(f"{where}:{offset + 1}", f"front matter cannot be read ({error})")) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = offset + (mark.line + 1 if mark is not None else 1)
        raise SpecError(
            Problem(
                f"{where}:{line}",
                f"front matter is not YAML ({getattr(error, 'problem', error)})",
                "quote strings with special characters",
            )
        ) from error
    if not isinstance(raw, dict):
        raise SpecError(Problem(f"{where}:{offset + 1}", "front matter is not a mapping of fields"))
    field_names = {f.name for f in fields(Header)}
    lines = match.group(1).splitlines()
    problems: list[Problem] = []

    def wrong(name: str, message: str, todo: str = "") -> None:
        line_index = next((n for n, line in enumerate(lines) if re.match(rf"{re.escape(name)}\s*:", line)), 0)
        problems.append(Problem(f"{where}:{offset + line_index + 1}", f"{name}: {message}", todo))

    values: dict[str, Any] = {}
    for key, value in raw.items():
        name = str(key)
        if name not in field_names:
            wrong(name, "unknown field", did_you_mean(name, field_names))
        elif name in ("control", "stop"):
            if not isinstance(value, list) or not all(isinstance(v, str) and v for v in value):
                wrong(name, "must be a list of texts that are not empty")
            else:
                values[name] = tuple(value)
        elif not isinstance(value, str):
            wrong(name, f"must be text, not {type(value).__name__}")
        elif name in ("kind", "format"):
            choices: type[TemplateKind] | type[Format] = TemplateKind if name == "kind" else Format
            if value not in {c.value for c in choices}:
                wrong(name, f"{value!r} is unknown", did_you_mean(value, [c.value for c in choices]))
            else:
                values[name] = choices(value)
        else:
            values[name] = value
    for name in ("description", "kind"):
        if name not in raw:
            wrong(name, "missing")
    if raw.get("kind") == TemplateKind.CHAT.value and not values.get("answer_end") and not problems:
        wrong("answer_end", "missing: a chat template says what closes an assistant turn", "e.g. answer_end: '</s>'")
    for name, kind in (("answer_end", TemplateKind.PROMPT), ("format", TemplateKind.CHAT)):
        if name in raw and raw.get("kind") == kind.value:
            wrong(name, f"has no meaning in a {kind.value} template", "remove it")
    if problems:
        raise SpecError(problems)
    return Header(**values)


def is_chat(text: str) -> bool:
    """Whether a template's front matter says, or was meant to say, that it is a chat template."""
    match = _FRONT.match(text)
    return match is not None and bool(re.search(r"^kind\s*:\s*[\"']?chat\b", match.group(1), re.MULTILINE))


def description_of(text: str) -> str:
    """The description in a template's front matter; empty where it cannot be read (loading says why)."""
    try:
        return read_header(text, "template").description
    except SpecError:
        return ""
