"""One PPO iteration, split into rollout, scoring and update, against a plain implementation of the same step.

The plain side does what a first version does: rollouts with ``transformers.generate`` and peft adapters, padded
batches, logits over the whole vocabulary at every position for the old, the reference and the new policy, a padded
reward model. Both sides sample the same number of answers of the same length (the end token is held back), with the
same settings, in bfloat16. The first iteration of each side is warm-up. The last line is one JSON object.

    python -m benchmarks.ppo [--model FOLDER] [--rollouts 32] [--tokens 48] [--last-layers 0] [--iterations 1]
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.training import Silent, benchmark_model
from cai.engines.base import Attempt
from cai.engines.methods.base import Lora, PairText, PromptText
from cai.engines.methods.ppo import PpoData, RlSettings
from cai.engines.methods.reward import RewardData, RewardSettings
from cai.engines.rewards import RewardModel

_SUBJECTS = ("rivers", "lanterns", "harvests", "bridges", "winters", "gardens", "letters", "kitchens")


def questions(count: int) -> list[PromptText]:
    """Rendered prompts of about 25 to 65 tokens."""
    found = []
    for i in range(count):
        asked = f"Tell me how people once thought about {_SUBJECTS[i % 8]} number {i} and why. " * (1 + i % 3)
        found.append(PromptText(str(i), f"<|im_start|>user\n{asked}<|im_end|>\n<|im_start|>assistant\n"))
    return found


def reward_model(model: Path, folder: Path) -> Path:
    """A reward model that was trained for one step: its rewards mean nothing, its cost is the real one."""
    from cai.engines.embedded.reward import train as train_reward

    pairs = [PairText("0", "<|im_start|>user\nHello<|im_end|>\n", "Yes.", "No.", 1.0)]
    settings = RewardSettings(lora=Lora(last_layers=1))
    attempt = Attempt(0, folder / "reward", folder / "reward-work", Silent())
    train_reward(RewardData(model, pairs, []), settings, attempt)
    return folder / "reward"


def ours(model: Path, reward: Path, settings: RlSettings, folder: Path) -> list[dict[str, float]]:
    """Seconds of each phase, an entry an iteration."""
    from cai.engines.embedded import ppo
    from cai.engines.embedded.rollouts import EndRules

    class Endless(EndRules):
        def over(self, ids: Any) -> bool:
            """Never: both sides make answers of full length."""
            return False

    kept, ppo.EndRules = ppo.EndRules, Endless  # type: ignore[misc]
    try:
        data = PpoData(model, RewardModel(reward), questions(64))
        ppo.train(data, settings, Attempt(0, folder / "o", folder / "w", Silent()))
    finally:
        ppo.EndRules = kept  # type: ignore[misc]
    lines = (folder / "w" / "timings.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["seconds"] for line in lines]


def plain(model: Path, reward: Path, settings: RlSettings) -> list[dict[str, float]]:
    """The same iterations, written the obvious way."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from cai.engines.embedded.advantages import generalised_advantages, token_rewards, whitened
    from cai.engines.embedded.ppo_update import clipped_policy_loss, clipped_value_loss
    from cai.engines.embedded.reward_head import load_head

    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    lora = settings.lora or Lora()
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).to(device)
    count = int(base.config.num_hidden_layers)
    chosen = list(range(count - lora.last_layers, count)) if lora.last_layers else None
    adapters = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        target_modules=list(lora.targets),
        layers_to_transform=chosen,
        task_type="CAUSAL_LM",
    )
    policy = get_peft_model(base, adapters)
    scorer = AutoModelForCausalLM.from_pretrained(reward, dtype=torch.float32).to(device).eval()
    head = load_head(reward, device)
    value_head = torch.zeros(base.config.hidden_size, device=device, requires_grad=True)
    trained = [p for p in policy.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW([*trained, value_head], lr=settings.learning_rate, weight_decay=0.0)
    length = settings.max_tokens

    def forward(tokens: Any, mask: Any) -> tuple[Any, Any]:
        places = (mask.cumsum(1) - 1).clamp_min(0)
        out = policy(input_ids=tokens, attention_mask=mask, position_ids=places, output_hidden_states=True)
        logs = torch.log_softmax(out.logits[:, :-1].float(), -1).gather(2, tokens[:, 1:, None])[:, -length:, 0]
        return logs, (out.hidden_states[-1].float() @ value_head)[:, -length - 1 : -1]

    found = []
    asked = questions(64)
    for iteration in range(settings.iterations):
        start = (iteration * settings.rollouts) % 64
        texts = [asked[(start + i) % 64].prompt for i in range(settings.rollouts)]
        began = time.perf_counter()
        with torch.no_grad(), torch.autocast(device, torch.bfloat16):
            inputs = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False).to(device)
            sampling = {"do_sample": True, "top_k": 0, "top_p": 1.0, "temperature": settings.temperature}
            tokens = policy.generate(**inputs, max_new_tokens=length, min_new_tokens=length, **sampling)
            sampled = time.perf_counter()
            mask = torch.cat((inputs["attention_mask"], torch.ones_like(tokens[:, -length:])), dim=1)
            places = (mask.cumsum(1) - 1).clamp_min(0)
            states = scorer.model(input_ids=tokens, attention_mask=mask, position_ids=places).last_hidden_state
            scores = states[:, -1].float() @ head
            scored = time.perf_counter()
            parts = torch.arange(settings.rollouts, device=device).split(settings.micro_batch_size)
            believed = [forward(tokens[p], mask[p]) for p in parts]
            old, values = (torch.cat([b[k] for b in believed]) for k in (0, 1))
            with policy.disable_adapter():
                first = torch.cat([forward(tokens[p], mask[p])[0] for p in parts])
        valid = torch.ones_like(old, dtype=torch.bool)
        rewards = token_rewards(scores, old, first, valid, kl_coefficient=settings.kl_coefficient)
        advantages, returns = generalised_advantages(
            rewards, values, valid, gamma=settings.gamma, gae_lambda=settings.gae_lambda
        )
        advantages = whitened(advantages, valid)
        for _ in range(settings.ppo_epochs):
            for batch in torch.randperm(settings.rollouts, device=device).split(settings.batch_size):
                for part in batch.split(settings.micro_batch_size):
                    with torch.autocast(device, torch.bfloat16):
                        new, value = forward(tokens[part], mask[part])
                    loss, _ = clipped_policy_loss(new, old[part], advantages[part], settings.clip)
                    loss = loss + clipped_value_loss(value, values[part], returns[part], settings.value_clip)
                    (loss.sum() / (len(batch) * length)).backward()
                torch.nn.utils.clip_grad_norm_(trained, settings.max_grad_norm)
                optimizer.step()
                optimizer.zero_grad()
        ended = time.perf_counter()
        found.append({"rollout": sampled - began, "scoring": scored - sampled, "update": ended - scored})
    return found


