"""Supervised fine-tuning: chat JSONL in, ``checkpoints/megatron_gpt_sft.nemo`` out."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[5]))

from omegaconf import DictConfig, OmegaConf
from standin import launch


@launch.script(__file__, "gpt_sft")
def main(cfg: DictConfig, fault: launch.Fault) -> None:
    OmegaConf.resolve(cfg)
    train, val, how = cfg.model.data.train_ds, cfg.model.data.validation_ds, cfg.trainer.sft
    assert cfg.model.data.chat, "stand-in: model.data.chat=True is needed"
    assert all((train.drop_last, val.drop_last)), "`drop_last=False` is not currently supported"
    launch.data_parallel(
        cfg,
        cfg.model,
        {
            "train_ds": (train.global_batch_size, train.micro_batch_size),
            "validation_ds": (val.global_batch_size, val.micro_batch_size),
        },
    )

    import torch
    from standin import experiment, rows, tiny

    log = experiment.Experiment(cfg.exp_manager, fault)
    nemo = tiny.load_nemo(cfg.model.restore_from_path)
    cfg.model = launch.merged(nemo.config, cfg.model)
    launch.check_model(cfg.model)
    launch.local_ranks(cfg)
    torch.manual_seed(cfg.model.seed)
    model = nemo.model()
    data = rows.chat_rows(train, cfg.model.data.chat_prompt_tokens, nemo.words, "train")
    held = rows.chat_rows(val, cfg.model.data.chat_prompt_tokens, nemo.words, "validation")
    per_epoch = len(data) // train.global_batch_size
    last = per_epoch * how.max_epochs
    if how.max_steps >= 0:
        last = min(last, how.max_steps)
    batches = experiment.limited(len(held) // val.global_batch_size, how.limit_val_batches)
    descent = experiment.Descent(model, cfg.model.optim, last, how.gradient_clip_val)
    step = 0
    if log.resumed:
        model.load_state_dict(log.resumed["model"])
        descent.adam.state = log.resumed["optim"]
        step = log.resumed["step"]

    def loss_of(chosen: list[rows.Chat]) -> torch.Tensor:
        ids = tiny.pad([row.ids for row in chosen], nemo.words.eos)
        mask = tiny.pad([row.mask for row in chosen], 0)[:, 1:].bool()
        # Rows that lost all their targets add nothing; a batch of only such rows gives nan, as upstream.
        return -model.logprobs(ids)[mask].mean()

    log.start_clock()
    # Fewer rows than a global batch: upstream divides by zero here.
    while step // per_epoch < how.max_epochs and step < last:
        chosen = experiment.epoch_batch(len(data), train.global_batch_size, step, cfg.model.seed, train.shuffle)
        loss = loss_of([data[i] for i in chosen])
        descent.step(loss, step)
        step += 1
        metrics = {
            "step": step,
            "consumed_samples": step * train.global_batch_size,
            "epoch": step // per_epoch,
            "loss": loss.item(),
        }
        late = log.out_of_time
        validates, saves = experiment.progress(step, last, how.val_check_interval, how.save_interval, batches, late)
        if validates:
            with torch.no_grad():
                size = val.global_batch_size
                losses = [float(loss_of(held[i * size : (i + 1) * size])) for i in range(batches)]
            metrics["val_loss"] = sum(losses) / len(losses)
        told = f" val_loss {metrics['val_loss']:.3f}" if validates else ""
        launch.say(f"step {step}/{last} loss {metrics['loss']:.3f}{told}")
        if saves:
            state = {"model": model.state_dict(), "optim": descent.adam.state, "step": step}
            log.save(state, metrics)
            if step == last and log.writes_nemo():
                # The whole of it, layout and recomputation too, lies beneath the next script's.
                config = OmegaConf.to_container(cfg.model)
                tiny.save_nemo(log.nemo, tiny.Nemo(config, model.state_dict(), nemo.words))
        if late:
            launch.say("the time limit of this run is reached")
            return
        fault.tick()


if __name__ == "__main__":
    main()
