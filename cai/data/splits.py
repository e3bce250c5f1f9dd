"""Splits: which part of a data source a row belongs to, decided by hashes, so that no row's part depends on another's.

Rows of one topic, or of one opening question, are never on both sides. Topics are dealt out exactly (largest
remainder), questions one by one with the parts' probabilities.
"""

from __future__ import annotations

from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping

from cai.data.rows import Row
from cai.errors import Problem, SpecError
from cai.identity import counted, unit

OTHER_PART = "other_part"
"""Reason in the ledger: the row belongs to another part of the source."""
OVER_LIMIT = "over_limit"
"""Reason in the ledger: the source's ``limit`` left the row out."""

_HIGHEST = 2**64 - 1
_SPARE = 65_536


def topic_parts(topics: Iterable[str], splits: Mapping[str, float], seed: int = 0) -> dict[str, str]:
    """Topic -> part. Counts follow the shares by largest remainder: 12 topics by .5/.25/.25 give 6, 3 and 3.

    Raises:
        SpecError: when a part would get no topic.
    """
    names, total = sorted(set(topics)), sum(splits.values())
    quotas = {part: share / total * len(names) for part, share in splits.items()}
    # 0.3 * 10 is 3.0000000000000004 in some orders of arithmetic; what is meant is 3.
    sizes = {part: int(quota + 1e-9) for part, quota in quotas.items()}
    by_remainder = sorted(splits, key=lambda part: sizes[part] - quotas[part])
    for part in by_remainder[: len(names) - sum(sizes.values())]:
        sizes[part] += 1
    empty = [part for part, size in sizes.items() if size == 0]
    if empty:
        listed = ", ".join(names[:8]) or "none"
        message = f"{len(names)} topics ({listed}) are too few: part '{empty[0]}' would get none"
        raise SpecError(Problem("splits", message, "use `split_by: prompt`, or larger shares"))
    order = iter(sorted(names, key=lambda name: (counted(seed, name, "split.topic"), name)))
    return {next(order): part for part, size in sizes.items() for _ in range(size)}


def prompt_key(row: Row) -> str:
    """What a row asks first, without regard to case and spaces.

    The opening question stands for the whole exchange: longer versions of one conversation stay on one side.
    """
    first = next((m.content for m in row.messages if m.role == "user"), "")
    return " ".join(first.casefold().split())


def split_rows(
    rows: Callable[[], Iterator[Row]],
    part: str,
    splits: Mapping[str, float],
    *,
    by: str = "prompt",
    seed: int = 0,
    limit: int | None = None,
    tally: Counter[str] | None = None,
) -> Iterator[Row]:
    """The rows of one part, in their order. ``rows`` is called once, or twice where the whole must be known first.

    ``limit`` keeps the rows with the lowest hashes of the whole source, before it is split. Memory: the topics, and
    16 bytes for each row of ``limit``; nothing for the others.

    Raises:
        SpecError: when a part would get no topic.
    """
    tally = Counter() if tally is None else tally
    topics: dict[str, str] = {}
    last: int | None = None
    by_topic = by == "topic" and len(splits) > 1
    if by_topic or limit is not None:
        all_topics: set[str] = set()
        watched = _watched(rows(), all_topics) if by_topic else rows()
        if limit is None:
            deque(watched, maxlen=0)
        else:
            last = nth_lowest((_draw(seed, row) for row in watched), limit)
        if by_topic:
            topics = topic_parts(all_topics, splits, seed)
    for row in rows():
        if last is not None and _draw(seed, row) > last:
            tally[OVER_LIMIT] += 1
        elif len(splits) > 1 and part != (
            topics[row.topic] if by_topic else unit(seed, prompt_key(row), "split.prompt", splits)
        ):
            tally[OTHER_PART] += 1
        else:
            yield row


def _draw(seed: int, row: Row) -> int:
    return counted(seed, row.id, "limit")


def nth_lowest(numbers: Iterable[int], n: int) -> int:
    """The ``n``-th lowest of 64-bit numbers; the highest that there can be where there are fewer.

    At most 2 n + 65,536 of them are kept at a time, in 8 bytes each, whatever their number.
    """
    bound, lowest = _HIGHEST, array("Q")
    for number in numbers:
        if number <= bound:
            lowest.append(number)
            if len(lowest) > 2 * n + _SPARE:
                bound = _nth(lowest, n)
                lowest = array("Q", (k for k in lowest if k <= bound))
    return _nth(lowest, n)


def _nth(numbers: array[int], n: int) -> int:
    if len(numbers) < n:
        return _HIGHEST
    # Counted by their leading 16 bits, then only one heap is sorted: a list of all would take five times the memory.
    counts = [0] * 65_536
    for number in numbers:
        counts[number >> 48] += 1
    lead = 0
    while n > counts[lead]:
        n -= counts[lead]
        lead += 1
    return sorted(number for number in numbers if number >> 48 == lead)[n - 1]


def _watched(rows: Iterable[Row], topics: set[str]) -> Iterator[Row]:
    for row in rows:
        topics.add(row.topic)
        yield row
