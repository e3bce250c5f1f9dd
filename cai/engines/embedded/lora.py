"""Linear layers for training: projections that read the same input are one matrix, adapters ride along in it.

A group holds W for q, k and v (or gate and up) stacked by rows, cast once to the compute type. Low-rank adapters
(arXiv 2106.09685) add columns: [W | sB] times [x, xA'] gives Wx + sBAx in one product, and its transpose gives both
halves of the gradient. Master values of what is trained stay float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from cai.engines.embedded.functions import without_gradient
from cai.engines.methods.base import Lora
from cai.identity import sampling_seed


@dataclass
class Adapter:
    """A [r, in] and B [out, r] of one projection, float32; B starts at zero, so training starts at the model."""

    name: str
    rows: slice
    a: Tensor
    b: Tensor


class Group:
    """Projections of one input: ``weight`` [out, in] in the compute type, adapters beside it.

    With ``train_all`` the group keeps a float32 master instead and learns the whole matrix.
    """

    def __init__(self, names: tuple[str, ...], weights: list[Tensor], biases: list[Tensor] | None, dtype: torch.dtype):
        self.names = names
        self.sizes = [w.shape[0] for w in weights]
        stacked = torch.cat(weights) if len(weights) > 1 else weights[0]
        self.inputs = stacked.shape[1]
        self.wide = stacked.to(dtype).contiguous()
        self.bias = None if biases is None else torch.cat(biases).to(dtype)
        self.bias_master: Tensor | None = None
        self.adapters: list[Adapter] = []
        self.scale = 1.0
        self.dropout = 0.0
        self.down = self.wide.new_empty((0, self.inputs))
        self.master: Tensor | None = None

    @property
    def weight(self) -> Tensor:
        """The frozen part of the matrix, [out, in]."""
        return self.wide[:, : self.inputs]

    def adapt(self, lora: Lora, seed: int) -> None:
        """Add an adapter for every projection that ``lora.targets`` names."""
        start, total = 0, 0
        for name, size in zip(self.names, self.sizes, strict=True):
            rows, start = slice(start, start + size), start + size
            if name.rsplit(".", 1)[-1] not in lora.targets:
                continue
            generator = torch.Generator().manual_seed(sampling_seed(seed, name, "lora"))
            bound = self.inputs**-0.5
            a = (torch.rand((lora.rank, self.inputs), generator=generator) * 2 - 1) * bound
            device = self.wide.device
            b = torch.zeros((size, lora.rank), device=device, requires_grad=True)
            self.adapters.append(Adapter(name, rows, a.to(device).requires_grad_(), b))
            total += lora.rank
        self.scale = lora.alpha / lora.rank
        self.dropout = lora.dropout
        if total:
            self.wide = torch.cat((self.wide, self.wide.new_zeros((self.wide.shape[0], total))), dim=1)
        self.refresh()

    def train_all(self, weights: list[Tensor], biases: list[Tensor] | None) -> None:
        """Learn the whole matrix, and what is added to its product where there is such: these are float32 values."""
        self.master = torch.cat(weights).to(self.wide.device, torch.float32).requires_grad_()
        if biases is not None:
            self.bias_master = torch.cat(biases).to(self.wide.device, torch.float32).requires_grad_()

    @without_gradient
    def refresh(self) -> None:
        """Bring the compute copies up to date with the trained values; after every optimizer step."""
        if self.master is not None:
            self.wide.copy_(self.master)
        if self.bias is not None and self.bias_master is not None:
            self.bias.copy_(self.bias_master)
        if self.adapters:
            self.down = torch.cat([x.a for x in self.adapters]).to(self.wide.dtype)
            column = self.inputs
            for adapter in self.adapters:
                rank = adapter.a.shape[0]
                self.wide[adapter.rows, column : column + rank] = (self.scale * adapter.b).to(self.wide.dtype)
                column += rank

    def parameters(self) -> dict[str, Tensor]:
        """What is trained, by name."""
        if self.master is not None:
            whole = {"|".join(self.names): self.master}
            return whole if self.bias_master is None else {**whole, "|".join(self.names) + ".bias": self.bias_master}
        return {f"{x.name}.{part}": getattr(x, part) for x in self.adapters for part in ("a", "b")}

    def merged(self, name: str, base: Tensor) -> Tensor:
        """The float32 weight of one projection with what was learnt; ``base`` is the weight it started from."""
        if self.master is not None:
            return self.master.detach()[self._rows(name)].to(base.device)
        for adapter in self.adapters:
            if adapter.name == name:
                delta = self.scale * (adapter.b.detach() @ adapter.a.detach())
                return base.float() + delta.to(base.device)
        return base

    def learnt_bias(self, name: str, base: Tensor) -> Tensor:
        """The float32 bias of one projection; ``base``, from which it started, where it is not trained."""
        return base if self.bias_master is None else self.bias_master.detach()[self._rows(name)].to(base.device)

    def _rows(self, name: str) -> slice:
        index = self.names.index(name)
        start = sum(self.sizes[:index])
        return slice(start, start + self.sizes[index])

    def __call__(self, x: Tensor, adapted: bool = True, generator: torch.Generator | None = None) -> Tensor:
        """[tokens, in] -> [tokens, out]; ``adapted`` False is the starting model, ``generator`` draws the dropout."""
        if self.master is not None:
            masters = [self.master] if self.bias_master is None else [self.master, self.bias_master]
            return _FullLinear.apply(x, self, *masters) if torch.is_grad_enabled() else self._plain(x)
        if not self.adapters:
            return self._plain(x)
        if not adapted:
            # The product is the adapted one's with nothing in the adapters' columns: before the first update, when B is
            # zero, the policy and its reference agree to the bit.
            nothing = x.new_zeros((x.shape[0], self.wide.shape[1] - self.inputs))
            return functional.linear(torch.cat((x, nothing), dim=1), self.wide, self.bias)
        mask = None
        if self.dropout and generator is not None:
            keep = torch.rand(x.shape, generator=generator, device=x.device) >= self.dropout
            mask = keep.to(x.dtype) / (1 - self.dropout)
        if not torch.is_grad_enabled():
            return _wide_product(x, x if mask is None else x * mask, self)[0]
        parameters = [p for adapter in self.adapters for p in (adapter.a, adapter.b)]
        return _AdaptedLinear.apply(x, mask, self, *parameters)

    def _plain(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight, self.bias)


def _wide_product(x: Tensor, dropped: Tensor, group: Group) -> tuple[Tensor, Tensor]:
    low = dropped @ group.down.t()
    return functional.linear(torch.cat((x, low), dim=1), group.wide, group.bias), low


class _AdaptedLinear(torch.autograd.Function):  # type: ignore[misc]
    """Frozen matrix plus adapters: two large products in all, the rest is of rank ``r``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Tensor | None, group: Group, *parameters: Tensor) -> Tensor:
        y, low = _wide_product(x, x if mask is None else x * mask, group)
        ctx.save_for_backward(x, low, mask)
        ctx.group = group
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        x, low, mask = ctx.saved_tensors
        group: Group = ctx.group
        if ctx.needs_input_grad[0]:
            wide = dy @ group.wide
            dlow = wide[:, group.inputs :]
            if mask is None:
                dx = torch.addmm(wide[:, : group.inputs], dlow, group.down)
            else:
                dx = wide[:, : group.inputs] + (dlow @ group.down) * mask
        else:
            dx, dlow = None, dy @ group.wide[:, group.inputs :]
        da = (dlow.t() @ (x if mask is None else x * mask)).float()
        grads: list[Tensor] = []
        column = 0
        for adapter in group.adapters:
            rank = adapter.a.shape[0]
            db = dy[:, adapter.rows].t() @ low[:, column : column + rank]
            grads += [da[column : column + rank], db.float().mul_(group.scale)]
            column += rank
        return (dx, None, None, *grads)


class _FullLinear(torch.autograd.Function):  # type: ignore[misc]
    """The whole matrix is trained: products in the compute type, gradients of the masters in float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group, *masters: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        ctx.group = group
        ctx.biased = len(masters) > 1
        return functional.linear(x, group.wide, group.bias)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        (x,) = ctx.saved_tensors
        dx = dy @ ctx.group.wide if ctx.needs_input_grad[0] else None
        dweight = (dy.t() @ x).float()
        return (dx, None, dweight, dy.float().sum(0)) if ctx.biased else (dx, None, dweight)
