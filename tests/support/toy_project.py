"""A user's folder with an experiment that needs no model, and the command line in it, here or on a cluster."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.slurm_cluster import Cluster

TOY_EXPERIMENT = """\
# python -m cai experiment=toy
defaults:
  - /template: nemo_extra_id
  - _self_
engine:
  kind: nemo_aligner
  launcher: LAUNCHER
data:
  talk: {path: talk.jsonl, makes: conversations}
stages:
  sl_mix:
    kind: mix
    sources: [{from: talk}]
    val: 0.25
"""
ON_SLURM = '{kind: slurm, poll: 0.1, cpu_time: "10:00", setup: ["while test -e hold; do sleep 0.1; done"]}'


def conversation_lines(count: int) -> str:
    """So many conversations as JSON lines."""
    turns = [
        [{"role": "user", "content": f"Q {i}?"}, {"role": "assistant", "content": f"A {i}."}] for i in range(count)
    ]
    return "".join(json.dumps({"messages": each}) + "\n" for each in turns)


class ToyProject:
    """A folder of a user: an experiment that needs no model, its data, and the command line."""

    def __init__(self, at: Path, env: dict[str, str]) -> None:
        self.at, self.env = at, {**os.environ, "CAI_HOME": str(at / "home"), "NO_COLOR": "1", "COLUMNS": "200", **env}
        (at / "experiments").mkdir(parents=True)
        self.write(ON_SLURM)
        (at / "talk.jsonl").write_text(conversation_lines(40))

    def write(self, launcher: str, text: str = TOY_EXPERIMENT) -> None:
        (self.at / "experiments" / "toy.yaml").write_text(text.replace("LAUNCHER", launcher))

    def start(self, *args: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "cai", *args],
            cwd=self.at,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def cai(self, *args: str, code: int = 0) -> str:
        process = self.start(*args)
        out, err = process.communicate(timeout=100)
        assert process.returncode == code, out + err
        return out + err

    def status(self) -> dict[str, dict]:
        """What ``status`` says, by step and (under "") of the run; its exit code must say the same in both formats."""
        process = self.start("status", "toy", "--format", "json")
        out, err = process.communicate(timeout=100)
        data = json.loads(out)
        wanted = {"done": 0, "failed": 1}.get(data["state"], 3)
        assert process.returncode == data["exit_code"] == wanted, out + err
        text = self.start("status", "toy")
        shown, _ = text.communicate(timeout=100)
        if f": {data['state']}  (" in shown:  # else it has gone on between the two
            assert text.returncode == wanted
            assert f"; exit code {wanted})" in shown
        return {step["name"]: step for step in data["steps"]} | {"": data}

    @property
    def run(self) -> Path:
        return (self.at / "runs" / "toy" / "latest").resolve()

    def hold(self) -> None:
        """Keep jobs in the first lines of their script."""
        (self.at / "hold").touch()

    def let_go(self) -> None:
        (self.at / "hold").unlink()

    def artifacts(self) -> dict[str, bytes]:
        files = (self.at / "home" / "store").glob("*/*.jsonl")
        return {f"{p.parent.name}/{p.name}": p.read_bytes() for p in files}


@pytest.fixture
def cluster_project(slurm: Cluster, tmp_path: Path) -> Iterator[ToyProject]:
    """A project whose commands find the test cluster, with an empty queue after."""
    yield ToyProject(tmp_path / "there", slurm.env)
    slurm.clear()
