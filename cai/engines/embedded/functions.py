"""The few pointwise operations of a decoder that cost time on a CPU, each with a gradient written out.

Every one saves its inputs only and touches memory as seldom as it can.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.nn import functional

P = ParamSpec("P")
R = TypeVar("R")


def without_gradient(work: Callable[P, R]) -> Callable[P, R]:
    """``torch.no_grad`` as a decorator that keeps the types of what it wraps."""

    @wraps(work)
    def inside(*args: P.args, **kwargs: P.kwargs) -> R:
        with torch.no_grad():
            return work(*args, **kwargs)

    return inside


# Rows of logits in memory at a time: 128 rows of a 49k vocabulary are 25 MB in float32.
_ROWS = 128


@dataclass(frozen=True, slots=True)
class _NormOptions:
    """``eps`` is added to the mean square of a row; ``dtype`` is the type of what comes out."""

    eps: float
    dtype: torch.dtype


class _Norm(torch.autograd.Function):  # type: ignore[misc]
    """Root-mean-square norm (arXiv 1910.07467). One formula, whether its weight is trained or not: a policy that trains
    everything and its frozen reference agree to the bit."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, options: _NormOptions) -> Tensor:
        x32 = x.float()
        mean_square = torch.linalg.vector_norm(x32, dim=-1, keepdim=True).square_().div_(x.shape[-1])
        inverse = mean_square.add_(options.eps).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        return (x32 * inverse).mul_(weight).to(options.dtype)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        x, weight, inverse = ctx.saved_tensors
        x32 = x.float()
        scaled = dy * weight
        inner = torch.linalg.vecdot(scaled, x32).unsqueeze(-1)
        inner.mul_(inverse.square() / x.shape[-1])
        dx = torch.addcmul(scaled, x32, inner, value=-1).mul_(inverse).to(x.dtype)
        if not ctx.needs_input_grad[1]:
            return dx, None, None
        return dx, (dy.float() * x32).mul_(inverse).flatten(0, -2).sum(0), None


def normed(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """x / rms(x) * weight over the last axis, computed in float32, given in ``dtype``."""
    # The same formula with and without gradient: PPO's first ratios are exactly 1 because of it.
    return _Norm.apply(x, weight, _NormOptions(eps, dtype))


class _Rotate(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, x: Tensor, rope: tuple[Tensor, Tensor], heads: int) -> Tensor:
        cos, sin = rope
        ctx.save_for_backward(cos, sin)
        ctx.heads = heads
        return _rotate(x, cos, sin, heads)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        cos, sin = ctx.saved_tensors
        return _rotate(dy, cos, -sin, ctx.heads), None, None


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, heads: int) -> Tensor:
    y = x.clone(memory_format=torch.contiguous_format)
    half = x.shape[-1] // 2
    first_half, second_half = x[:, :heads, :half], x[:, :heads, half:]
    y[:, :heads, :half].mul_(cos).addcmul_(second_half, sin, value=-1)
    y[:, :heads, half:].mul_(cos).addcmul_(first_half, sin)
    return y


def rotated(x: Tensor, cos: Tensor, sin: Tensor, heads: int) -> Tensor:
    """Rotary positions (arXiv 2104.09864) on the first ``heads`` of [N, all heads, head_dim]."""
    return _Rotate.apply(x, (cos, sin), heads)


class _Gated(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, wide: Tensor) -> Tensor:
        ctx.save_for_backward(wide)
        gate, up = wide.chunk(2, dim=-1)
        return functional.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        (wide,) = ctx.saved_tensors
        gate, up = wide.chunk(2, dim=-1)
        d = torch.empty_like(wide)
        half = gate.shape[-1]
        torch.mul(functional.silu(gate), dy, out=d[:, half:])
        d[:, :half] = torch.ops.aten.silu_backward(dy * up, gate)
        return d


def gated(wide: Tensor) -> Tensor:
    """silu(gate) * up of [N, 2 inner], gate first."""
    return _Gated.apply(wide)


@dataclass(frozen=True, slots=True)
class _Readout:
    """What states are read with: the head in the compute type, the tokens looked for, and the temperature."""

    head: Tensor
    targets: Tensor
    temperature: float


