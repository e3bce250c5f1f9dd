"""Read: one part of a data source, as rows in the store; what could not be used is in the ledger by reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from cai.data.public import published_rows
from cai.data.readers.shape import FILTERED
from cai.data.rows import write_rows
from cai.data.source import DataSource, hub_digests, part_makes, part_rows, source_identity
from cai.errors import Problem, SpecError
from cai.files.library import Library
from cai.identity import canonical
from cai.stages.base import Context, Ledger, Outcome, StageSpec
from cai.stages.flow.entries import ROWS


class ReadSpec(StageSpec):
    """The part ``part`` of a data source; ``identity`` is what the source was when the plan was made."""

    VERSION: ClassVar[int] = 2
    kind: Literal["read"] = "read"
    source: DataSource
    part: str
    identity: Mapping[str, Any] = Field(default_factory=dict)

    def makes(self, inputs: Mapping[str, str]) -> str:
        """What the source's format holds."""
        return part_makes(self.source)


def run(spec: ReadSpec, ctx: Context) -> Outcome:
    """Write the part's rows to ``rows.jsonl``, streamed.

    Raises:
        SpecError: when the files are no longer those that the plan was made for.
    """
    roots = (Path.cwd(), *Library.here().roots)
    if spec.identity and canonical(source_identity(spec.source, roots)) != canonical(spec.identity):
        message = "the data has changed since the plan was made"
        raise SpecError(Problem(", ".join(spec.source.paths), message, "make the plan again"))
    tally: Counter[str] = Counter()
    rows = write_rows(ctx.out / ROWS, part_rows(spec.source, spec.part, tally, roots))
    ctx.progress.expect(rows=rows)
    ctx.progress.advance(rows=rows)
    dropped = {reason: n for reason, n in sorted(tally.items()) if n}
    odd = {reason: n for reason, n in dropped.items() if reason not in ("other_part", "over_limit")}
    if rows == 0 and odd:
        drop_reasons = ", ".join(f"{reason} {n}" for reason, n in odd.items())
        where, message = ", ".join(spec.source.paths), f"no record makes a row ({drop_reasons})"
        raise SpecError(Problem(where, message, f"is '{spec.source.reader}' the right reader?"))
    # A hub file is known by its commit; its bytes are told too, so that a mirror can be compared with the hub.
    digests = hub_digests(spec.source)
    ledger = Ledger(rows + sum(dropped.values()), rows, dropped, {spec.part: rows})
    metrics: dict[str, Any] = {"sha256": digests} if digests else {}
    return Outcome(ledger, {**metrics, **_against_published(spec, ledger)})


def _against_published(spec: ReadSpec, ledger: Ledger) -> dict[str, Any]:
    """The rows that an evaluation set was published with beside those that were read, where they differ.

    Raises:
        SpecError: where the published number was checked, so that it is the file which is another.
    """
    published = published_rows(spec.source.paths)
    read_rows = ledger.rows_in - ledger.dropped.get(FILTERED, 0)
    if published is None or published[0] == read_rows:
        return {}
    expected, checked = published
    if checked:
        message = f"holds {read_rows:,} rows, but was published with {expected:,}"
        raise SpecError(Problem(", ".join(spec.source.paths), message, "fetch the file again, or give its own path"))
    return {"published rows": {"published": expected, "read": read_rows}}
