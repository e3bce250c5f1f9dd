"""Upstream's checkpoints between two attempts: which one is resumed from, and what is kept of the others."""

from __future__ import annotations

from pathlib import Path

import pytest

from cai.engines.nemo_aligner.checkpoints import CriticRun, Logs, whole
from tests.support.nemo_checkpoints import actor_at, checkpoint_names, critic_at, put_checkpoints, sft_at


def pair(folder: Path) -> Logs:
    """The critic makes two updates an iteration, and one iteration of warm-up before."""
    return Logs(folder / "log", CriticRun(folder / "critic", lambda step: 2 * (step + 1), end=20))


@pytest.mark.parametrize(
    ("there", "left", "step"),
    [
        ([], [], 0),
        ([sft_at(5), sft_at(5, "-last")], [sft_at(5), sft_at(5, "-last")], 5),
        # Killed between writing the new last one and removing the old.
        ([sft_at(5, "-last"), sft_at(10, "-last")], [sft_at(10, "-last")], 10),
        # ... while the old was being removed, or the new was being written.
        ([sft_at(5, "-last?"), sft_at(10, "-last")], [sft_at(10, "-last")], 10),
        ([sft_at(5, "-last"), sft_at(10, "-last?")], [sft_at(5, "-last")], 5),
        (
            [sft_at(5, "-last"), sft_at(10), sft_at(10, "-last?")],
            [sft_at(5, "-last"), sft_at(10)],
            5,
        ),
        # The first last one was being written: what is among the best is just as whole.
        ([sft_at(5), sft_at(5, "-last?")], [sft_at(5, "-last")], 5),
        ([sft_at(5), sft_at(5, "-last!")], [sft_at(5, "-last")], 5),
        ([sft_at(5, "-last?")], [], 0),
        ([sft_at(5, "?"), sft_at(5, "-last?")], [], 0),
        # A name that was taken; upstream would not find it.
        ([sft_at(5, "-last"), sft_at(10, "-last-v1")], [sft_at(10, "-last")], 10),
    ],
)
def test_one_whole_last_checkpoint_is_left(tmp_path: Path, there: list[str], left: list[str], step: int):
    logs = Logs(tmp_path / "log")
    put_checkpoints(logs.log, *there)
    for _ in range(2):
        assert logs.mend()
        assert checkpoint_names(logs.log) == set(left)
        assert logs.step == step


@pytest.mark.parametrize(
    ("there", "left", "aside"),
    [
        (
            [sft_at(5), sft_at(10), sft_at(20), sft_at(20, "-last")],
            [sft_at(5), sft_at(10, "-last")],
            [sft_at(20, "-last")],
        ),
        (
            [sft_at(5, "-last"), sft_at(20, "-last")],
            [sft_at(5, "-last")],
            [sft_at(20, "-last")],
        ),
    ],
)
def test_an_end_without_a_model_goes_back_to_the_checkpoint_before(
    tmp_path: Path, there: list[str], left: list[str], aside: list[str]
):
    logs = Logs(tmp_path / "log")
    put_checkpoints(logs.log, *there)
    logs.go_back()
    assert checkpoint_names(logs.log) == set(left)
    assert {path.name for path in (logs.log / "set_aside").iterdir()} == set(aside)
    logs.mend()
    assert checkpoint_names(logs.log) == set(left)


def test_an_end_without_a_model_and_nothing_before_begins_anew(tmp_path: Path):
    logs = Logs(tmp_path / "log")
    for number in (1, 2):
        put_checkpoints(logs.log, sft_at(20), sft_at(20, "-last"))
        logs.go_back()
        assert not logs.log.exists()
        assert [c.step for c in whole(tmp_path / f"log.{number}")] == [20, 20]


@pytest.mark.parametrize(
    ("actors", "critics", "left", "together"),
    [
        ([], [], (0, 0), True),
        ([actor_at(5, "-last")], [critic_at(12)], (5, 12), True),
        # The critic was a save ahead, and its old one is still there.
        ([actor_at(5, "-last")], [critic_at(12), critic_at(22)], (5, 12), True),
        # The actor's last one was being written, but it has that step among the best.
        (
            [actor_at(5, "-last"), actor_at(10), actor_at(10, "-last?")],
            [critic_at(22)],
            (10, 22),
            True,
        ),
        # The actor was ahead, and its old one is still there.
        (
            [actor_at(5, "-last"), actor_at(10, "-last")],
            [critic_at(12), critic_at(22, "-last?")],
            (5, 12),
            True,
        ),
        (
            [actor_at(5), actor_at(10, "-last")],
            [critic_at(12), critic_at(22, "-last?")],
            (5, 12),
            True,
        ),
        # ... but from the very end nothing would be trained, and no model written.
        (
            [actor_at(15, "-last"), actor_at(20), actor_at(20, "-last?")],
            [critic_at(42)],
            (15, 42),
            False,
        ),
        # Nothing belongs together any more: on they go.
        ([actor_at(5, "-last"), actor_at(10, "-last?")], [critic_at(22)], (5, 22), False),
        ([actor_at(10, "-last")], [critic_at(12), critic_at(22, "-last?")], (10, 12), False),
        # One of them has nothing: both begin.
        ([actor_at(5, "-last?")], [critic_at(12)], (0, 0), True),
        ([actor_at(5), actor_at(5, "-last")], [critic_at(12, "-last?")], (0, 0), True),
    ],
)
def test_actor_and_critic_resume_from_two_that_belong_together(
    tmp_path: Path, actors: list[str], critics: list[str], left: tuple[int, int], together: bool
):
    logs = pair(tmp_path)
    put_checkpoints(logs.log, *actors)
    put_checkpoints(tmp_path / "critic", *critics)
    for _ in range(2):
        assert logs.mend() is together
        assert (logs.step, Logs(tmp_path / "critic").step) == left
        for log in ("log", "critic"):
            assert sum(name.endswith("-last") for name in checkpoint_names(tmp_path / log)) == bool(left[0])
            assert not any(name.endswith("-unfinished") for name in checkpoint_names(tmp_path / log))


def test_the_end_of_ppo_goes_back_only_to_two_that_belong_together(tmp_path: Path):
    logs = pair(tmp_path)
    put_checkpoints(logs.log, actor_at(5), actor_at(10, "-last"))
    put_checkpoints(tmp_path / "critic", critic_at(12, ""), critic_at(22))
    logs.go_back()
    assert (logs.step, Logs(tmp_path / "critic").step) == (5, 12)
    assert [path.name for path in (tmp_path / "critic" / "set_aside").iterdir()] == [critic_at(22)]
    put_checkpoints(logs.log, actor_at(10, "-last"))
    (logs.log / "checkpoints" / actor_at(5, "-last")).rename(logs.log / "checkpoints" / actor_at(4))
    logs.go_back()
    assert not logs.log.exists()
    assert not (tmp_path / "critic").exists()
