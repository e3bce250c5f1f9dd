"""Panels drawn with matplotlib and turned into SVG that lives in the page: its colours are the page's own.

Colours are drawn as marks (hexadecimal numbers that mean nothing) and replaced by CSS variables, so that one picture
serves light and dark. Inline styles become classes, because the page's policy allows no inline style; ids get a prefix,
because many pictures share the page. The same panel gives the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Callable, Mapping
from typing import Any
from xml.etree import ElementTree

from cai.report.model import Figure, Panel, Series
from cai.text import one_line

INK, MUTED, GRID, PAPER = "#010203", "#040506", "#070809", "#0a0b0c"
COLOURS = tuple(f"#1{n}2{n}3{n}" for n in range(8))
VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--line",
    PAPER: "--paper",
    **{c: f"--c{n}" for n, c in enumerate(COLOURS)},
}
MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES: tuple[Any, ...] = (
    "-",
    (0, (5, 2)),
    (0, (1, 1.5)),
    (0, (6, 2, 1, 2)),
    (0, (3, 1)),
    "-",
    (0, (5, 2)),
    (0, (1, 1.5)),
)
SIZE = 11.0
EDGE = 4.0
"""Pixels around everything."""
CATEGORY = 34
"""Characters of a category's name that are drawn; the table has all."""
_SVG = "{http://www.w3.org/2000/svg}"
_HREF = "{http://www.w3.org/1999/xlink}href"

Styles = dict[str, str]
"""CSS declarations by class name."""


def draw(figure: Figure, number: int, styles: Styles) -> str:
    """Panel ``number`` of a figure as an ``<svg>`` element; classes that it needs are added to ``styles``.

    Its ids begin with the figure's. It is named by its title and described by the element ``FIGURE-told``.
    """
    import matplotlib
    from matplotlib import figure as drawn
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    panel = figure.panels[number]

    # Any: its stubs list every setting by name.
    settings: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": "cai",
        "text.parse_math": False,
        "font.family": "DejaVu Sans",
        "font.size": SIZE,
        "axes.unicode_minus": True,
        "path.simplify": True,
    }
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        # Names may hold signs that the font for measuring does not have; the browser has others.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        canvas = drawn.Figure(figsize=_size(panel), dpi=72)
        FigureCanvasSVG(canvas)
        axes = canvas.add_subplot()
        _plain(axes)
        _SHAPES[panel.shape](axes, panel)
        _fit(axes)
        buffer = io.BytesIO()
        canvas.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    title = f"{figure.title}: {panel.title}" if panel.title else figure.title
    return inlined(
        buffer.getvalue(),
        id=f"{figure.id}-{number}",
        title=one_line(title),
        described=f"{figure.id}-told",
        styles=styles,
    )


def _fit(axes: Any) -> None:
    """Give the axes all the room that their labels leave: measured once, where layout engines draw everything twice."""
    whole, inner, outer = axes.figure.bbox, axes.bbox, axes.get_tightbbox()
    left_margin, bottom_margin = inner.x0 - outer.x0 + EDGE, inner.y0 - outer.y0 + EDGE
    right_margin, top_margin = max(outer.x1 - inner.x1, 0) + EDGE, max(outer.y1 - inner.y1, 0) + EDGE
    width = max(whole.width - left_margin - right_margin, 40)
    height = max(whole.height - bottom_margin - top_margin, 40)
    axes.set_position(
        (left_margin / whole.width, bottom_margin / whole.height, width / whole.width, height / whole.height)
    )


def _size(panel: Panel) -> tuple[float, float]:
    """Inches at 72 dots: small enough to stand side by side, high enough for every category."""
    if panel.shape == "path":
        return 520 / 72, 370 / 72
    if panel.shape == "dots":
        lanes = max(len(panel.series), 1)
        return 440 / 72, (70 + len(categories(panel)) * max(24, 13 * lanes + 8)) / 72
    if panel.shape == "matrix":
        rows = len(dict.fromkeys(p.label for s in panel.series for p in s.points))
        return 400 / 72, (80 + 46 * max(rows, 2)) / 72
    return 430 / 72, 280 / 72


def categories(panel: Panel) -> list[str]:
    """The categories of a ``dots`` panel, each once, in order."""
    return list(dict.fromkeys(str(p.x) for s in panel.series for p in s.points))


