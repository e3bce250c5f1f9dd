"""One PPO iteration's learning: what the old policy said, and clipped updates on it.

Micro-batches keep their composition through an iteration and only their order is shuffled. So the first update's
probability ratios are exactly 1, and the states below the lowest trained layer are computed once for the old policy,
the reference and every epoch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from cai.engines.embedded.batches import Branches, Packed, epoch_order, pack
from cai.engines.embedded.functions import token_entropies, token_logprobs, token_statistics, without_gradient
from cai.engines.embedded.optim import Optimizer
from cai.engines.embedded.rollouts import SampledAnswer
from cai.engines.embedded.trunk import Trunk
from cai.engines.methods.ppo import RlSettings

# Share of the value loss's gradient that reaches a trunk which is the policy's too.
VALUE_GRADIENT = 0.1


@dataclass
class Critic:
    """The value function: a linear head on the policy's states, or on those of its own trunk."""

    weight: Tensor
    bias: Tensor
    trunk: Trunk | None

    def parameters(self) -> dict[str, Tensor]:
        """What the critic's learning rate applies to."""
        own = {} if self.trunk is None else {f"critic.{n}": t for n, t in self.trunk.parameters().items()}
        return {"value_head.weight": self.weight, "value_head.bias": self.bias, **own}

    def values(self, states: Tensor) -> Tensor:
        """Values [S] of final states [S, hidden]."""
        return states.float() @ self.weight + self.bias


@dataclass
class MicroBatch:
    """A micro-batch of rollouts and what is remembered about it through the iteration.

    ``rows`` are the rollouts; ``state_index``: where in the line stands the state that predicts each answer token, [S];
    ``place``: the (row, token) of each in the [answers, tokens] arrays.
    """

    rows: list[int]
    batch: Packed
    state_index: Tensor
    targets: Tensor
    place: tuple[Tensor, Tensor]
    lower: Tensor | None = None
    critic_lower: Tensor | None = None


@dataclass
class OldPolicyView:
    """The old policy's view, all [answers, tokens] float32: log-probabilities, the reference's, values, entropies."""

    logprobs: Tensor
    reference_logprobs: Tensor
    values: Tensor
    entropies: Tensor
    valid: Tensor


def step_sizes(rollouts: int, batch_size: int, micro_batch_size: int) -> list[list[int]]:
    """How many rollouts each micro-batch of each optimizer step holds; a step has ``batch_size``, the last the rest.

    Micro-batches of a step are as large as they may be and, where that does not come out even, as alike as they can be:
    10 rollouts in micro-batches of 4 are 4, 3 and 3.
    """
    steps = [min(batch_size, rollouts - start) for start in range(0, rollouts, batch_size)]
    return [_shares(step, -(-step // micro_batch_size)) for step in steps]


def _shares(total: int, parts: int) -> list[int]:
    return [total // parts + (i < total % parts) for i in range(parts)]


def cut_microbatches(
    prompts: Sequence[tuple[int, ...]], answers: Sequence[tuple[int, ...]], settings: RlSettings, device: str
) -> list[MicroBatch]:
    """Cut the rollouts into micro-batches of similar length, of the sizes that the optimizer steps take."""
    sizes = [n for step in step_sizes(len(prompts), settings.batch_size, settings.micro_batch_size) for n in step]
    by_length = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]) - len(answers[i]), i))
    microbatches = []
    for size, end in zip(sizes, accumulate(sizes), strict=True):
        rows = by_length[end - size : end]
        # The last token of an answer is predicted, never read.
        batch = pack([Branches((), ((*prompts[i], *answers[i][:-1]),)) for i in rows], device)
        starts = batch.starts_B.tolist()
        state_index = [
            s + len(prompts[i]) - 1 + t for s, i in zip(starts, rows, strict=True) for t in range(len(answers[i]))
        ]
        targets = [t for i in rows for t in answers[i]]
        row = [i for i in rows for _ in answers[i]]
        column = [t for i in rows for t in range(len(answers[i]))]
        tensors = [torch.tensor(x, device=device) for x in (state_index, targets, row, column)]
        microbatches.append(MicroBatch(rows, batch, tensors[0], tensors[1], (tensors[2], tensors[3])))
    return microbatches


@without_gradient
def evaluate_old_policy(
    policy: Trunk, reference: Trunk, critic: Critic, microbatches: Sequence[MicroBatch], *, temperature: float
) -> OldPolicyView:
    """Run the old policy, the reference (the policy without adapters, or a frozen copy) and the critic."""
    count = sum(len(m.rows) for m in microbatches)
    width = max(int(m.place[1].max()) for m in microbatches) + 1
    arrays = [torch.zeros((count, width), device=policy.device) for _ in range(4)]
    valid = torch.zeros((count, width), dtype=torch.bool, device=policy.device)
    for m in microbatches:
        lower = policy.below(m.batch)
        states = policy.above(lower, m.batch).index_select(0, m.state_index)
        logprobs, entropies = token_statistics(states, policy.head, m.targets, temperature)
        own = reference is policy
        reference_states = policy.above(lower, m.batch, adapted=False) if own else reference(m.batch)
        reference_logprobs, _ = token_statistics(
            reference_states.index_select(0, m.state_index), reference.head, m.targets, temperature
        )
        m.lower = None if policy.all_trained else lower
        critic_states = states
        if critic.trunk is not None:
            below = critic.trunk.below(m.batch)
            critic_states = critic.trunk.above(below, m.batch).index_select(0, m.state_index)
            m.critic_lower = None if critic.trunk.all_trained else below
        per_token = (logprobs, reference_logprobs, critic.values(critic_states), entropies)
        for array, numbers in zip(arrays, per_token, strict=True):
            array[m.place] = numbers
        valid[m.place] = True
    return OldPolicyView(arrays[0], arrays[1], arrays[2], arrays[3], valid)


