"""Parquet files, as the Hugging Face hub exports data sets; read in batches, through pyarrow (part of ``datasets``)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cai.errors import PrerequisiteError


def parquet_records(path: Path, tally: Counter[str]) -> Iterator[dict[str, Any]]:
    """The rows of a parquet file as plain objects.

    Raises:
        PrerequisiteError: when pyarrow is missing or the file is no whole parquet file.
    """
    try:
        import pyarrow  # type: ignore[import-untyped]
        import pyarrow.parquet  # type: ignore[import-untyped]
    except ImportError as error:
        raise PrerequisiteError(f"{path}: parquet needs pyarrow; install the package 'datasets'") from error
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise PrerequisiteError(f"{path}: cannot be read as parquet ({error}); fetch the file again") from error
