"""A planned command, taken as far as the real script takes it on a GPU: config merged, trainer made, model built.

The order of the calls is that of NeMo-Aligner v0.7.0's scripts (examples/nlp/gpt) and of NeMo's megatron_gpt_eval.py.
What a machine without GPUs lacks is replaced, and only that: the accelerator, Transformer Engine's layers (Megatron's
own stand in), fused kernels, the sliding window that only Transformer Engine has, and where files lie. The trainer
believes in all its devices, so that one process builds what rank 0 of the declared tensor-parallel size would hold.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf, open_dict

from cai.engines.nemo_aligner.commands import CRITIC_HOST, Compiled
from tests.lab import absent

RESOLVERS: dict[str, Callable[[int, int], int]] = {
    "multiply": lambda x, y: x * y,
    "int_div": lambda x, y: x // y,
    "subtract": lambda x, y: x - y,
}
WITHOUT_KERNELS = {
    "transformer_engine": False,
    "persist_layer_norm": False,
    "masked_softmax_fusion": False,
    "window_size": None,
}
"""Settings of a model that only a GPU's kernels can follow; none of them is about layout or training."""
RESTORED = {
    "gpt_sft.yaml": "model.restore_from_path",
    "training_rm.yaml": "pretrained_checkpoint.restore_from_path",
    "gpt_ppo_critic.yaml": "pretrained_checkpoint.restore_from_path",
    "gpt_ppo_actor.yaml": "pretrained_checkpoint.restore_from_path",
    "megatron_gpt_inference.yaml": "gpt_model_file",
}
"""By upstream's config, the key that names the checkpoint."""
SECTIONS = {"gpt_sft.yaml": "sft", "training_rm.yaml": "rm", "gpt_ppo_critic.yaml": "ppo", "gpt_ppo_actor.yaml": "ppo"}
"""By upstream's config, what its script takes out of ``trainer`` before Lightning reads that."""


@dataclass(frozen=True)
class Built:
    """What a script holds before it reads data; ``config`` is what it would print."""

    config: DictConfig
    trainer: Any
    model: Any


def composed(config: Path, command: Compiled) -> DictConfig:
    """Upstream's YAML with the command's own words, by Hydra in strict mode, as ``hydra_runner`` does it."""
    for name, resolver in RESOLVERS.items():
        OmegaConf.register_new_resolver(name, resolver, replace=True)
    os.environ.setdefault(CRITIC_HOST, "127.0.0.1")
    script = next(i for i, word in enumerate(command.command.argv) if word.endswith(".py"))
    with initialize_config_dir(str(config.parent.absolute()), version_base="1.2"):
        made = compose(config.stem, overrides=list(command.command.argv[script + 1 :]))
    assert isinstance(made, DictConfig)
    return made


def merged(yaml: Path, command: Compiled, checkpoint: Path, log: Path) -> DictConfig:
    """The config as the script has it: the checkpoint's beneath, the command's on top; files of this machine."""
    from nemo_aligner.utils.utils import load_and_override_model_config

    config = composed(yaml, command)
    OmegaConf.update(config, RESTORED[command.config], str(checkpoint))
    config.trainer.accelerator = "cpu"
    config.exp_manager.explicit_log_dir = str(log)
    config.model = load_and_override_model_config(str(checkpoint), config.model)
    return config


def built(yaml: Path, command: Compiled, checkpoint: Path, log: Path) -> Built:
    """The trainer and the model of a training command, by the real classes.

    Raises:
        Exception: what upstream's classes raise for a configuration that they refuse.
    """
    classes = upstream_classes()
    from nemo.utils.exp_manager import exp_manager
    from nemo_aligner.utils.train_script_utils import resolve_and_create_trainer
    from nemo_aligner.utils.utils import load_from_nemo

    _forget_parallel_state()
    config = merged(yaml, command, checkpoint, log)
    trainer = resolve_and_create_trainer(config, SECTIONS[command.config])
    exp_manager(trainer, config.exp_manager)
    with open_dict(config):
        config.model.precision = config.trainer.precision
        config.model.update(WITHOUT_KERNELS)
    whole = config if command.config == "gpt_sft.yaml" else config.model
    model = load_from_nemo(
        classes[command.config],
        whole,
        trainer,
        strict=True,
        restore_path=str(checkpoint),
        load_base_model_only=command.config == "training_rm.yaml",
    )
    return Built(config, trainer, model)


