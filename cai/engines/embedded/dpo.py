"""Direct preference optimisation, with the loss of ``cai.engines.methods.dpo``.

The reference's log-probabilities are constants, so they are computed once, before the first step: by default it is the
model that training starts from, and then no second model is ever in memory. The prompt of a pair is computed once for
both answers, and the last token of an answer is predicted, never read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from cai.engines.base import Attempt, Trained
from cai.engines.embedded.batches import Branches, Packed, batches_of, by_length, pack
from cai.engines.embedded.checkpoints import fingerprint
from cai.engines.embedded.divergence import TokenLosses
from cai.engines.embedded.functions import token_logprobs, without_gradient
from cai.engines.embedded.lower import LowerStates
from cai.engines.embedded.models import load_tokenizer
from cai.engines.embedded.optim import Work, fit, rate_of
from cai.engines.embedded.reward import pair_tokens, quality
from cai.engines.embedded.settings import Hardware
from cai.engines.embedded.sft import dropout_generator, prepared
from cai.engines.embedded.trunk import Trunk
from cai.engines.methods.base import PairText
from cai.engines.methods.dpo import DpoData, DpoSettings
from cai.errors import StepFailed

_GROUP = 8
"""Pairs whose reference is computed together: by their lengths alone, so that a resumed run gets the same bits."""


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """A tokenised comparison. ``branches`` is what is read: the prompt, and both answers without their last token."""

    id: str
    branches: Branches
    answers: tuple[tuple[int, ...], tuple[int, ...]]
    p_chosen: float


@dataclass(frozen=True, slots=True)
class Answers:
    """Where a micro-batch's answers are predicted: ``states_S`` are places in the line, ``targets_S`` the tokens.

    ``rows_S`` says of each to which of the 2 P answers it belongs, chosen and rejected by turns.
    """

    batch: Packed
    states_S: Tensor  # noqa: N815 - axes are part of the name
    targets_S: Tensor  # noqa: N815
    rows_S: Tensor  # noqa: N815
    pairs: int


def pairs_of(tokenizer: Any, texts: Sequence[PairText], max_length: int, dropped: Counter[str]) -> list[PreferencePair]:
    """Tokenise; what is too long or has an empty part is left out and counted by reason."""
    columns = pair_tokens(tokenizer, texts)
    pairs = []
    for text, prompt, chosen, rejected in zip(texts, *columns, strict=True):
        if not chosen or not rejected:
            dropped["empty answer"] += 1
        elif not prompt:
            dropped["empty prompt"] += 1
        elif len(prompt) + max(len(chosen), len(rejected)) > max_length:
            dropped["too long"] += 1
        else:
            branches = Branches(tuple(prompt), (tuple(chosen[:-1]), tuple(rejected[:-1])))
            pairs.append(PreferencePair(text.id, branches, (tuple(chosen), tuple(rejected)), text.p_chosen))
    return pairs


def laid_out(pairs: Sequence[PreferencePair], device: str) -> Answers:
    """Pack pairs, and find the state that predicts each token of their answers."""
    states: list[int] = []
    targets: list[int] = []
    rows: list[int] = []
    start = 0
    for number, pair in enumerate(pairs):
        prompt = len(pair.branches.shared)
        own = start + prompt
        for side, answer in enumerate(pair.answers):
            # The prompt's last state predicts the first token, each token of the answer the next one.
            states += [start + prompt - 1, *range(own, own + len(answer) - 1)]
            targets += answer
            rows += [2 * number + side] * len(answer)
            own += len(answer) - 1
        start += pair.branches.tokens
    states_S, targets_S, rows_S = (  # noqa: N806
        torch.tensor(column, dtype=torch.long, device=device) for column in (states, targets, rows)
    )
    return Answers(pack([pair.branches for pair in pairs], device), states_S, targets_S, rows_S, len(pairs))


def answer_logprobs(trunk: Trunk, states: Tensor, answers: Answers) -> Tensor:
    """Log-probabilities [P, 2] of the chosen and the rejected answers, float32, in nats."""
    chosen_states = states.index_select(0, answers.states_S)
    logprobs_S = token_logprobs(chosen_states, trunk.head, answers.targets_S, master=trunk.head_master)  # noqa: N806
    sums = torch.zeros(2 * answers.pairs, dtype=torch.float32, device=logprobs_S.device)
    return sums.index_add(0, answers.rows_S, logprobs_S.float()).view(-1, 2)


def dpo_loss(rewards_P2: Tensor, p_chosen_P: Tensor) -> Tensor:  # noqa: N803
    """Sum over pairs of the conservative loss; rewards [P, 2] are beta log pi / ref of (chosen, rejected)."""
    margins = rewards_P2[:, 0] - rewards_P2[:, 1]
    return -(p_chosen_P * functional.logsigmoid(margins) + (1 - p_chosen_P) * functional.logsigmoid(-margins)).sum()


@without_gradient
def reference_logprobs(trunk: Trunk, pairs: Sequence[PreferencePair], device: str) -> Tensor:
    """``answer_logprobs`` [N, 2] of all pairs by the reference."""
    logprobs = torch.zeros((len(pairs), 2), dtype=torch.float32, device=device)
    for group in by_length(range(len(pairs)), _GROUP, lambda i: pairs[i].branches.longest):
        answers = laid_out([pairs[i] for i in group], device)
        logprobs[group] = answer_logprobs(trunk, trunk(answers.batch), answers)
    return logprobs


def train(data: DpoData, settings: DpoSettings, attempt: Attempt, hardware: Hardware = Hardware()) -> Trained:
    """Train a model on pairs and write a Hugging Face folder with metrics.jsonl to ``attempt.dest``.

    Loss is the mean over the batch's pairs.

    Raises:
        StepFailed: when no pair is left, or training diverges: what was good of the model is kept (``optim.fit``).
    """
    seed, device = attempt.seed, hardware.device
    trunk = prepared(data.model, settings, seed, hardware)
    tokenizer = load_tokenizer(data.model)
    dropped: Counter[str] = Counter()
    limit = min(settings.max_length, trunk.longest)
    pairs = pairs_of(tokenizer, data.train, limit, dropped)
    held_out = pairs_of(tokenizer, data.val, limit, Counter())
    if not pairs:
        raise StepFailed(f"dpo: none of {len(data.train)} pairs can be used ({dict(dropped)}); raise max_length")
    reference, val_reference = _references(trunk, data.reference, settings, pairs, held_out)
    batches = batches_of([pair.id for pair in pairs], settings.batch_size, settings.epochs, seed)
    train_states = LowerStates(trunk, [pair.branches for pair in pairs], settings.epochs)
    val_states = LowerStates(trunk, [pair.branches for pair in held_out], 2)
    tokens = sum(pairs[i].branches.tokens for batch in batches for i in batch)
    attempt.progress.expect(rows=sum(map(len, batches)), tokens=tokens)

    def rewards(micro: list[int], generator: torch.Generator | None) -> Tensor:
        answers = laid_out([pairs[i] for i in micro], device)
        states = trunk.above(train_states(micro, answers.batch), answers.batch, generator=generator)
        return settings.beta * (answer_logprobs(trunk, states, answers) - reference[micro])

    def labels(source: list[PreferencePair], micro: list[int]) -> Tensor:
        return torch.tensor([source[i].p_chosen for i in micro], dtype=torch.float32, device=device)

    def learn(step: int) -> dict[str, float]:
        batch = batches[step]
        names = ("loss", "accuracy", "reward_chosen", "reward_rejected")
        sums = {name: torch.zeros((), device=device) for name in names}
        micros = by_length(batch, settings.micro_batch_size, lambda i: pairs[i].branches.tokens)
        for number, micro in enumerate(micros):
            generator = dropout_generator(settings, seed, step=step, micro=number, device=device)
            rewards_P2, p_chosen_P = rewards(micro, generator), labels(pairs, micro)  # noqa: N806
            loss = dpo_loss(rewards_P2, p_chosen_P) / len(batch)
            loss.backward()
            rewards_P2 = rewards_P2.detach()  # noqa: N806
            sums["loss"] += loss.detach()
            sums["accuracy"] += ((rewards_P2[:, 0] - rewards_P2[:, 1]) * (p_chosen_P - 0.5) > 0).sum()
            sums["reward_chosen"] += rewards_P2[:, 0].sum() / len(batch)
            sums["reward_rejected"] += rewards_P2[:, 1].sum() / len(batch)
        decided = sum(pairs[i].p_chosen != 0.5 for i in batch)
        numbers = {name: float(total) for name, total in sums.items()}
        numbers["accuracy"] /= max(1, decided)
        numbers["margin"] = numbers["reward_chosen"] - numbers["reward_rejected"]
        return {**numbers, "tokens": sum(pairs[i].branches.tokens for i in batch), "rows": len(batch)}

    @without_gradient
    def validate() -> dict[str, float]:
        margins: list[float] = []
        p_chosen: list[float] = []
        total = 0.0
        for micro in by_length(range(len(held_out)), _GROUP, lambda i: held_out[i].branches.tokens):
            answers = laid_out([held_out[i] for i in micro], device)
            states = trunk.above(val_states(micro, answers.batch), answers.batch)
            rewards_P2 = settings.beta * (answer_logprobs(trunk, states, answers) - val_reference[micro])  # noqa: N806
            p_chosen_P = labels(held_out, micro)  # noqa: N806
            total += float(dpo_loss(rewards_P2, p_chosen_P))
            margins += (rewards_P2[:, 0] - rewards_P2[:, 1]).tolist()
            p_chosen += p_chosen_P.tolist()
        return {"val_loss": total / len(margins), **quality(margins, p_chosen)} if margins else {}

    losses = TokenLosses(len(trunk.head), len(batches))

    def chosen_loss(step: int, reward_chosen: float) -> float:
        """The policy's loss (nats a token) on the chosen answers of a batch, from the mean of their rewards."""
        batch = batches[step]
        logprobs = reward_chosen * len(batch) / settings.beta + float(reference[batch, 0].sum())
        return -logprobs / sum(len(pairs[i].answers[0]) for i in batch)

    work = Work(
        steps=len(batches),
        parameters=trunk.parameters(),
        refresh=trunk.refresh,
        learn=learn,
        validate=validate,
        belongs=fingerprint(settings, seed, data.train, str(trunk.dtype), str(data.reference or "")),
        event="dpo",
        save=trunk.save,
        health=lambda step, numbers: losses.see(chosen_loss(step, numbers["reward_chosen"])),
    )
    rows = fit(work, settings, attempt)
    trunk.save(attempt.dest)
    return Trained(_metrics(pairs, rows, trunk), dict(dropped))