def sampler_gap(answers: Sequence[SampledAnswer], old_policy: OldPolicyView) -> dict[str, float]:
    """How far the log-probabilities that tokens were drawn with are from those that the trainer computes, in nats.

    ``sampler_gap`` is the mean size of the difference over all tokens, ``sampler_gap_max`` the largest. Rounding alone
    gives little; top-k and top-p, which the trainer does not know of, add what they leave out.
    """
    drawn = torch.tensor([logprob for answer in answers for logprob in answer.logprobs])
    gap = (drawn - old_policy.logprobs[old_policy.valid].cpu()).abs()
    return {"sampler_gap": float(gap.mean()), "sampler_gap_max": float(gap.max())}


def optimizer_steps(shuffled: Sequence[MicroBatch], settings: RlSettings) -> Iterator[list[MicroBatch]]:
    """The micro-batches of each optimizer step, which together hold ``batch_size`` rollouts; the last what is left."""
    by_size: dict[int, list[MicroBatch]] = {}
    for microbatch in shuffled:
        by_size.setdefault(len(microbatch.rows), []).append(microbatch)
    rollouts = sum(len(microbatch.rows) for microbatch in shuffled)
    for sizes in step_sizes(rollouts, settings.batch_size, settings.micro_batch_size):
        yield [by_size[size].pop(0) for size in sizes]


def clipped_policy_loss(new: Tensor, old: Tensor, advantages: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """Per token -min(r A, clip(r) A) with r = exp(new - old), and who was clipped (arXiv 1707.06347)."""
    ratio = (new - old).exp()
    bounded = ratio.clamp(1 - clip, 1 + clip)
    return -torch.minimum(ratio * advantages, bounded * advantages), (ratio != bounded).float()


def clipped_value_loss(new: Tensor, old: Tensor, returns: Tensor, clip: float) -> Tensor:
    """Per token half the squared error, the larger of the plain and the clipped one; ``clip`` 0 is plain."""
    plain = (new - returns).square()
    if clip:
        plain = torch.maximum(plain, (old + (new - old).clamp(-clip, clip) - returns).square())
    return 0.5 * plain


def learn(
    policy: Trunk,
    critic: Critic,
    optimizer: Optimizer,
    microbatches: Sequence[MicroBatch],
    *,
    old_policy: OldPolicyView,
    advantages_BT: Tensor,  # noqa: N803
    returns_BT: Tensor,  # noqa: N803
    settings: RlSettings,
    seed: int,
    iteration: int,
) -> dict[str, float]:
    """Several epochs of clipped updates; numbers are means over all tokens and epochs.

    ``first_ratio`` is the largest |ratio - 1| before the first update: 0 by construction.
    """
    warming = iteration < settings.critic_warmup
    names = ("policy_loss", "value_loss", "clip_fraction", "update_kl")
    totals = {name: torch.zeros((), device=policy.device) for name in names}
    norms: list[float] = []
    total_tokens, first_ratio = 0, 0.0
    for epoch in range(settings.ppo_epochs):
        order = epoch_order([str(i) for i in range(len(microbatches))], seed, f"ppo {iteration}.{epoch}")
        for chosen in optimizer_steps([microbatches[i] for i in order], settings):
            tokens = sum(len(m.targets) for m in chosen)
            for m in chosen:
                old, advantages, returns, old_values = (
                    x[m.place] for x in (old_policy.logprobs, advantages_BT, returns_BT, old_policy.values)
                )
                with torch.set_grad_enabled(not warming):
                    lower = m.lower if m.lower is not None else policy.below(m.batch)
                    states = policy.above(lower, m.batch).index_select(0, m.state_index)
                new = token_logprobs(states, policy.head, m.targets, settings.temperature, master=policy.head_master)
                policy_loss, clipped = clipped_policy_loss(new, old, advantages, settings.clip)
                values = critic.values(_critic_states(critic, m, states))
                value_loss = clipped_value_loss(values, old_values, returns, settings.value_clip)
                loss = value_loss.sum() / tokens
                if not warming:
                    loss = loss + policy_loss.sum() / tokens
                    if settings.entropy_bonus:
                        entropies = token_entropies(states, _logits_matrix(policy), settings.temperature)
                        loss = loss - settings.entropy_bonus * entropies.sum() / tokens
                loss.backward()
                gap = (new - old).detach()
                if not norms:
                    first_ratio = max(first_ratio, float(torch.expm1(gap).abs().max()))
                totals["policy_loss"] += policy_loss.detach().sum()
                totals["value_loss"] += value_loss.detach().sum()
                totals["clip_fraction"] += clipped.sum()
                totals["update_kl"] += (torch.expm1(gap) - gap).sum()
            total_tokens += tokens
            norms.append(optimizer.step())
            policy.refresh()
            if critic.trunk is not None:
                critic.trunk.refresh()
    return {
        **{k: float(v) / total_tokens for k, v in totals.items()},
        "grad_norm": sum(norms) / len(norms),
        "first_ratio": first_ratio,
    }


def _critic_states(critic: Critic, m: MicroBatch, states: Tensor) -> Tensor:
    if critic.trunk is None:
        return states * VALUE_GRADIENT + states.detach() * (1 - VALUE_GRADIENT)
    below = m.critic_lower if m.critic_lower is not None else critic.trunk.below(m.batch)
    return critic.trunk.above(below, m.batch).index_select(0, m.state_index)


def _logits_matrix(policy: Trunk) -> Tensor:
    return policy.head if policy.head_master is None else policy.head_master.to(policy.dtype)
