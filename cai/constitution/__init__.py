"""Constitutions: principles as data, read from files, resolved, linted, and drawn from.

``load_constitution(path)`` reads one; ``resolve_constitution(raw, find)`` is the same without touching the disk.
"""

from cai.constitution.lint import Finding, Level, lint
from cai.constitution.model import TEXTS, Constitution, Principle
from cai.constitution.readers import dump_yaml, import_files, read_few_shots
from cai.constitution.resolve import (
    SCHEMA_PATH,
    ConstitutionFile,
    constitution_schema,
    load_constitution,
    resolve_constitution,
)
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
