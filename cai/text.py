"""Text for a terminal: model text made harmless, numbers and times as a person reads them.

Whatever a model, a data set or a file says is shown through ``plain``: control characters become visible and do
nothing. ``shown_output`` does it for all that a verb prints; rich consoles do it for theirs (``terminal.output``).
Texts go to them as rich ``Text`` or with ``Console.out``, so that markup in them does nothing either.
"""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import IO, Any

# C0 and C1 controls, DEL, and the marks that turn the direction of text around; tab and line feed stay.
_CONTROLS = {c: 0x2400 + c for c in range(0x20) if c not in (0x09, 0x0A)}
_CONTROLS |= {0x7F: 0x2421} | dict.fromkeys(
    [*range(0x80, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)], 0xFFFD
)
_CONTROLS |= dict.fromkeys((0x2028, 0x2029), 0x0A)
_UNSHOWN = re.compile(f"[{''.join(map(chr, sorted(set(_CONTROLS) - set(range(0x20)))))}\ud800-\udfff]")  # JSON has C0


def plain(text: str) -> str:
    """Text that a terminal shows and does not obey: control characters become visible ones."""
    return text.translate(_CONTROLS)


def one_line(text: str, limit: int = 200) -> str:
    """Text on one line, cut to ``limit`` characters."""
    flat = " ".join(plain(text).split())
    return flat if len(flat) <= limit else flat[: limit - 3] + "..."


def json_text(value: Any, indent: int | None = None) -> str:
    """JSON with letters as they are, and whatever a terminal obeys or no stream can encode as ``\\uXXXX``."""
    return _UNSHOWN.sub(
        lambda match: f"\\u{ord(match.group()):04x}", json.dumps(value, indent=indent, ensure_ascii=False)
    )


@contextmanager
def shown_output() -> Iterator[None]:
    """Standard output and error show what the program writes, and hand nothing on that a terminal obeys.

    This is the one gate for everything that verbs print, whoever wrote it. Consoles write their own styles past it
    (``raw``), and ``exact`` a file's text where no terminal listens.
    """
    with redirect_stdout(_ShownStream(sys.stdout)), redirect_stderr(_ShownStream(sys.stderr)):
        yield


def raw(stream: Any) -> IO[str]:
    """The stream behind ``shown_output``'s, or this one where there is none."""
    behind: IO[str] = stream.stream if isinstance(stream, _ShownStream) else stream
    return behind


def exact(text: str) -> None:
    """Write a file's text to standard output: letter by letter into a pipe or a file, harmless to a terminal."""
    stream = raw(sys.stdout)
    stream.write(plain(text) if stream.isatty() else text)
    stream.flush()


class _ShownStream:
    """A text stream that writes through ``plain``, and writes what it cannot encode with backslashes."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        """Write; the number of characters is the caller's own."""
        self.stream.write(plain(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write each."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


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
