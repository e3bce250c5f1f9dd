"""The Jinja environment of every template: Hugging Face's dialect, in Jinja's immutable sandbox.

The dialect is trim_blocks, lstrip_blocks, loop controls, ``generation`` blocks and Hugging Face's ``tojson``. A
template stands alone, writes plain text only, and makes the same text each time (no clock, no chance). The sandbox
keeps it from Python; it does not bound time or memory. Templates that did not ship therefore render in a process of
their own (``cai.chat.isolation``), which does.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import jinja2
from jinja2 import meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import missing

MAX_SOURCE = 64 * 1024
"""Characters of a template."""

MAX_TEXT = 4 * 1024 * 1024
"""Characters that one render may write."""

_FILENAME = "<cai template>"


class Refusal(jinja2.TemplateError):
    """The template called ``raise_exception``."""


@dataclass(slots=True)
class _Output:
    """How much a render has written (characters), and where its ``generation`` blocks landed (start, text)."""

    written: int = 0
    blocks: list[tuple[int, str]] = field(default_factory=list)


_OUTPUT: ContextVar[_Output] = ContextVar("output")


@dataclass(frozen=True, slots=True)
class Rendered:
    """A template's text, and where ``generation`` blocks lie in it: (start, end) in characters."""

    text: str
    blocks: list[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a template's source says of it.

    ``every`` names the variables that it reads, ``required`` those that it cannot do without. ``alters`` says that it
    may cut, join or change texts, so that contents cannot be judged by their ends alone.
    """

    every: frozenset[str]
    required: frozenset[str]
    alters: bool


class TemplateFailure(Exception):
    """A template cannot be compiled, or failed while it rendered.

    ``line`` is 0 where it is not known; ``refused`` says that the template itself refused these values.
    """

    def __init__(self, message: str, line: int = 0, refused: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.line = line
        self.refused = refused


def check(text: str) -> None:
    """Compile a template.

    Raises:
        TemplateFailure: it is no Jinja, or holds what a template may not.
    """
    _compiled(text)


@lru_cache(maxsize=256)
def inspect(text: str) -> Inspection:
    """What the source of a template that compiles says it uses."""
    tree = Parser(SANDBOX, text).parse()
    every = meta.find_undeclared_variables(tree) - set(SANDBOX.globals)
    optional: set[str] = set()
    for test in tree.find_all(nodes.Test):
        if test.name in ("defined", "undefined") and isinstance(test.node, nodes.Name):
            optional.add(test.node.name)
    for used in tree.find_all(nodes.Filter):
        if used.name in ("default", "d") and isinstance(used.node, nodes.Name):
            optional.add(used.node.name)
    return Inspection(frozenset(every), frozenset(every - optional), _alters(tree))


def render(text: str, values: dict[str, Any]) -> Rendered:
    """Render a template's source with plain data.

    Raises:
        TemplateFailure: with the line where it is known.
    """
    template = _compiled(text)
    output = _Output()
    token = _OUTPUT.set(output)
    pieces: list[str] = []
    try:
        for piece in template.root_render_func(template.new_context(values)):
            pieces.append(piece)
            output.written += len(piece)
            if output.written > MAX_TEXT:
                raise jinja2.TemplateRuntimeError(f"renders more than {MAX_TEXT:,} characters")
        whole = "".join(pieces)
        if not all(whole.startswith(block, start) for start, block in output.blocks):
            raise jinja2.TemplateRuntimeError("a generation block inside a macro, set or call cannot be placed")
        return Rendered(whole, [(start, start + len(block)) for start, block in output.blocks])
    except Refusal as error:
        raise TemplateFailure(error.message or "refused", line_of(text, error), refused=True) from error
    except Exception as error:
        raise TemplateFailure(f"{error or type(error).__name__}", line_of(text, error)) from error
    finally:
        _OUTPUT.reset(token)


def line_of(text: str, error: BaseException) -> int:
    """The line of a template's source where an error came up while it rendered; 0 where it did not come up in it."""
    line, trace = 0, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == _FILENAME:
            line = _compiled(text).get_corresponding_lineno(trace.tb_lineno)
        trace = trace.tb_next
    return line


@lru_cache(maxsize=256)
def _compiled(text: str) -> jinja2.Template:
    try:
        code = SANDBOX.compile(text, _FILENAME, _FILENAME)
    except jinja2.TemplateSyntaxError as error:
        raise TemplateFailure(error.message or "not Jinja", error.lineno) from error
    except (SyntaxError, RecursionError, ValueError, OverflowError, jinja2.TemplateError) as error:
        raise TemplateFailure(f"cannot be compiled ({error})") from error
    return jinja2.Template.from_code(SANDBOX, code, dict(SANDBOX.globals))


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


def _written(value: Any) -> Any:
    """What ``{{ }}`` and ``~`` may write: text, numbers, true, false, none. A list has no text worth training on."""
    if isinstance(value, str):
        return value
    if isinstance(value, jinja2.Undefined):
        return str(value)  # raises with the variable's name
    if value is not None and not isinstance(value, int | float):
        raise jinja2.TemplateRuntimeError(f"cannot write a {type(value).__name__}; use `| tojson` or write its parts")
    return value


def _tojson(value: Any, *by_place: Any, **by_name: Any) -> str:
    names = ("ensure_ascii", "indent", "separators", "sort_keys")  # as Hugging Face's takes them, by name or by place
    return json.dumps(value, **{"ensure_ascii": False, **dict(zip(names, by_place, strict=False)), **by_name})


def _raise_exception(message: str) -> None:
    raise Refusal(str(message))


class AbsentField(jinja2.Undefined):
    """What a template reads and is not there. Writing it is an error, and so is a variable that there is not.

    A field that a message lacks may be asked for, as Hugging Face's templates do: ``{% if message.tool_calls %}``.
    """

    __slots__ = ()

    def _absent(self) -> bool:
        if self._undefined_obj is missing:
            self._fail_with_undefined_error()
        return True

    def __str__(self) -> str:
        self._fail_with_undefined_error()

    def __contains__(self, item: object) -> bool:
        self._fail_with_undefined_error()

    def __bool__(self) -> bool:
        return not self._absent()

    def __eq__(self, other: object) -> bool:
        return self._absent() and isinstance(other, AbsentField)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(type(self))

    def __len__(self) -> int:
        return int(not self._absent())

    def __iter__(self) -> Iterator[Any]:
        self._absent()
        return iter(())


class Generation(Extension):
    """``{% generation %}`` marks what the assistant writes, as in Hugging Face's templates."""

    tags = {"generation"}  # noqa: RUF012 - Jinja declares it so

    def parse(self, parser: Parser) -> nodes.Node:
        """The block becomes a call that notes where its text starts and ends."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_block"), [], [], body).set_lineno(line)

    def _block(self, caller: Callable[[], str]) -> str:
        text = caller()
        output = _OUTPUT.get()
        output.blocks.append((output.written, text))
        return text


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment. One per process is enough: it holds tables and no state."""

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            undefined=AbsentField,
            extensions=[loopcontrols, Generation],
            finalize=_written,
            cache_size=0,
        )
        del self.filters["random"]  # the same values make the same bytes
        self.filters |= {"tojson": _tojson, "_written": _written}
        self.globals = {name: self.globals[name] for name in ("cycler", "dict", "joiner", "namespace", "range")}
        self.globals["raise_exception"] = _raise_exception

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for node in tree.find_all((nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends, nodes.Block)):
            message = "a template stands alone: include, import, extends and block are refused"
            raise jinja2.TemplateSyntaxError(message, node.lineno)
        for concat in tree.find_all(nodes.Concat):
            concat.nodes = [n if isinstance(n, nodes.Const) else _checked(n) for n in concat.nodes]
        tree.set_environment(self)
        return tree


def _checked(node: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(node, "_written", [], [], None, None, lineno=node.lineno)


SANDBOX = Sandbox()
