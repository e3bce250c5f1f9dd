"""A look at a data source while planning: what it is, how many rows its parts have, what of it makes no row.

Small files are read whole, of others the beginning: what no row can be made of is refused before anything runs, and
what will be dropped is told by reason. A file is read on only as long as no record of it has made a row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from cai.data.bounds import BeginningRead
from cai.data.columns import columns_of, reading_hint
from cai.data.locate import is_remote
from cai.data.readers import READERS
from cai.data.readers.shape import FILTERED, Odd
from cai.data.rows import Row
from cai.data.seen import Seen
from cai.data.shares import share_notes
from cai.data.source import (
    DataSource,
    count_rows,
    expected_counts,
    files_here,
    local_source_files,
    part_makes,
    rows_of_part,
    source_identity,
)
from cai.errors import PrerequisiteError, Problem, SpecError
from cai.identity import file_digest

SMALL, FEW = 2 << 20, 100_000
"""Bytes and records of files that planning reads whole, to know the rows exactly."""
MOST_UNPACKED = 32 << 20
"""Bytes that small files may unpack to and still be read whole."""
BEGINNING, FIRST_RECORDS = 2 << 20, 4_000
"""Bytes and records of a larger file that are looked at."""
ALL_BEGINNINGS, LEAST = 16 << 20, 64 << 10
"""Bytes of all larger files of a source together, beyond which of each further one only ``LEAST`` are looked at."""
MOST_WITHOUT_ROWS = 32 << 20
"""Bytes of a file of which nothing makes a row, before that is believed of all of it."""
_SAMPLE, _EXAMPLES = 20, 2


@dataclass(frozen=True)
class SourceLook:
    """What is seen of a source.

    ``identity`` is its identity, ``counts`` how many rows each part has (None where that is not known), ``notes`` what
    a person should know of the source, ``part_notes`` of a part; ``examples`` are the first rows of each part.
    """

    identity: Mapping[str, Any]
    counts: Mapping[str, int | None]
    notes: tuple[str, ...] = ()
    part_notes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    examples: Mapping[str, tuple[Row, ...]] = field(default_factory=dict)


@dataclass
class _FileLook:
    """What has been read of one file: its records, ``broken`` ones that are none, ``odd`` ones that make no row, and
    rows that an earlier one equals. ``sample`` are the first records."""

    path: Path
    records: int = 0
    duplicates: int = 0
    whole: bool = True
    broken: Counter[str] = field(default_factory=Counter)
    odd: Counter[str] = field(default_factory=Counter)
    sample: list[Mapping[str, Any]] = field(default_factory=list)

    @property
    def looked_at(self) -> int:
        """Records, and what stands in the place of one."""
        return self.records + self.broken.total()

    @property
    def rows(self) -> int:
        """Records that make a row, duplicates among them."""
        return self.records - self.odd.total()

    @property
    def useless(self) -> Counter[str]:
        """Why records make no row."""
        return self.broken + self.odd


def unseen(source: DataSource) -> SourceLook:
    """What stands in the place of a look where the files cannot be read."""
    return SourceLook({"hub": []}, dict.fromkeys(source.splits))


def look_at(source: DataSource, roots: Sequence[Path] = ()) -> SourceLook:
    """Look at a source's files. Of hub files, which are fetched when they are read, nothing but the commit is seen.

    Raises:
        SpecError: when a path is missing or not pinned, a file is damaged, no row can be made of what is in it, or a
            part would get no topic.
    """
    with _readable():
        digest = cache(file_digest)  # each file is digested once in a look
        identity = source_identity(source, roots, digest)
        if any(is_remote(path) for path in source.paths):
            return SourceLook(identity, expected_counts(source, source.expect))
        return _look(source, identity, local_source_files(source, roots, digest))


def first_rows(source: DataSource, roots: Sequence[Path] = ()) -> Mapping[str, tuple[Row, ...]]:
    """The first rows of each part, those of hub files that a mirror has too; none where a file is not here.

    Raises:
        SpecError: as ``look_at``, and when the mirror's file is not what is wanted.
    """
    with _readable():
        files = files_here(source, roots)
        return {} if files is None else _look(source, {}, files).examples


def rows_seen(source: DataSource, part: str, roots: Sequence[Path] = ()) -> list[Row]:
    """The rows of a part among those that ``look_at`` sees of a source.

    None of hub files, nor where the rows that are not seen decide which part a row is in.

    Raises:
        SpecError: as ``look_at``.
    """
    if any(is_remote(path) for path in source.paths):
        return []
    with _readable():
        files = local_source_files(source, roots, str)
        if len(files) > 1:  # the digests decide which is read first
            files = local_source_files(source, roots)
        rows, looks = _read(source, files)
    decided_by_all = source.limit is not None or (source.split_by == "topic" and len(source.splits) > 1)
    if decided_by_all and not all(look.whole for look in looks):
        return []
    return list(rows_of_part(source, lambda: iter(rows), part))


@contextmanager
def _readable() -> Iterator[None]:
    """Files that cannot be read are the user's input being wrong."""
    try:
        yield
    except PrerequisiteError as error:
        message, _, hint = str(error).partition("; ")
        raise SpecError(Problem("path", message, hint)) from error
    except OSError as error:
        message = f"{error.filename}: cannot be read ({error.strerror or error})"
        raise SpecError(Problem("path", message, "give a file that can be read")) from error


