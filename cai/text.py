"""Text for a terminal: model text made harmless, numbers and times as a person reads them.

Whatever a model or a data set wrote is shown through ``plain``: control characters become visible and do nothing. It
is printed as rich ``Text`` or with ``Console.out``, so that markup in it does nothing either.
"""

from __future__ import annotations

import io
import sys
from typing import IO

from rich.console import Console

# C0 and C1 controls, DEL, and the marks that turn the direction of text around; tab and line feed stay.
_CONTROLS = {c: 0x2400 + c for c in range(0x20) if c not in (0x09, 0x0A)}
_CONTROLS |= {0x7F: 0x2421} | dict.fromkeys(
    [*range(0x80, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)], 0xFFFD
)
_CONTROLS |= dict.fromkeys((0x2028, 0x2029), 0x0A)


def plain(text: str) -> str:
    """Text that a terminal shows and does not obey: control characters become visible ones."""
    return text.translate(_CONTROLS)


def one_line(text: str, limit: int = 200) -> str:
    """Text on one line, cut to ``limit`` characters."""
    flat = " ".join(plain(text).split())
    return flat if len(flat) <= limit else flat[: limit - 3] + "..."


def make_console(stderr: bool = False) -> Console:
    """A console on standard output (or error) whose stream shows what it cannot encode instead of failing."""
    stream: IO[str] = sys.stderr if stderr else sys.stdout
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")
    return Console(file=stream, highlight=False, markup=False, emoji=False)


def duration(seconds: float | None) -> str:
    """Seconds as a person reads them: ``0.4 s``, ``41 s``, ``3 min 20 s``, ``5 h 02 min``; ``?`` when unknown."""
    if seconds is None:
        return "?"
    if seconds < 9.95:
        return f"{max(seconds, 0):.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def count(number: float | None) -> str:
    """A count with thousands marked; ``?`` when unknown."""
    return "?" if number is None else f"{round(number):,}"
