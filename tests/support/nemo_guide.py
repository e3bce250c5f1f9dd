"""The commands of NVIDIA's guide out of its own text, which is not in this project: flags and values as it has them."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

_BLOCK = re.compile(r"^( *)\.\. code-block:: (bash|python)\n((?:\1 +\S.*\n|\s*\n)+)", re.MULTILINE)
_PLACEHOLDER = re.compile(r"<[a-z][^<>\n]* [^<>\n]*>")
"""``<path to output dir>``, which a shell would take for several words."""
_SKIPPED = ("python", "python3", "-u")


def guide_commands(text: str) -> list[tuple[str, dict[str, Any]]]:
    """(script or function, flag -> value), in the guide's order; of a flag that is given twice the last value."""
    return [command for _, language, block in _BLOCK.findall(text) for command in _READERS[language](block)]


def _bash(block: str) -> Iterator[tuple[str, dict[str, Any]]]:
    whole = _PLACEHOLDER.sub(lambda placeholder: placeholder[0].replace(" ", "\0"), block.replace("\\\n", " "))
    for line in whole.splitlines():
        words = [word.replace("\0", " ") for word in shlex.split(line) if word not in _SKIPPED]
        if words[:1] == ["-c"]:
            yield _load_dataset(words[1])
        elif words and words[0].endswith(".py"):
            yield PurePosixPath(words[0]).name, _options(words[1:])


def _options(words: list[str]) -> dict[str, Any]:
    """``--flag value ...`` and ``key=value``."""
    options: dict[str, Any] = {}
    flag = ""
    for word in words:
        if word.startswith("--"):
            flag = word
            options[flag] = []
        elif flag:
            options[flag].append(word.replace("\\n", "\n"))
        else:
            key, _, value = word.partition("=")
            options[key] = value
    return {key: value[0] if isinstance(value, list) and len(value) == 1 else value for key, value in options.items()}


def _load_dataset(code: str) -> tuple[str, dict[str, Any]]:
    """``load_dataset('path', key='value').to_json('file')``."""
    outer = next(node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call))
    assert isinstance(outer.func, ast.Attribute)
    inner = outer.func.value
    assert isinstance(inner, ast.Call)
    arguments = {"path": ast.literal_eval(inner.args[0])}
    arguments |= {keyword.arg or "": ast.literal_eval(keyword.value) for keyword in inner.keywords}
    return "load_dataset", {**arguments, outer.func.attr: ast.literal_eval(outer.args[0])}


def _python(block: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The snippet of the last step: a function that puts a dict; names in it are its arguments or set before."""
    indent = min(len(line) - len(line.lstrip()) for line in block.splitlines() if line.strip())
    function = next(
        node
        for node in ast.walk(ast.parse("\n".join(line[indent:] for line in block.splitlines())))
        if isinstance(node, ast.FunctionDef)
    )
    names = [argument.arg for argument in function.args.args][-len(function.args.defaults) :]
    variables = dict(zip(names, map(ast.literal_eval, function.args.defaults), strict=True))
    body: dict[str, Any] = {}
    for node in function.body:
        if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Name):
            continue
        name, value = node.targets[0].id, node.value
        if name == "data" and isinstance(value, ast.Dict):
            for key, item in zip(value.keys, value.values, strict=True):
                assert isinstance(key, ast.Constant)
                body[str(key.value)] = variables.get(ast.unparse(item)) or ast.literal_eval(item)
        elif name == "prompts":
            variables["prompts"] = variables["prompt"]
        elif name == "url" and isinstance(value, ast.JoinedStr):
            body["url"] = "".join(
                str(part.value if isinstance(part, ast.Constant) else variables[ast.unparse(part.value)])
                for part in value.values
                if isinstance(part, ast.Constant | ast.FormattedValue)
            )
        elif name == "prompt":
            variables[name] = ast.literal_eval(value)
    yield "the snippet", body


_READERS = {"bash": _bash, "python": _python}