def _look(source: DataSource, identity: Mapping[str, Any], files: Sequence[Path]) -> SourceLook:
    rows, file_looks = _read(source, files)
    if not any(look.rows for look in file_looks) and (problems := list(_no_rows(source, file_looks))):
        raise SpecError(problems)
    whole = all(look.whole for look in file_looks)
    if whole:
        parts = {part: list(rows_of_part(source, lambda: iter(rows), part)) for part in source.splits}
        counts: Mapping[str, int | None] = {part: len(part_rows) for part, part_rows in parts.items()}
        part_notes = share_notes(source, rows, {part: len(part_rows) for part, part_rows in parts.items()})
        examples = {part: tuple(part_rows[:_EXAMPLES]) for part, part_rows in parts.items()}
    else:
        line_counts = [count_rows(file) for file in files]
        known = [count for count in line_counts if count is not None]
        counts = expected_counts(source, sum(known) if len(known) == len(line_counts) else None)
        part_notes, examples = {}, {part: tuple(_rows_among(source, rows, part)) for part in source.splits}
    return SourceLook(identity, counts, tuple(_notes(source, file_looks)), part_notes, examples)


# ---- reading ---------------------------------------------------------------------------------------------------------


class _Files:
    """A source's files as they are now: the same files are read once, however many parts and checks ask for them."""

    def __init__(self, source: DataSource, files: Sequence[Path]) -> None:
        self.source = source
        self.files = tuple(files)
        stats = [file.stat() for file in files]
        self._key = (repr(source), self.files, tuple((stat.st_size, stat.st_mtime_ns) for stat in stats))

    def __eq__(self, another: object) -> bool:
        return isinstance(another, _Files) and another._key == self._key

    def __hash__(self) -> int:
        return hash(self._key)


def _read(source: DataSource, files: Sequence[Path]) -> tuple[list[Row], list[_FileLook]]:
    """The rows of what is looked at, each id once, and what was seen of every file."""
    return _read_files(_Files(source, files))


@lru_cache(maxsize=16)
def _read_files(of: _Files) -> tuple[list[Row], list[_FileLook]]:
    source, files = of.source, of.files
    small = sum(file.stat().st_size for file in files) <= SMALL
    rows: list[Row] = []
    seen_ids, looks, left = Seen(), [], MOST_UNPACKED if small else ALL_BEGINNINGS
    for file in files:
        most = max(left, LEAST) if small else max(min(left, BEGINNING), LEAST)
        look = _FileLook(file)
        for row in _beginning(source, look, most, FEW if small else FIRST_RECORDS):
            if seen_ids.add(row.id):
                rows.append(row)
            else:
                look.duplicates += 1
        left -= min(most, file.stat().st_size)
        looks.append(look)
    return rows, looks


