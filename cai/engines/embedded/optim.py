"""AdamW in float32 with a schedule, and the loop that supervised and reward training share."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cai.engines.base import Attempt
from cai.engines.embedded import checkpoints
from cai.engines.embedded.divergence import Diverged, Health, diverged, keep_last_good, not_finite
from cai.engines.embedded.functions import without_gradient
from cai.engines.methods.base import Schedule, SupervisedSettings


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
            Diverged: when a gradient is not finite; the parameters are as they were.
        """
        for group, rate in zip(self._adamw.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor
        norms = [float(torch.nn.utils.clip_grad_norm_(g["params"], self._clip)) for g in self._adamw.param_groups]
        if not all(map(math.isfinite, norms)):
            raise Diverged("training: the gradient is not finite; lower learning_rate or use precision=float32")
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


def _healthy(step: int, numbers: Mapping[str, float]) -> Health:
    return Health()


@dataclass(frozen=True)
class Work:
    """What the loop is given: ``learn(step)`` leaves gradients and tells numbers (``tokens`` and ``rows`` among them).

    ``refresh`` is called after every change of the parameters, ``validate`` for numbers on held-out examples, ``save``
    with a folder for the model as it is. ``health(step, numbers)`` is what the numbers of each step (from 0), in
    order, say of the model that it began with; ``finished(rows)`` is what is wrong with the model at the end, in words.
    """

    steps: int
    parameters: dict[str, Tensor]
    refresh: Callable[[], None]
    learn: Callable[[int], dict[str, float]]
    validate: Callable[[], dict[str, float]]
    belongs: str
    event: str
    save: Callable[[Path], object]
    health: Callable[[int, Mapping[str, float]], Health] = _healthy
    finished: Callable[[list[dict[str, Any]]], str] = lambda rows: ""


@dataclass
class _Fit:
    """A training under way. ``rows`` are those of metrics.jsonl, of validation alone before the first step; ``due``
    says that a checkpoint is, of the next model that is sound."""

    work: Work
    settings: SupervisedSettings
    attempt: Attempt
    optimizer: Optimizer
    rows: list[dict[str, Any]] = field(default_factory=list)
    due: bool = False

    @property
    def checkpoint(self) -> Path:
        """The file of the last state that was sound."""
        return self.attempt.work / "checkpoint.pt"

    def resume(self) -> int:
        """Take the last checkpoint up where there is one; returns how many steps are done."""
        state = checkpoints.load(self.checkpoint, self.work.belongs)
        if state is not None:
            self.optimizer.restore(state["optimizer"])
            self.rows = list(state["rows"])
            for row in self.rows[1:]:
                self.work.health(row["step"] - 1, row)
        self.work.refresh()
        return 0 if state is None else int(state["step"])

    def keep(self, steps: int) -> None:
        """Make the state after so many steps the one to go on from."""
        state = {"optimizer": self.optimizer.state(), "step": steps, "rows": self.rows}
        checkpoints.save(self.checkpoint, self.work.belongs, state)
        checkpoints.write_metrics(self.attempt.dest, self.attempt.work, self.rows)
        self.due = False

    def step(self, step: int) -> dict[str, Any]:
        """Do a step (from 0), and validate where that is due; returns its row.

        Raises:
            Diverged: when the model is lost.
        """
        work, settings = self.work, self.settings
        began = time.perf_counter()
        numbers, health = self.gradients(step)
        seconds = time.perf_counter() - began
        if self.due and health.sound:
            self.keep(step)
        began = time.perf_counter()
        factor = rate_factor(step, work.steps, settings.schedule, settings.warmup_fraction)
        norm = self.apply(step, factor)
        seconds += time.perf_counter() - began
        rate = {"lr": settings.learning_rate * factor, "grad_norm": norm, "tokens_per_s": numbers["tokens"] / seconds}
        row: dict[str, Any] = {"step": step + 1, **numbers, **rate, "seconds": seconds}
        if step + 1 == work.steps or (settings.val_every and (step + 1) % settings.val_every == 0):
            row |= work.validate()
        self.rows.append(row)
        self.due = self.due or (step + 1) % settings.checkpoint_every == 0
        return row

    def gradients(self, step: int) -> tuple[dict[str, float], Health]:
        """Leave the gradients of a step; its numbers, and what they say of the model.

        Raises:
            Diverged: when the model is lost.
        """
        numbers = self.work.learn(step)
        health = Health(fault) if (fault := not_finite(numbers)) else self.work.health(step, numbers)
        if health.fault:
            raise self.diverged(step + 1, health.fault)
        return numbers, health

    def apply(self, step: int, factor: float) -> float:
        """Apply the gradients of a step; returns their norm before clipping.

        Raises:
            Diverged: when they are not finite.
        """
        try:
            norm = self.optimizer.step(factor)
        except Diverged as error:
            raise self.diverged(step + 1, "the gradient is not finite") from error
        self.work.refresh()
        return norm

    def diverged(self, step: int, fault: str) -> Diverged:
        """The error of a training that is lost, after the last good model has been kept."""
        state = checkpoints.load(self.checkpoint, self.work.belongs)
        kept = None
        if state is not None:
            self.optimizer.restore(state["optimizer"])
            self.work.refresh()
            kept = int(state["step"]), keep_last_good(self.attempt.work, self.work.save)
        advice = f"lower learning_rate (it is {self.settings.learning_rate:g}) or raise warmup_fraction"
        return diverged(f"{self.work.event}, step {step} of {self.work.steps}", fault, kept, advice)


def fit(work: Work, settings: SupervisedSettings, attempt: Attempt) -> list[dict[str, Any]]:
    """Train to the end, from the last checkpoint if there is one; returns the rows of metrics.jsonl.

    A resumed run ends with the same parameters, bit for bit, as one that was never interrupted. A checkpoint is written
    when the next step has shown that its model is sound: the one on the disk is always a good model.

    Raises:
        Diverged: when a number is not finite, or ``work`` says that the model is lost; what was good of it is kept.
    """
    optimizer = Optimizer([(work.parameters, settings.learning_rate)], settings.weight_decay, settings.max_grad_norm)
    fitting = _Fit(work, settings, attempt, optimizer)
    progress = attempt.progress
    start = fitting.resume()
    if start:
        progress.note(f"{work.event}.resumed", step=start)
    else:
        fitting.rows.append({"step": 0, **work.validate()})
    rows = fitting.rows
    progress.advance(rows=int(sum(r.get("rows", 0) for r in rows)), tokens=int(sum(r.get("tokens", 0) for r in rows)))
    for step in range(start, work.steps):
        row = fitting.step(step)
        progress.note(f"{work.event}.step", steps=work.steps, **row)
        progress.advance(rows=int(row["rows"]), tokens=int(row["tokens"]))
        if fault := not_finite(row):
            raise fitting.diverged(step + 1, fault)
    if fault := work.finished(rows):
        raise fitting.diverged(work.steps, fault)
    if start < work.steps:
        fitting.keep(work.steps)
    checkpoints.write_metrics(attempt.dest, attempt.work, rows)
    return rows


def rate_of(rows: list[dict[str, Any]]) -> float:
    """Tokens per second over all steps, validation left out."""
    seconds = sum(r.get("seconds", 0.0) for r in rows)
    return float(sum(r.get("tokens", 0) for r in rows)) / seconds if seconds else 0.0
