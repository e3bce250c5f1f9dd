"""Overrides of upstream's configs as data, and as the words of a command line that Hydra reads back unchanged."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# What Hydra's grammar reads as one plain word; the interpolations are ours alone (``from_env``).
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./:@%+-]*|/[A-Za-z0-9_./:@%+-]*")
_TYPED = re.compile(r"(?i:null|true|false|nan|inf)|[0-9_+-][0-9_.eE+-]*")


@dataclass(frozen=True, slots=True)
class Env:
    """A value that is read from the environment when the command runs: ``${oc.env:NAME}``."""

    name: str


@dataclass(frozen=True, slots=True)
class Override:
    """``key=value``; ``add`` writes ``++key=value``, which also sets a key that upstream's config lacks."""

    key: str
    value: Any
    add: bool = False

    def text(self) -> str:
        """The word on the command line."""
        return f"{'++' * self.add}{self.key}={literal(self.value)}"


def literal(value: Any) -> str:
    """A value in Hydra's override grammar; parsing it gives the value back, with its type.

    Raises:
        TypeError: for anything but plain data.
    """
    match value:
        case Env():
            return f"${{oc.env:{value.name}}}"
        case None:
            return "null"
        case bool():
            return "True" if value else "False"
        case int():
            return str(value)
        case float():
            # repr gives 1e-06; Hydra reads it as a float.
            return repr(value)
        case str():
            return value if _PLAIN.fullmatch(value) and not _TYPED.fullmatch(value) else _quoted(value)
        case list() | tuple():
            return f"[{','.join(literal(item) for item in value)}]"
        case Mapping():
            return "{" + ",".join(f"{key}:{literal(item)}" for key, item in value.items()) + "}"
    raise TypeError(f"{value!r} is no plain data")


def _quoted(text: str) -> str:
    # In Hydra's quoted strings a backslash escapes only the quote, and backslashes before one must be doubled.
    escaped = re.sub(r"(\\*)'", lambda m: m.group(1) * 2 + r"\'", text)
    trailing = len(escaped) - len(escaped.rstrip("\\"))
    escaped += "\\" * trailing
    # An interpolation written by a user is text, not a question to OmegaConf.
    return "'" + escaped.replace("${", r"\${") + "'"


def merged(base: Sequence[Override], more: Mapping[str, Any]) -> tuple[Override, ...]:
    """``base`` with a user's overrides, which win; ``++KEY`` adds."""
    by_key = {override.key: override for override in base}
    for name, value in more.items():
        key = name.removeprefix("++")
        add = name.startswith("++") or (key in by_key and by_key[key].add)
        by_key[key] = Override(key, value, add)
    return tuple(by_key.values())


def words(overrides: Sequence[Override]) -> tuple[str, ...]:
    """All overrides as words of a command line."""
    return tuple(override.text() for override in overrides)
