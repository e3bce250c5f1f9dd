"""The training commands of a run as a chain: each starts from the checkpoint that another one saves."""

from __future__ import annotations

from pathlib import Path

from omegaconf import OmegaConf

from cai.engines.nemo_aligner.commands import Compiled
from tests.lab import checkpoint
from tests.lab.building import Built, built
from tests.lab.planned import planned
from tests.support.small_tokenizers import sentencepiece_model

TRAINED = (("sft.train", "converted"), ("reward.train", "sft.train"), ("rl.critic", "reward.train"))
CHAIN = (*TRAINED, ("rl.actor", "sft.train"))
"""A training command, and whose result it starts from."""


class ChainRun:
    """An experiment's commands, built one after another; each leaves the checkpoint that its script would."""

    def __init__(self, experiment: str, configs: dict[str, Path], converted: Path, folder: Path) -> None:
        self.experiment = experiment
        self.commands = planned(experiment)
        self.checkpoints = {"converted": converted}
        self.built: dict[str, Built] = {}
        self._configs = configs
        self._folder = folder

    def build(self, name: str, start: str, command: Compiled | None = None) -> Built:
        """Build a command on the checkpoint of another, or of the converter."""
        command = command or self.commands[name]
        log = self._folder / f"log-{name}-{len(self.built)}"
        return built(self._configs[command.config], command, self.checkpoints[start], log)

    def chain(self, name: str, start: str) -> Built:
        """Build a command and keep what it would save."""
        if start not in self.checkpoints:
            self.chain(*next(link for link in CHAIN if link[0] == start))
        if name not in self.built:
            self.built[name] = self.build(name, start)
            config = OmegaConf.to_container(self.built[name].model.cfg, resolve=True)
            assert isinstance(config, dict)
            self.checkpoints[name] = checkpoint.write(self._folder / name, config, sentencepiece_model())
        return self.built[name]
