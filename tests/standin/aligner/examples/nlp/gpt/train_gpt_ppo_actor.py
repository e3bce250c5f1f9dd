"""PPO's actor: prompts in, rewards and values from the critic, ``checkpoints/megatron_gpt_ppo_actor.nemo`` out."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[5]))

from omegaconf import DictConfig, OmegaConf
from standin import launch


@launch.script(__file__, "gpt_ppo_actor")
def main(cfg: DictConfig, fault: launch.Fault) -> None:
    import copy

    import torch
    from standin import experiment, ppo_client, rollouts, rows, tiny

    nemo = tiny.load_nemo(cfg.pretrained_checkpoint.restore_from_path)
    cfg.model = launch.merged(nemo.config, cfg.model)
    launch.check_model(cfg.model)
    log = experiment.Experiment(cfg.exp_manager, fault)
    OmegaConf.resolve(cfg)
    how, ppo, size = cfg.trainer.ppo, cfg.model.ppo, cfg.model.global_batch_size
    rollout_size = ppo.num_rollout_samples
    assert cfg.remote_critic_rm.combine_rm_and_critic_server, "stand-in: the critic must serve the reward model too"
    assert not how.trt_llm.enable, "stand-in: trt_llm is not here"
    data_parallel = launch.data_parallel(
        cfg,
        cfg.model,
        {
            "model": (size, cfg.model.micro_batch_size),
            "rollouts": (rollout_size, ppo.rollout_micro_batch_size),
            "validation rollouts": (ppo.num_val_samples, ppo.val_rollout_micro_batch_size),
        },
    )
    assert rollout_size % size == 0, f"{rollout_size} is not divisible by {size}"
    launch.local_ranks(cfg)
    actor = nemo.model()
    first = copy.deepcopy(actor)
    data, held = (rows.Prompts(cfg.model, nemo.words, split) for split in ("train", "validation"))
    per_epoch = len(data) // rollout_size
    last = per_epoch * how.max_epochs
    if how.max_steps >= 0:
        last = min(last, how.max_steps)
    updates = len(data) // size * how.max_epochs
    descent = experiment.Descent(actor, cfg.model.optim, updates, how.gradient_clip_val)
    step = optimised = 0
    if log.resumed:
        actor.load_state_dict(log.resumed["model"])
        descent.adam.state = log.resumed["optim"]
        step, optimised = log.resumed["step"], log.resumed["ppo_optimization_step"]
    critic = ppo_client.Critic(cfg.remote_critic_rm)

    def rolled(prompts: list[rows.Prompt], micro: int) -> tuple[rollouts.Rollout, torch.Tensor, torch.Tensor]:
        made = rollouts.roll_out(actor, nemo.words, prompts, micro * data_parallel, ppo)
        rewards, values = critic.infer(made.tokens, made.ends)
        return made, rewards, values[:, :-1]

    # Fewer prompts than rollouts: upstream divides by zero here.
    epoch = None
    while step // per_epoch < how.max_epochs and step < last:
        if step // per_epoch != epoch:
            epoch = step // per_epoch
            log.start_clock()
        for again in range(how.critic_warmup_steps + 1 if step == 0 else 1):
            torch.manual_seed(cfg.model.seed + 1000 * step + again)
            chosen = experiment.epoch_batch(len(data), rollout_size, step, cfg.model.seed)
            with torch.no_grad():
                made, rewards, values = rolled([data[i] for i in chosen], ppo.rollout_micro_batch_size)
                before = actor.logprobs(made.tokens)
                kl = before - first.logprobs(made.tokens) if how.initial_policy_kl_penalty > 0 else 0 * before
            kl = kl.abs() if how.use_absolute_kl else kl
            mask = made.mask()
            gains = rollouts.penalised(rewards, made.ends, kl, how.initial_policy_kl_penalty)
            advantage, returns = rollouts.advantages(values, gains, mask, how.discount_factor, how.gae_lambda)
            if how.normalize_advantages:
                advantage = rollouts.normalised(advantage, mask)
            critic.train(made.tokens, returns, values, mask)
        for start in range(0, rollout_size, size):
            part = slice(start, start + size)
            now = actor.logprobs(made.tokens[part])
            loss = rollouts.policy_loss(now, before[part], advantage[part], mask[part], ppo.ratio_eps)
            if ppo.entropy_bonus:
                spread = torch.distributions.Categorical(logits=actor(made.tokens[part])[:, :-1]).entropy()
                loss = loss - ppo.entropy_bonus * (spread * mask[part]).sum() / mask[part].sum().clamp(min=1)
            descent.step(loss, optimised)
            optimised += 1
        step += 1
        metrics = {
            "step": step,
            "consumed_samples": step * rollout_size,
            "ppo_optimization_step": optimised,
            "epoch": step // per_epoch,
        }
        late = log.out_of_time
        validates, saves = experiment.progress(step, last, how.val_check_interval, how.save_interval, 1.0, late)
        told = ""
        if validates:
            prompts = [held[i] for i in range(min(ppo.num_val_samples, len(held)))]
            metrics["val_rewards"] = float(rolled(prompts, ppo.val_rollout_micro_batch_size)[1].mean())
            told = f" val_rewards {metrics['val_rewards']:.3f}"
        penalty = float((kl * mask).sum() / mask.sum().clamp(min=1))
        length = float((made.ends - made.starts).float().mean())
        launch.say(
            f"step {step}/{last} loss {loss.item():.3f} rewards {float(rewards.mean()):.3f} "
            f"init_policy_kl {penalty:.4f} generation_length {length:.1f}{told}"
        )
        if saves:
            critic.save()
            state = {"model": actor.state_dict(), "optim": descent.adam.state, "step": step}
            log.save(state | {"ppo_optimization_step": optimised}, metrics)
            if step == last and log.writes_nemo():
                config = OmegaConf.to_container(cfg.model)
                tiny.save_nemo(log.nemo, tiny.Nemo(config, actor.state_dict(), nemo.words))
        if late:
            launch.say("the time limit of this run is reached")
            return
        fault.tick()


if __name__ == "__main__":
    main()
