"""Text of people and models inside Markdown, so that it is read and does nothing. Pure.

Beyond what Markdown itself takes for marks, GitHub reads names, issue numbers and addresses out of plain text: an
invisible sign inside them keeps anybody from being called, linked or closed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from cai.review.words import ADDED, GAP, REMOVED, Pieces
from cai.text import one_line, plain

_MARKS = re.compile(r"[\\`*_\[\]<>|~#$^]")
_BREAK = "\u200b"
_CALLS = re.compile(r"(?<=@)(?=\w)|(?<=#)(?=\d)|(?<=:)(?=//)|(?<=www)(?=\.)|(?<=GH-)(?=\d)", re.IGNORECASE)
_FIRST = re.compile(r"^([-+=](?=\s|$)|[-=:]{2,}|\d+(?=[.)](?:\s|$)))")
_LINE_MARKS = {"same": " ", REMOVED: "-", ADDED: "+"}


def safe(text: str, limit: int = 1000) -> str:
    """Text on one line that Markdown shows as it is, anywhere in a line."""
    flat = _CALLS.sub(_BREAK, one_line(text, limit)).replace("&", "&amp;")
    flat = _MARKS.sub(lambda mark: f"\\{mark[0]}", flat)
    return _FIRST.sub(lambda mark: f"{_BREAK}{mark[1]}", flat)


def code(text: str) -> str:
    """Text on one line as code; a fence longer than any run of backticks in it."""
    flat = one_line(text, 300)
    fence = "`" * (max((len(run) for run in re.findall(r"`+", flat)), default=0) + 1)
    pad = " " if flat.startswith("`") or flat.endswith("`") else ""
    return f"{fence}{pad}{flat}{pad}{fence}" if flat else ""


def words(pieces: Pieces) -> str:
    """A word diff: ~~gone~~ **come**."""
    around = {REMOVED: "~~", ADDED: "**"}
    marked_words = []
    for kind, text in pieces:
        mark = around.get(kind, "")
        marked_words.append(f"{mark}{safe(text, 100_000)}{mark}" if text.strip() else "")
    return " ".join(part for part in marked_words if part)


def lines(pieces: Pieces, limit: int) -> list[str]:
    """A line diff as a fenced block of at most ``limit`` lines; nothing in it can end the fence."""
    diff_lines = [f"@@ {t} @@" if kind == GAP else f"{_LINE_MARKS[kind]}{_line(t)}" for kind, t in pieces]
    if len(diff_lines) > limit:
        diff_lines = [*diff_lines[:limit], f"@@ and {len(diff_lines) - limit} more lines @@"]
    runs = [len(run) for line in diff_lines for run in re.findall(r"`+", line)]
    fence = "`" * max(3, max(runs, default=0) + 1)
    return [f"{fence}diff", *diff_lines, fence]


def _line(text: str) -> str:
    flat = plain(text).replace("\n", " ").replace("\t", "    ")
    return flat if len(flat) <= 400 else f"{flat[:397]}..."


def table(head: Sequence[str], rows: Sequence[Sequence[str]], right: int = 99) -> list[str]:
    """A table; cells from column ``right`` on stand to the right. Cells must be safe already."""
    ends = ["---:" if place >= right else "---" for place in range(len(head))]
    return [f"| {' | '.join(row)} |" for row in (head, ends, *rows)]
