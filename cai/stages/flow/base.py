"""Rows flow: a row's next call goes out when its last is answered, whatever the other rows do.

A stage writes what becomes of one row as a generator: it yields the calls that it needs now, is sent their results,
and returns the row's ``Entry``. So a stage knows nothing of servers, and here nothing is known of stages. Two ways lead
to the model. A client with a pool gets calls one by one, as many at once as keep its servers full; every row is on its
own. Any other client answers lists, and what is asked together may decide the last digits: rows go in fixed cohorts
that keep step with each other, one cohort after the other or, where several servers wait, side by side.

Nothing counts before it is in the journal: results are gathered while the disk writes, appended in one go, and only
then do the rows go on. What is found there, or in the request cache, is not asked. The entries come out in the order of
the input, so the bytes of the result depend neither on the order of arrival nor on interruptions.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from cai.clients.base import Call, Client, Pool, Result, Unanswered
from cai.clients.calls import as_result_of, call_key, from_plain, to_plain
from cai.clients.metering import FlowMeter, MeteredFlow
from cai.data.journal import Journal, Record
from cai.data.rows import Row
from cai.errors import Incomplete, StepFailed
from cai.figures.usage import UsageTally
from cai.stages.base import Context
from cai.stages.flow.entries import Entry, StoredEntry, stored_entry
from cai.stages.flow.input_rows import Numbered, RowSource

if TYPE_CHECKING:
    from cai.clients.cache import RequestCache

R = TypeVar("R", bound=Row)

Turn = Generator[Sequence[Call], Sequence[Any], Entry]
Work = Callable[[R], Turn]
"""What becomes of one row: yields calls, is sent their results in the same order, returns the entry. It must do the
same again when it is sent the same: what was answered before an interruption is replayed to it."""

JOURNAL = "journal"
"""The journal's name of the rows that a stage makes its artifact of."""
_SURE = 5.0
"""Standard deviations that the share of dropped rows must lie above ``max_drop_rate`` for a stage to be given up."""
_ENOUGH = 200
"""Rows before that."""


class ShardDone(Exception):
    """All rows of this shard have their entries; the artifact is made by whoever puts the parts together.

    ``flow`` is the one that did them.
    """

    def __init__(self, flow: Flow[Any]) -> None:
        super().__init__()
        self.flow = flow


@dataclass(frozen=True, slots=True)
class Shared:
    """Several flows through one client that the caller opens and closes; whether each tells how many rows to expect."""

    opened: Callable[[], Client]
    announce: bool = True


@dataclass(eq=False)
class Chain:
    """One row on its way."""

    number: int
    id: str
    turn: Turn
    calls: Sequence[Call] = ()
    results: list[Result | None] = field(default_factory=list)
    turns: int = 0
    missing: int = 0
    unwritten: list[int] = field(default_factory=list)
    replay: dict[tuple[int, int], tuple[str, dict[str, Any]]] = field(default_factory=dict)
    entry: Entry | None = None
    lost: str = ""