def _references(
    trunk: Trunk, reference: Path | None, settings: DpoSettings, *splits: list[PreferencePair]
) -> tuple[Tensor, ...]:
    """The reference's log-probabilities of the pairs of each split.

    ``trunk`` has not learned anything yet, and its adapters add nothing: it is its own reference.
    """
    device = str(trunk.device)
    reader = trunk if reference is None else Trunk(reference, settings.precision, device)
    trunk.refresh()
    return tuple(reference_logprobs(reader, pairs, device) for pairs in splits)


def _metrics(pairs: Sequence[PreferencePair], rows: list[dict[str, Any]], trunk: Trunk) -> dict[str, Any]:
    first, last = rows[0], rows[-1]
    return {
        "pairs": len(pairs),
        "ties": sum(abs(pair.p_chosen - 0.5) < 1e-9 for pair in pairs),
        "steps": len(rows) - 1,
        "tokens": int(sum(row.get("tokens", 0) for row in rows)),
        "tokens_per_s": round(rate_of(rows), 1),
        "first_loss": rows[1]["loss"],
        "last_loss": last["loss"],
        "margin": last["margin"],
        "reward_chosen": last["reward_chosen"],
        "reward_rejected": last["reward_rejected"],
        "precision": str(trunk.dtype).removeprefix("torch."),
        **{f"{name}_before": value for name, value in first.items() if name in ("val_loss", "val_accuracy")},
        **{name: value for name, value in last.items() if name.startswith("val_")},
    }
