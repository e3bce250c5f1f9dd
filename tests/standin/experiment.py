"""The run folder, as NeMo's exp_manager keeps it: logs, checkpoints by file name pattern, ``-last``, resume, .nemo.

Upstream's behaviour, kept where it can bite: a resumed run moves the files of the log folder to ``run_N``; two
``-last`` checkpoints stop it, and so does one that is unfinished when there is no other; a checkpoint takes the place
of the last one that the run itself knows, and of no other; the .nemo is written only at the end of training, in place,
and a run that finds its training complete writes none. The clock of ``max_time_per_run`` starts with the training, not
with the script: PPO starts it again with every epoch.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from .launch import Fault, say
from .tiny import Adam


class Experiment:
    """``explicit_log_dir`` of one run; ``resumed`` is the state to go on from, or None."""

    def __init__(self, cfg: DictConfig, fault: Fault | None = None) -> None:
        OmegaConf.resolve(cfg)
        assert cfg.explicit_log_dir is not None, "stand-in: exp_manager.explicit_log_dir is needed"
        self.folder = Path(cfg.explicit_log_dir)
        self.checkpoints = self.folder / "checkpoints"
        self._cfg, self._best = cfg, cfg.checkpoint_callback_params
        self.resumed: dict[str, Any] | None = None
        self._fault = fault or Fault("none")
        self._last = ""
        if cfg.resume_if_exists:
            self._resume()
        self._drop_unfinished()
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        (self.folder / "cmd-args.log").write_text(" ".join(sys.argv))
        (self.folder / "nemo_log_globalrank-0_localrank-0.txt").touch()
        self._limit = _seconds(cfg.get("max_time_per_run"))
        self._began = 0.0
        # Lightning's timer, which has the same limit, is asked once before training begins.
        assert self._limit > 0, "_TunerExitException: time limit reached"

    def start_clock(self) -> None:
        """Count the time of this run from now on."""
        self._began = time.monotonic()

    @property
    def out_of_time(self) -> bool:
        assert self._began, "the clock was not started"
        return time.monotonic() - self._began >= self._limit

    @property
    def nemo(self) -> Path:
        """Where the finished model goes."""
        return self.checkpoints / f"{self._cfg.name}.nemo"

    def save(self, state: dict[str, Any], metrics: dict[str, float]) -> None:
        """The checkpoint among the best, then the last one, then away with the one before."""
        name = _name(self._best.filename, metrics)
        monitored = metrics.get(self._best.monitor)
        if self._best.save_top_k != 0 and monitored is not None:
            self._write(name, state)
            self._keep_best(self._best.monitor)
        before, self._last = self._last, f"{name}-last"
        self._write(self._last, state)
        self._fault.at("two-lasts")
        if before and before != self._last:
            self._remove(before)

    def writes_nemo(self) -> bool:
        """Asked after the last checkpoint of a training: whether the finished model is to be written."""
        self._fault.at("before-nemo")
        return bool(self._best.get("save_nemo_on_train_end", False))

    def _write(self, name: str, state: dict[str, Any]) -> None:
        marker, folder = self._marker(name), self.checkpoints / name
        marker.touch()
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        if name.endswith("-last"):
            self._fault.at("in-last")
        torch.save(state, folder / "common.pt")
        (folder / "last_model_path.json").write_text(json.dumps(self._last))
        (folder / "metadata.json").write_text('{"sharded_backend": "torch_dist", "common_backend": "torch"}')
        marker.unlink()

    def _remove(self, name: str) -> None:
        self._marker(name).touch()
        shutil.rmtree(self.checkpoints / name, ignore_errors=True)
        self._marker(name).unlink()

    def _marker(self, name: str) -> Path:
        return self.checkpoints / f"{name}-unfinished"

    def _keep_best(self, monitor: str) -> None:
        sign = -1 if self._best.mode == "max" else 1
        found = []
        for folder in self._finished(""):
            if value := re.search(rf"{monitor}=(-?[0-9.]+)", folder.name):
                found.append((sign * float(value.group(1).rstrip(".")), folder.stat().st_mtime, folder))
        if self._best.save_top_k > 0:
            for _, _, folder in sorted(found)[self._best.save_top_k :]:
                self._remove(folder.name)

    def _finished(self, end: str) -> list[Path]:
        folders = [p for p in self.checkpoints.glob(f"*{end}") if p.is_dir()]
        return [p for p in folders if end or not p.name.endswith("-last")]

    def _drop_unfinished(self) -> None:
        for marker in self.checkpoints.glob("*-unfinished"):
            shutil.rmtree(marker.with_name(marker.name.removesuffix("-unfinished")), ignore_errors=True)
            marker.unlink()

    def _resume(self) -> None:
        every = self._finished("-last")
        last = [folder for folder in every if not self._marker(folder.name).exists()]
        if every and not last:
            raise ValueError("Last checkpoint is unfinished and cannot be used to resume the training.")
        if not last:
            assert self._cfg.resume_ignore_no_checkpoint, f"no checkpoint to resume from in {self.checkpoints}"
            say(f"no checkpoint in {self.checkpoints}: training from scratch")
            return
        if len(last) > 1:
            raise ValueError(f"Multiple checkpoints {[p.name for p in last]} that match *last")
        say(f"resuming from {last[0].name}")
        self.resumed = torch.load(last[0] / "common.pt", weights_only=False)
        # Of the checkpoint's own state: of one among the best, the last one that was there when it was written.
        self._last = json.loads((last[0] / "last_model_path.json").read_text())
        files = [p for p in self.folder.iterdir() if p.is_file()]
        if files:
            away = self.folder / f"run_{len(list(self.folder.glob('run_*')))}"
            away.mkdir()
            for file in files:
                shutil.move(file, away)


def _name(pattern: str, metrics: dict[str, float]) -> str:
    def field(found: re.Match[str]) -> str:
        key, how = found.group(1), found.group(2) or ""
        return f"{key}={format(metrics.get(key, 0), how)}"

    return re.sub(r"\{(\w+)(?::([^}]*))?\}", field, pattern)


def _seconds(text: str | None) -> float:
    if text is None:
        return float("inf")
    days, hours, minutes, seconds = (int(part) for part in str(text).split(":"))
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


class Descent:
    """Adam with upstream's warm-up, cosine and constant phases.

    ``sched.constant_steps`` is held at ``min_lr`` after the cosine, and counts against ``max_steps``.
    """

    def __init__(self, model: torch.nn.Module, cfg: DictConfig, max_steps: int, clip: float) -> None:
        assert "adam" in cfg.name, f"optim.name={cfg.name} is not known"
        assert cfg.sched.name in ("CosineAnnealing", "WarmupHoldPolicy"), f"sched.name={cfg.sched.name} is not known"
        self._cfg, self._max, self._clip = cfg, max_steps, clip
        self.adam = Adam(model, tuple(cfg.betas), cfg.weight_decay)

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        top, low = self._cfg.lr, self._cfg.sched.get("min_lr", 0.0)
        warmup, constant = self._cfg.sched.get("warmup_steps", 0), self._cfg.sched.get("constant_steps", 0)
        if step <= warmup and warmup > 0:
            return top * (step + 1) / (warmup + 1)
        if self._cfg.sched.name == "WarmupHoldPolicy":
            return top
        decay = self._max - constant - warmup
        if step - warmup >= decay:
            return low
        return low + (top - low) * 0.5 * (1 + float(torch.cos(torch.tensor(torch.pi * (step - warmup) / decay))))

    def step(self, loss: Tensor, number: int) -> None:
        """One update."""
        loss.backward()
        self.adam.step(self.rate(number), self._clip or 0.0)


def epoch_batch(rows: int, size: int, step: int, seed: int, shuffle: bool = True) -> list[int]:
    """The rows of step ``step``: whole batches of a fresh order every epoch; what is left of an epoch is dropped."""
    per_epoch = rows // size
    epoch, within = divmod(step, per_epoch)
    order = list(range(rows))
    if shuffle:
        random.Random(f"{seed}.{epoch}").shuffle(order)
    return order[within * size : (within + 1) * size]


def progress(step: int, last: int, every: int, save: int, batches: int | float, late: bool) -> tuple[bool, bool]:
    """(validate now, save now); at the end, and when time is up (``late``), both, where they are not switched off."""
    validates = batches != 0 and every > 0
    if validates:
        assert save % every == 0, f"save_interval={save} must be divisible by val_check_interval={every}"
    over = step == last or late
    val = validates and (over or step % every == 0)
    return val, save > 0 and (over or step % save == 0)


def limited(batches: int, limit: int | float | None) -> int:
    """How many validation batches: a whole number is a count, a float a share."""
    limit = 1.0 if limit is None else limit
    if isinstance(limit, float):
        return int(batches * limit)
    if isinstance(limit, int):
        return min(batches, limit)
    raise TypeError(f"Invalid data type of {type(limit)} cannot compute limit batches")
