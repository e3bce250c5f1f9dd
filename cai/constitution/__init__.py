"""Constitutions: principles as data, read from files, resolved, linted, and drawn from.

``load_constitution(path)`` reads one; ``resolve_constitution(raw, find)`` is the same without touching the disk.
"""

from typing import TYPE_CHECKING, Any

from cai.constitution.lint import Finding, Level, lint
from cai.constitution.model import TEXTS, Constitution, Principle
from cai.constitution.resolve import (
    SCHEMA_PATH,
    ConstitutionFile,
    constitution_schema,
    load_constitution,
    resolve_constitution,
)

if TYPE_CHECKING:
    from cai.constitution.readers import dump_yaml, import_files, read_few_shots
    from cai.constitution.shapes import READERS

__all__ = [
    "READERS",
    "SCHEMA_PATH",
    "TEXTS",
    "Constitution",
    "ConstitutionFile",
    "Finding",
    "Level",
    "Principle",
    "constitution_schema",
    "dump_yaml",
    "import_files",
    "lint",
    "load_constitution",
    "read_few_shots",
    "resolve_constitution",
]


def __getattr__(name: str) -> Any:
    """The readers of published formats, loaded when they are first asked for: planning never needs them."""
    if name == "READERS":
        from cai.constitution.shapes import READERS

        return READERS
    if name in ("dump_yaml", "import_files", "read_few_shots"):
        from cai.constitution import readers

        return getattr(readers, name)
    raise AttributeError(name)
