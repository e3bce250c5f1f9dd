"""Upstream's checkpoints between two attempts: which one is resumed from, and what is kept of the others."""

from __future__ import annotations

from pathlib import Path

import pytest

from cai.engines.nemo_aligner.checkpoints import CriticRun, Logs, whole

SFT = "megatron_gpt_sft--val_loss={}-step={}-consumed_samples=9-epoch=0"
ACTOR = "megatron_gpt-step={}-consumed_samples=9-ppo_optimization_step=8-epoch=0-val_rewards=0.1"


def put(log: Path, *names: str) -> None:
    """Checkpoints; of one that ends with ``?`` the marker says that it is not whole, and ``!`` is a marker alone."""
    folder = log / "checkpoints"
    for name in names:
        folder.mkdir(parents=True, exist_ok=True)
        plain = name.rstrip("?!")
        if not name.endswith("!"):
            (folder / plain).mkdir()
            (folder / plain / "common.pt").write_text(plain)
        if name != plain:
            (folder / f"{plain}-unfinished").touch()


def names(log: Path) -> set[str]:
    folder = log / "checkpoints"
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


def sft(step: int, end: str = "", loss: float = 0.5) -> str:
    return SFT.format(loss, step) + end


def actor(step: int, end: str = "") -> str:
    return ACTOR.format(step) + end


def critic(step: int, end: str = "-last") -> str:
    return f"megatron_gpt-step={step}{end}"


def pair(folder: Path) -> Logs:
    """The critic makes two updates an iteration, and one iteration of warm-up before."""
    return Logs(folder / "log", CriticRun(folder / "critic", lambda step: 2 * (step + 1), end=20))


@pytest.mark.parametrize(
    ("there", "left", "step"),
    [
        ([], [], 0),
        ([sft(5), sft(5, "-last")], [sft(5), sft(5, "-last")], 5),
        # Killed between writing the new last one and removing the old.
        ([sft(5, "-last"), sft(10, "-last")], [sft(10, "-last")], 10),
        # ... while the old was being removed, or the new was being written.
        ([sft(5, "-last?"), sft(10, "-last")], [sft(10, "-last")], 10),
        ([sft(5, "-last"), sft(10, "-last?")], [sft(5, "-last")], 5),
        ([sft(5, "-last"), sft(10), sft(10, "-last?")], [sft(5, "-last"), sft(10)], 5),
        # The first last one was being written: what is among the best is just as whole.
        ([sft(5), sft(5, "-last?")], [sft(5, "-last")], 5),
        ([sft(5), sft(5, "-last!")], [sft(5, "-last")], 5),
        ([sft(5, "-last?")], [], 0),
        ([sft(5, "?"), sft(5, "-last?")], [], 0),
        # A name that was taken; upstream would not find it.
        ([sft(5, "-last"), sft(10, "-last-v1")], [sft(10, "-last")], 10),
    ],
)
def test_one_whole_last_checkpoint_is_left(tmp_path: Path, there: list[str], left: list[str], step: int):
    logs = Logs(tmp_path / "log")
    put(logs.log, *there)
    for _ in range(2):
        assert logs.mend()
        assert names(logs.log) == set(left)
        assert logs.step == step


@pytest.mark.parametrize(
    ("there", "left", "aside"),
    [
        ([sft(5), sft(10), sft(20), sft(20, "-last")], [sft(5), sft(10, "-last")], [sft(20, "-last")]),
        ([sft(5, "-last"), sft(20, "-last")], [sft(5, "-last")], [sft(20, "-last")]),
    ],
)
def test_an_end_without_a_model_goes_back_to_the_checkpoint_before(
    tmp_path: Path, there: list[str], left: list[str], aside: list[str]
):
    logs = Logs(tmp_path / "log")
    put(logs.log, *there)
    logs.go_back()
    assert names(logs.log) == set(left)
    assert {path.name for path in (logs.log / "set_aside").iterdir()} == set(aside)
    logs.mend()
    assert names(logs.log) == set(left)


def test_an_end_without_a_model_and_nothing_before_begins_anew(tmp_path: Path):
    logs = Logs(tmp_path / "log")
    for number in (1, 2):
        put(logs.log, sft(20), sft(20, "-last"))
        logs.go_back()
        assert not logs.log.exists()
        assert [c.step for c in whole(tmp_path / f"log.{number}")] == [20, 20]


@pytest.mark.parametrize(
    ("actors", "critics", "left", "together"),
    [
        ([], [], (0, 0), True),
        ([actor(5, "-last")], [critic(12)], (5, 12), True),
        # The critic was a save ahead, and its old one is still there.
        ([actor(5, "-last")], [critic(12), critic(22)], (5, 12), True),
        # The actor's last one was being written, but it has that step among the best.
        ([actor(5, "-last"), actor(10), actor(10, "-last?")], [critic(22)], (10, 22), True),
        # The actor was ahead, and its old one is still there.
        ([actor(5, "-last"), actor(10, "-last")], [critic(12), critic(22, "-last?")], (5, 12), True),
        ([actor(5), actor(10, "-last")], [critic(12), critic(22, "-last?")], (5, 12), True),
        # ... but from the very end nothing would be trained, and no model written.
        ([actor(15, "-last"), actor(20), actor(20, "-last?")], [critic(42)], (15, 42), False),
        # Nothing belongs together any more: on they go.
        ([actor(5, "-last"), actor(10, "-last?")], [critic(22)], (5, 22), False),
        ([actor(10, "-last")], [critic(12), critic(22, "-last?")], (10, 12), False),
        # One of them has nothing: both begin.
        ([actor(5, "-last?")], [critic(12)], (0, 0), True),
        ([actor(5), actor(5, "-last")], [critic(12, "-last?")], (0, 0), True),
    ],
)
def test_actor_and_critic_resume_from_two_that_belong_together(
    tmp_path: Path, actors: list[str], critics: list[str], left: tuple[int, int], together: bool
):
    logs = pair(tmp_path)
    put(logs.log, *actors)
    put(tmp_path / "critic", *critics)
    for _ in range(2):
        assert logs.mend() is together
        assert (logs.step, Logs(tmp_path / "critic").step) == left
        for log in ("log", "critic"):
            assert sum(name.endswith("-last") for name in names(tmp_path / log)) == bool(left[0])
            assert not any(name.endswith("-unfinished") for name in names(tmp_path / log))


def test_the_end_of_ppo_goes_back_only_to_two_that_belong_together(tmp_path: Path):
    logs = pair(tmp_path)
    put(logs.log, actor(5), actor(10, "-last"))
    put(tmp_path / "critic", critic(12, ""), critic(22))
    logs.go_back()
    assert (logs.step, Logs(tmp_path / "critic").step) == (5, 12)
    assert [path.name for path in (tmp_path / "critic" / "set_aside").iterdir()] == [critic(22)]
    put(logs.log, actor(10, "-last"))
    (logs.log / "checkpoints" / actor(5, "-last")).rename(logs.log / "checkpoints" / actor(4))
    logs.go_back()
    assert not logs.log.exists()
    assert not (tmp_path / "critic").exists()
