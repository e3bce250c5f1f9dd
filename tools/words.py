"""Names that say nothing and shapes that hide a type: prints each with its file and line; exits 1 where there is one.

``python tools/words.py [FOLDER ...]`` reads the package (``cai``), or the files below the folders.

- A name says what a thing is, in the field's own words. ``EMPTY`` are words that fit anything: at most ``SHARE`` of all
  bindings (variables, parameters, fields, functions) may be one of them, and then none is printed.
- A class name stands once in the project.
- An attribute has a line of its own: ``self.a, self.b = x, y`` shows no type and no reason.
- Whoever calls a function with more than ``POSITIONAL`` parameters names them, or hands over a dataclass.
"""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
EMPTY = frozenset(
    """
    asked at done found given got held kept known left made meant named one other read said seen sent shown taken told
    wanted what
    """.split()  # noqa: SIM905 - two lines of words read better than 24 strings
)
SHARE = 0.005
POSITIONAL = 4


@dataclass(frozen=True, slots=True)
class Fault:
    """Something to mend; ``path`` is relative to the project."""

    path: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.text}"


@dataclass(frozen=True, slots=True)
class Binding:
    """A place where a name is given to something."""

    name: str
    line: int


def bindings(tree: ast.AST) -> Iterator[Binding]:
    """Every name that a file gives: variables, parameters, attributes of ``self``, fields, functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield Binding(node.id, node.lineno)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield Binding(node.attr, node.lineno)
        elif isinstance(node, ast.arg):
            yield Binding(node.arg, node.lineno)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield Binding(node.name, node.lineno)


def is_empty(name: str) -> bool:
    """Whether a name is nothing but a word that fits anything."""
    return name.strip("_") in EMPTY


def hidden_types(tree: ast.AST) -> Iterator[int]:
    """Lines that assign several attributes at once."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Tuple) and any(isinstance(item, ast.Attribute) for item in target.elts):
                    yield node.lineno


def crowded(tree: ast.AST) -> Iterator[tuple[str, int, int]]:
    """Functions that take more than ``POSITIONAL`` parameters by their place: name, line, how many."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            parameters = [*node.args.posonlyargs, *node.args.args]
            count = len(parameters) - (bool(parameters) and parameters[0].arg in ("self", "cls"))
            if count > POSITIONAL:
                yield node.name, node.lineno, count


def faults(files: Sequence[Path]) -> list[Fault]:
    """All that is to be mended in these files, in their order."""
    shapes: list[Fault] = []
    words: list[Fault] = []
    classes: defaultdict[str, list[Fault]] = defaultdict(list)
    total = 0
    for file in files:
        path = file.relative_to(ROOT).as_posix()
        tree = ast.parse(file.read_text(encoding="utf-8"), path)
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                classes[node.name].append(Fault(path, node.lineno, f"class {node.name} stands twice"))
        every = list(bindings(tree))
        total += len(every)
        words += [Fault(path, b.line, f"'{b.name}' says nothing") for b in every if is_empty(b.name)]
        shapes += [Fault(path, line, "several attributes in one line") for line in hidden_types(tree)]
        shapes += [
            Fault(path, line, f"{name} takes {count} parameters by place; name them, or make them one")
            for name, line, count in crowded(tree)
        ]
    twice = [fault for faults in classes.values() if len(faults) > 1 for fault in faults]
    return sorted(
        [*twice, *shapes, *(words if len(words) > SHARE * total else [])], key=lambda fault: (fault.path, fault.line)
    )


def main(folders: Sequence[str]) -> int:
    """Print what is wrong; 1 where something is."""
    roots = [Path(folder).resolve() for folder in folders] or [ROOT / "cai"]
    wrong = faults(sorted(file for root in roots for file in root.rglob("*.py")))
    for fault in wrong:
        print(fault)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
