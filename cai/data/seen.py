"""Seen: which texts have come by already, in 12 to 24 bytes each whatever their length.

A set of Python strings takes about 110 bytes a row. Here a text is its 64-bit BLAKE2b digest in one flat table. Two
different texts with one digest would be taken for the same (a false hit: a row counted as a duplicate that is none).
The chance that a data set has even one is about n * n / 2**65: 3 in 100 million at a million rows, 3 in 10,000 at a
hundred million. The digest has no random part, so every run of the same rows answers the same. Written by hand because
the standard library has no compact set, and a Bloom filter of this certainty is no smaller.
"""

from __future__ import annotations

from array import array
from hashlib import blake2b

_SMALLEST = 10  # as a power of two


class Seen:
    """A set of texts that can only grow. Memory: a table at most two thirds full; three times a half while it doubles.

    Open addressing with linear probing; 0 marks a free place, so the digest 0 is kept as 1.
    """

    def __init__(self) -> None:
        self._bits = _SMALLEST
        self._table = _free(self._bits)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, text: str) -> bool:
        digest = _digest(text)
        return self._table[self._place(digest)] == digest

    def add(self, text: str) -> bool:
        """Note a text; True when it is new. Lone surrogates count like any other character."""
        digest = _digest(text)
        place = self._place(digest)
        if self._table[place] == digest:
            return False
        self._table[place] = digest
        self._count += 1
        if self._count * 3 > len(self._table) * 2:
            self._double()
        return True

    def _place(self, digest: int) -> int:
        """Where the digest is, or the free place that it would take."""
        table, last = self._table, len(self._table) - 1
        # The leading digits choose, so that doubling walks both tables from left to right and not all over memory.
        slot = digest >> (64 - self._bits)
        while (stored := table[slot]) and stored != digest:
            slot = (slot + 1) & last
        return slot

    def _double(self) -> None:
        old = self._table
        self._bits += 1
        self._table = table = _free(self._bits)
        shift, last = 64 - self._bits, (1 << self._bits) - 1
        for digest in old:
            if digest:
                slot = digest >> shift
                while table[slot]:
                    slot = (slot + 1) & last
                table[slot] = digest


def _free(bits: int) -> array[int]:
    return array("Q", bytes(8)) * (1 << bits)


def _digest(text: str) -> int:
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little") or 1
