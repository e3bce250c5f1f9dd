"""Micro-batches without padding: tokens of all examples stand in one line, only attention sees rows.

Lengths decide everything and token ids nothing, because a model's padding token may be its end token. An example may
branch: a prompt with two answers holds the prompt once, and both rows of the attention grid point at it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from cai.identity import counted

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Branches:
    """Token ids: a shared beginning (may be empty) and what follows it, once or several times."""

    shared: tuple[int, ...]
    ends: tuple[tuple[int, ...], ...]

    @property
    def tokens(self) -> int:
        """Tokens to compute."""
        return len(self.shared) + sum(map(len, self.ends))

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return len(self.shared) + max(map(len, self.ends))


@dataclass(frozen=True, slots=True)
class Packed:
    """One micro-batch. N tokens in line, B rows of at most L tokens in the attention grid.

    ids_N, positions_N: the tokens and where each stands in its row. grid_BL: which token stands where (0 where there
    is none: causal attention never looks right, so it is never seen). read_N: each token's place in the flat grid.
    starts_B: the line index of the first token of the row's own part. last_B: of the row's last token.
    """

    ids_N: Tensor  # noqa: N815 - axes are part of the name
    positions_N: Tensor  # noqa: N815
    grid_BL: Tensor  # noqa: N815
    read_N: Tensor  # noqa: N815
    starts_B: Tensor  # noqa: N815
    last_B: Tensor  # noqa: N815

    @property
    def tokens(self) -> int:
        """Tokens in line."""
        return int(self.ids_N.shape[0])


def pack(examples: Sequence[Branches], device: str | torch.device = "cpu") -> Packed:
    """Lay examples out; rows stand in the order of the examples and of their ends."""
    ids: list[int] = []
    positions: list[int] = []
    rows: list[list[int]] = []
    starts: list[int] = []
    for example in examples:
        shared = list(range(len(ids), len(ids) + len(example.shared)))
        ids += example.shared
        positions += range(len(example.shared))
        for end in example.ends:
            starts.append(len(ids))
            rows.append(shared + list(range(len(ids), len(ids) + len(end))))
            ids += end
            positions += range(len(example.shared), len(example.shared) + len(end))
    width = max(map(len, rows))
    grid_index = [0] * len(ids)
    # Written backwards so that a shared token is read from its first row.
    for b in range(len(rows) - 1, -1, -1):
        for column, token in enumerate(rows[b]):
            grid_index[token] = b * width + column
    grid = [row + [0] * (width - len(row)) for row in rows]
    lasts = [row[-1] for row in rows]
    return Packed(
        *(torch.tensor(x, dtype=torch.long, device=device) for x in (ids, positions, grid, grid_index, starts, lasts))
    )


def epoch_order(ids: Sequence[str], seed: int, purpose: str) -> list[int]:
    """The indices of ``ids`` in an order that each id's own number decides."""
    return sorted(range(len(ids)), key=lambda i: (counted(seed, ids[i], purpose), ids[i], i))


def by_length(indices: Sequence[int], size: int, length: Callable[[int], int]) -> list[list[int]]:
    """Cut indices into micro-batches of at most ``size`` of similar length, the longest first (memory peaks early)."""
    ordered = sorted(indices, key=lambda i: (-length(i), i))
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


def batches_of(ids: Sequence[str], batch_size: int, epochs: float, seed: int) -> list[list[int]]:
    """The examples of each optimizer step. An epoch's last batch may be small, none is dropped; at least one step."""
    per_epoch = -(-len(ids) // batch_size)
    steps = max(1, round(per_epoch * epochs))
    batches: list[list[int]] = []
    while len(batches) < steps:
        order = epoch_order(ids, seed, f"epoch {len(batches) // per_epoch}")
        batches += [order[start : start + batch_size] for start in range(0, len(ids), batch_size)]
    return batches[:steps]