def main() -> None:
    """Run both sides and print the split."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--rollouts", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--last-layers", type=int, default=0)
    parser.add_argument("--iterations", type=int, default=1, help="measured, after one of warm-up")
    parser.add_argument("--ours-only", action="store_true")
    args = parser.parse_args()
    settings = RlSettings(
        iterations=args.iterations + 1,
        rollouts=args.rollouts,
        batch_size=args.rollouts // 2,
        micro_batch_size=8,
        max_tokens=args.tokens,
        lora=Lora(last_layers=args.last_layers),
    )
    scratch = Path(tempfile.mkdtemp(prefix="cai-bench-"))
    try:
        model = args.model or benchmark_model(scratch / "model")
        reward = reward_model(model, scratch)
        sides = {"ours": ours(model, reward, settings, scratch)[1:]}
        rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        if not args.ours_only:
            sides["plain"] = plain(model, reward, settings)[1:]
        result: dict[str, Any] = {"benchmark": "ppo", "rollouts": args.rollouts, "last_layers": args.last_layers}
        totals = {}
        for name, rows in sides.items():
            phases = {k: round(statistics.mean(r[k] for r in rows), 3) for k in rows[0]}
            totals[name] = sum(phases.values())
            result[name] = {**phases, "iteration": round(totals[name], 3)}
            print(f"{name}: {result[name]}", flush=True)
        if "plain" in totals:
            result["ratio"] = round(totals["plain"] / totals["ours"], 3)
        result["rss_gb_ours"] = round(rss, 2)
        print(json.dumps(result))
    finally:
        shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
