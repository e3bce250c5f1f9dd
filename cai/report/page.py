"""The page: plain data in, one HTML file out. Everything is inside it and it asks nobody for anything.

All text is escaped by Jinja, or reaches the page as base64 and is set as text there. The policy in the page's head
allows exactly its own script and style, by their digests. Control characters and marks that turn the direction of text
around are shown, not obeyed.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cai.errors import PrerequisiteError
from cai.files.durable import disk_space
from cai.report.constitutions import constitutions
from cai.report.drawing import Styles, draw, swatch
from cai.report.graph import plans
from cai.report.learning import judges, learning
from cai.report.ledgers import ledgers
from cai.report.measures import measured
from cai.report.model import Figure, ReportPage, SampleIndex, Section, Series
from cai.report.overview import differences, summary
from cai.report.runs import labelled_runs
from cai.report.samples import LIMIT, SampleSurvey, packed, survey
from cai.run.finished import Finished

ASSETS = Path(__file__).parent / "assets"
_ROWS = "<!--rows-->"
_HIDDEN = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200b\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


def write_report(
    finished_runs: Sequence[Finished], out: Path, *, rows: int = LIMIT, more: Sequence[Section] = (), title: str = ""
) -> Path:
    """Write the report of one run or several to ``out``; returns its path.

    ``rows`` is the most that the browser of samples gets. ``more`` sections (of a sweep, say) stand first.

    Raises:
        PrerequisiteError: when the file cannot be written.
        Incomplete: when the disk is full.
    """
    report, looked = build(finished_runs, rows, more, title)
    try:
        with disk_space(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            _replace(out, page(report, looked.index, packed(looked)))
    except OSError as error:
        raise PrerequisiteError(f"{out}: cannot be written ({error.strerror or error}); name another --out") from error
    return out


def build(
    finished_runs: Sequence[Finished], rows: int = LIMIT, more: Sequence[Section] = (), title: str = ""
) -> tuple[ReportPage, SampleSurvey]:
    """The report as plain data, and what its browser of samples has to show."""
    runs = labelled_runs(finished_runs)
    looked = survey(runs, rows)
    names = [run.label for run in runs]
    sections = [
        *more,
        summary(runs),
        differences(runs),
        plans(runs),
        constitutions(runs, looked.drawn),
        measured(runs),
        learning(runs),
        judges(runs),
        ledgers(runs),
    ]
    described = str(runs[0].plan.source.get("description") or "") if len(runs) == 1 else ""
    subtitle = described or f"{len(runs)} runs: {'; '.join(names)}"
    heading = title or (f"{names[0]}, seed {runs[0].plan.seed}" if len(runs) == 1 else "Runs compared")
    versions = runs[0].finished.record.get("versions", {})
    footer = [f"{name} {version}" for name, version in versions.items()]
    return ReportPage(heading, subtitle, tuple(s for s in sections if s), tuple(footer)), looked


def page(report: ReportPage, samples: SampleIndex, rows: Iterable[str]) -> Iterator[str]:
    """The HTML in pieces, the rows of samples streamed into it."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(ASSETS),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=visible_controls,
    )
    styles: Styles = {}
    pictures: dict[str, list[Any]] = {}
    for section in report.sections:
        for block in section.blocks:
            if isinstance(block, Figure):
                pictures[block.id] = [_safe(draw(block, n, styles)) for n in range(len(block.panels))]
    script = (ASSETS / "report.js").read_text(encoding="utf-8")
    style = (ASSETS / "report.css").read_text(encoding="utf-8") + _rules(styles)
    text = environment.get_template("page.html.jinja").render(
        report=report,
        sections=report.sections,
        pictures=pictures,
        samples=samples,
        index=_packed(samples.data()),
        legend=legend,
        swatch=swatch,
        style=_safe(style),
        script=_safe(script),
        policy=policy(script, style),
        rows_here=_safe(_ROWS),
    )
    before, _, after = text.partition(_ROWS)
    yield before
    for chunk in rows:
        yield f'<script type="application/octet-stream" class="rows">{chunk}</script>\n'
    yield after


def policy(script: str, style: str) -> str:
    """What the browser may load and run: nothing but this script and this style."""
    allowed = [
        "default-src 'none'",
        f"script-src '{_digest(script)}'",
        f"style-src '{_digest(style)}'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
    ]
    return "; ".join(allowed)


def visible_controls(value: Any) -> Any:
    """Text with its control characters made visible: ``\\u202e`` becomes ``[U+202E]``. Other values pass."""
    if type(value) is not str:
        return value
    return _HIDDEN.sub(lambda match: f"[U+{ord(match[0]):04X}]", value)


def legend(figure: Figure) -> list[Series]:
    """The series that the legend names: each label once, none where there is nothing to tell apart."""
    series_by_label: dict[str, Series] = {}
    for panel in figure.panels:
        if panel.shape != "matrix":
            for series in panel.series:
                if series.label:
                    series_by_label.setdefault(series.label, series)
    return list(series_by_label.values()) if len(series_by_label) > 1 else []


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _rules(styles: Mapping[str, str]) -> str:
    return "".join(f".{name}{{{declared}}}\n" for name, declared in sorted(styles.items()))


def _packed(value: Any) -> str:
    import json

    return base64.b64encode(json.dumps(value, ensure_ascii=True).encode("ascii")).decode("ascii")


def _safe(text: str) -> Any:
    """Our own markup, which Jinja shall not escape."""
    from markupsafe import Markup

    return Markup(text)


def _replace(path: Path, pieces: Iterable[str]) -> None:
    """Write pieces as they come, then put the whole file in its place."""
    handle, draft = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.writelines(pieces)
        os.chmod(draft, 0o644)
        os.replace(draft, path)
    except BaseException:
        os.unlink(draft)
        raise
