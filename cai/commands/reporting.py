"""``report``: one HTML file about one run or several."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cai.commands.common import RUNS, find_run, options
from cai.report.samples import LIMIT

if TYPE_CHECKING:
    from cai.report.model import Section


def report_verb(args: Sequence[str]) -> int:
    """Write the report and print its path."""
    parser = options("report", "One HTML file, complete in itself, about one run or several compared.")
    parser.add_argument(
        "runs", nargs="*", metavar="RUN", help="run folders, experiments or sweeps; by default the newest run"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="by default report.html in the (first) run's folder")
    parser.add_argument(
        "--rows", type=_rows, default=LIMIT, metavar="N", help=f"the most rows to look at (default {LIMIT:,})"
    )
    parsed = parser.parse_args(list(args))
    from cai.report.page import write_report
    from cai.run.finished import read_finished
    from cai.store.artifacts import default_store

    sections: list[Section] = []
    title, first = "", None
    folders: dict[Path, str] = {}
    for name in dict.fromkeys(parsed.runs or [None]):
        if (sweep := _sweep(name)) is not None:
            section, sweep_title, cells = _sweep_part(sweep)
            sections.append(section)
            folders |= cells
            title = title or sweep_title
            first = first or sweep
        else:
            run = find_run(name)
            folders.setdefault(run, "")
            first = first or run
    finished_runs = [read_finished(folder, default_store(), called) for folder, called in folders.items()]
    out = parsed.out or (first or Path()) / "report.html"
    print(write_report(finished_runs, out, rows=parsed.rows, more=sections, title=title))
    return 0


def _sweep(name: str | None) -> Path | None:
    """The folder of a sweep, where the name is one's."""
    if not name:
        return None
    return next((p.resolve() for p in (Path(name), RUNS / name) if (p / "sweep.json").is_file()), None)


def _sweep_part(folder: Path) -> tuple[Section, str, dict[Path, str]]:
    """A sweep's own section, the page's title, and the cells that are compared in full: folder and label."""
    from cai.report.sweeps import compared, sweep_section
    from cai.store.artifacts import default_store
    from cai.sweep.board import read_board
    from cai.sweep.run_cells import ended_cells

    board, ended = read_board(folder, default_store()), ended_cells(folder)
    # Of a sweep in which nothing is done yet the first cell shows at least the plan.
    labels = {cell.number: cell.label for cell in ended}
    cells = {folder / str(number): labels[number] for number in compared(board) or [0]}
    return sweep_section(board, ended), f"Sweep of {board.name}: {len(ended)} cells", cells


def _rows(text: str) -> int:
    number = int(text)
    if number < 0:
        raise ValueError(text)
    return number
