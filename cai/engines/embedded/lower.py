"""States that enter the lowest trained layer, computed once for each example and kept while training goes over them.

They are computed in groups that depend on the examples alone, never on the batch that asks first, so that a resumed
run sees the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cai.engines.embedded.batches import Branches, Packed, by_length, pack
from cai.engines.embedded.trunk import Trunk

# Bytes of states kept at most; beyond, they are computed again each time.
BUDGET = 1 << 30
_GROUP = 8


class LowerStates:
    """``trunk.below`` for chosen examples, remembered where that pays: frozen layers below, and several passes."""

    def __init__(self, trunk: Trunk, examples: Sequence[Branches], passes: float, budget: int = BUDGET) -> None:
        self._trunk = trunk
        self._examples = examples
        size = 4 * trunk.hidden * sum(e.tokens for e in examples)
        self.keeps = passes > 1 and not trunk.all_trained and trunk.first_trained > 0 and size <= budget
        self._states: dict[int, Tensor] = {}
        groups = by_length(range(len(examples)), _GROUP, lambda i: examples[i].longest) if self.keeps else []
        self._group_of = {i: group for group in groups for i in group}

    def __call__(self, indices: Sequence[int], batch: Packed) -> Tensor:
        """States [N, hidden] of the examples of a micro-batch, in its order."""
        if not self.keeps:
            return self._trunk.below(batch)
        for i in indices:
            if i not in self._states:
                self._compute(self._group_of[i])
        return torch.cat([self._states[i] for i in indices])

    def _compute(self, group: list[int]) -> None:
        packed = pack([self._examples[i] for i in group], self._trunk.device)
        parts = self._trunk.below(packed).split([self._examples[i].tokens for i in group])
        self._states |= {i: part.clone() for i, part in zip(group, parts, strict=True)}
