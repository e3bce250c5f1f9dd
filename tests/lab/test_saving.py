"""Upstream's own saving and resuming, beside the stand-in's and what is mended between two attempts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cai.engines.nemo_aligner.checkpoints import Logs
from tests.standin import by_hand as standin
from tests.standin import experiment
from tests.support.nemo_checkpoints import checkpoint_names, put_checkpoints, sft_at

NAME = "m--{val_loss:.3f}-{step}"
LOSSES = [(1, 3.0), (2, 1.0), (3, 2.0), (4, 4.0), (5, 0.5)]


class Strategy:
    """One process, whose checkpoints are folders as those of Megatron's distributed checkpoints."""

    launcher = None

    def broadcast(self, value: Any) -> Any:
        return value

    def reduce_boolean_decision(self, decision: bool) -> bool:
        return decision

    def barrier(self, *_names: str) -> None:
        """Alone."""

    def remove_checkpoint(self, path: str) -> None:
        shutil.rmtree(Path(path).with_suffix(""), ignore_errors=True)


class Trainer:
    """What the callback asks of Lightning's trainer. ``ckpt_path`` is where ``check_resume`` puts its choice."""

    def __init__(self) -> None:
        self.strategy = Strategy()
        self.ckpt_path: str | None = None
        self.callback: Any = None
        self.callbacks: list[Any] = []
        self.loggers: list[Any] = []
        self.global_step = 0
        self.is_global_zero = True
        self.max_epochs = self.max_steps = -1
        self.check_val_every_n_epoch = 1
        self.fast_dev_run = False

    def save_checkpoint(self, path: str, weights_only: bool = False, storage_options: Any = None) -> None:
        folder = Path(path).with_suffix("") if path.endswith(".ckpt") else Path(path)
        folder.mkdir()
        state = {k: v for k, v in self.callback.state_dict().items() if isinstance(v, str | dict)}
        state["best_k_models"] = {k: float(v) for k, v in state["best_k_models"].items()}
        (folder / "callback.json").write_text(json.dumps(state))


def resumed(log: Path) -> Trainer:
    """What exp_manager does with a log folder that is there: choose the checkpoint to go on from."""
    from nemo.utils.exp_manager import check_resume

    trainer = Trainer()
    log.mkdir(parents=True, exist_ok=True)
    check_resume(trainer, str(log), resume_if_exists=True, resume_ignore_no_checkpoint=True)
    return trainer


def opened(log: Path) -> Any:
    """The callback as the scripts make it, with what its checkpoint remembers; ``save(step, loss)`` saves."""
    import torch
    from nemo.utils.exp_manager import NeMoModelCheckpoint, configure_checkpointing
    from nemo_aligner.utils.utils import custom_save_ckpt_func
    from omegaconf import OmegaConf

    trainer = resumed(log)
    params = {"monitor": "val_loss", "save_top_k": 2, "mode": "min", "filename": NAME, "save_last": True}
    params |= {"dirpath": None, "prefix": "m", "always_save_nemo": False, "save_nemo_on_train_end": True}
    configure_checkpointing(trainer, log, "m", True, OmegaConf.create(params), False)
    callback = trainer.callback = next(c for c in trainer.callbacks if isinstance(c, NeMoModelCheckpoint))
    NeMoModelCheckpoint._remove_unfinished_checkpoints(callback.dirpath)
    if trainer.ckpt_path is not None:
        state = json.loads((Path(trainer.ckpt_path) / "callback.json").read_text())
        best = {k: torch.tensor(v) for k, v in state["best_k_models"].items()}
        callback.load_state_dict({**callback.state_dict(), **state, "best_k_models": best})

    def save(step: int, loss: float) -> None:
        trainer.global_step = step
        metrics = {"val_loss": torch.tensor(loss), "step": torch.tensor(step), "epoch": torch.tensor(0)}
        custom_save_ckpt_func(callback, trainer, None, metrics)

    return SimpleNamespace(save=save, trainer=trainer)


def test_the_stand_in_leaves_the_folders_that_upstream_leaves(tmp_path: Path):
    real, ours = opened(tmp_path / "real"), experiment.Experiment(standin.manager(tmp_path / "ours"))
    for step, loss in LOSSES:
        real.save(step, loss)
        ours.save({"step": step}, {"val_loss": loss, "step": step})
        assert checkpoint_names(tmp_path / "real") == checkpoint_names(tmp_path / "ours")
    for log in ("real", "ours"):
        Logs(tmp_path / log).go_back()
    assert (
        checkpoint_names(tmp_path / "real") == checkpoint_names(tmp_path / "ours") == {"m--val_loss=1.000-step=2-last"}
    )
    again, ours = opened(tmp_path / "real"), experiment.Experiment(standin.manager(tmp_path / "ours"))
    assert str(again.trainer.ckpt_path).endswith("m--val_loss=1.000-step=2-last")
    assert ours.resumed == {"step": 2}
    for step, loss in LOSSES[2:]:
        again.save(step, loss)
        ours.save({"step": step}, {"val_loss": loss, "step": step})
        # The one that was renamed is known to none of them, so it stays: the next attempt must be mended again.
        assert "m--val_loss=1.000-step=2-last" in checkpoint_names(tmp_path / "real") & checkpoint_names(
            tmp_path / "ours"
        )
    for log in ("real", "ours"):
        Logs(tmp_path / log).mend()
    lasts = [{name for name in checkpoint_names(tmp_path / log) if name.endswith("-last")} for log in ("real", "ours")]
    assert lasts == [{"m--val_loss=0.500-step=5-last"}] * 2
    assert str(resumed(tmp_path / "real").ckpt_path).endswith("m--val_loss=0.500-step=5-last")


@pytest.mark.parametrize(
    ("there", "says"),
    [
        ([sft_at(5, "-last"), sft_at(10, "-last")], "Multiple checkpoints"),
        ([sft_at(5), sft_at(5, "-last?")], "Last checkpoint is unfinished"),
        ([sft_at(5, "-last?")], "Last checkpoint is unfinished"),
        ([sft_at(5, "-last"), sft_at(10, "-last?")], ""),
        ([sft_at(5, "-last?"), sft_at(10, "-last")], ""),
        ([sft_at(5), sft_at(5, "-last!")], ""),
        ([], ""),
    ],
)
def test_upstream_resumes_from_what_was_mended(tmp_path: Path, there: list[str], says: str):
    log = tmp_path / "log"
    put_checkpoints(log, *there)
    if says:
        with pytest.raises(ValueError, match=says):
            resumed(log)
    logs = Logs(log)
    logs.mend()
    chosen = resumed(log).ckpt_path
    assert (f"step={logs.step}-" in str(chosen)) if logs.step else chosen is None


def test_when_to_validate_and_to_save_is_as_upstream_says():
    from nemo_aligner.utils.trainer_utils import check_progress

    for step in range(1, 13):
        for every, save, batches in ((2, 4, 1), (0, 4, 1), (3, 3, 0), (2, 0, 1)):
            for late in (False, True):
                told = check_progress(step, 12, every, save, batches, run_time_exceeded=late)[:2]
                assert experiment.progress(step, 12, every, save, batches, late) == told
