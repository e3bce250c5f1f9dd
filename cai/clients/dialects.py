"""How a server is spoken to in its dialect, and what is told of one that does not keep to what it was asked.

A model that names its ``dialect`` is asked in it; one that does not is asked as the protocol has it, and a server that
gives itself away by its answers is told of once. The facts are in ``dialect_table``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from cai.clients.dialect_table import DIALECTS, FIELDS, Support
from cai.identity import parse_json


def spoken(name: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """The body of a request for text, in a dialect; unchanged where none is named or there is nothing to change."""
    dialect = DIALECTS.get(name)
    if dialect is None or not (dialect.neutral or dialect.renames):
        return dict(body)
    renamed = {dialect.renames[key]: value for key, value in body.items() if key in dialect.renames}
    rest = {key: value for key, value in body.items() if key not in dialect.renames}
    if not dialect.config_field:
        return {**dialect.neutral, **rest, **renamed}
    # The settings replace the model's own: what the request says itself goes before them.
    return {**rest, dialect.config_field: json.dumps({**dialect.neutral, **renamed}, sort_keys=True)}


def recognised(headers: Mapping[str, str], payload: bytes) -> str:
    """Which dialect an answer gives away by its headers or its fingerprint; empty when it does not."""
    lower = {key.lower(): value for key, value in headers.items()}
    try:
        raw = parse_json(payload)
    except ValueError:
        raw = None
    fingerprint = raw.get("system_fingerprint") if isinstance(raw, Mapping) else None
    for name, dialect in DIALECTS.items():
        if dialect.server_header and lower.get("server", "") == dialect.server_header:
            return name
        if dialect.fingerprint and isinstance(fingerprint, str) and fingerprint.startswith(dialect.fingerprint):
            return name
    return ""


def unheard(name: str, asked: Mapping[str, Any], named: bool) -> list[str]:
    """Of the fields in ``asked``, those that a server of this dialect does not keep to, in the table's order.

    ``named``: the model names the dialect, so that it is asked in it.
    """
    dialect = DIALECTS.get(name)
    if dialect is None:
        return []
    fates = {**dialect.plain, **dialect.named} if named else dialect.plain
    return [key for key in FIELDS if key in asked and fates.get(key, Support.HONOURED) is not Support.HONOURED]


def remark(name: str, body: Mapping[str, Any]) -> str:
    """What to tell of a server that gave itself away and was asked ``body``; empty where it keeps to all of it."""
    dialect = DIALECTS[name]
    words = []
    if ignored := [key for key in unheard(name, body, named=False) if dialect.plain[key] is Support.IGNORED]:
        words.append(f"ignores {', '.join(ignored)} without a word")
    if dialect.own_limits and body.get("temperature", 1.0):
        words.append(f"limits its draws by {dialect.own_limits}")
    if not words:
        return ""
    mends = [key for key in dialect.named if key in body] or dialect.neutral
    hint = f"; give the model `dialect: {name}` to be understood" if mends else ""
    return f"is a {dialect.title} by its answers, which {' and '.join(words)}{hint}"