class _TokenLogprobs(torch.autograd.Function):  # type: ignore[misc]
    """log p(target) for each state, a block of rows at a time; logits are never kept.

    With a frozen head the gradient for a state is g * (onehot - p) E / T whatever the loss is, so the row vector is
    made in the forward pass, while p is at hand, and the backward pass is one multiplication. ``onehot - p`` is taken
    in float32: where p is near 1, the difference of two rounded vectors would be rounding alone.
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, master: Tensor | None, readout: _Readout) -> Tensor:
        head, targets, temperature = readout.head, readout.targets, readout.temperature
        out = torch.empty(states.shape[0], dtype=torch.float32, device=states.device)
        wants = ctx.needs_input_grad[0] and master is None
        rows = torch.empty_like(states) if wants else None
        for start in range(0, states.shape[0], _ROWS):
            part = slice(start, start + _ROWS)
            logs = _log_softmax(states[part], head, temperature)
            out[part] = logs.gather(1, targets[part, None])[:, 0]
            if rows is not None:
                rows[part] = _towards(logs, targets[part]).div_(temperature).to(head.dtype) @ head
        ctx.temperature = temperature
        ctx.head = head
        if master is None:
            ctx.save_for_backward(rows)
        else:
            ctx.save_for_backward(states, targets)
        ctx.whole = master is not None
        return out

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        if not ctx.whole:
            (rows,) = ctx.saved_tensors
            return (rows * g[:, None]).to(rows.dtype), None, None
        states, targets = ctx.saved_tensors
        dstates = torch.empty_like(states)
        dhead = torch.zeros(ctx.head.shape, dtype=torch.float32, device=states.device)
        for start in range(0, states.shape[0], _ROWS):
            part = slice(start, start + _ROWS)
            dlogits = _towards(_log_softmax(states[part], ctx.head, ctx.temperature), targets[part])
            dlogits = dlogits.mul_(g[part, None] / ctx.temperature).to(states.dtype)
            dstates[part] = dlogits @ ctx.head
            dhead += dlogits.t() @ states[part]
        return dstates, dhead, None


def _towards(logs: Tensor, targets: Tensor) -> Tensor:
    """``onehot(targets) - exp(logs)`` in place: how log p(target) changes with each logit, times the temperature.

    The target's own entry is -expm1(log p), which keeps its digits where p is near 1.
    """
    own = torch.expm1(logs.gather(1, targets[:, None])).neg_()
    return logs.exp_().neg_().scatter_(1, targets[:, None], own)


def _log_softmax(states: Tensor, head: Tensor, temperature: float) -> Tensor:
    logits = functional.linear(states, head)
    if temperature != 1.0:
        return functional.log_softmax(logits.float().div_(temperature), dim=-1)
    return functional.log_softmax(logits, dim=-1, dtype=torch.float32)


def token_logprobs(
    states: Tensor, head: Tensor, targets: Tensor, temperature: float = 1.0, *, master: Tensor | None = None
) -> Tensor:
    """Natural log-probabilities [S] of ``targets`` [S] after ``states`` [S, hidden]; ``head`` is [vocabulary, hidden].

    ``master`` is the float32 matrix behind ``head`` when that is trained too.
    """
    return _TokenLogprobs.apply(states, master, _Readout(head, targets, temperature))


def token_entropies(states: Tensor, head: Tensor, temperature: float = 1.0) -> Tensor:
    """Entropies [S] in nats of the next-token distributions; differentiable, at the price of kept logits."""
    parts = []
    for start in range(0, states.shape[0], _ROWS):
        logs = _log_softmax(states[start : start + _ROWS], head, temperature)
        parts.append(-(logs.exp() * logs).sum(-1))
    return torch.cat(parts)


@without_gradient
def token_statistics(states: Tensor, head: Tensor, targets: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Log-probabilities of ``targets``, bit for bit ``token_logprobs``, and entropies; [S], no gradient."""
    logprobs = torch.empty(states.shape[0], dtype=torch.float32, device=states.device)
    entropies = torch.empty_like(logprobs)
    for start in range(0, states.shape[0], _ROWS):
        part = slice(start, start + _ROWS)
        logs = _log_softmax(states[part], head, temperature)
        logprobs[part] = logs.gather(1, targets[part, None])[:, 0]
        entropies[part] = -torch.linalg.vecdot(logs.exp(), logs)
    return logprobs, entropies