def built_server(yaml: Path, command: Compiled, checkpoint: Path) -> Built:
    """The model of a server's command, by the steps of ``load_model_from_config``."""
    model_class = upstream_classes()[command.config]
    from lightning.pytorch import Trainer
    from nemo.collections.nlp.parts.nlp_overrides import NLPDDPStrategy, NLPSaveRestoreConnector

    _forget_parallel_state()
    config = composed(yaml, command)
    config.trainer.accelerator = "cpu"
    trainer = Trainer(strategy=NLPDDPStrategy(), **config.trainer)
    sizes = (config.tensor_model_parallel_size, config.pipeline_model_parallel_size)
    assert config.trainer.devices * config.trainer.num_nodes == sizes[0] * sizes[1]
    connector = NLPSaveRestoreConnector()
    connector.model_extracted_dir = str(checkpoint)
    taken = OmegaConf.load(checkpoint / "model_config.yaml")
    assert isinstance(taken, DictConfig)
    with open_dict(taken):
        taken.sequence_parallel = False
        taken.activations_checkpoint_granularity = None
        taken.activations_checkpoint_method = None
        taken.precision = trainer.precision
        taken.use_flash_attention = config.inference.get("use_flash_attention", False)
        taken.apply_rope_fusion = False
        taken.tensor_model_parallel_size, taken.pipeline_model_parallel_size = sizes
        taken.expert_model_parallel_size = config.get("expert_model_parallel_size", 1)
        taken.micro_batch_size = 1
        if trainer.precision in ("bf16", "bf16-mixed") and config.get("megatron_amp_O2", False):
            taken.megatron_amp_O2 = True
        taken.update(WITHOUT_KERNELS)
    model = model_class.restore_from(
        restore_path=str(checkpoint), trainer=trainer, override_config_path=taken, save_restore_connector=connector
    )
    return Built(config, trainer, model)


@cache
def upstream_classes() -> Mapping[str, Any]:
    """The model class of each config's script, importable and buildable on this machine."""
    absent.install()
    os.environ.setdefault("NVIDIA_PYTORCH_VERSION", "none")
    import torch
    from megatron.core.models.gpt import gpt_layer_specs
    from megatron.core.tensor_parallel import layers
    from megatron.core.transformer import transformer_block
    from nemo.collections.nlp.models import nlp_model
    from nemo.collections.nlp.models.language_modeling import megatron_gpt_model
    from nemo.collections.nlp.modules.common.megatron import build_model
    from nemo.collections.nlp.parts import nlp_overrides
    from nemo_aligner.models.nlp.gpt import megatron_gpt_reward_model
    from nemo_aligner.models.nlp.gpt.gpt_sft_model import GPTSFTModel
    from nemo_aligner.models.nlp.gpt.megatron_gpt_critic import MegatronGPTCriticModel
    from nemo_aligner.models.nlp.gpt.megatron_gpt_ppo_actor import MegatronGPTActorModel

    class Norm(torch.nn.RMSNorm):
        """Transformer Engine's norm takes sequence parallelism; Megatron's fallback refuses it."""

        def __init__(self, config: Any, hidden_size: int, eps: float = 1e-5, **more: Any) -> None:
            super().__init__(hidden_size, eps)

    def local_layers(*names: Any, **more: Any) -> Any:
        return gpt_layer_specs.get_gpt_layer_local_spec()

    def without_weights(self: Any, calling_cls: Any, path: str, *more: Any, **options: Any) -> Any:
        """Restoring as far as the model is made; a checkpoint of this lab has a config and a tokenizer only."""
        for name in ("replace_sharded_tensor_key", "return_config"):
            options.pop(name, None)
        return self.load_config_and_state_dict(calling_cls, path, *more, **options)[1]

    empty = torch.empty

    def pageable(*size: Any, pin_memory: bool = False, **options: Any) -> Any:
        """Memory that a GPU reads from needs one to be allocated."""
        return empty(*size, **options)

    torch.empty = pageable
    torch.cuda.synchronize = lambda device=None: None
    connector = nlp_overrides.NLPSaveRestoreConnector
    connector.restore_from = without_weights
    connector._load_state_dict_from_disk = lambda *parts, **options: None
    transformer_block.LayerNormImpl = gpt_layer_specs.LNImpl = Norm
    megatron_gpt_model.get_specs = megatron_gpt_reward_model.get_specs = local_layers
    nlp_overrides.HAVE_APEX = True
    nlp_model.get_megatron_pretrained_bert_models = list
    name = "set_defaults_if_not_set_tensor_model_parallel_attributes"
    setattr(build_model, name, getattr(layers, name))
    return {
        "gpt_sft.yaml": GPTSFTModel,
        "training_rm.yaml": megatron_gpt_reward_model.MegatronGPTRewardModel,
        "gpt_ppo_critic.yaml": MegatronGPTCriticModel,
        "gpt_ppo_actor.yaml": MegatronGPTActorModel,
        "megatron_gpt_inference.yaml": megatron_gpt_model.MegatronGPTModel,
    }


def _forget_parallel_state() -> None:
    """Each script is a process of its own upstream; here one process builds them all."""
    from megatron.core import num_microbatches_calculator, parallel_state
    from nemo.utils import AppState

    parallel_state.destroy_model_parallel()
    num_microbatches_calculator.destroy_num_microbatches_calculator()
    type(AppState)._instances = {}
