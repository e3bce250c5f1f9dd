"""CSV files with a header, as data sets are published on GitHub and on the hub; gzipped or not, read line by line."""

from __future__ import annotations

import csv
import gzip
import zlib
from collections import Counter
from collections.abc import Iterator
from io import TextIOWrapper
from pathlib import Path
from typing import IO, Any

from cai.data.bounds import check_useful
from cai.data.records import open_bytes
from cai.errors import PrerequisiteError

MAX_LINE = 1 << 20
"""Characters of one line; a cell may go over several lines and hold ``csv.field_size_limit()`` characters."""


def csv_records(path: Path, tally: Counter[str], most: int | None = None) -> Iterator[dict[str, Any]]:
    """The lines of a table as objects, their keys from the header; what has other cells is counted: ``wrong_cells``.

    Raises:
        PrerequisiteError: when the file is no CSV, is cut off, or hardly any line has the header's cells.
        BeginningRead: after ``most`` bytes, where it has more.
    """
    line = 0
    try:
        with open_bytes(path, most) as file:
            # Bytes that are no UTF-8 become lone surrogates, which the row builder finds and counts.
            text = TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
            # Strict: a quote that is never closed would swallow the rest of the file, and nobody could count it.
            table = csv.reader(_lines(path, text), strict=True)
            header = [name.strip() for name in next(table, [])]
            useless = useful = 0
            for cells in table:
                line = table.line_num
                if len(cells) == len(header):
                    useful += 1
                    yield dict(zip(header, cells, strict=True))
                    continue
                if cells:  # an empty line is none
                    tally["wrong_cells"] += 1
                useless += 1
                check_useful(path, useless, useful)
    except csv.Error as error:
        raise PrerequisiteError(f"{path}: no whole CSV ({error} after line {line:,}); fetch the file again") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise PrerequisiteError(f"{path}: damaged ({error}); fetch the file again") from error
    except OSError as error:
        raise PrerequisiteError(f"{path}: cannot be read ({error.strerror or error})") from error


def _lines(path: Path, text: IO[str]) -> Iterator[str]:
    while line := text.readline(MAX_LINE):
        if len(line) >= MAX_LINE:
            raise PrerequisiteError(f"{path}: has a line of more than {MAX_LINE:,} characters; is it a CSV?")
        yield line
