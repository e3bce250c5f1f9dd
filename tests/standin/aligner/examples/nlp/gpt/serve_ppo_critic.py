"""PPO's critic: serves rewards and values, trains on what the actor sends. It ends only when it is stopped.

The wire is this stand-in's own: POST of JSON to ``/critic_infer``, ``/critic_train`` and ``/critic_save``.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[5]))

from omegaconf import DictConfig, OmegaConf
from standin import launch


@launch.script(__file__, "gpt_ppo_critic")
def main(cfg: DictConfig, fault: launch.Fault) -> None:
    import copy

    import torch
    from standin import experiment, serving, tiny

    nemo = tiny.load_nemo(cfg.pretrained_checkpoint.restore_from_path)
    cfg.model = launch.merged(nemo.config, cfg.model)
    launch.check_model(cfg.model, headed=True)
    log = experiment.Experiment(cfg.exp_manager, fault)
    OmegaConf.resolve(cfg)
    how, size = cfg.trainer.ppo, cfg.model.global_batch_size
    assert cfg.model.output_sequence, "a critic puts out a number for every token"
    assert cfg.model.reward_model_type == "binary_ranking", "stand-in: reward_model_type must be binary_ranking"
    launch.data_parallel(cfg, cfg.model, {"model": (size, cfg.model.micro_batch_size)})
    launch.local_ranks(cfg)
    torch.manual_seed(cfg.model.seed)
    critic = nemo.model(head=True)
    reward = copy.deepcopy(critic)
    standard = cfg.model.reward_standardization
    descent = experiment.Descent(critic, cfg.model.optim, how.max_steps, how.gradient_clip_val)
    step = 0
    if log.resumed:
        critic.load_state_dict(log.resumed["model"])
        descent.adam.state = log.resumed["optim"]
        step = log.resumed["step"]

    @torch.no_grad()
    def infer(data: dict) -> dict:
        tokens, ends = torch.tensor(data["tokens"]), torch.tensor(data["sequence_lengths"]) - 1
        answer = {"values": critic.scores(tokens).tolist()}
        if how.combine_rm_and_critic_server:
            rewards = reward.scores(tokens).gather(1, ends[:, None]).squeeze(1)
            if standard.enable:
                rewards = (rewards - standard.mean) / standard.std
            answer["rewards"] = rewards.tolist()
        return answer

    def train(data: dict) -> dict:
        nonlocal step
        tokens = torch.tensor(data["tokens"])
        returns, before, mask = (torch.tensor(data[key]) for key in ("returns", "prev_values", "mask"))
        loss = torch.zeros(())
        for start in range(0, len(tokens), size):
            part = slice(start, start + size)
            values = critic.scores(tokens[part])[:, :-1]
            near = before[part] + (values - before[part]).clamp(-cfg.model.loss_clip_val, cfg.model.loss_clip_val)
            square = torch.maximum((values - returns[part]) ** 2, (near - returns[part]) ** 2)
            loss = 0.5 * (square * mask[part]).sum() / mask[part].sum().clamp(min=1)
            descent.step(loss, step)
            step += 1
        launch.say(f"step {step} loss {loss.item():.3f}")
        return {"loss_mean": loss.item()}

    def save(_data: dict) -> dict:
        log.save({"model": critic.state_dict(), "optim": descent.adam.state, "step": step}, {"step": step})
        return {"status": 0}

    routes = {"critic_infer": infer, "critic_train": train, "critic_save": save}

    def answer(method: str, path: str, data: object) -> serving.Answer:
        name = path.removeprefix("/")
        if name not in routes or method != "POST" or not isinstance(data, dict):
            return 404, {"error": f"no model {name}"}
        return 200, routes[name](data)

    serving.serve(how.port, answer, fault)


if __name__ == "__main__":
    main()
