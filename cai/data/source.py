"""A data source: what an experiment says about its data, the identity of that data, and its rows by part.

The source itself is data and opens nothing. A local source's identity is its files' bytes, whatever they are called;
a hub source's is its commit, wherever the bytes come from (see cai.data.mirror).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from cai.data.locate import hub_file, is_remote, local_files
from cai.data.mirror import hub_path, mirrored
from cai.data.public import expanded
from cai.data.readers import READERS
from cai.data.records import open_bytes
from cai.data.rows import Row
from cai.data.splits import split_rows
from cai.errors import Problem, SpecError, did_you_mean
from cai.identity import file_digest
from cai.settings import Settings

Digest = Callable[[Path], str]

PartName = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f-\x9f]{1,100}$")]
"""Any text on one line: it becomes part of a step's name."""


class DataSource(Settings):
    """Files and how to read them. ``splits`` names the parts and their shares; one part needs no name in use."""

    path: Annotated[
        str | tuple[str, ...],
        Field(
            description="file, folder, glob, public:NAME, shipped:NAME, hf:NAME@COMMIT:FILE, gh:OWNER/NAME@COMMIT:FILE"
        ),
    ]
    reader: Annotated[str, Field(description=f"the format: {', '.join(READERS)}")] = "jsonl"
    makes: Literal["prompts", "conversations", "comparisons"] | None = None
    splits: Annotated[dict[PartName, Annotated[float, Field(gt=0)]], Field(min_length=1)] = Field(default={"all": 1.0})
    split_by: Literal["topic", "prompt"] = "prompt"
    split_seed: Annotated[int, Field(ge=0)] = 0
    limit: Annotated[int, Field(ge=1, description="rows kept, drawn by hash, before the split")] | None = None
    revision: Annotated[str, Field(description="commit of a hub data set, where the path has none")] | None = None
    moving: Annotated[bool, Field(description="take a branch in place of a commit; the plan warns")] = False
    expect: (
        Annotated[int, Field(ge=1, description="rows of files that are not here yet; for estimates only")] | None
    ) = None
    options: dict[str, bool | int | float | str | list[str] | dict[str, str]] = Field(default={})

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, raw: Any) -> Any:
        return expanded(raw) if isinstance(raw, Mapping) else raw

    @model_validator(mode="after")
    def _reader_fits(self) -> DataSource:
        reader = READERS.get(self.reader)
        if reader is None:
            raise ValueError(f"unknown reader '{self.reader}'; {did_you_mean(self.reader, READERS)}")
        if self.makes is None and reader.default is None:
            raise ValueError(f"reader '{self.reader}' can make {', '.join(reader.makes)}; say which under `makes`")
        if self.makes is not None and self.makes not in reader.makes:
            raise ValueError(f"reader '{self.reader}' makes {' or '.join(reader.makes)}, not {self.makes}")
        for name, value in self.options.items():
            if name not in reader.options:
                hint = did_you_mean(name, reader.options) or "it has none"
                raise ValueError(f"reader '{self.reader}' has no option '{name}'; {hint}")
            types = reader.options[name]
            if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
                raise ValueError(f"option '{name}' must be {' or '.join(t.__name__ for t in types)}")
        if not self.paths:
            raise ValueError("path names no file")
        return self

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths, one or several."""
        return (self.path,) if isinstance(self.path, str) else self.path


def part_makes(source: DataSource) -> str:
    """The kind of rows that the source gives."""
    return source.makes or READERS[source.reader].default or ""


def source_identity(source: DataSource, roots: Sequence[Path] = (), digest: Digest = file_digest) -> dict[str, Any]:
    """What decides the rows: digests of the local files or commits on the hub, the reader, and the split.

    ``roots`` are the folders in which a relative path is looked up, the first that has it wins; by default the
    folder where the user stands. The names of local files do not count. ``digest`` is for whoever keeps digests.

    Raises:
        SpecError: with every path that is missing or not pinned.
    """
    digests: list[str] = []
    hub: list[dict[str, str]] = []
    problems: list[Problem] = []
    for path in source.paths:
        try:
            if is_remote(path):
                remote = hub_file(path, source.revision, source.moving)
                hub.append({"name": remote.repository, "revision": remote.revision, "file": remote.file})
            else:
                digests += [digest(f) for f in _local(source, path, roots)]
        except SpecError as error:
            problems += error.problems
    if problems:
        raise SpecError(problems)
    identity = source.model_dump(
        mode="json", include={"reader", "splits", "split_by", "split_seed", "limit", "options"}
    )
    # The order of the parts decides which hash falls into which, so it counts.
    identity["splits"] = [[name, share] for name, share in source.splits.items()]
    return {**identity, "makes": part_makes(source), "sha256": sorted(set(digests)), "hub": hub}


def part_rows(
    source: DataSource, part: str, tally: Counter[str] | None = None, roots: Sequence[Path] = ()
) -> Iterator[Row]:
    """The rows of one part, streamed; rows that are left out are counted in ``tally`` by reason, whole source.

    Raises:
        SpecError: when there is no such part, a path is missing, or a part would get no topic.
        PrerequisiteError: when a file cannot be fetched or read.
    """
    if part not in source.splits:
        raise SpecError(Problem("splits", f"no part '{part}'", did_you_mean(part, source.splits)))
    tally = Counter() if tally is None else tally
    files = _files(source, roots)
    reader, makes = READERS[source.reader], part_makes(source)
    counts: list[Counter[str]] = []

    def rows() -> Iterator[Row]:
        counts.append(Counter())
        return reader.rows(files, makes, source.options, counts[-1])

    yield from rows_of_part(source, rows, part, tally)
    tally.update(counts[-1])


def rows_of_part(
    source: DataSource, rows: Callable[[], Iterator[Row]], part: str, tally: Counter[str] | None = None
) -> Iterator[Row]:
    """Of all rows of a source, those of one part. ``rows`` is called once, or twice where all must be known first.

    Raises:
        SpecError: when a part would get no topic.
    """
    by, seed, limit = source.split_by, source.split_seed, source.limit
    return split_rows(rows, part, source.splits, by=by, seed=seed, limit=limit, tally=tally)


def hub_digests(source: DataSource) -> dict[str, str]:
    """SHA-256 of each hub file that the source reads, by its pinned path; fetches what is not here.

    Raises:
        PrerequisiteError: when a file cannot be had.
    """
    return {name: file_digest(path) for name, path in _hub_files(source)}


def expected_counts(source: DataSource, total: int | None) -> dict[str, int | None]:
    """Rows to be expected in every part of ``total`` rows; None where that is not known."""
    if total is None:
        return dict.fromkeys(source.splits)
    shares = sum(source.splits.values())
    # No share is so small that it is known to get nothing.
    return {
        part: round(min(total, source.limit or total) * share / shares) or None for part, share in source.splits.items()
    }


def count_rows(path: Path) -> int | None:
    """The lines of a JSONL file, quickly; None for what is packed, an array, or a table."""
    if path.suffix not in (".jsonl", ".json"):
        return None
    lines, last = 0, b"\n"
    with open_bytes(path) as file:
        while block := file.read(1 << 20):
            if lines == 0 and last == b"\n" and block.lstrip().startswith(b"["):
                return None
            lines += block.count(b"\n")
            last = block[-1:]
    return lines + (last != b"\n")


def _local(source: DataSource, path: str, roots: Sequence[Path]) -> list[Path]:
    return local_files(path, roots or (Path.cwd(),), READERS[source.reader].suffixes)


def local_source_files(source: DataSource, roots: Sequence[Path] = (), digest: Digest = file_digest) -> list[Path]:
    """The files of a source that lie here, each of the same bytes once.

    Raises:
        SpecError: when a path is missing.
    """
    files = [f for p in source.paths if not is_remote(p) for f in _local(source, p, roots)]
    # By digest, as the identity has it: renaming a file must not move its rows.
    return list(dict(sorted((digest(f), f) for f in files)).values())


def files_here(source: DataSource, roots: Sequence[Path] = ()) -> list[Path] | None:
    """The files of a source, where all can be read without a network: they lie here, or in a mirror; else None.

    Raises:
        SpecError: when a path is missing.
        PrerequisiteError: when the mirror's file is not what is wanted.
    """
    remotes = [hub_file(p, source.revision, source.moving) for p in source.paths if is_remote(p)]
    copies = [path for remote in remotes if (path := mirrored(remote)) is not None]
    return local_source_files(source, roots) + copies if len(copies) == len(remotes) else None


def _files(source: DataSource, roots: Sequence[Path]) -> list[Path]:
    return local_source_files(source, roots) + [path for _, path in _hub_files(source)]


def _hub_files(source: DataSource) -> list[tuple[str, Path]]:
    remotes = [hub_file(p, source.revision, source.moving) for p in source.paths if is_remote(p)]
    return [(remote.path, hub_path(remote)) for remote in remotes]
