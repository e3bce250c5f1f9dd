"""The end of a command's log as an error shows it: short, harmless to a terminal, without secrets."""

from __future__ import annotations

import os
import re
from pathlib import Path

from cai.text import plain

_WINDOW = 64 * 1024
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)


def tail(log: Path, start: int = 0, lines: int = 20, width: int = 240) -> str:
    """The last ``lines`` lines that a log got since byte ``start``, each cut to ``width`` characters.

    Of a progress bar only the last state is shown. Values of environment variables that look like secrets are masked:
    the error goes into the run's record.
    """
    try:
        with log.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            # A program may have emptied the file.
            first = max(start if start <= end else 0, end - _WINDOW)
            file.seek(first)
            text = file.read(_WINDOW).decode("utf-8", "replace")
    except OSError as error:
        return f"(the log cannot be read: {error.strerror})"
    for name, value in os.environ.items():
        if len(value) >= 8 and _SECRET.search(name):
            text = text.replace(value, "***")
    visible_lines = [line for line in (_visible(line, width) for line in text.split("\n")) if line]
    return "\n".join(f"  {line}" for line in visible_lines[-lines:]) or "  (it wrote nothing)"


def _visible(line: str, width: int) -> str:
    states = [state for state in _ESCAPES.sub("", line).split("\r") if state.strip()]
    clean = plain(states[-1]).expandtabs(4).rstrip() if states else ""
    return clean if len(clean) <= width else f"{clean[: width - 3]}..."
