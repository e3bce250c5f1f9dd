"""The report as plain data: sections of blocks, built from runs by one half of this room and drawn by the other.

Nothing here knows HTML or matplotlib. A new section (of a sweep, say) is a ``Section`` of tables and figures that is
put into the tuple; the page draws it without knowing whose it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from cai.figures.intervals import Interval


@dataclass(frozen=True, slots=True)
class Text:
    """Paragraphs, a remark on how to read something, what is missing and why, or bullets."""

    lines: tuple[str, ...]
    style: Literal["paragraph", "note", "missing", "bullets"] = "paragraph"
    kind: Literal["text"] = "text"


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under a head. ``align`` has a letter for each column, ``l`` or ``r``; without one the first is ``l``.

    The first column heads its row. ``folded`` tables are closed until somebody opens them.
    """

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    align: str = ""
    folded: bool = False
    kind: Literal["table"] = "table"

    def aligned(self, column: int) -> str:
        """``l`` or ``r``."""
        return self.align[column] if column < len(self.align) else ("l" if column == 0 else "r")


@dataclass(frozen=True, slots=True)
class Tile:
    """One key figure in large type, with what it is above and what it rests on below."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Tiles:
    """Key figures side by side."""

    tiles: tuple[Tile, ...]
    kind: Literal["tiles"] = "tiles"


@dataclass(frozen=True, slots=True)
class Point:
    """One mark. ``x`` is a number or a category; the bounds are of a 95 % interval, None where there is none."""

    x: float | str
    y: float
    low: float | None = None
    high: float | None = None
    x_low: float | None = None
    x_high: float | None = None
    label: str = ""


@dataclass(frozen=True, slots=True)
class Series:
    """Points that belong together. ``style`` picks colour, mark and line; the legend names it where it is named."""

    label: str
    points: tuple[Point, ...]
    style: int = 0


@dataclass(frozen=True, slots=True)
class Panel:
    """One set of axes.

    ``lines`` joins the points; ``path`` joins them with arrows and names them; ``dots`` has the categories below each
    other and the values to the right; ``matrix`` has cells (``x`` names the column, ``label`` the row, ``y`` in
    [0, 1] is the value). ``percent``: values are shares. ``level`` is a line of reference; ``diagonal`` is y = x.
    """

    shape: Literal["lines", "path", "dots", "matrix"]
    series: tuple[Series, ...]
    x_label: str = ""
    y_label: str = ""
    title: str = ""
    percent: bool = False
    level: float | None = None
    diagonal: bool = False
    whole_x: bool = False


@dataclass(frozen=True, slots=True)
class Figure:
    """Panels under one title, what they show in words, and the numbers they are drawn from."""

    id: str
    title: str
    description: str
    panels: tuple[Panel, ...]
    numbers: Table
    note: str = ""
    kind: Literal["figure"] = "figure"


@dataclass(frozen=True, slots=True)
class Detail:
    """A term and its text; ``code`` keeps the lines as they are."""

    term: str
    text: str
    code: bool = False


@dataclass(frozen=True, slots=True)
class Node:
    """A step in the graph: where its box is (pixels), what the box says, and all that is known of it."""

    id: str
    name: str
    step_kind: str
    group: str
    lines: tuple[str, ...]
    x: float
    y: float
    width: float
    height: float
    aria_label: str
    details: tuple[Detail, ...]


@dataclass(frozen=True, slots=True)
class Edge:
    """What one step reads of another, as an SVG path; ``source`` and ``target`` are node ids."""

    source: str
    target: str
    path: str


@dataclass(frozen=True, slots=True)
class Graph:
    """A plan laid out; ``width`` and ``height`` in pixels."""

    id: str
    title: str
    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    width: float
    height: float
    kind: Literal["graph"] = "graph"


@dataclass(frozen=True, slots=True)
class Rule:
    """One principle as the report shows it."""

    id: str
    texts: tuple[Detail, ...]
    facts: tuple[Detail, ...]
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Rules:
    """The principles of one constitution."""

    rules: tuple[Rule, ...]
    kind: Literal["rules"] = "rules"


@dataclass(frozen=True, slots=True)
class Heading:
    """A smaller heading inside a section."""

    text: str
    id: str = ""
    kind: Literal["heading"] = "heading"


Block = Text | Table | Tiles | Figure | Graph | Rules | Heading


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the report under its own heading; ``short`` is its name in the contents."""

    id: str
    title: str
    blocks: tuple[Block, ...]
    short: str = ""


@dataclass(frozen=True, slots=True)
class SampleIndex:
    """What the browser of samples has to choose from; the rows themselves are streamed into the page.

    Rows name their source, principles and scores by place in these lists. ``included`` of ``there`` rows are in the
    file. ``requests``: for each source the texts of its principles (critique, revision, comparison) by id.
    """

    sources: tuple[str, ...]
    topics: tuple[str, ...]
    principles: tuple[str, ...]
    scores: tuple[str, ...]
    included: int
    there: int
    notes: tuple[str, ...] = ()
    requests: tuple[Mapping[str, Mapping[str, str]], ...] = ()

    def data(self) -> dict[str, Any]:
        """As the page reads it."""
        return {
            "sources": list(self.sources),
            "topics": list(self.topics),
            "principles": list(self.principles),
            "scores": list(self.scores),
            "taken": self.included,
            "there": self.there,
            "requests": [
                {place: by[name] for place, name in enumerate(self.principles) if name in by} for by in self.requests
            ],
        }


@dataclass(frozen=True, slots=True)
class ReportPage:
    """The whole page but for the rows of samples."""

    title: str
    subtitle: str
    sections: tuple[Section, ...]
    footer: tuple[str, ...] = ()


def number(value: float | None, places: int = 2) -> str:
    """A number for a table; ``-`` where there is none, with a real minus sign."""
    if value is None:
        return "-"
    text = f"{value:.{places}f}"
    return text.replace("-", "\u2212", 1) if float(text) < 0 else text.removeprefix("-")


def percent(value: float | None) -> str:
    """A share in whole per cent; ``-`` where there is none."""
    return "-" if value is None else f"{value:.0%}"


def interval(figure: Interval | None, share: bool = False, places: int = 2) -> str:
    """A figure with its 95 % interval: ``0.42 [0.31, 0.53]``, ``82% [71%, 90%]``; ``-`` when there is none."""
    if figure is None or figure.value is None:
        return "-"

    def form(value: float) -> str:
        return percent(value) if share else number(value, places)

    low, high = figure.low, figure.high
    return form(figure.value) + (f" [{form(low)}, {form(high)}]" if low is not None and high is not None else "")


def point(x: float | str, figure: Interval | None, label: str = "") -> tuple[Point, ...]:
    """A figure as a point, or nothing where it has no value."""
    if figure is None or figure.value is None:
        return ()
    return (Point(x, figure.value, figure.low, figure.high, label=label),)


def numbers_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """The numbers behind a figure."""
    return Table("The numbers", tuple(head), tuple(tuple(row) for row in rows), folded=True)
