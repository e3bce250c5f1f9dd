"""Parquet files, as the Hugging Face hub exports data sets; read in batches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cai.data.bounds import BeginningRead, check_rows, check_unpacked, check_values
from cai.errors import PrerequisiteError


def parquet_records(path: Path, tally: Counter[str], most: int | None = None) -> Iterator[dict[str, Any]]:
    """The rows of a parquet file as plain objects.

    Raises:
        PrerequisiteError: when the file is no whole parquet file, or becomes too much.
        BeginningRead: after ``most`` bytes of values, where it has more.
    """
    import pyarrow  # late: it is a quarter of a second, and most data are JSON
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            check_rows(path, file.metadata.num_rows)
            check_values(path, _values(file.metadata))
            size = 0
            # Few at a time: one value of a dictionary can be large and stand in every row.
            for batch in file.iter_batches(batch_size=64):
                if most is not None and size > most:
                    raise BeginningRead
                size += batch.nbytes
                check_unpacked(path, size)
                yield from _plain(batch, tally)
    except (pyarrow.ArrowException, OSError) as error:
        raise PrerequisiteError(f"{path}: cannot be read as parquet ({error}); fetch the file again") from error


def _values(metadata: Any) -> int:
    groups = (metadata.row_group(number) for number in range(metadata.num_row_groups))
    return sum(group.column(number).num_values for group in groups for number in range(group.num_columns))


def _plain(batch: Any, tally: Counter[str]) -> Iterator[dict[str, Any]]:
    """A batch's rows; where one has a value that Python cannot hold (no UTF-8, a date out of range), row by row."""
    try:
        yield from batch.to_pylist()
        return
    except (ValueError, ArithmeticError):
        pass
    for i in range(len(batch)):
        try:
            (row,) = batch.slice(i, 1).to_pylist()
        except UnicodeDecodeError:
            tally["not_utf8"] += 1
        except (ValueError, ArithmeticError):
            tally["wrong_type"] += 1
        else:
            yield row
