"""Checkpoints of training: one file, replaced whole, so that a kill at any moment leaves the last one intact."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from cai.identity import key_of
from cai.settings import Settings, semantic


def fingerprint(settings: Settings, seed: int, examples: Sequence[object], *more: str) -> str:
    """What a checkpoint belongs to: the settings that decide results, the seed, and every training example."""
    return key_of(
        {"settings": semantic(settings), "seed": seed, "examples": [repr(x) for x in examples], "more": list(more)}
    )


def save(path: Path, belongs: str, state: Mapping[str, Any]) -> None:
    """Write a checkpoint: a temporary file, fsync, rename, fsync of the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        torch.save({"belongs": belongs, **state}, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def load(path: Path, belongs: str) -> dict[str, Any] | None:
    """The checkpoint at ``path``, None when there is none or it belongs to other settings or data."""
    if not path.exists():
        return None
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state if state.pop("belongs", None) == belongs else None


TIMES = ("seconds", "tokens_per_s")


def write_metrics(dest: Path, work: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """``dest``/metrics.jsonl without what the clock says, so that the same work gives the same bytes.

    ``work``/timings.jsonl has all of it.
    """
    write_rows(dest / "metrics.jsonl", [{k: v for k, v in row.items() if k not in TIMES} for row in rows])
    write_rows(work / "timings.jsonl", rows)


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """One JSON object a line, the file replaced whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    partial.replace(path)
