"""How much a file may become when it is read. Packed text grows ten times or so; what grows a thousand times was made
to fill a memory or to keep a machine busy, and is refused before it does."""

from __future__ import annotations

import gzip
import io
from pathlib import Path
from typing import IO, cast

from cai.errors import PrerequisiteError

FREE_BYTES, MOST_TIMES = 64 << 20, 200
"""What any file may unpack to, and beyond that how many times its size."""

FREE_ROWS, LEAST_BYTES = 100_000, 4
"""Rows that any table may have, and beyond that the bytes of its file for each."""

MOST_USELESS = 100_000
"""Records that may be left out before one in a thousand is of use."""

POINTER = 8
"""Bytes that the smallest value of a table takes when it has been read."""


def check_unpacked(path: Path, size: int) -> None:
    """``size`` bytes have come out of a file so far.

    Raises:
        PrerequisiteError: when no file of texts unpacks to so much.
    """
    if size > FREE_BYTES and size > MOST_TIMES * (packed := path.stat().st_size):
        raise PrerequisiteError(
            f"{path}: unpacks to more than {MOST_TIMES} times its {packed:,} bytes, which no text does; unpack it "
            "first if that is meant"
        )


def check_rows(path: Path, rows: int) -> None:
    """A table says that it has ``rows`` rows.

    Raises:
        PrerequisiteError: when its file is too small for so many.
    """
    if rows > FREE_ROWS and rows * LEAST_BYTES > (size := path.stat().st_size):
        raise PrerequisiteError(
            f"{path}: says that it has {rows:,} rows in {size:,} bytes, which rows of text do not fit into; is it the "
            "right file?"
        )


def check_values(path: Path, values: int) -> None:
    """A table says that it has ``values`` values, those inside lists and the missing ones included.

    Raises:
        PrerequisiteError: when its file is too small for so many.
    """
    if values * POINTER > FREE_BYTES and values * POINTER > MOST_TIMES * (size := path.stat().st_size):
        raise PrerequisiteError(
            f"{path}: says that it has {values:,} values in {size:,} bytes, which no table of texts has; is it the "
            "right file?"
        )


def check_useful(path: Path, useless: int, useful: int) -> None:
    """Of a file ``useless`` records have been left out so far, and ``useful`` ones made rows.

    Raises:
        PrerequisiteError: when going on would only cost time.
    """
    if useless >= MOST_USELESS and useful * 1000 < useless:
        raise PrerequisiteError(
            f"{path}: of its first {useless + useful:,} records {useful:,} make a row; is it the right file, and the "
            "right reader?"
        )


class _Unpacked(io.RawIOBase):
    """What comes out of a gzipped file, counted."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = gzip.open(path, "rb")  # noqa: SIM115 - closed with this

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """Back to the beginning, at least."""
        return True

    def readinto(self, buffer: object) -> int:
        """Read on.

        Raises:
            PrerequisiteError: when too much has come out.
        """
        count = self._file.readinto(cast(bytearray, buffer))
        check_unpacked(self._path, self._file.tell())
        return count

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place in what is unpacked."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """The place in what is unpacked."""
        return self._file.tell()

    def close(self) -> None:
        """Close the file itself, too."""
        self._file.close()
        super().close()


def open_gzip(path: Path) -> IO[bytes]:
    """A gzipped file's bytes; reading raises PrerequisiteError where they are too many for it."""
    return io.BufferedReader(_Unpacked(path), buffer_size=1 << 16)


class BeginningRead(Exception):
    """As much of a file as was wanted has been read, and it goes on."""


class _Beginning(io.RawIOBase):
    """The first bytes of a file; those behind them are not there to be read."""

    def __init__(self, file: IO[bytes], most: int) -> None:
        self._file = file
        self._most = most

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """As the file itself."""
        return True

    def readinto(self, buffer: object) -> int:
        """Read on.

        Raises:
            BeginningRead: at the end of the beginning.
        """
        view = cast(memoryview, buffer)
        left = self._most - self._file.tell()
        if left <= 0:
            if self._file.read(1):
                raise BeginningRead
            return 0
        chunk = self._file.read(min(len(view), left))
        view[: len(chunk)] = chunk
        return len(chunk)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place in the file."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """The place in the file."""
        return self._file.tell()

    def close(self) -> None:
        """Close the file itself, too."""
        self._file.close()
        super().close()


def beginning_of(file: IO[bytes], most: int) -> IO[bytes]:
    """The first ``most`` bytes of a file; reading beyond them raises ``BeginningRead``, at its own end it just ends."""
    return io.BufferedReader(_Beginning(file, most), buffer_size=1 << 16)
