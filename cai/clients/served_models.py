"""What a server says it serves: the ``model`` of its answers, remembered for each model of an experiment.

Source and revision, which a model behind an API is known by, are what its user writes. A router may answer to the same
name with another model next month; its answers then name another ``model`` (often a dated one), and that alone can be
noticed. ``system_fingerprint`` changes with every deployment: it is written down, and compared with nothing. One small
file for each model lies under ``$CAI_HOME/served``; one that cannot be read or written is as good as none.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from cai.errors import CaiError
from cai.files.durable import write_durably
from cai.files.locks import locked
from cai.identity import parse_json

SERVED = "model.served"
"""What a server says it serves: ``role``, ``model``, ``system_fingerprint``."""
CHANGED = "model.changed"
"""It says another model than it did: ``role``, ``recorded``, ``model``."""

MOST = 8
"""Names that are told apart: a server may invent one for every answer."""
_LONGEST = 200


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What an answer says of where it comes from; the fingerprint is empty where it says none."""

    model: str
    system_fingerprint: str = ""


@runtime_checkable
class TellsServed(Protocol):
    """A client that knows which models have answered: by name, in the order in which they first did."""

    @property
    def served(self) -> Mapping[str, ServedModel]:
        """Those so far."""
        ...


def served_model(raw: Mapping[str, Any]) -> ServedModel | None:
    """What the body of an answer says; None where it names no model."""
    model, fingerprint = raw.get("model"), raw.get("system_fingerprint")
    if not isinstance(model, str) or not model.strip():
        return None
    return ServedModel(_plain(model), _plain(fingerprint) if isinstance(fingerprint, str) else "")


def first_served(path: Path, served: ServedModel) -> ServedModel:
    """What was first served for the model whose file this is: what is recorded, or ``served``, recorded now."""
    with suppress(OSError, CaiError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path.with_suffix(".lock")):
            recorded = _read(path)
            if recorded is not None:
                return recorded
            raw = {"model": served.model, "system_fingerprint": served.system_fingerprint, "written": int(time.time())}
            write_durably(path, json.dumps(raw, ensure_ascii=False) + "\n")
    return served


def add_to_work(path: Path, role: str, served: ServedModel) -> None:
    """Keep with a step's work what was served for a role, once for each name."""
    with locked(path.with_suffix(".lock")):
        by_role = read_work(path)
        entry = {"model": served.model, "system_fingerprint": served.system_fingerprint}
        entries = by_role.setdefault(role, [])
        if len(entries) < MOST and all(entry["model"] != other["model"] for other in entries):
            entries.append({name: value for name, value in entry.items() if value})
            write_durably(path, json.dumps(by_role, ensure_ascii=False) + "\n")


def read_work(path: Path) -> dict[str, list[dict[str, str]]]:
    """What ``add_to_work`` has kept: by role, in the order of the answers."""
    try:
        by_role = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return by_role if isinstance(by_role, dict) else {}


def _read(path: Path) -> ServedModel | None:
    try:
        raw = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return served_model(raw) if isinstance(raw, Mapping) else None


def _plain(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text).strip()[:_LONGEST]
