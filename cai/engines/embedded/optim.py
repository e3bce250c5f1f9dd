"""AdamW in float32 with a schedule, and the loop that supervised and reward training share."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cai.engines.base import Attempt
from cai.engines.embedded import checkpoints
from cai.engines.embedded.functions import without_gradient
from cai.engines.methods.base import Schedule, SupervisedSettings
from cai.errors import StepFailed


def rate_factor(step: int, steps: int, schedule: Schedule, warmup_fraction: float) -> float:
    """Share of the learning rate at a step (from 0): linear warm-up, then the schedule; never 0 before the end."""
    warmup = math.ceil(steps * warmup_fraction)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    elapsed = (step - warmup) / max(1, steps - warmup)
    if schedule is Schedule.LINEAR:
        return 1.0 - elapsed
    if schedule is Schedule.COSINE:
        return 0.5 * (1.0 + math.cos(math.pi * elapsed))
    return 1.0


class Optimizer:
    """AdamW (arXiv 1711.05101) over groups of named float32 tensors, each with its learning rate.

    Gradients are clipped by the norm of their group, so that a critic's cannot shrink the policy's.
    """

    def __init__(self, groups: list[tuple[dict[str, Tensor], float]], weight_decay: float, max_grad_norm: float):
        self.parameters = {name: tensor for tensors, _ in groups for name, tensor in tensors.items()}
        self._rates = [rate for _, rate in groups]
        self._clip = max_grad_norm
        self._adamw = torch.optim.AdamW(
            [{"params": list(tensors.values()), "lr": rate} for tensors, rate in groups],
            weight_decay=weight_decay,
            fused=True,
        )

    def step(self, factor: float = 1.0) -> float:
        """Apply and clear the gradients; returns the first group's norm before clipping.

        Raises:
            StepFailed: when a gradient is not finite.
        """
        for group, rate in zip(self._adamw.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor
        norms = [float(torch.nn.utils.clip_grad_norm_(g["params"], self._clip)) for g in self._adamw.param_groups]
        if not all(map(math.isfinite, norms)):
            raise StepFailed("training: the gradient is not finite; lower learning_rate or use precision=float32")
        self._adamw.step()
        self._adamw.zero_grad(set_to_none=True)
        return norms[0]

    def state(self) -> dict[str, Any]:
        """Everything that going on needs: values and moments."""
        return {
            "values": {n: t.detach().clone() for n, t in self.parameters.items()},
            "adamw": self._adamw.state_dict(),
        }

    @without_gradient
    def restore(self, state: Mapping[str, Any]) -> None:
        """The inverse of ``state``."""
        for name, tensor in self.parameters.items():
            tensor.copy_(state["values"][name])
        self._adamw.load_state_dict(state["adamw"])


@dataclass(frozen=True)
class Work:
    """What the loop is given: ``learn(step)`` leaves gradients and tells numbers (``tokens`` and ``rows`` among them).

    ``refresh`` is called after every change of the parameters, ``validate`` for numbers on held-out examples.
    """

    steps: int
    parameters: dict[str, Tensor]
    refresh: Callable[[], None]
    learn: Callable[[int], dict[str, float]]
    validate: Callable[[], dict[str, float]]
    belongs: str
    event: str


def fit(work: Work, settings: SupervisedSettings, attempt: Attempt) -> list[dict[str, Any]]:
    """Train to the end, from the last checkpoint if there is one; returns the rows of metrics.jsonl.

    A resumed run ends with the same parameters, bit for bit, as one that was never interrupted.
    """
    optimizer = Optimizer([(work.parameters, settings.learning_rate)], settings.weight_decay, settings.max_grad_norm)
    dest, folder, progress = attempt.dest, attempt.work, attempt.progress
    path = folder / "checkpoint.pt"
    state = checkpoints.load(path, work.belongs)
    rows: list[dict[str, Any]] = []
    start = 0
    if state is not None:
        optimizer.restore(state["optimizer"])
        start, rows = int(state["step"]), list(state["rows"])
        progress.note(f"{work.event}.resumed", step=start)
    work.refresh()
    if state is None:
        rows.append({"step": 0, **work.validate()})
    progress.advance(rows=int(sum(r.get("rows", 0) for r in rows)), tokens=int(sum(r.get("tokens", 0) for r in rows)))
    for step in range(start, work.steps):
        began = time.perf_counter()
        factor = rate_factor(step, work.steps, settings.schedule, settings.warmup_fraction)
        numbers = work.learn(step)
        norm = optimizer.step(factor)
        work.refresh()
        seconds = time.perf_counter() - began
        rate = {"lr": settings.learning_rate * factor, "grad_norm": norm, "tokens_per_s": numbers["tokens"] / seconds}
        row: dict[str, Any] = {"step": step + 1, **numbers, **rate, "seconds": seconds}
        last = step + 1 == work.steps
        if last or (settings.val_every and (step + 1) % settings.val_every == 0):
            row |= work.validate()
        rows.append(row)
        progress.note(f"{work.event}.step", steps=work.steps, **row)
        progress.advance(rows=int(numbers["rows"]), tokens=int(numbers["tokens"]))
        if last or (step + 1) % settings.checkpoint_every == 0:
            checkpoints.save(path, work.belongs, {"optimizer": optimizer.state(), "step": step + 1, "rows": rows})
            checkpoints.write_metrics(dest, folder, rows)
    checkpoints.write_metrics(dest, folder, rows)
    return rows


def rate_of(rows: list[dict[str, Any]]) -> float:
    """Tokens per second over all steps, validation left out."""
    seconds = sum(r.get("seconds", 0.0) for r in rows)
    return float(sum(r.get("tokens", 0) for r in rows)) / seconds if seconds else 0.0
