"""Whether the parts of a source got about the rows that their shares say, and what to write where they did not.

Each prompt falls into a part by a hash of its own, so of few rows a part may get far fewer than its share, or none. The
rows stay where they fall; another ``split_seed`` deals them anew, and one that deals them well is looked for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from cai.data.rows import Row
from cai.data.source import DataSource
from cai.data.splits import prompt_key
from cai.identity import unit

FAR_FEWER = 0.5
"""A part with less than this of its share of the rows is told."""
SEEDS, MOST_DRAWS = 100, 20_000
"""Seeds that are tried, and draws that are made for it."""
GOOD = 0.15
"""How far, relative to its share, each part may be off with a seed that is proposed; one row is always near enough."""


def share_notes(source: DataSource, rows: Sequence[Row], counts: Mapping[str, int]) -> dict[str, tuple[str, ...]]:
    """What to know of the parts that got far fewer rows than their shares, or none; ``counts`` are exact."""
    total, shares = sum(counts.values()), sum(source.splits.values())
    if len(counts) < 2 or not total:
        return {}
    expected = {part: total * share / shares for part, share in source.splits.items()}
    poor = [part for part, n in counts.items() if n == 0 or (n < FAR_FEWER * expected[part] and expected[part] >= 1)]
    if not poor:
        return {}
    every = ", ".join(f"{part} {n:,}" for part, n in counts.items())
    hint = _what_to_write(source, rows)
    return {
        part: (
            f"gets {counts[part] or 'none'} of {total:,} rows where its share is {expected[part]:.3g} "
            f"(all parts: {every}); {hint}",
        )
        for part in poor
    }


def _what_to_write(source: DataSource, rows: Sequence[Row]) -> str:
    if source.split_by == "topic":
        return "topics are dealt out whole, and differ in size: use other shares, or `split_by: prompt`"
    reason = "each prompt falls into a part by its hash"
    seed = balancing_seed(source, rows)
    if seed is not None:
        return f"{reason}: `split_seed: {seed}` deals them out by their shares, or use other shares"
    if len({row.topic for row in rows if row.topic}) >= 2 * len(source.splits):
        return f"{reason}: use `split_by: topic`, or other shares"
    return f"{reason}: use other shares, or more rows"


def balancing_seed(source: DataSource, rows: Sequence[Row]) -> int | None:
    """The first ``split_seed`` with which every part gets about its share; None where none of those tried does.

    Where a ``limit`` draws the rows by the same seed, none is looked for.
    """
    sizes = Counter(prompt_key(row) for row in rows)
    if source.limit is not None or not sizes:
        return None
    total, shares = len(rows), sum(source.splits.values())
    for seed in range(min(SEEDS, MOST_DRAWS // len(sizes))):
        counts = Counter[str]()
        for prompt, n in sizes.items():
            counts[unit(seed, prompt, "split.prompt", source.splits)] += n
        expected = {part: total * share / shares for part, share in source.splits.items()}
        if all(counts[part] and abs(counts[part] - n) <= max(1.0, GOOD * n) for part, n in expected.items()):
            return seed
    return None
