"""What a file may say to Hydra and OmegaConf: files come from strangers, the command line is the user's own.

Hydra runs what its own config names (callbacks, sweepers, launchers), and OmegaConf's resolvers read the environment
and other text. So a file has no ``hydra`` at its top, its defaults list names only our groups, and its ``${...}`` are
plain references to other fields, whose expansion is bounded. What the command line says is not refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cai.errors import Problem, SpecError
from cai.files.library import GROUPS

MAX_EXPANDED = 8 * 2**20
"""Characters and values that one experiment may come to when its references are followed."""

MAX_FOLLOWED = 20
"""References that may be followed one after the other."""

_KEY = r"(?:[\w-]+|\[[\w-]+\])"
_OPENING = re.compile(r"(?<!\\)(?:\\\\)*\$\{")
_REFERENCE = re.compile(rf"(?<!\\)(?:\\\\)*\$\{{\s*(?P<dots>\.*)(?P<path>{_KEY}(?:\.[\w-]+|\[[\w-]+\])*)\s*\}}")
_NEXT = "give it on the command line"


def check_file(data: Mapping[Any, Any], lines: Mapping[str, int], display_path: str) -> None:
    """Refuse what a file of the library must not say to Hydra. ``lines`` are those of ``yaml_lines.load``.

    Raises:
        SpecError: with the line of everything that is refused.
    """
    problems: list[Problem] = []

    def add(path: str, message: str, hint: str) -> None:
        line = lines.get(path)
        problems.append(Problem(f"{display_path}:{line}: {path}" if line else f"{display_path}: {path}", message, hint))

    if "hydra" in data:
        add("hydra", "Hydra's own settings can run code, so no file holds them", _NEXT)
    defaults = data.get("defaults")
    for number, entry in enumerate(defaults if isinstance(defaults, list) else ()):
        if message := _refused_default(entry):
            add(f"defaults[{number}]", message, f"a file may name {', '.join(GROUPS)} and _self_")
    for path, text in texts_with_references(data):
        if len(_OPENING.findall(text)) != len(_REFERENCE.findall(text)):
            message = "only plain references such as ${seed} may stand in a file, nothing that reads or computes"
            add(path, message, f"{_NEXT}; write \\${{ for the two characters themselves")
    if problems:
        raise SpecError(problems)


def _refused_default(entry: Any) -> str:
    """Why an entry of a defaults list is refused; empty for one that may stand."""
    keys = list(entry) if isinstance(entry, Mapping) else [entry]
    names = list(entry.values()) if isinstance(entry, Mapping) else []
    if "${" in str((keys, names)):
        return "chooses a file by a reference"
    if any(".." in str(text).split("/") for text in (*keys, *names)) or ".." in str((keys, names)):
        return "leaves its folder"
    for key in keys:
        location, _, package = str(key).partition("@")
        words = location.split()
        if words and words[-1].strip("/").partition("/")[0] == "hydra":
            return "names Hydra's own settings, which can run code"
        # ``_name_`` stands for the file's own name, which may be hydra.
        if {"hydra", "_name_"} & set(re.split(r"[.:]", package)):
            return "puts a file among Hydra's own settings, which can run code"
    return ""


def check_words(words: Sequence[str], where: str) -> None:
    """Refuse overrides that a file brings along (a lock does) and that only a person may give.

    Raises:
        SpecError: naming each.
    """
    problems: list[Problem] = []
    for word in words:
        key, _, value = word.lstrip("+~").partition("=")
        if word.startswith("-"):
            message = "is an option of the command line, not an override"
        elif {"hydra", "_name_"} & set(re.split(r"[./@:]", key)):
            message = "is Hydra's own setting, which can run code"
        elif ".." in key or (key in GROUPS and ".." in value):
            message = "leaves its folder"
        elif len(_OPENING.findall(word)) != len(_REFERENCE.findall(word)):
            message = "reads or computes: only plain references such as ${seed} may stand in a file"
        else:
            continue
        problems.append(Problem(f"{where}: overrides: {word}", message, "give it on the command line"))
    if problems:
        raise SpecError(problems)


def texts_with_references(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Every text of plain data with a ``${`` in it, and the path where it stands."""
    if isinstance(value, str):
        if "${" in value:
            yield path, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from texts_with_references(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from texts_with_references(inner, f"{path}[{number}]")


def check_expansion(data: Mapping[str, Any]) -> None:
    """Refuse references that lead to themselves, or that multiply (``b: ${a}${a}``, ``c: ${b}${b}`` and so on).

    ``data`` is a composed config as plain data, its references not yet followed. References that no file may hold can
    only come from the command line, and are taken as text.

    Raises:
        SpecError: with the path of the reference.
    """
    size_by_path: dict[tuple[str, ...], int | None] = {}

    def size(path: tuple[str, ...], followed: int) -> int:
        known = size_by_path.get(path, -1)
        if known is None:
            raise SpecError(Problem(".".join(path), "refers to itself", "write the value out"))
        if followed > MAX_FOLLOWED:
            raise SpecError(
                Problem(".".join(path), f"is behind more than {MAX_FOLLOWED} references", "refer to it itself")
            )
        if known >= 0:
            return known
        size_by_path[path] = None
        value = _at(data, path)
        total = 1
        if isinstance(value, str):
            total += len(value)
            if "${" in value:
                total += sum(size(target, followed + 1) for target in _targets(value, path))
        elif isinstance(value, Mapping):
            total += sum(size((*path, str(key)), followed) for key in value)
        elif isinstance(value, list):
            total += sum(size((*path, str(number)), followed) for number in range(len(value)))
        if total > MAX_EXPANDED:
            message = f"its references come to more than {MAX_EXPANDED // 2**20} MiB"
            raise SpecError(Problem(".".join(path) or "experiment", message, "write less of it by reference"))
        size_by_path[path] = total
        return total

    size((), 0)


def _targets(text: str, path: Sequence[str]) -> Iterator[tuple[str, ...]]:
    for match in _REFERENCE.finditer(text):
        up = len(match["dots"])
        base = tuple(path[: max(len(path) - up, 0)]) if up else ()
        yield (*base, *re.findall(r"[\w-]+", match["path"]))


def _at(data: Any, path: Sequence[str]) -> Any:
    for name in path:
        if isinstance(data, Mapping):
            data = data.get(name)
        elif isinstance(data, list) and name.isdecimal() and int(name) < len(data):
            data = data[int(name)]
        else:
            return None
    return data
