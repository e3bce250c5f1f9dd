"""The stand-in's run folder: what it saves, what it resumes from, when its time is up, as upstream does it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from tests.standin import by_hand as standin
from tests.standin import experiment


def opened(folder: Path, **more: Any) -> experiment.Experiment:
    return experiment.Experiment(standin.manager(folder, **more))


def names(folder: Path) -> set[str]:
    return {path.name for path in (folder / "checkpoints").iterdir()}


def test_checkpoints_keep_the_best_and_the_last(tmp_path: Path) -> None:
    log = opened(tmp_path)
    for step, loss in enumerate((3.0, 1.0, 2.0, 4.0), 1):
        log.save({"step": step}, {"val_loss": loss, "step": step})
    assert names(tmp_path) == {"m--val_loss=1.000-step=2", "m--val_loss=2.000-step=3", "m--val_loss=4.000-step=4-last"}


def test_a_resumed_run_moves_the_files_of_its_folder_away(tmp_path: Path) -> None:
    opened(tmp_path).save({"step": 5}, {"step": 5})
    (tmp_path / "data.jsonl").touch()
    torn = tmp_path / "checkpoints" / "m--val_loss=0.000-step=6-last"
    torn.mkdir()
    torn.with_name(f"{torn.name}-unfinished").touch()
    log = opened(tmp_path)
    assert log.resumed == {"step": 5}
    assert (tmp_path / "run_0" / "data.jsonl").exists()
    assert not torn.exists()


def test_two_last_checkpoints_stop_every_run(tmp_path: Path) -> None:
    opened(tmp_path).save({"step": 5}, {"step": 5})
    (tmp_path / "checkpoints" / "m--val_loss=0.000-step=6-last").mkdir()
    for _ in range(2):
        with pytest.raises(ValueError, match="Multiple checkpoints"):
            opened(tmp_path)


def test_an_unfinished_last_checkpoint_alone_stops_every_run(tmp_path: Path) -> None:
    opened(tmp_path).save({"step": 5}, {"step": 5})
    (last,) = (tmp_path / "checkpoints").iterdir()
    last.with_name(f"{last.name}-unfinished").touch()
    for _ in range(2):
        with pytest.raises(ValueError, match="Last checkpoint is unfinished"):
            opened(tmp_path)


def test_a_run_removes_the_last_checkpoint_that_it_knows_and_no_other(tmp_path: Path) -> None:
    log = opened(tmp_path)
    for step in (1, 2):
        log.save({"step": step}, {"step": step, "val_loss": 3.0 - step})
    last = tmp_path / "checkpoints" / "m--val_loss=1.000-step=2-last"
    best = tmp_path / "checkpoints" / "m--val_loss=2.000-step=1"
    best.rename(best.with_name(f"{best.name}-last"))
    for path in sorted(last.iterdir()):
        path.unlink()
    last.rmdir()
    log = opened(tmp_path)
    assert log.resumed == {"step": 1}
    log.save({"step": 3}, {"step": 3})
    lasts = {name for name in names(tmp_path) if name.endswith("-last")}
    assert lasts == {"m--val_loss=2.000-step=1-last", "m--val_loss=0.000-step=3-last"}


@pytest.mark.parametrize(("limit", "over"), [(None, False), ("00:00:00:01", True), ("00:04:00:00", False)])
def test_a_run_knows_when_its_time_is_up_and_counts_from_the_start_of_training(
    tmp_path: Path, limit: str | None, over: bool
) -> None:
    log = opened(tmp_path, max_time_per_run=limit)
    time.sleep(0.6)
    log.start_clock()
    time.sleep(0.6)
    assert not log.out_of_time
    time.sleep(0.5)
    assert log.out_of_time is over


def test_no_time_at_all_is_over_before_training(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="time limit reached"):
        opened(tmp_path, max_time_per_run="00:00:00:00")


@pytest.mark.parametrize(
    ("every", "save", "late", "told"),
    [
        (2, 4, False, (False, False)),
        (2, 4, True, (True, True)),
        (0, 4, True, (False, True)),
        (0, 0, True, (False, False)),
    ],
)
def test_when_time_is_up_it_validates_and_saves_where_these_are_on(
    every: int, save: int, late: bool, told: tuple[bool, bool]
) -> None:
    assert experiment.progress(3, 10, every, save, 1, late) == told
