"""Proximal policy optimisation with a KL penalty to the starting policy.

Written here because no library does it at this size without a second model: the reference is the policy's own trunk
with its adapters off, the value function a head on the policy's trunk (or a critic that starts from the reward model),
and rollouts come from the very layers that learn. One iteration: sample, score, evaluate, learn.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cai.clients.base import Sampling
from cai.engines.base import Attempt, Trained
from cai.engines.embedded import checkpoints
from cai.engines.embedded.advantages import (
    distinct,
    explained_variance,
    generalised_advantages,
    kl_estimates,
    token_rewards,
    whitened,
)
from cai.engines.embedded.batches import epoch_order
from cai.engines.embedded.divergence import (
    LEAST_DEVIATION,
    Diverged,
    diverged,
    keep_last_good,
    not_finite,
    says_nothing,
)
from cai.engines.embedded.functions import without_gradient
from cai.engines.embedded.models import decode_after, encode, end_tokens, load_tokenizer
from cai.engines.embedded.optim import Optimizer
from cai.engines.embedded.ppo_update import Critic, cut_microbatches, evaluate_old_policy, learn, sampler_gap
from cai.engines.embedded.reward import EmbeddedRewardScorer
from cai.engines.embedded.reward_head import load_head
from cai.engines.embedded.rollouts import EndRules, RolloutPrompt, SampledAnswer, sample
from cai.engines.embedded.settings import Hardware
from cai.engines.embedded.trunk import Trunk
from cai.engines.methods.base import PromptText
from cai.engines.methods.ppo import CriticStart, PpoData, RlSettings
from cai.engines.snapshots import put_file, snapshot_folder
from cai.errors import Problem, SpecError, StepFailed
from cai.identity import file_digest

_SAMPLES_PER_ITERATION = 4
ENTROPY_GONE = 0.01
"""Nats a token, in the mean, below which a policy that had more says always the same."""
SAME_REWARDS = 3

Score = Callable[[Sequence[tuple[str, str]]], list[float]]


def train(
    data: PpoData,
    settings: RlSettings,
    attempt: Attempt,
    hardware: Hardware = Hardware(),
    *,
    score: Score | None = None,
) -> Trained:
    """Improve a policy and write a Hugging Face folder with metrics.jsonl and samples.jsonl to ``attempt.dest``.

    ``score`` replaces the reward model's scores (rewards of (prompt, answer) texts). KL is in nats per answer. With
    ``kl_limit`` each iterate is measured on fresh rollouts, the last one too; the first beyond the limit is
    discarded and the one before it is the result. Snapshots are folders like it, under it; of an iteration that
    training did not come to, or that was discarded, the result itself stands for the snapshot.

    Raises:
        SpecError: when a separate critic reads other tokens than the policy.
        StepFailed: when no prompt is short enough, or the gradient stops being finite.
    """
    if hardware.threads:
        torch.set_num_threads(hardware.threads)
    scorer: EmbeddedRewardScorer | None = None
    if score is None:
        scorer = EmbeddedRewardScorer(data.reward.path, hardware.device, hardware.threads, settings.precision)
        score = scorer.score
    try:
        return _PpoRun(data, settings, seed=attempt.seed, device=hardware.device, score=score).to_end(attempt)
    finally:
        if scorer is not None:
            scorer.close()


class _PpoRun:
    """Everything that lives through the iterations."""

    def __init__(self, data: PpoData, settings: RlSettings, *, seed: int, device: str, score: Score) -> None:
        policy, prompts = data.policy, data.prompts
        self.settings = settings
        self.seed = seed
        self.device = device
        self.score = score
        self.policy = _trainable(policy, settings, seed, device)
        self.reference = self.policy if settings.lora is not None else Trunk(policy, settings.precision, device)
        self.tokenizer = load_tokenizer(policy)
        self.ends = EndRules(self.tokenizer, end_tokens(policy, self.tokenizer), data.stops)
        self.critic = _critic(data, settings, seed=seed, device=device, hidden=self.policy.hidden)
        limit = min(settings.max_prompt_tokens, self.policy.longest - settings.max_tokens)
        ids = encode(self.tokenizer, [p.prompt for p in prompts])
        self.prompts = [(p, tuple(i)) for p, i in zip(prompts, ids, strict=True) if 0 < len(i) <= limit]
        self.dropped = {"prompt too long": len(prompts) - len(self.prompts)} if len(self.prompts) < len(prompts) else {}
        if not self.prompts:
            raise StepFailed(f"rl: none of {len(prompts)} prompts has at most {limit} tokens; raise max_prompt_tokens")
        self.optimizer = Optimizer(
            [
                (self.policy.parameters(), settings.learning_rate),
                (self.critic.parameters(), settings.critic_learning_rate),
            ],
            weight_decay=0.0,
            max_grad_norm=settings.max_grad_norm,
        )
        self.snapshots = settings.snapshots
        self.belongs = checkpoints.fingerprint(settings, seed, prompts, *data.stops, str(self.policy.dtype))
        self.rows: list[dict[str, Any]] = []
        self.samples: list[dict[str, Any]] = []
        self.scale: tuple[float, float] | None = None  # mean and spread of the start policy's rewards
        self.last_good: dict[str, Tensor] = {}  # the last weights whose answers were sound, and within the KL's limit
        self.good_updates = 0  # iterations that had trained them
        self.stopped = False  # by the limit on the KL

    def to_end(self, attempt: Attempt) -> Trained:
        """Run the iterations that are left, then write the result."""
        dest, work, progress = attempt.dest, attempt.work, attempt.progress
        path, settings = work / "checkpoint.pt", self.settings
        start = self._restore(path)
        progress.expect(rows=settings.iterations * settings.rollouts)
        progress.advance(rows=start * settings.rollouts, tokens=int(sum(r["tokens"] for r in self.rows)))
        if start:
            progress.note("rl.resumed", iteration=start)
        # With a limit on the KL the last iterate is measured as well, on rollouts that train nothing.
        measured = settings.iterations + (1 if settings.kl_limit is not None else 0)
        for iteration in range(start, measured):
            if self.stopped:
                break
            self._iterate(iteration, work, training=iteration < settings.iterations)
            progress.note("rl.iteration", iterations=settings.iterations, **self.rows[-1])
            if iteration < settings.iterations:
                progress.advance(rows=settings.rollouts, tokens=self.rows[-1]["tokens"])
                if iteration + 1 in self.snapshots and not self.stopped:
                    self._save_snapshot(work, iteration + 1)  # before the checkpoint, which says that it is there
            if self.stopped or iteration + 1 == measured or (iteration + 1) % settings.checkpoint_every == 0:
                checkpoints.save(path, self.belongs, self._state(iteration + 1))
                self._write_metrics(dest, work)
        self._write_metrics(dest, work)
        if not all(bool(torch.isfinite(tensor).all()) for tensor in self.policy.parameters().values()):
            raise self._diverged(settings.iterations, "its last update left weights that are not finite", work)
        self.policy.save(dest)
        self._put_snapshots(dest, work)
        return Trained(self._metrics(), dict(self.dropped))

    def _restore(self, path: Path) -> int:
        state = checkpoints.load(path, self.belongs)
        if state is not None:
            self.optimizer.restore(state["optimizer"])
            self.rows = state["rows"]
            self.samples = state["samples"]
            self.scale = state["scale"]
            self.last_good = state["safe"]
            self.good_updates = state["good_updates"]
            self.stopped = state["stopped"]
        self._refresh()
        return 0 if state is None else int(state["iteration"])

    def _state(self, iteration: int) -> dict[str, Any]:
        return {
            "iteration": iteration,
            "optimizer": self.optimizer.state(),
            "rows": self.rows,
            "samples": self.samples,
            "scale": self.scale,
            "safe": self.last_good,
            "good_updates": self.good_updates,
            "stopped": self.stopped,
        }

    @property
    def _trained(self) -> int:
        """Iterations whose updates the policy holds."""
        discarded = any(row.get("discarded") for row in self.rows)
        return sum(bool(row["training"]) for row in self.rows) - (1 if discarded else 0)

    def _save_snapshot(self, work: Path, iteration: int) -> None:
        """Save the policy as it is now. Renamed last, so that a folder in place is whole."""
        folder = snapshot_folder(work, iteration)
        partial = folder.with_name(f"{folder.name}.partial")
        for old in (partial, folder):
            shutil.rmtree(old, ignore_errors=True)
        self.policy.save(partial)
        partial.rename(folder)

    def _put_snapshots(self, dest: Path, work: Path) -> None:
        """Put the snapshots beside the model. They stay in ``work``: a kill may come before the result is recorded."""
        for iteration in self.snapshots:
            folder = snapshot_folder(dest, iteration)
            folder.mkdir(parents=True, exist_ok=True)
            if iteration > self._trained:
                self.policy.save(folder)
                continue
            for path in snapshot_folder(work, iteration).iterdir():
                put_file(path, folder / path.name)

    def _refresh(self) -> None:
        self.policy.refresh()
        if self.critic.trunk is not None:
            self.critic.trunk.refresh()

    def _write_metrics(self, dest: Path, work: Path) -> None:
        checkpoints.write_metrics(dest, work, self.rows)
        checkpoints.write_rows(dest / "samples.jsonl", self.samples)

    def _draw_prompts(self, iteration: int) -> list[tuple[PromptText, RolloutPrompt]]:
        """The prompts of an iteration: without replacement, in each cycle through all of them in another order."""
        drawn: list[tuple[PromptText, RolloutPrompt]] = []
        ids = [p.id for p, _ in self.prompts]
        orders: dict[int, list[int]] = {}
        for place in range(iteration * self.settings.rollouts, (iteration + 1) * self.settings.rollouts):
            cycle, index = divmod(place, len(ids))
            order = orders.setdefault(cycle, epoch_order(ids, self.seed, f"cycle {cycle}"))
            prompt, tokens = self.prompts[order[index]]
            drawn.append((prompt, RolloutPrompt(f"{prompt.id} {cycle}", tokens)))
        return drawn

    def _iterate(self, iteration: int, work: Path, *, training: bool) -> None:
        settings = self.settings
        began = time.perf_counter()
        drawn = self._draw_prompts(iteration)
        rollout_prompts = [prompt for _, prompt in drawn]
        answers = sample(
            self.policy,
            rollout_prompts,
            self.ends,
            Sampling(settings.max_tokens, settings.temperature, settings.top_p, settings.top_k),
            seed=self.seed,
            purpose=f"rollout {iteration}",
        )
        sampled = time.perf_counter()
        texts = [decode_after(self.tokenizer, a.ids) for a in answers]
        scores = torch.tensor(self.score([(p.prompt, t) for (p, _), t in zip(drawn, texts, strict=True)]))
        scored = time.perf_counter()
        if self.scale is None:
            self._set_scale(scores)
        microbatches = cut_microbatches(
            [p.ids for p in rollout_prompts], [a.ids for a in answers], settings, self.device
        )
        old_policy = evaluate_old_policy(
            self.policy, self.reference, self.critic, microbatches, temperature=settings.temperature
        )
        valid = old_policy.valid
        k1, k3 = kl_estimates(old_policy.logprobs, old_policy.reference_logprobs, valid)
        objective = self._objective(scores, answers)
        row: dict[str, Any] = {
            "iteration": iteration,
            "training": training,
            "reward": float(scores.mean()),
            "reward_std": float(scores.std(correction=0)),
            "objective": float(objective.mean()) - settings.kl_coefficient * k1,
            "kl": k3,
            "kl_k1": k1,
            "length": sum(len(a.ids) for a in answers) / len(answers),
            "ended": sum(a.ended for a in answers) / len(answers),
            "entropy": float(old_policy.entropies[valid].mean()),
            "distinct_2": distinct([a.ids for a in answers]),
            **sampler_gap(answers, old_policy),
            "tokens": sum(len(a.ids) for a in answers),
        }
        shown = list(zip(drawn, texts, scores.tolist(), answers, strict=True))[:_SAMPLES_PER_ITERATION]
        self.samples += [
            {
                "iteration": iteration,
                "id": prompt.id,
                "prompt": prompt.prompt,
                "answer": text,
                "reward": score,
                "logprob": sum(answer.logprobs),
            }
            for (prompt, _), text, score, answer in shown
        ]
        if fault := lost_policy([*self.rows, row], self.policy.head.shape[0]):
            raise self._diverged(iteration, fault, work)
        if settings.kl_limit is not None and k3 > settings.kl_limit:
            self._go_back()
            row |= {"training": False, "discarded": True}
        elif training:
            self.last_good = {n: t.detach().clone() for n, t in self.policy.parameters().items()}
            self.good_updates = iteration
            rewards = token_rewards(
                objective.to(self.device),
                old_policy.logprobs,
                old_policy.reference_logprobs,
                valid,
                kl_coefficient=settings.kl_coefficient,
            )
            advantages, returns = generalised_advantages(
                rewards, old_policy.values, valid, gamma=settings.gamma, gae_lambda=settings.gae_lambda
            )
            row["explained_variance"] = explained_variance(old_policy.values[valid], returns[valid])
            if settings.whiten_advantages:
                advantages = whitened(advantages, valid)
            try:
                row |= learn(
                    self.policy,
                    self.critic,
                    self.optimizer,
                    microbatches,
                    old_policy=old_policy,
                    advantages_BT=advantages,
                    returns_BT=returns,
                    settings=settings,
                    seed=self.seed,
                    iteration=iteration,
                )
            except Diverged as error:
                raise self._diverged(iteration, "the gradient is not finite", work) from error
        ended = time.perf_counter()
        row["seconds"] = {"rollout": sampled - began, "scoring": scored - sampled, "update": ended - scored}
        self.rows.append(row)

    def _set_scale(self, scores: Tensor) -> None:
        """What one unit of reward is, from the start policy's rollouts; a critic from the reward model follows."""
        spread = float(scores.std(correction=0))
        usable = self.settings.normalize_reward and spread > 1e-6
        self.scale = (float(scores.mean()), spread) if usable else (0.0, 1.0)
        if self.critic.trunk is not None:
            with torch.no_grad():
                self.critic.weight.div_(self.scale[1])
                self.critic.bias.fill_(-self.scale[0] / self.scale[1])

    def _objective(self, scores: Tensor, answers: Sequence[SampledAnswer]) -> Tensor:
        mean, spread = self.scale or (0.0, 1.0)
        cut = torch.tensor([not a.ended for a in answers], dtype=torch.float32)
        return (scores - mean) / spread - self.settings.missing_end_penalty * cut

    @without_gradient
    def _go_back(self) -> None:
        """Put back the last iterate whose KL was within the limit, and train no more."""
        self._restore_last_good()
        self.stopped = True

    @without_gradient
    def _restore_last_good(self) -> None:
        for name, tensor in self.policy.parameters().items():
            if name in self.last_good:
                tensor.copy_(self.last_good[name])
        self.policy.refresh()

    def _diverged(self, iteration: int, fault: str, work: Path) -> Diverged:
        """The error of a training that is lost, after the last good policy has been kept."""
        kept = None
        if self.last_good:
            self._restore_last_good()
            kept = self.good_updates, keep_last_good(work, self.policy.save)
        settings = self.settings
        where = f"rl, iteration {iteration} of {settings.iterations}"
        advice = f"lower learning_rate (it is {settings.learning_rate:g}) or raise kl_coefficient"
        return diverged(where, fault, kept, advice, unit="iteration")

    def _metrics(self) -> dict[str, Any]:
        accepted_rows = [r for r in self.rows if not r.get("discarded")]
        seconds = {k: sum(r["seconds"][k] for r in self.rows) for k in ("rollout", "scoring", "update")}
        return {
            "iterations": sum(bool(r["training"]) for r in self.rows),
            "prompts": len(self.prompts),
            "tokens": sum(r["tokens"] for r in self.rows),
            "stopped_by_kl": self.stopped,
            "reward_before": accepted_rows[0]["reward"],
            "reward": accepted_rows[-1]["reward"],
            "kl": accepted_rows[-1]["kl"],
            "entropy": accepted_rows[-1]["entropy"],
            "ended": accepted_rows[-1]["ended"],
            **({"snapshots": {str(n): min(n, self._trained) for n in self.snapshots}} if self.snapshots else {}),
            "seconds": {k: round(v, 2) for k, v in seconds.items()},
            "precision": str(self.policy.dtype).removeprefix("torch."),
        }


