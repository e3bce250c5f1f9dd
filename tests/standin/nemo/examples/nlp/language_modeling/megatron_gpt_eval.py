"""Answers ``prompts`` on standard output, and with ``server=True`` serves ``PUT /generate``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[5]))

from omegaconf import DictConfig, OmegaConf, open_dict
from standin import launch


@launch.script(__file__, "megatron_gpt_inference")
def main(cfg: DictConfig, fault: launch.Fault) -> None:
    launch.check_tasks(cfg)
    sizes = [f"{kind}_model_parallel_size" for kind in ("tensor", "pipeline")]
    left_open = min(*(cfg[size] for size in sizes), cfg.get("pipeline_model_parallel_split_rank", -1)) < 0
    if cfg.gpt_model_file and left_open:
        # As upstream: any of the three left open, and the checkpoint's sizes are taken, whatever was asked.
        from standin import tiny

        trained = tiny.load_nemo(cfg.gpt_model_file).config
        with open_dict(cfg):
            for size in sizes:
                cfg[size] = trained.get(size, 1)
    asked = cfg.tensor_model_parallel_size * cfg.pipeline_model_parallel_size
    assert cfg.trainer.devices * cfg.trainer.num_nodes == asked * max(1, cfg.get("expert_model_parallel_size", 1)), (
        "devices * num_nodes should equal tensor_model_parallel_size * pipeline_model_parallel_size"
    )
    if not cfg.gpt_model_file:
        raise ValueError("need at least a nemo file: the stand-in knows no checkpoint dir")

    from standin import generate, serving, tiny

    nemo = tiny.load_nemo(cfg.gpt_model_file)
    service = generate.Generate(nemo.model(), nemo.words)
    launch.local_ranks(cfg)
    # Upstream answers its prompts first, server or not.
    how = OmegaConf.to_container(cfg.inference)
    print(
        "*" * 27, service.generate(sentences=OmegaConf.to_container(cfg.prompts), **how), "*" * 27, sep="\n", flush=True
    )
    if cfg.server:
        serving.serve(cfg.port, service, fault)


if __name__ == "__main__":
    main()
