"""What a session of the lab has held against upstream's classes."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Validated:
    """What the tests of this session have held against upstream's classes."""

    commands: dict[str, dict[str, str]] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
