"""YAML as data with places: what a file says, and on which line it says it.

PyYAML does the parsing, with its C parser where it is built. Ours is the rest, because no library has it: scalars are
read by the YAML 1.2 core schema that editors use (``no`` is text, ``1e-6`` a number, a date is text), repeated keys
are errors, and files that nest or expand without bound are refused before they are built.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from cai.errors import Problem, SpecError

MAX_BYTES = 8 * 2**20
MAX_DEPTH = 60
MAX_NODES = 200_000

_MERGE = "tag:yaml.org,2002:merge"
_STR = "tag:yaml.org,2002:str"
_CORE = (
    ("tag:yaml.org,2002:null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    ("tag:yaml.org,2002:int", re.compile(r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$"), list("-+0123456789")),
    (
        "tag:yaml.org,2002:float",
        re.compile(
            r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
        ),
        list("-+.0123456789"),
    ),
    (_MERGE, re.compile(r"^<<$"), ["<"]),
)


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Safe constructors only; scalars by the YAML 1.2 core schema."""

    # Emptied first: PyYAML's own table is YAML 1.1, where ``no`` is false, ``1:30`` is 90 and dates are objects.
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's own shape


class _Dumper(yaml.SafeDumper):
    """Quotes whatever either YAML 1.1 or 1.2 would read as something other than text."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        """Indent list items under their key, as people write them."""
        super().increase_indent(flow, False)

    def ignore_aliases(self, data: Any) -> bool:
        """Write every value out: anchors are for people, not for machines."""
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
    return dumper.represent_scalar(_STR, value, style="|" if "\n" in value else None)


def _int(loader: Any, node: yaml.ScalarNode) -> int:
    text = str(node.value)
    return int(text, 0) if text.startswith(("0o", "0x")) else int(text, 10)


for _tag, _pattern, _first in _CORE:
    _Loader.add_implicit_resolver(_tag, _pattern, _first)
    _Dumper.add_implicit_resolver(_tag, _pattern, _first)
_Loader.add_constructor("tag:yaml.org,2002:int", _int)
_Dumper.add_representer(str, _text)


def read_text(path: Path, display_path: str = "") -> str:
    """The UTF-8 text of a file of at most ``MAX_BYTES`` bytes; a byte order mark is dropped.

    Raises:
        SpecError: when the file cannot be opened, is too large, or is not UTF-8 text.
    """
    display_path = display_path or str(path)
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise SpecError(
            Problem(display_path, f"cannot be read ({error.strerror or error})", "check the path")
        ) from error
    if len(raw) > MAX_BYTES:
        raise SpecError(Problem(display_path, f"is larger than {MAX_BYTES // 2**20} MiB", "is it the right file?"))
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise SpecError(Problem(f"{display_path}:{line}", "is not UTF-8 text", "save it as UTF-8")) from error
    if "\0" in text:
        raise SpecError(Problem(display_path, "holds NUL bytes, so it is not text", "is it the right file?"))
    return text


def load(path: Path, display_path: str = "") -> tuple[Any, dict[str, int]]:
    """What a YAML file says, and the line (from 1) of every field path such as ``principles[3].weight``.

    The root's path is the empty text. ``display_path`` is the file's name in errors.

    Raises:
        SpecError: for text that is no YAML, repeated or non-text keys, unknown tags, or nesting without bound; where
            there are several such problems, all of them.
    """
    return loads(read_text(path, display_path), display_path or str(path))


def loads(text: str, display_path: str = "YAML") -> tuple[Any, dict[str, int]]:
    """``load`` for text already read."""
    try:
        _check_depth(text, display_path)
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None, {"": 1}
            lines = _Walk(display_path).run(node)
            return loader.construct_document(node), lines
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise SpecError(_syntax(error, display_path)) from error
    except (ValueError, TypeError) as error:
        raise SpecError(
            Problem(display_path, f"holds a value that cannot be read ({error})", "put it in quotes")
        ) from error


def dumps(data: Any, width: int = 110) -> str:
    """Plain data as block-style YAML that ``loads`` reads back to the same data."""
    text: str = yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=width, indent=2)
    return text


class Located(dict[str, Any]):
    """A mapping that knows its file and lines: ``where("rounds")`` is ``x.yaml:12: rounds``."""

    def __init__(self, data: Mapping[str, Any], display_path: str, lines: Mapping[str, int]) -> None:
        super().__init__(data)
        self.display_path = display_path
        self.lines = lines

    def where(self, field: str) -> str:
        """The place of a field; of the nearest field around it when it is not in the file."""
        return place(self.display_path, field, self.lines)


def load_mapping(path: Path, display_path: str = "") -> Located:
    """A YAML file whose root is a mapping of fields.

    Raises:
        SpecError: as ``load``, and when the root is something else.
    """
    data, lines = load(path, display_path)
    if not isinstance(data, dict):
        root_type = "empty" if data is None else f"a {type(data).__name__}"
        raise SpecError(Problem(display_path or str(path), f"must be a mapping of fields, and is {root_type}"))
    return Located(data, display_path or str(path), lines)


def place(display_path: str, field: str, lines: Mapping[str, int]) -> str:
    """``display_path:line: field``, with the line of the nearest enclosing field that has one."""
    near = field
    while near and near not in lines:
        near = near[: max(near.rfind("."), near.rfind("["), 0)]
    line = lines.get(near)
    return (
        f"{display_path}:{line}: {field}".removesuffix(": ") if line else f"{display_path}: {field}".removesuffix(": ")
    )


def field_path(location: tuple[str | int, ...]) -> str:
    """``("principles", 3, "weight")`` as ``principles[3].weight``."""
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def _check_depth(text: str, display_path: str) -> None:
    # On events, before any tree is built: building one recurses, in C too.
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                mark = event.start_mark
                where = f"{display_path}:{mark.line + 1}" if mark else display_path
                raise SpecError(Problem(where, f"nests deeper than {MAX_DEPTH} levels", "is it the right file?"))
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


class _Walk:
    """Collects lines and problems from a tree of nodes; bounds what aliases can expand to."""

    def __init__(self, display_path: str) -> None:
        self.display_path = display_path
        self.lines: dict[str, int] = {}
        self.problems: list[Problem] = []
        self.nodes = 0

    def run(self, root: yaml.Node) -> dict[str, int]:
        self._visit(root, "", root.start_mark.line + 1, 0)
        if self.problems:
            raise SpecError(self.problems)
        return self.lines

    def _visit(self, node: yaml.Node, path: str, line: int, depth: int) -> None:
        self.nodes += 1
        if self.nodes > MAX_NODES or depth > MAX_DEPTH:
            message = "expands without bound through its aliases"
            raise SpecError([*self.problems, Problem(f"{self.display_path}:{line}", message, "write the values out")])
        self.lines.setdefault(path, line)
        if isinstance(node, yaml.MappingNode):
            self._mapping(node, path, depth)
        elif isinstance(node, yaml.SequenceNode):
            for number, item in enumerate(node.value):
                self._visit(item, f"{path}[{number}]", item.start_mark.line + 1, depth + 1)

    def _mapping(self, node: yaml.MappingNode, path: str, depth: int) -> None:
        key_lines: dict[str, int] = {}
        merged: list[yaml.Node] = []
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.tag == _MERGE:
                merged += value.value if isinstance(value, yaml.SequenceNode) else [value]
                continue
            if not isinstance(key, yaml.ScalarNode) or key.tag != _STR:
                name = key.value if isinstance(key, yaml.ScalarNode) else "(a collection)"
                problem = Problem(f"{self.display_path}:{line}", f"key {name!s:.60} is not text", "put it in quotes")
                self.problems.append(problem)
                continue
            inner = f"{path}.{key.value}" if path else str(key.value)
            if (first := key_lines.get(key.value)) is not None:
                message = f"key is there twice (first on line {first})"
                self.problems.append(Problem(f"{self.display_path}:{line}: {inner}", message, "keep one"))
                continue
            key_lines[key.value] = line
            self._visit(value, inner, line, depth + 1)
        for source in merged:
            if isinstance(source, yaml.MappingNode):
                self._visit(source, path, source.start_mark.line + 1, depth + 1)


def _syntax(error: yaml.YAMLError, display_path: str) -> Problem:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    message = str(getattr(error, "problem", None) or getattr(error, "reason", None) or error).splitlines()[0]
    where = f"{display_path}:{mark.line + 1}" if mark else display_path
    if isinstance(error, yaml.constructor.ConstructorError) and "tag" in message:
        return Problem(where, f"uses a YAML tag that is not allowed ({message})", "write plain values")
    if "\\t" in message:
        return Problem(where, f"is not valid YAML ({message})", "indent with spaces")
    return Problem(where, f"is not valid YAML ({message})", "a text with ': ' or a leading special sign needs quotes")
