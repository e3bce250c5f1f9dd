"""Upstream's checkpoints between two attempts: what it would stumble over is put right, and a lost end costs one save.

What NeMo v2.1.0 does (exp_manager.check_resume, callbacks/nemo_model_checkpoint.py): a checkpoint is a folder named by
its metrics (``...-step=40-...``); the newest one's name ends with ``-last``. A file ``FOLDER-unfinished`` beside it
says that it is being written or removed. A run resumes from the ``*-last`` that is finished. It raises when there are
two, and when there is one that is unfinished and no other; only later does it remove what is unfinished. The folders
without ``-last`` are the best by the monitored value: just as whole, and never looked at.

PPO has two trainings. The actor asks the critic to save and saves itself meanwhile (NeMo-Aligner v0.7.0,
PPOTrainer.save); when they start again each resumes from its own last checkpoint, and nobody compares.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

LAST = "-last"
MARKER = "-unfinished"
ASIDE = "set_aside"
"""Folder beside ``checkpoints`` for the end of a training that left no model."""
_STEP = re.compile(r"(?:^|-)step=(\d+)")
_LAST = re.compile(rf"{LAST}(?:-v\d+)?$")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A whole checkpoint: training that resumes from it goes on after ``step``."""

    folder: Path
    step: int

    @property
    def is_last(self) -> bool:
        """Whether upstream made it as the last one; ``-last-v1`` is one whose name was taken."""
        return _LAST.search(self.folder.name) is not None

    @property
    def age(self) -> tuple[int, bool, float]:
        """Sorts the newest to the end; of two of one step, the one that upstream resumes from."""
        return self.step, self.is_last, self.folder.stat().st_mtime


@dataclass(frozen=True, slots=True)
class CriticRun:
    """PPO's critic beside the actor: its log folder, the step that it has reached at one of the actor's, the end."""

    log: Path
    step_at: Callable[[int], int]
    end: int = 0


@dataclass(frozen=True, slots=True)
class Logs:
    """The log folder (``exp_manager.explicit_log_dir``) of a training; PPO's actor has a ``critic`` beside it."""

    log: Path
    critic: CriticRun | None = None

    @property
    def step(self) -> int:
        """The step after which upstream would go on; 0 where it would start."""
        return max((c.step for c in whole(self.log) if c.is_last), default=0)

    def mend(self) -> bool:
        """Leave the one checkpoint that the next attempt can resume from, or none.

        That is the newest whole ``-last``, or where there is none the newest of the best. Of PPO it is the newest two
        that belong together; a side that has nothing takes the other back to the start. Returns False where nothing is
        left that belongs together, because one side was a save ahead when both were stopped: they go on so.
        """
        _drop_unfinished(self.log)
        mine = whole(self.log)
        if self.critic is None:
            if mine:
                _resume_from(_newest(mine), mine)
            return True
        _drop_unfinished(self.critic.log)
        theirs = whole(self.critic.log)
        if not (mine and theirs):
            for log, checkpoints in ((self.log, mine), (self.critic.log, theirs)):
                if checkpoints:
                    _rename_away(log)
            return True
        # A model is written only by an attempt that comes to the end, so none may begin there.
        begins = [c for c in mine if c.is_last or c.step < self.critic.end]
        pair = _newest_pair(begins, theirs, self.critic)
        _resume_from(pair[0] if pair else _newest(mine), mine)
        _resume_from(pair[1] if pair else _newest(theirs), theirs)
        return pair is not None

    def go_back(self) -> None:
        """Take out the end of a training that left no model, so that it resumes from a checkpoint before it.

        Where there is none, or none of the critic's that belongs to it, everything is set aside and begins anew.
        """
        mine = whole(self.log)
        earlier = [c for c in mine if c.step < self.step]
        if self.critic is None:
            if earlier:
                _take_out(self.log, mine, _newest(earlier))
            else:
                _rename_away(self.log)
            return
        theirs = whole(self.critic.log)
        pair = _newest_pair(earlier, theirs, self.critic)
        if pair is None:
            _rename_away(self.log)
            _rename_away(self.critic.log)
            return
        _take_out(self.log, mine, pair[0])
        _take_out(self.critic.log, theirs, pair[1])


def whole(log: Path) -> list[Checkpoint]:
    """The finished checkpoints of a log folder, the newest at the end."""
    folder = log / "checkpoints"
    if not folder.is_dir():
        return []
    finished = [path for path in folder.iterdir() if path.is_dir() and not _marker(path).exists()]
    steps = [(path, _STEP.search(path.name)) for path in finished]
    return sorted((Checkpoint(path, int(step[1])) for path, step in steps if step), key=lambda c: c.age)


def _newest(checkpoints: list[Checkpoint]) -> Checkpoint:
    """The newest last one before any other: one among the best may be of the very end, which trains nothing more."""
    return max(checkpoints, key=lambda c: (c.is_last, c.age))


def _newest_pair(
    actors: list[Checkpoint], critics: list[Checkpoint], critic: CriticRun
) -> tuple[Checkpoint, Checkpoint] | None:
    by_step = {c.step: c for c in critics}
    pairs = [(a, by_step[critic.step_at(a.step)]) for a in actors if critic.step_at(a.step) in by_step]
    return pairs[-1] if pairs else None


def _resume_from(chosen: Checkpoint, every: list[Checkpoint]) -> None:
    """Make ``chosen`` the only ``*-last``. The others go, as upstream would have removed them: each is large."""
    for checkpoint in every:
        if checkpoint.is_last and checkpoint != chosen:
            _remove(checkpoint)
    if not chosen.folder.name.endswith(LAST):
        chosen.folder.rename(chosen.folder.with_name(_LAST.sub("", chosen.folder.name) + LAST))


def _take_out(log: Path, every: list[Checkpoint], earlier: Checkpoint) -> None:
    """Resume from ``earlier``. Of what is after it the newest is kept beside: it is all that is left of those hours."""
    after = [c for c in every if c.step > earlier.step]
    aside = log / ASIDE
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    for checkpoint in after[:-1]:
        _remove(checkpoint)
    for checkpoint in after[-1:]:
        checkpoint.folder.rename(aside / checkpoint.folder.name)
    _resume_from(earlier, [c for c in every if c.step <= earlier.step])


def _remove(checkpoint: Checkpoint) -> None:
    # With the marker, as upstream does it: what is left when this is stopped counts for no whole one.
    _marker(checkpoint.folder).touch()
    shutil.rmtree(checkpoint.folder)
    _marker(checkpoint.folder).unlink()


def _drop_unfinished(log: Path) -> None:
    for marker in (log / "checkpoints").glob(f"*{MARKER}"):
        folder = marker.with_name(marker.name.removesuffix(MARKER))
        if folder.is_dir():
            shutil.rmtree(folder)
        marker.unlink()


def _rename_away(log: Path) -> None:
    """Rename a log folder, if it is there, whatever earlier ones there are."""
    if not log.exists():
        return
    number = 1
    while (to := log.with_name(f"{log.name}.{number}")).exists():
        number += 1
    log.rename(to)


def _marker(folder: Path) -> Path:
    return folder.with_name(folder.name + MARKER)