def _beginning(source: DataSource, look: _FileLook, most: int, records: int) -> Iterator[Row]:
    """Rows of the first ``most`` bytes, or so many records; of more where these make no row at all."""
    yield from _rows(source, look, most, records)
    if not look.whole and not look.rows and FILTERED not in look.odd:
        further = _FileLook(look.path, sample=look.sample)
        yield from islice(_rows(source, further, MOST_WITHOUT_ROWS, FEW), 1)
        look.records = further.records
        look.broken = further.broken
        look.odd = further.odd
        look.whole = further.whole and not further.rows


def _rows(source: DataSource, look: _FileLook, most: int, records: int) -> Iterator[Row]:
    reader, makes = READERS[source.reader], part_makes(source)
    try:
        for raw in reader.records(look.path, look.broken, most):
            if look.records >= records:
                look.whole = False
                return
            look.records += 1
            if len(look.sample) < _SAMPLE:
                look.sample.append(raw)
            try:
                row = reader.parse(raw, makes, source.options)
            except Odd as odd:
                look.odd[odd.reason] += 1
            else:
                yield row
    except BeginningRead:
        look.whole = False


def _rows_among(source: DataSource, rows: Sequence[Row], part: str) -> Iterator[Row]:
    """Rows of a part among those that were read; any, where that is decided by all rows."""
    if source.limit is not None or source.split_by == "topic":
        return islice(iter(rows), _EXAMPLES)
    return islice(rows_of_part(source, lambda: iter(rows), part), _EXAMPLES)


# ---- what is told ----------------------------------------------------------------------------------------------------


def _no_rows(source: DataSource, looks: Sequence[_FileLook]) -> Iterator[Problem]:
    """Why a source has no row, file by file; nothing where more of it may have one."""
    if any(not look.whole and (FILTERED in look.odd or not look.looked_at) for look in looks):
        return
    for look in looks:
        if not look.looked_at:
            yield Problem("path", f"'{_shown(source, look)}' is empty: it holds no record", "give a file with rows")
            continue
        which = "no record" if look.whole else f"none of the first {look.looked_at:,} records"
        message = f"'{_shown(source, look)}': {which} makes a row ({_listed(look.useless)})"
        if columns := columns_of(look.sample):
            message += f"; it has the columns {', '.join(columns)}"
        yield Problem("path", message, reading_hint(look.path, look.sample, source))


def _notes(source: DataSource, looks: Sequence[_FileLook]) -> Iterator[str]:
    """What is dropped, and of which files nothing is left."""
    empty = [look for look in looks if not look.rows] if len(looks) > 1 else []
    for look in empty:
        why = f"no record makes a row ({_listed(look.useless)})" if look.looked_at else "is empty"
        yield f"'{_shown(source, look)}': {why}"
    total = sum(look.looked_at for look in looks)
    of = (
        f"of {total:,} record{'s' * (total != 1)}"
        if all(look.whole for look in looks)
        else f"of the first {total:,} records"
    )
    useless = sum((look.useless for look in looks), Counter[str]())
    duplicates = sum(look.duplicates for look in looks)
    if useless:
        hint = ""
        if useless.total() * 2 > total and (fullest := max(looks, key=lambda look: len(look.sample))).sample:
            hint = f"; is that meant? {reading_hint(fullest.path, fullest.sample, source)}"
        yield f"{of} {useless.total():,} make{'s' * (useless.total() == 1)} no row: {_listed(useless)}{hint}"
    if duplicates:
        verb = "is a duplicate of an earlier one" if duplicates == 1 else "are duplicates of earlier ones"
        yield f"{of} {duplicates:,} {verb}, and read once"


def _listed(reasons: Counter[str]) -> str:
    return ", ".join(f"{reason} {n:,}" for reason, n in reasons.most_common(6))


def _shown(source: DataSource, look: _FileLook) -> str:
    """A file as the experiment has it, or by its name where that names several."""
    path = source.paths[0]
    return path if len(source.paths) == 1 and path.endswith(look.path.name) else look.path.name
