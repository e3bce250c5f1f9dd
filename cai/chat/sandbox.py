"""A Jinja environment in which a hostile template can neither act nor hang.

It is Hugging Face's dialect (trim_blocks, lstrip_blocks, loop controls, ``generation`` blocks, their ``tojson``) in
Jinja's immutable sandbox, with what the sandbox does not bound bounded here: every loop turn, call, filter and operator
is charged to a budget, values are measured before they are built, and only plain text can be written.
Compiled templates hold no state; a render's budget lives in a context variable.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_SOURCE = 64 * 1024
MAX_TEXT = 4 * 1024 * 1024
MAX_STEPS = 200_000
MAX_SECONDS = 1.0
SHORT = 1024
MAX_ITEMS = 100_000
MAX_RANGE = 10_000


class Refusal(jinja2.TemplateError):
    """The template called ``raise_exception``."""


class Budget:
    """What one render has used, and where its ``generation`` blocks landed (start in characters, text)."""

    __slots__ = ("blocks", "look", "since", "steps", "weight", "written")

    def __init__(self, source: int) -> None:
        # A turn or a call can run the whole body, so a longer source costs more a step.
        self.weight = 1 + source // SHORT
        self.steps = 0
        self.written = 0  # characters
        self.blocks: list[tuple[int, str]] = []
        # The clock is read every 500 steps: reading it at each would cost more than most of them.
        self.look = 500
        self.since = 0.0

    def charge(self, steps: int) -> None:
        """Count work; raises SecurityError past the limit of steps or of processor time."""
        self.steps += self.weight * steps
        if self.steps > self.look:
            now = time.thread_time()  # of this thread: a busy machine does not count against the template
            self.look = self.steps + 500
            self.since = self.since or now
            if self.steps > MAX_STEPS or now - self.since > MAX_SECONDS:
                raise SecurityError("takes too long; the template loops too often over too much")


BUDGET: ContextVar[Budget | None] = ContextVar("budget", default=None)


def _charge(value: Any) -> Any:
    """Count a call and what it made."""
    size = 0
    if isinstance(value, str):
        size = len(value) // SHORT
        _room(len(value))
    elif isinstance(value, list | tuple | dict):
        size = len(value) // 16
        if len(value) > MAX_ITEMS:
            raise SecurityError(f"a list of more than {MAX_ITEMS:,} items")
    if (budget := BUDGET.get()) is not None:
        budget.charge(1 + size)
    return value


def _room(size: int) -> None:
    if size > MAX_TEXT:
        raise SecurityError(f"a value of more than {MAX_TEXT:,} characters")


def _small(value: Any) -> Any:
    """``value``, unless it is nested data too large to walk (shared parts count each time they occur)."""
    budget, queue = MAX_ITEMS, [value]
    while queue:
        item = queue.pop()
        if isinstance(item, list | tuple | dict):
            budget -= len(item) + 1
            if budget < 0:
                raise SecurityError(f"nested data of more than {MAX_ITEMS:,} items")
            queue.extend([*item, *item.values()] if isinstance(item, dict) else item)
        elif isinstance(item, str) and item is not value:
            budget -= len(item) // SHORT
    return value


def _written(value: Any) -> Any:
    """What ``{{ }}`` may write: text, numbers, true, false, none. Anything else has no text worth training on."""
    if isinstance(value, str):
        if len(value) > SHORT:  # short texts are covered by the charge for the turn or call that writes them
            _charge(value)
    elif isinstance(value, jinja2.Undefined):
        str(value)  # raises with the variable's name
    elif value is not None and not isinstance(value, int | float):
        raise jinja2.TemplateRuntimeError(f"cannot write a {type(value).__name__}; use `| tojson` or write its parts")
    return value


@jinja2.pass_context
def _text(_: Any, value: str) -> str:
    return str(_charge(value))


@jinja2.pass_context
def _concat(_: Any, parts: list[Any]) -> str:
    return _join(parts)


def _join(parts: Iterable[Any], sep: str = "") -> str:
    texts, size = [], 0
    for part in parts:
        texts.append(str(_written(part)))
        size += len(texts[-1]) + len(sep)
        _room(size)
    return str(_charge(sep.join(texts)))


def _replace(text: str, old: str, new: str, count: int = -1) -> str:
    times = len(text) + 1 if not old else text.count(old)
    _room(len(text) + times * len(new))
    return str(_charge(text.replace(old, new, count)))


@dataclass(frozen=True, slots=True)
class _JsonStyle:
    """What a template may hand to ``tojson``, by name or by place, as Hugging Face's takes it."""

    ensure_ascii: bool = False
    indent: int | None = None
    separators: tuple[str, str] | None = None
    sort_keys: bool = False


