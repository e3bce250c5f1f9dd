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
from functools import cached_property, lru_cache
from typing import Any

import jinja2
import yaml
from jinja2 import meta, nodes
from jinja2.parser import Parser

from cai.chat.sandbox import BUDGET, MAX_SOURCE, MAX_TEXT, SANDBOX, Budget, Refusal
from cai.errors import Problem, SpecError, did_you_mean

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


@dataclass(frozen=True)
class Variables:
    """The names a body reads: all of them, and those it cannot do without."""

    every: frozenset[str]
    required: frozenset[str]


class TemplateBody:
    """A compiled template. Holds no state between renders; safe to share between threads.

    ``alters`` says that the body may cut, join or change texts, so that contents cannot be judged by their ends alone.
    """

    def __init__(self, text: str, where: str) -> None:
        self.where = where
        self._text = text
        self._size = len(text)
        if len(text) > MAX_SOURCE:
            raise SpecError(Problem(where, f"template of {len(text):,} characters; at most {MAX_SOURCE:,}"))
        try:
            self._template = _compile(text)
        except jinja2.TemplateSyntaxError as error:
            raise SpecError(Problem(f"{where}:{error.lineno}", error.message or "not Jinja")) from error
        except (SyntaxError, RecursionError, MemoryError, ValueError, OverflowError, jinja2.TemplateError) as error:
            raise SpecError(Problem(where, f"cannot be compiled ({error})")) from error

    @cached_property
    def variables(self) -> Variables:
        """The names that the body reads; found when first asked for, which planning never does."""
        return _variables(self._tree())

    @cached_property
    def alters(self) -> bool:
        """Whether the body may cut, join or change texts."""
        return _alters(self._tree())

    def _tree(self) -> nodes.Template:
        return Parser(SANDBOX, self._text).parse()  # as the author wrote it, without the sandbox's meters

    def render(self, values: dict[str, Any]) -> tuple[str, list[tuple[int, int]]]:
        """The text, and where ``generation`` blocks lie in it (start, end).

        Raises:
            TurnError: the body called ``raise_exception``.
            SpecError: anything else that goes wrong while rendering, with file and line.
        """
        budget = Budget(self._size)
        token = BUDGET.set(budget)
        pieces: list[str] = []
        try:
            for piece in self._template.root_render_func(self._template.new_context(values)):
                pieces.append(piece)
                budget.written += len(piece)
                if budget.written > MAX_TEXT:
                    raise jinja2.TemplateRuntimeError(f"renders more than {MAX_TEXT:,} characters")
            text = "".join(pieces)
            if not all(text.startswith(block, start) for start, block in budget.blocks):
                raise jinja2.TemplateRuntimeError("a generation block inside a macro, set or call cannot be placed")
            return text, [(start, start + len(block)) for start, block in budget.blocks]
        except Refusal as error:
            raise TurnError(Problem(self._place_of(error), error.message or "refused")) from error
        except Exception as error:
            raise SpecError(Problem(self._place_of(error), f"{error or type(error).__name__}")) from error
        finally:
            BUDGET.reset(token)

    def _place_of(self, error: BaseException) -> str:
        line, trace = 0, error.__traceback__
        while trace is not None:
            if trace.tb_frame.f_code.co_filename == _FILENAME:
                line = self._template.get_corresponding_lineno(trace.tb_lineno)
            trace = trace.tb_next
        return f"{self.where}:{line}" if line else self.where


_FILENAME = "<cai template>"
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@lru_cache(maxsize=256)
def _compile(text: str) -> jinja2.Template:
    code = SANDBOX.compile(text, _FILENAME, _FILENAME)
    return jinja2.Template.from_code(SANDBOX, code, SANDBOX.make_globals(None))


def _variables(tree: nodes.Template) -> Variables:
    every = meta.find_undeclared_variables(tree) - set(SANDBOX.globals)
    optional: set[str] = set()
    for test in tree.find_all(nodes.Test):
        if test.name in ("defined", "undefined") and isinstance(test.node, nodes.Name):
            optional.add(test.node.name)
    for used in tree.find_all(nodes.Filter):
        if used.name in ("default", "d") and isinstance(used.node, nodes.Name):
            optional.add(used.node.name)
    return Variables(frozenset(every), frozenset(every - optional))


def _alters(tree: nodes.Template) -> bool:
    if any(f.name != "trim" or f.args or f.kwargs for f in tree.find_all(nodes.Filter)):
        return True
    for call in tree.find_all(nodes.Call):
        helper = isinstance(call.node, nodes.Name) and call.node.name in ("raise_exception", "namespace")
        strips = isinstance(call.node, nodes.Getattr) and call.node.attr == "strip" and not call.args
        generation = isinstance(call.node, nodes.ExtensionAttribute)
        if not (helper or strips or generation):
            return True
    for item in tree.find_all(nodes.Getitem):
        text = isinstance(item.arg, nodes.Const) and isinstance(item.arg.value, str)
        if not text and not (isinstance(item.node, nodes.Name) and item.node.name == "messages"):
            return True
    return any(not (isinstance(f.iter, nodes.Name) and f.iter.name == "messages") for f in tree.find_all(nodes.For))


def read_header(text: str, where: str) -> Header:
    """The front matter of a template's text; every problem in it at once.

    Raises:
        SpecError: missing, not YAML, unknown fields, wrong types.
    """
    match = _FRONT.match(text)
    if match is None:
        raise SpecError(Problem(f"{where}:1", "no front matter", "open the file with {#--- and YAML, closed by ---#}"))
    offset = text[: match.start(1)].count("\n")
    try:
        raw = yaml.load(match.group(1), Loader=_Loader)
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


def description_of(text: str) -> str:
    """The description in a template's front matter; empty where it cannot be read (loading says why)."""
    try:
        return read_header(text, "template").description
    except SpecError:
        return ""
