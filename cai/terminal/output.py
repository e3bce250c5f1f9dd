"""The console on which verbs print: rich, except that no text reaches a terminal which would obey it."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from cai.text import plain, raw


class PlainConsole(Console):
    """A console that shows control characters in what it prints; its own styles and movements pass."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """As rich's, with every text through ``plain``."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(plain(segment.text), segment.style)


def make_console(stderr: bool = False) -> Console:
    """A console on standard output (or error) whose stream shows what it cannot encode instead of failing."""
    stream = raw(sys.stderr if stderr else sys.stdout)
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")
    return PlainConsole(file=stream, highlight=False, markup=False, emoji=False)
