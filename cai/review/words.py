"""What changed within a text: word by word for prose, line by line for templates. Pure.

difflib finds the changes. Ours is only what its callers need beside it: words joined into runs, so that a changed
phrase reads as one removal and one addition, and long stretches of unchanged lines left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher, unified_diff

SAME, REMOVED, ADDED = "same", "removed", "added"
GAP = "gap"
"""Of a line diff: unchanged lines are left out here; the text says which lines follow."""

Pieces = tuple[tuple[str, str], ...]
"""(what became of it, the text) in order."""

CONTEXT = 2
_GLUE = 1


def word_diff(before: str, after: str) -> Pieces:
    """Runs of words that stayed, went and came, in reading order; white space is one blank.

    A single unchanged word between two changes is taken into them, since a phrase is easier to read than its shreds.
    """
    old, new = before.split(), after.split()
    runs: list[tuple[str, list[str], list[str]]] = []
    for tag, i0, i1, j0, j1 in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        gone, came = old[i0:i1], new[j0:j1]
        goes_on = tag != "equal" or (i1 - i0 <= _GLUE and j1 < len(new))
        if goes_on and runs and runs[-1][0] != SAME:
            runs[-1] = ("changed", runs[-1][1] + gone, runs[-1][2] + came)
        else:
            runs.append((SAME if tag == "equal" else "changed", gone, came))
    return tuple(_pieces(runs))


def _pieces(runs: Sequence[tuple[str, list[str], list[str]]]) -> Iterator[tuple[str, str]]:
    for kind, gone, came in runs:
        if kind == SAME:
            yield SAME, " ".join(came)
            continue
        if gone:
            yield REMOVED, " ".join(gone)
        if came:
            yield ADDED, " ".join(came)


def line_diff(before: str, after: str, context: int = CONTEXT) -> Pieces:
    """Lines that stayed, went and came, with ``context`` lines around; a ``GAP`` stands where others are left out."""
    old, new = before.splitlines(), after.splitlines()
    pieces: list[tuple[str, str]] = []
    marks = {" ": SAME, "-": REMOVED, "+": ADDED}
    for line in list(unified_diff(old, new, lineterm="", n=context))[2:]:
        if line.startswith("@@"):
            pieces.append((GAP, line.strip("@ ")))
        else:
            pieces.append((marks[line[0]], line[1:]))
    if not pieces and before != after:
        pieces.append((GAP, "only the ends of lines differ"))
    return tuple(pieces)


def likeness(before: str, after: str) -> float:
    """How alike two texts are in words: 1 for the same, 0 for nothing in common."""
    return SequenceMatcher(None, before.split(), after.split(), autojunk=False).ratio()