def _tojson(value: Any, *by_place: Any, **by_name: Any) -> str:
    style = _JsonStyle(*by_place, **by_name)
    if style.indent is not None and not (isinstance(style.indent, int) and 0 <= style.indent <= 16):
        raise jinja2.TemplateRuntimeError("tojson: indent must be 0 to 16")
    if style.separators is not None and any(len(s) > 16 for s in style.separators):
        raise jinja2.TemplateRuntimeError("tojson: separators are at most 16 characters")
    encoder = json.JSONEncoder(
        ensure_ascii=style.ensure_ascii, indent=style.indent, separators=style.separators, sort_keys=style.sort_keys
    )
    return _join(encoder.iterencode(_small(value)))


def _raise_exception(message: str) -> None:
    raise Refusal(str(message))


def _range(*args: int) -> range:
    numbers = range(*args)
    if len(numbers) > MAX_RANGE:
        raise SecurityError(f"range of more than {MAX_RANGE:,}")
    return numbers


def _dict(*args: Any, **kwargs: Any) -> dict[str, Any]:
    return dict(*args, **kwargs)


@jinja2.pass_context
def _turns(_: Any, items: Any) -> Iterator[Any]:
    budget = BUDGET.get()
    for item in items:
        if budget is not None:
            budget.charge(1)
        yield item


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
        if (budget := BUDGET.get()) is not None:
            budget.blocks.append((budget.written, text))
        return text


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_FILTERS = _names(
    "abs capitalize count d default first float int items last length list lower map reject rejectattr reverse "
    "safe select selectattr title trim upper"
)
_TESTS = _names(
    "boolean callable defined divisibleby even false float integer iterable lower mapping none number odd sequence "
    "string true undefined upper"
)
_METHODS: dict[type, frozenset[str]] = {
    str: _names(
        "capitalize count endswith find index isalnum isalpha isdigit islower isnumeric isspace isupper join lower "
        "lstrip partition removeprefix removesuffix replace rfind rpartition rsplit rstrip split splitlines startswith "
        "strip title upper"
    ),
    dict: _names("get items keys values"),
    list: _names("count index"),
    tuple: _names("count index"),
}


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment. One per process is enough: it holds tables and no state."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            undefined=jinja2.StrictUndefined,
            extensions=[loopcontrols, Generation],
            finalize=_written,
            cache_size=0,
        )
        own = {"join": _join, "replace": _replace, "tojson": _tojson, "string": _join_one}
        builtin_filters = {name: _metered(self.filters[name]) for name in _FILTERS}
        self.filters = {
            **builtin_filters,
            **own,
            "_text": _text,
            "_concat": _concat,
            "_turns": _turns,
            "_small": _folded(_small),
        }
        self.tests = {name: self.tests[name] for name in _TESTS}
        self.tests |= dict.fromkeys(("eq", "equalto", "=="), lambda a, b: _small(a) == _small(b))
        self.tests |= dict.fromkeys(("ne", "!="), lambda a, b: _small(a) != _small(b))
        self.tests["in"] = lambda a, b: _small(a) in _small(b)
        self.globals = {
            "raise_exception": _raise_exception,
            "namespace": self.globals["namespace"],
            "dict": _dict,
            "range": _range,
        }

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """The sandbox's own rules, and for plain data only the methods named above."""
        for kind, names in _METHODS.items():
            if isinstance(obj, kind):
                return attr in names
        return not isinstance(obj, int | float | bytes) and super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """``str.format`` is refused: a width in its text decides how much it writes."""
        if isinstance(getattr(value, "__self__", None), str) and value.__name__ in ("format", "format_map"):
            raise SecurityError("format writes text of any width; write the parts instead")
        return None

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805 - Jinja's signature
        """Calls are charged; the two text methods that can grow are measured first."""
        owner, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
        if isinstance(owner, str) and name in ("replace", "join"):
            for scope in ("_loop_vars", "_block_vars"):  # Jinja's own arguments
                kwargs.pop(scope, None)
            return _replace(owner, *args, **kwargs) if name == "replace" else _join(args[0], owner)
        return _charge(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Any, operator: str, left_operand: Any, right_operand: Any) -> Any:
        """Operators that can grow a value, measured before they are applied."""
        if (
            operator == "+"
            and type(left_operand) is type(right_operand) is str
            and len(left_operand) + len(right_operand) <= SHORT
        ):
            return left_operand + right_operand
        numbers = isinstance(left_operand, int | float) and isinstance(right_operand, int | float)
        if operator == "%" and not numbers:
            raise SecurityError("% formats text; write the parts instead")
        if operator == "**" and not (numbers and abs(left_operand) < 2**32 and abs(right_operand) <= 8):
            raise SecurityError("** of such large numbers")
        if operator == "*" and not numbers:
            seq, times = (
                (right_operand, left_operand) if isinstance(left_operand, int) else (left_operand, right_operand)
            )
            if isinstance(seq, str | list | tuple) and isinstance(times, int):
                _room(len(seq) * times * (1 if isinstance(seq, str) else MAX_TEXT // MAX_ITEMS))
        result = _charge(super().call_binop(context, operator, left_operand, right_operand))
        if isinstance(result, int) and result.bit_length() > 1024:
            raise SecurityError("a number of more than 1,024 bits")
        return result

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        _refuse(tree)
        _meter(tree)
        tree.set_environment(self)
        return tree


def _join_one(value: Any) -> str:
    return str(_written(value))


def _metered(filter_: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(filter_)
    def metered(*args: Any, **kwargs: Any) -> Any:
        return _charge(filter_(*args, **kwargs))

    return metered


def _folded(function: Callable[[Any], Any]) -> Callable[[Any, Any], Any]:
    # A filter that takes the context is never evaluated while compiling.
    return jinja2.pass_context(lambda _, value: function(value))


def _stop(node: nodes.Node, message: str) -> None:
    raise jinja2.TemplateSyntaxError(message, node.lineno)


def _refuse(tree: nodes.Template) -> None:
    """What a template may not hold, found before anything runs."""
    for node in tree.find_all((nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends, nodes.Block)):
        _stop(node, "a template stands alone: include, import, extends and block are refused")
    for loop in tree.find_all(nodes.For):
        if loop.recursive:
            _stop(loop, "recursive loops are refused")
    for ref in tree.find_all(nodes.NSRef):
        if ref.attr.startswith("_"):
            _stop(ref, f"attribute {ref.attr!r} is refused")
    allowed = {*_FILTERS, "join", "replace", "tojson", "string"}
    for used in tree.find_all(nodes.Filter):
        if used.name not in allowed:
            _stop(used, f"no filter {used.name!r} here; there are {', '.join(sorted(allowed))}")


def _meter(node: nodes.Node, collected: bool = False) -> None:
    """Put the meters in: around loops, ``~``, comparisons of data, and text that is collected before it is written."""
    collected = collected or isinstance(node, nodes.Macro | nodes.CallBlock | nodes.AssignBlock | nodes.FilterBlock)
    for child in list(node.iter_child_nodes()):
        _meter(child, collected)
    if isinstance(node, nodes.For):
        node.iter = _through("_turns", node.iter)
    elif isinstance(node, nodes.Output) and collected:
        node.nodes = [
            _through("_text", nodes.Const(n.data, lineno=n.lineno)) if isinstance(n, nodes.TemplateData) else n
            for n in node.nodes
        ]
    elif isinstance(node, nodes.Compare):
        sides = [node.expr, *(op.expr for op in node.ops)]
        if not any(_constant(side) for side in sides):
            node.expr = _through("_small", node.expr)
            for op in node.ops:
                op.expr = _through("_small", op.expr)
    for name, value in node.iter_fields():
        if isinstance(value, nodes.Concat):
            setattr(node, name, _joined(value))
        elif isinstance(value, list):
            value[:] = [_joined(v) if isinstance(v, nodes.Concat) else v for v in value]


def _constant(node: nodes.Node) -> bool:
    if isinstance(node, nodes.List | nodes.Tuple):
        return all(isinstance(item, nodes.Const) for item in node.items)
    return isinstance(node, nodes.Const)


def _joined(node: nodes.Concat) -> nodes.Filter:
    return _through("_concat", nodes.List(node.nodes, lineno=node.lineno))


def _through(name: str, node: nodes.Node) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


SANDBOX = Sandbox()
