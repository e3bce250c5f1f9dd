"""Upstream's own scripts, run as the plan runs them, up to the moment in which they load their model.

What the lab builds models from must be what the scripts would: the same class, the same merged config. Runs where
CAI_UPSTREAM is a checkout with the scripts beside the configs, and is skipped where it holds configs alone.
"""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from cai.engines.nemo_aligner.commands import CRITIC_HOST, Compiled
from tests.lab.building import RESTORED, WITHOUT_KERNELS, upstream_classes
from tests.lab.chain import CHAIN, ChainRun
from tests.lab.validated import Validated


class Loading(Exception):
    """What a script asks for when it loads its model."""

    def __init__(self, model_class: Any, config: Any) -> None:
        super().__init__(str(model_class))
        self.model_class = model_class
        self.config = config


def _script(config: Path, command: Compiled) -> Path:
    name = next(Path(word).name for word in command.command.argv if word.endswith(".py"))
    script = config.parent.parent / name
    if not script.is_file():
        pytest.skip(f"CAI_UPSTREAM has no {name} beside its configs")
    return script


@pytest.mark.parametrize(("name", "start"), CHAIN)
def test_the_script_asks_for_the_model_that_the_lab_builds(
    run: ChainRun,
    name: str,
    start: str,
    configs: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    validated: Validated,
) -> None:
    command = run.commands[name]
    script = _script(configs[command.config], command)
    made, checkpoint = run.chain(name, start), run.checkpoints[start]
    argv = [word for word in command.command.argv if "=" in word]
    place = {RESTORED[command.config]: str(checkpoint), "exp_manager.explicit_log_dir": str(tmp_path / "log")}
    moved = [word for word in argv if word.lstrip("+").partition("=")[0] not in place]
    words = [*moved, *(f"{key}={value}" for key, value in place.items()), "trainer.accelerator=cpu"]
    monkeypatch.setattr(sys, "argv", [str(script), *words, "hydra.run.dir=.", "hydra.output_subdir=null"])
    monkeypatch.setenv(CRITIC_HOST, "127.0.0.1")
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.chdir(tmp_path)
    _stop_at_loading(monkeypatch)
    with pytest.raises(Loading) as raised:
        runpy.run_path(str(script), run_name="__main__")
    asked = raised.value
    assert asked.model_class is upstream_classes()[command.config]
    model = asked.config.model if command.config == "gpt_sft.yaml" else asked.config
    theirs, ours = (OmegaConf.to_container(c, resolve=True) for c in (model, made.config.model))
    assert isinstance(theirs, dict)
    assert isinstance(ours, dict)
    changed = {*WITHOUT_KERNELS, "precision", "restore_from_path"}
    assert {k: v for k, v in theirs.items() if k not in changed} == {k: v for k, v in ours.items() if k not in changed}
    validated.lines.append(f"{run.experiment}: {name}: upstream's own {script.name} asks for the same model")


def _stop_at_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    from hydra.core.global_hydra import GlobalHydra
    from nemo_aligner.utils import utils

    def stop(model_class: Any, config: Any, *more: Any, **options: Any) -> Any:
        raise Loading(model_class, config)

    GlobalHydra.instance().clear()
    upstream_classes()
    monkeypatch.setattr(utils, "load_from_nemo", stop)
    os.environ.setdefault("NVIDIA_PYTORCH_VERSION", "none")
