"""Every planned command of both shipped experiments: merged with upstream's configs, built by upstream's classes.

The chain is that of a run: what one script saves as its model's config lies beneath the next script's YAML.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from cai.engines.nemo_aligner.commands import Compiled
from cai.engines.nemo_aligner.methods import trainer_of
from cai.engines.nemo_aligner.overrides import Override, merged, words
from cai.engines.nemo_aligner.settings import Checkpointing, TrainingLayout
from tests.lab import checkpoint
from tests.lab.building import RESTORED, Built, built_server, upstream_classes
from tests.lab.chain import CHAIN, ChainRun
from tests.lab.planned import command_digest
from tests.lab.validated import Validated

KINDS = {
    "sft.train": "GPTSFTModel",
    "reward.train": "MegatronGPTRewardModel",
    "rl.critic": "MegatronGPTCriticModel",
    "rl.actor": "MegatronGPTActorModel",
}


@pytest.mark.parametrize(("name", "start"), CHAIN)
def test_a_training_command_builds_its_model(run: ChainRun, name: str, start: str, validated: Validated) -> None:
    made, command = run.chain(name, start), run.commands[name]
    layout = command.layout
    assert isinstance(layout, TrainingLayout)
    assert type(made.model).__name__ == KINDS[name]
    _is_laid_out(made.model, layout)
    _has_every_override(made, command)
    experiment = run.experiment
    validated.commands.setdefault(experiment, {})[name] = command_digest(command)
    parallel = "sequence parallel" if layout.sequence_parallel else "no sequence parallel"
    validated.lines.append(
        f"{experiment}: {name}: {KINDS[name]}, tensor parallel {layout.tensor_parallel}, {parallel}, "
        f"recomputation {layout.activation_checkpointing.value}, on the checkpoint of {start}"
    )


def _is_laid_out(model: Any, layout: TrainingLayout) -> None:
    from megatron.core import parallel_state

    config = model.transformer_config
    sizes = (config.tensor_model_parallel_size, config.pipeline_model_parallel_size)
    assert sizes == (layout.tensor_parallel, layout.pipeline_parallel)
    assert parallel_state.get_tensor_model_parallel_world_size() == layout.tensor_parallel
    assert config.sequence_parallel is layout.sequence_parallel
    recomputed = (
        None if layout.activation_checkpointing is Checkpointing.NONE else layout.activation_checkpointing.value
    )
    assert config.recompute_granularity == recomputed
    assert config.recompute_num_layers == (1 if layout.activation_checkpointing is Checkpointing.FULL else None)
    # A rank holds its share of every layer.
    shares = [p.shape[0] for name, p in model.named_parameters() if name.endswith("linear_fc1.weight")]
    assert set(shares) == {2 * checkpoint.SIZES["ffn_hidden_size"] // layout.tensor_parallel}


def _has_every_override(made: Built, command: Compiled) -> None:
    """What the command says is what the script has, after the merge; files of this machine stand in for the plan's."""
    moved = {RESTORED[command.config], "exp_manager.explicit_log_dir", "remote_critic_rm.critic.ip"}
    for override in command.overrides:
        if override.key in moved:
            continue
        value = OmegaConf.select(made.config, override.key)
        value = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
        assert value == override.value, override.key


@pytest.mark.parametrize(("name", "start"), [link for link in CHAIN if link[0] != "rl.critic"])
def test_the_model_ends_in_the_file_that_is_waited_for(run: ChainRun, name: str, start: str) -> None:
    made = run.chain(name, start)
    (saver,) = [c for c in made.trainer.callbacks if type(c).__name__ == "NeMoModelCheckpoint"]
    assert saver.save_nemo_on_train_end is True
    assert saver.save_top_k == 1
    assert f"{saver.prefix}{saver.postfix}" == f"{trainer_of(name.partition('.')[0]).result}.nemo"
    assert Path(saver.dirpath).name == "checkpoints"
    assert Path(saver.dirpath).parent == Path(made.config.exp_manager.explicit_log_dir)


@pytest.mark.parametrize(("name", "start"), [("reward.train", "sft.train"), ("rl.critic", "reward.train")])
def test_upstream_refuses_a_reward_head_with_sequence_parallelism(run: ChainRun, name: str, start: str) -> None:
    """Inherited from SFT where a command leaves it unsaid; that is why ours says it."""
    run.chain(name, start)
    said = run.commands[name]
    unsaid = tuple(o for o in said.overrides if o.key != "model.sequence_parallel")
    asked = merged(unsaid, {"++model.sequence_parallel": True})
    with pytest.raises(RuntimeError, match="input_is_parallel"):
        run.build(name, start, _with(said, asked))
    if OmegaConf.load(run.checkpoints[start] / "model_config.yaml").sequence_parallel:
        with pytest.raises(RuntimeError, match="input_is_parallel"):
            run.build(name, start, _with(said, unsaid))


@pytest.mark.parametrize(("name", "start"), CHAIN)
def test_upstream_refuses_selective_recomputation_with_a_number_of_layers(run: ChainRun, name: str, start: str) -> None:
    run.chain(name, start)
    key = "model.activations_checkpoint"
    mixed = {f"++{key}_granularity": "selective", f"++{key}_num_layers": 1}
    with pytest.raises(Exception, match="recompute_num_layers must be None"):
        run.build(name, start, _with(run.commands[name], _added(run.commands[name], mixed)))
    guide = {f"++{key}_granularity": "selective", f"++{key}_method": "uniform", f"++{key}_num_layers": None}
    made = run.build(name, start, _with(run.commands[name], _added(run.commands[name], guide)))
    assert made.model.transformer_config.recompute_granularity == "selective"


def _added(command: Compiled, more: dict[str, Any]) -> tuple[Override, ...]:
    has = {o.key for o in command.overrides if not o.add}
    return merged(command.overrides, {k.removeprefix("++") if k[2:] in has else k: v for k, v in more.items()})


def _with(command: Compiled, overrides: tuple[Override, ...]) -> Compiled:
    """The command with other overrides."""
    script = next(i for i, word in enumerate(command.command.argv) if word.endswith(".py"))
    argv = (*command.command.argv[: script + 1], *words(overrides))
    return replace(command, command=replace(command.command, argv=argv), overrides=overrides)


SERVED = {"helpful": "converted", "sft": "sft.train", "rl": "rl.actor"}


def test_every_server_loads_its_checkpoint(
    run: ChainRun, tmp_path: Path, configs: dict[str, Path], validated: Validated
) -> None:
    experiment = run.experiment
    for name, command in run.commands.items():
        if command.config != "megatron_gpt_inference.yaml":
            continue
        start = SERVED[command.setting.rpartition(".")[2]]
        if start != "converted":
            run.chain(*next(link for link in CHAIN if link[0] == start))
        made = built_server(configs[command.config], command, run.checkpoints[start])
        # A checkpoint names the class that wrote it, and upstream's servers take that.
        assert upstream_classes()[command.config] in type(made.model).__mro__
        assert made.model.transformer_config.sequence_parallel is False
        assert made.model.transformer_config.recompute_granularity is None
        # Half the memory of what upstream serves a converted checkpoint with.
        assert {str(p.dtype) for p in made.model.parameters()} == {"torch.bfloat16"}
        validated.commands.setdefault(experiment, {})[name] = command_digest(command)
        kind = type(made.model).__name__
        validated.lines.append(f"{experiment}: {name}: {kind} in bfloat16, on the checkpoint of {start}")