class Flow(Generic[R]):
    """The rows of one stage on their way through one model; ``drive`` does what is left, ``entries`` reads the result.

    Used in a ``with`` block, at whose end the journal is closed.

    ``size`` is the number of rows in a cohort, for clients that answer lists. Nothing is opened, and no model served,
    before something is left to ask.
    """

    def __init__(
        self,
        ctx: Context,
        role: str,
        source: RowSource[R],
        work: Work[R],
        *,
        size: int,
        max_drop_rate: float = 1.0,
        tokens: int = 0,
        name: str = JOURNAL,
        label: str = "",
        shared: Shared | None = None,
    ) -> None:
        self.ctx = ctx
        self.role = role
        self.source = source
        self.work = work
        self.size = size
        self.label = label
        self.max_drop_rate = max_drop_rate
        self.tokens = tokens
        self._shared = shared
        self._beside = name != JOURNAL  # rows beside those that the stage makes its artifact of
        self.total = len(source)
        ctx.work.mkdir(parents=True, exist_ok=True)
        shard = ctx.shard
        own = ctx.work / (f"{name}.jsonl" if shard is None else f"{name}.{shard.index}-of-{shard.count}.jsonl")
        self.journal = Journal(own, sorted(self._others(ctx.work, name)), look=shard is not None)
        for damage in self.journal.damaged:
            ctx.progress.note("journal.damaged", reason=damage)
        self.scope = ctx.scope(role, label)
        self._former_scopes = ctx.former_scopes(role, label)
        self.meter: FlowMeter | None = None
        if ctx.meter is not None:
            place = f"{role}.{label}" if label else role
            self.meter = ctx.meter.flow(MeteredFlow(ctx.name, place, name, source.path), self.total)
        self.cache: RequestCache | None = None
        self.tally = UsageTally()
        self.unanswered: Counter[str] = Counter()
        self._stack = ExitStack()
        self._client: Client | None = None

    def __enter__(self) -> Flow[R]:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()
        self.journal.close()

    # ---- what a stage sees -------------------------------------------------------------------------------------------

    def begin(self) -> Iterator[Numbered[R]]:
        """Say how much there is to do, and what of it is done; the rows that are left."""
        before = len(self.journal)
        if self._shared is None or self._shared.announce:
            self.ctx.progress.expect(rows=self.total, tokens=self.tokens or None)
        self.ctx.progress.advance(rows=before)
        self.tally.rows_done_before += before
        return self.source.missing(self.has_entry, self._mine if self.ctx.shard is not None else None)

    def close_client(self) -> None:
        """Give back what was opened to ask."""
        self._stack.close()

    def end(self) -> None:
        """All that can be asked has been.

        Raises:
            ShardDone, Incomplete: as ``cai.stages.flow.drive.drive``.
        """
        if self.unanswered:
            raise Incomplete(self._unanswered())
        if self.ctx.shard is not None and not self._beside:
            raise ShardDone(self)

    def entries(self) -> Iterator[StoredEntry]:
        """Every row's entry, in the order of the input."""
        for number in range(self.total):
            if number not in self.journal:
                raise StepFailed(f"{self.ctx.name}: row {number} of {self.source.path} has no entry")
            yield stored_entry(self.journal[number])

    # ---- what the two ways share -------------------------------------------------------------------------------------

    def has_entry(self, number: int) -> bool:
        """Whether a row has its entry."""
        return number in self.journal

    def client(self) -> Client:
        """The model, served from the first time it is needed."""
        if self._client is None and self._shared is not None:
            self._client = self._shared.opened()
        if self._client is None:
            self._client = self._stack.enter_context(self.ctx.client(self.role, self.label))
        return self._client

    def open_cache(self, others_only: bool) -> RequestCache | None:
        """The request cache, where there is one."""
        if self.cache is None and self.ctx.cache is not None:
            from cai.clients.cache import RequestCache

            self.cache = RequestCache(self.ctx.cache / f"{self.scope[:32]}.sqlite", self.ctx.key[:16], others_only)
            self._stack.callback(self.cache.close)
        return self.cache

    def open_former_caches(self) -> list[tuple[str, RequestCache]]:
        """The request caches that hold what was asked under former scopes, with these scopes."""
        caches = []
        for scope in self._former_scopes if self.ctx.cache is not None else ():
            from cai.clients.cache import RequestCache

            assert self.ctx.cache is not None
            path = self.ctx.cache / f"{scope[:32]}.sqlite"
            if path.exists():
                caches.append((scope, RequestCache(path, self.ctx.key[:16])))
                self._stack.callback(caches[-1][1].close)
        return caches

    def on_exit(self, pool: Pool) -> None:
        """Close a pool when the flow ends, before its client."""
        self._stack.callback(pool.close)

    def start(self, row: Numbered[R]) -> Chain:
        """A row's first calls; answers that an earlier process got are in place already."""
        if row.row is None:
            chain = Chain(row.number, row.id, _nothing())
            chain.entry = Entry(row.id, dropped={row.reason: 1})
            return chain
        chain = Chain(row.number, row.id, self.work(row.row))
        for call in self.journal.calls(row.number):
            chain.replay[call["turn"], call["i"]] = (call["asked"], call["result"])
        self._step(chain, None)
        return chain

    def take(self, chain: Chain, i: int, result: Result) -> None:
        """The result of call ``i`` of a row; when it was the last one missing, the row goes on to its next calls.

        Only in memory: ``commit`` makes it count.
        """
        chain.results[i] = as_result_of(chain.calls[i], result)
        chain.missing -= 1
        chain.unwritten.append(i)

    def advance(self, chain: Chain, records: list[Record]) -> bool:
        """Go on with a row that has all its results; gathers what is to be written. False when it still waits."""
        if chain.missing:
            records += self._calls(chain, chain.turns, chain.calls, chain.results)
            return False
        before = chain.turns, chain.calls, chain.results
        self._step(chain, chain.results)
        # The entry holds all that came of the last calls.
        records += [self.record(chain)] if chain.entry is not None else self._calls(chain, *before)
        return True

    def _step(self, chain: Chain, results: Sequence[Any] | None) -> None:
        while True:
            try:
                chain.calls = next(chain.turn) if results is None else chain.turn.send(results)
            except StopIteration as stopped:
                chain.entry = stopped.value
                chain.calls = ()
                return
            chain.turns += 1
            chain.results = [None] * len(chain.calls)
            for i, call in enumerate(chain.calls):
                journal_key, plain = chain.replay.get((chain.turns, i), ("", {}))
                # Another version of the program may ask otherwise: then the answer is to another question.
                if journal_key and journal_key in self._journal_keys(call):
                    chain.results[i] = from_plain(call, plain)
            chain.missing = sum(result is None for result in chain.results)
            if chain.missing:
                return
            results = chain.results

    def _journal_keys(self, call: Call) -> list[str]:
        """What the journal has a call under: its key, and those that it had before."""
        return [call_key(scope, call).hex() for scope in (self.scope, *self._former_scopes)]

    def _calls(self, chain: Chain, turn: int, calls: Sequence[Call], results: Sequence[Result | None]) -> list[Record]:
        """Records of a turn's calls that were answered since the last commit."""
        records = []
        for i in chain.unwritten:
            result = results[i]
            assert result is not None
            key = call_key(self.scope, calls[i]).hex()
            value = {"turn": turn, "i": i, "asked": key, "result": to_plain(result)}
            records.append(Record(chain.number, value, call=True))
        chain.unwritten = []
        return records

    def record(self, chain: Chain) -> Record:
        """The record of a row that has its entry."""
        entry = chain.entry
        assert entry is not None
        chain.unwritten = []
        return Record(chain.number, entry.plain(), out=len(entry.rows), dropped=sum(entry.dropped.values()))

    def commit(self, records: list[Record], finished: Sequence[Chain]) -> None:
        """Make everything durable, then tell how far we are and whether it is worth going on."""
        self.journal.append(records)
        if finished:
            tokens = sum(chain.entry.tokens for chain in finished if chain.entry is not None)
            self.ctx.progress.advance(rows=len(finished), tokens=tokens)
            self.check_drops()

    def lose(self, chain: Chain, lost: Unanswered) -> None:
        """A row that gets no answer now is left as it is: the next run goes on with it."""
        if not chain.lost:
            chain.lost = lost.why
            chain.turn.close()
            self.unanswered[lost.why] += 1
            if sum(self.unanswered.values()) > max(_ENOUGH, self.max_drop_rate * self.total):
                raise Incomplete(self._unanswered())

    def _others(self, work: Path, name: str) -> Iterator[Path]:
        """What other processes did of this step: all shards' where it is put together; for a shard, what was done
        under another division of the rows."""
        shard = self.ctx.shard
        for path in work.glob(f"{name}.*-of-*.jsonl"):
            if shard is None or not path.name.endswith(f"-of-{shard.count}.jsonl"):
                yield path
        if shard is not None and (work / f"{name}.jsonl").is_file():
            yield work / f"{name}.jsonl"

    def _mine(self, number: int) -> bool:
        shard = self.ctx.shard
        return shard is None or number // self.size % shard.count == shard.index

    def check_drops(self) -> None:
        """Fail as soon as ``max_drop_rate`` cannot be kept, or is passed so clearly that it will not be.

        Raises:
            StepFailed: with how many rows were dropped so far.
        """
        dropped = self.journal.dropped
        if self.max_drop_rate >= 1 or not dropped:
            return
        rows_in, input_rows = dropped + self.journal.out, len(self.journal)
        # One row may turn into several; what is still to come is taken to be like what has come.
        expected = self.total * max(rows_in / max(input_rows, 1), 1.0)
        certain = dropped > self.max_drop_rate * expected and self.ctx.shard is None
        deviation = math.sqrt(max(self.max_drop_rate * (1 - self.max_drop_rate), 1e-4) / rows_in)
        if certain or (rows_in >= _ENOUGH and dropped / rows_in > self.max_drop_rate + _SURE * deviation):
            raise StepFailed(
                f"dropped {dropped} of the first {rows_in} rows ({dropped / rows_in:.1%}), more than "
                f"max_drop_rate {self.max_drop_rate:.1%} allows: {self._reasons()}; mend what they say, or raise "
                "max_drop_rate and go on"
            )

    def _reasons(self) -> str:
        counts_by_reason: Counter[str] = Counter()
        for number in self.journal:
            counts_by_reason.update(stored_entry(self.journal[number]).dropped)
        return ", ".join(f"{reason} {count}" for reason, count in counts_by_reason.most_common(8))

    def _unanswered(self) -> str:
        reasons = ", ".join(f"{why} ({count})" for why, count in self.unanswered.most_common(8))
        return (
            f"{self.ctx.name}: {sum(self.unanswered.values())} rows got no answer: {reasons}; everything else is kept, "
            "and the same command asks only these again"
        )


def _nothing() -> Turn:
    return Entry("")
    yield ()
