"""A sweep's results as files: CSV for people and spreadsheets, Parquet for programs; the same rows in both."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from cai.figures.intervals import Interval
from cai.files.durable import write_durably
from cai.sweep.board import Board, Line, PrincipleEffect


def write_tables(board: Board, folder: Path) -> list[Path]:
    """Write ``leaderboard``, and where there are any ``principles`` and ``sizes``, as .csv and .parquet."""
    tables = {
        "leaderboard": [_line(board, line, rank) for rank, line in enumerate(board.lines, 1)],
        "seeds": [_line(board, line, rank) for rank, line in enumerate(board.pooled, 1)],
        "principles": [_effect(effect) for effect in board.effects],
        "sizes": [_line(board, line, None) for line in board.sizes],
    }
    written = []
    for name, rows in tables.items():
        if rows:
            written += [_csv(folder / f"{name}.csv", rows), _parquet(folder / f"{name}.parquet", rows)]
    return written


def _line(board: Board, line: Line, rank: int | None) -> dict[str, Any]:
    ranked = line.figures.get(board.ranked_by, Interval()).value is not None
    row: dict[str, Any] = {
        "rank": rank if ranked else None,
        "cells": " ".join(map(str, line.numbers)),
        "label": line.label,
        "state": line.state.value,
        "principles": line.size,
        **{f"set {name}": value for name, value in line.values.items()},
    }
    for measure in board.measures:
        figure = line.figures.get(measure.name)
        for part, value in _parts(figure).items():
            row[measure.name if part == "value" else f"{measure.name} {part}"] = value
    return row


def _effect(effect: PrincipleEffect) -> dict[str, Any]:
    return {
        "measure": effect.measure,
        "principle": effect.principle,
        "cell": effect.label,
        "against": effect.against,
        **{"change" if part == "value" else part: value for part, value in _parts(effect.change).items()},
        "paired": effect.paired,
    }


def _parts(figure: Interval | None) -> dict[str, float | None]:
    """The columns of a figure; empty ones of a cell that has none."""
    return asdict(figure) if figure is not None else {part.name: None for part in fields(Interval)}


def _columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, _columns(rows), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _safe(value) for name, value in row.items()} for row in rows)
    write_durably(path, text.getvalue())
    return path


def _safe(value: Any) -> Any:
    """A spreadsheet must not take a label for a formula."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value


def _parquet(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    import pyarrow
    import pyarrow.parquet

    columns = {name: [row.get(name) for row in rows] for name in _columns(rows)}
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path