def lost_policy(rows: Sequence[Mapping[str, Any]], vocabulary: int) -> str:
    """What the rows of metrics so far say of a policy that is lost, in words; empty where it is not.

    A policy whose next token is sure always says the same; one to which every token is alike says nothing; and one
    whose answers all have the same reward, for ``SAME_REWARDS`` iterations on end, has nothing to follow (a rare reward
    may be missed by all once).
    """
    row, first = rows[-1], rows[0]
    if fault := not_finite({name: row[name] for name in ("reward", "kl", "kl_k1", "entropy")}):
        return fault
    if row["entropy"] < ENTROPY_GONE <= first["entropy"]:
        return (
            f"the policy's entropy is gone: {row['entropy']:.4f} nats a token, and was {first['entropy']:.2f}; it says "
            "the same whatever it is asked"
        )
    if says_nothing(row["entropy"], first["entropy"], vocabulary):
        return (
            f"the policy says nothing any more: its entropy is {row['entropy']:.2f} nats a token, and was "
            f"{first['entropy']:.2f} (all {vocabulary:,} tokens alike would have {math.log(vocabulary):.2f})"
        )
    alike = [each["reward_std"] < LEAST_DEVIATION for each in rows[-SAME_REWARDS:]]
    if len(alike) == SAME_REWARDS and all(alike):
        return f"all answers of {SAME_REWARDS} iterations have the same reward, so there is nothing to follow"
    return ""


def _trainable(folder: Path, settings: RlSettings, seed: int, device: str) -> Trunk:
    trunk = Trunk(folder, settings.precision, device)
    if settings.lora is None:
        trunk.train_all()
    else:
        trunk.adapt(settings.lora, seed)
    return trunk


def _critic(data: PpoData, settings: RlSettings, *, seed: int, device: str, hidden: int) -> Critic:
    policy, reward = data.policy, data.reward.path
    bias = torch.zeros((), device=device, requires_grad=True)
    if settings.critic is CriticStart.POLICY:
        return Critic(torch.zeros(hidden, device=device, requires_grad=True), bias, None)
    names = ("tokenizer.json", "tokenizer.model", "vocab.json")
    same = [
        file_digest(policy / n) == file_digest(reward / n)
        for n in names
        if (policy / n).exists() and (reward / n).exists()
    ]
    if not same or not all(same):
        raise SpecError(
            Problem("rl.critic", "the reward model reads other tokens than the policy", "set critic: policy")
        )
    trunk = Trunk(reward, settings.precision, device)
    if settings.lora is None:
        trunk.train_all(head=False)
    else:
        trunk.adapt(settings.lora, seed)
    return Critic(load_head(reward, device).requires_grad_(), bias, trunk)
