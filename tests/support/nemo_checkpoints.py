"""Folders of checkpoints as NeMo-Aligner leaves them, by name: of SFT, of the actor and of the critic."""

from __future__ import annotations

from pathlib import Path

SFT = "megatron_gpt_sft--val_loss={}-step={}-consumed_samples=9-epoch=0"
ACTOR = "megatron_gpt-step={}-consumed_samples=9-ppo_optimization_step=8-epoch=0-val_rewards=0.1"


def put_checkpoints(log: Path, *names: str) -> None:
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


def checkpoint_names(log: Path) -> set[str]:
    """What lies in the folder of checkpoints, markers included."""
    folder = log / "checkpoints"
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


def sft_at(step: int, end: str = "", loss: float = 0.5) -> str:
    return SFT.format(loss, step) + end


def actor_at(step: int, end: str = "") -> str:
    return ACTOR.format(step) + end


def critic_at(step: int, end: str = "-last") -> str:
    return f"megatron_gpt-step={step}{end}"