def _plain(axes: Any) -> None:
    """Axes without a frame: a light grid, muted ticks."""
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(MUTED)
    axes.tick_params(colors=MUTED, labelcolor=INK, length=3, labelsize=SIZE)
    axes.tick_params(axis="y", length=0)
    axes.grid(True, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.xaxis.label.set_color(MUTED)
    axes.yaxis.label.set_color(MUTED)


def _label_axes(axes: Any, panel: Panel) -> None:
    if panel.x_label:
        axes.set_xlabel(one_line(panel.x_label, 60))
    if panel.y_label:
        axes.set_ylabel(one_line(panel.y_label, 60))


def _percent(axis: Any) -> None:
    from matplotlib.ticker import PercentFormatter

    axis.set_major_formatter(PercentFormatter(1.0, symbol="%"))


def _lines(axes: Any, panel: Panel) -> None:
    from matplotlib.ticker import MaxNLocator

    for series in panel.series:
        colour = COLOURS[series.style % 8]
        x, y = [float(p.x) for p in series.points], [p.y for p in series.points]
        mark = MARKS[series.style % 8] if len(x) <= 40 else ""
        axes.plot(x, y, color=colour, linestyle=LINES[series.style % 8], marker=mark, markersize=5, linewidth=1.8)
        bounded = [p for p in series.points if p.low is not None and p.high is not None]
        if bounded:
            axes.errorbar(
                [float(p.x) for p in bounded],
                [p.y for p in bounded],
                yerr=_errors([(p.y, p.low, p.high) for p in bounded]),
                fmt="none",
                ecolor=colour,
                elinewidth=1.2,
                capsize=3,
            )
    if panel.level is not None:
        axes.axhline(panel.level, color=MUTED, linewidth=1, linestyle=(0, (2, 2)))
    if panel.diagonal:
        axes.plot([0.5, 1], [0.5, 1], color=MUTED, linewidth=1, linestyle=(0, (2, 2)))
    if panel.whole_x:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if panel.percent:
        _percent(axes.yaxis)
    _label_axes(axes, panel)


def _path(axes: Any, panel: Panel) -> None:
    for series in panel.series:
        colour = COLOURS[series.style % 8]
        for start, end in zip(series.points, series.points[1:], strict=False):
            axes.annotate(
                "",
                (float(end.x), end.y),
                (float(start.x), start.y),
                arrowprops={"arrowstyle": "-|>", "color": colour, "lw": 1.4, "shrinkA": 7, "shrinkB": 7},
            )
        for place, p in enumerate(series.points):
            x_error = _errors([(float(p.x), p.x_low, p.x_high)]) if p.x_low is not None else None
            y_error = _errors([(p.y, p.low, p.high)]) if p.low is not None else None
            axes.errorbar(
                [float(p.x)], [p.y], xerr=x_error, yerr=y_error, fmt="none", ecolor=colour, elinewidth=1.1, alpha=0.6
            )
            mark = MARKS[(place if len(panel.series) == 1 else series.style) % 8]
            axes.plot([float(p.x)], [p.y], mark, color=colour, markersize=8, markeredgecolor=PAPER)
            axes.annotate(
                one_line(p.label, CATEGORY),
                (float(p.x), p.y),
                xytext=(9, -14),
                textcoords="offset points",
                color=INK,
                fontsize=SIZE + 1,
                fontweight="bold",
            )
    axes.margins(0.12)
    _label_axes(axes, panel)


def _dots(axes: Any, panel: Panel) -> None:
    names = categories(panel)
    lanes = len(panel.series)
    for lane, series in enumerate(panel.series):
        colour = COLOURS[series.style % 8]
        shift = (lane - (lanes - 1) / 2) * 0.7 / max(lanes, 2)
        y = [names.index(str(p.x)) + shift for p in series.points]
        bounded = [
            (lane_y, p) for lane_y, p in zip(y, series.points, strict=True) if p.low is not None and p.high is not None
        ]
        if bounded:
            axes.errorbar(
                [p.y for _, p in bounded],
                [lane_y for lane_y, _ in bounded],
                xerr=_errors([(p.y, p.low, p.high) for _, p in bounded]),
                fmt="none",
                ecolor=colour,
                elinewidth=1.6,
            )
        axes.plot(
            [p.y for p in series.points], y, MARKS[series.style % 8], color=colour, markersize=7, markeredgecolor=PAPER
        )
    axes.set_yticks(range(len(names)), [one_line(name, CATEGORY) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(False, axis="y")
    if panel.level is not None:
        axes.axvline(panel.level, color=MUTED, linewidth=1, linestyle=(0, (2, 2)))
    if panel.percent:
        axes.set_xlim(-0.03, 1.03)
        _percent(axes.xaxis)
    _label_axes(axes, panel)


def _matrix(axes: Any, panel: Panel) -> None:
    from matplotlib.patches import Rectangle

    points = [p for s in panel.series for p in s.points]
    rows, columns = list(dict.fromkeys(p.label for p in points)), list(dict.fromkeys(str(p.x) for p in points))
    # The rows' order, so that the empty cells lie on the diagonal.
    columns.sort(key=lambda c: rows.index(c) if c in rows else len(rows))
    for p in points:
        x, y = columns.index(str(p.x)), rows.index(p.label)
        better = COLOURS[0] if p.y >= 0.5 else COLOURS[1]
        axes.add_patch(Rectangle((x - 0.47, y - 0.46), 0.94, 0.92, color=better, alpha=0.08 + 0.6 * abs(p.y - 0.5)))
        axes.text(x, y, f"{p.y:.0%}", ha="center", va="center", color=INK, fontsize=SIZE + 1)
    axes.set_xticks(range(len(columns)), [one_line(c, 16) for c in columns])
    axes.set_yticks(range(len(rows)), [one_line(r, 16) for r in rows])
    axes.set_xlim(-0.5, len(columns) - 0.5)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(False)
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(length=0)
    _label_axes(axes, panel)


def _errors(bounds: list[tuple[float, float | None, float | None]]) -> list[list[float]]:
    """What errorbar takes: how far down and up from each value, never negative."""
    low = [max(value - (value if b is None else b), 0.0) for value, b, _ in bounds]
    high = [max((value if b is None else b) - value, 0.0) for value, _, b in bounds]
    return [low, high]


_SHAPES: Mapping[str, Callable[[Any, Panel], None]] = {
    "lines": _lines,
    "path": _path,
    "dots": _dots,
    "matrix": _matrix,
}


def inlined(svg: bytes, *, id: str, title: str, described: str, styles: Styles) -> str:
    """matplotlib's SVG as an element for the page: see the module's first lines."""
    root = ElementTree.fromstring(svg)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.rpartition("}")[2] in ("metadata", "style"):
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.removeprefix(_SVG)
        if "id" in element.attrib:
            element.set("id", f"{id}-{element.attrib['id']}")
        if _HREF in element.attrib:
            element.set("href", f"#{id}-{element.attrib.pop(_HREF).removeprefix('#')}")
        for name, value in list(element.attrib.items()):
            if "url(#" in value:
                element.set(name, value.replace("url(#", f"url(#{id}-"))
        if declared := element.attrib.pop("style", ""):
            # What names a place of this picture stays with it; the rest is shared by all pictures.
            shared = _declarations(declared)
            name = f"s{hashlib.sha256(shared.encode()).hexdigest()[:8]}"
            styles[name] = shared
            element.set("class", name)
        element.tail = None
        if element.text is not None and not element.text.strip():
            element.text = None
    width, height = (float(root.attrib[k].removesuffix("pt")) for k in ("width", "height"))
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.set("viewBox", f"0 0 {width:g} {height:g}")
    root.set("class", "plot")
    root.attrib |= {"role": "img", "aria-labelledby": f"{id}-title", "aria-describedby": described}
    title_element = ElementTree.Element("title", {"id": f"{id}-title"})
    title_element.text = title
    root.insert(0, title_element)
    return ElementTree.tostring(root, encoding="unicode")


def _declarations(style: str) -> str:
    declarations = []
    for declaration in style.split(";"):
        name, _, value = declaration.strip().partition(":")
        value = value.strip()
        if not value or name in ("font-family", "stroke-linejoin", "stroke-linecap") or name.startswith("-"):
            continue
        if name == "font":
            # "bold 12px 'DejaVu Sans'": the page has its own family.
            words = value.split(" '")[0].split()
            declarations += [f"font-size:{w}" for w in words if w.endswith("px")]
            declarations += ["font-weight:600"] if "bold" in words or "700" in words else []
            continue
        declarations.append(f"{name}:{'var(' + VARIABLES[value] + ')' if value in VARIABLES else value}")
    return ";".join(declarations)


def swatch(series: Series) -> tuple[str, str, int]:
    """What the legend shows for a series: the dashes of its line, its mark as an SVG path, and its colour's number."""
    n = series.style % 8
    line = LINES[n]
    dashes = "" if line == "-" else " ".join(f"{d * 1.8:g}" for d in line[1])
    return dashes, _MARK_PATHS[MARKS[n]], n


_MARK_PATHS = {
    "o": "M17 7a4 4 0 1 1-8 0a4 4 0 1 1 8 0z",
    "s": "M9.5 3.5h7v7h-7z",
    "^": "M13 2.5l4.5 8h-9z",
    "D": "M13 2l5 5l-5 5l-5-5z",
    "v": "M13 11.5l4.5-8h-9z",
    "P": "M11.5 2.5h3v3h3v3h-3v3h-3v-3h-3v-3h3z",
    "X": "M10 2.5l3 3l3-3l1.5 1.5l-3 3l3 3l-1.5 1.5l-3-3l-3 3l-1.5-1.5l3-3l-3-3z",
    "*": "M13 1.5l1.6 3.7l4 .4l-3 2.7l.9 3.9l-3.5-2l-3.5 2l.9-3.9l-3-2.7l4-.4z",
}
