"""Reward model: alternating chosen and rejected texts in, Bradley-Terry loss, ``checkpoints/megatron_gpt.nemo`` out."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[5]))

from omegaconf import DictConfig, OmegaConf
from standin import launch


@launch.script(__file__, "training_rm")
def main(cfg: DictConfig, fault: launch.Fault) -> None:
    import torch
    from standin import experiment, rows, tiny

    nemo = tiny.load_nemo(cfg.pretrained_checkpoint.restore_from_path)
    cfg.model = launch.merged(nemo.config, cfg.model)
    launch.check_model(cfg.model, headed=True)
    log = experiment.Experiment(cfg.exp_manager, fault)
    OmegaConf.resolve(cfg)
    how = cfg.trainer.rm
    assert cfg.model.reward_model_type == "binary_ranking", "stand-in: reward_model_type must be binary_ranking"
    assert not cfg.model.output_sequence, "reward models put out one number a text"
    size = cfg.model.global_batch_size
    launch.data_parallel(cfg, cfg.model, {"model": (size, cfg.model.micro_batch_size)})
    launch.local_ranks(cfg)
    torch.manual_seed(cfg.model.seed)
    model = nemo.model(head=True, base_only=True)
    data, held = (rows.Pairs(cfg.model, nemo.words, split) for split in ("train", "validation"))
    per_epoch = len(data) // size
    last = per_epoch * how.max_epochs
    if how.max_steps >= 0:
        last = min(last, how.max_steps)
    batches = experiment.limited(len(held) // size, how.limit_val_batches)
    descent = experiment.Descent(model, cfg.model.optim, last, how.gradient_clip_val)
    step = 0
    if log.resumed:
        model.load_state_dict(log.resumed["model"])
        descent.adam.state = log.resumed["optim"]
        step = log.resumed["step"]

    def margins(pairs: list[tuple[list[int], list[int]]]) -> torch.Tensor:
        texts = [ids for pair in pairs for ids in pair]
        ends = torch.tensor([len(ids) - 1 for ids in texts])
        scores = model.scores(tiny.pad(texts, nemo.words.eos)).gather(1, ends[:, None]).view(-1, 2)
        return scores[:, 0] - scores[:, 1]

    log.start_clock()
    # Fewer pairs than a global batch: upstream divides by zero here.
    while step // per_epoch < how.max_epochs and step < last:
        chosen = experiment.epoch_batch(len(data), size, step, cfg.model.seed, how.train_random_sampler)
        margin = margins([data[i] for i in chosen])
        loss = -torch.nn.functional.logsigmoid(margin).mean()
        descent.step(loss, step)
        step += 1
        metrics = {"step": step, "consumed_samples": step * size, "epoch": step // per_epoch, "loss": loss.item()}
        late = log.out_of_time
        validates, saves = experiment.progress(step, last, how.val_check_interval, how.save_interval, batches, late)
        told = ""
        if validates:
            with torch.no_grad():
                found = torch.cat([margins([held[j] for j in range(i * size, (i + 1) * size)]) for i in range(batches)])
            metrics["val_loss"] = float(-torch.nn.functional.logsigmoid(found).mean())
            told = f" val_loss {metrics['val_loss']:.3f} val_accuracy {float((found > 0).float().mean()):.3f}"
        accuracy = float((margin > 0).float().mean())
        launch.say(f"step {step}/{last} loss {metrics['loss']:.3f} accuracy {accuracy:.3f}{told}")
        if saves:
            log.save({"model": model.state_dict(), "optim": descent.adam.state, "step": step}, metrics)
            if step == last and log.writes_nemo():
                config = OmegaConf.to_container(cfg.model)
                tiny.save_nemo(log.nemo, tiny.Nemo(config, model.state_dict(), nemo.words))
        if late:
            launch.say("the time limit of this run is reached")
            return
        fault.tick()


if __name__ == "__main__":
    main()
