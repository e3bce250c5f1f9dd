"""Supervised fine-tuning on the loss spans of conversations.

Our own loop instead of TRL's trainer because no token is wasted: logits exist only where loss is taken, tokens after
the last of them are not computed, and nothing is padded. ``python -m benchmarks.training`` measures both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cai.engines.base import Attempt, Trained
from cai.engines.embedded.batches import Branches, Packed, batches_of, by_length, pack
from cai.engines.embedded.checkpoints import fingerprint
from cai.engines.embedded.divergence import TokenLosses, says_nothing, uniform_loss
from cai.engines.embedded.functions import token_logprobs, without_gradient
from cai.engines.embedded.lower import LowerStates
from cai.engines.embedded.models import load_tokenizer
from cai.engines.embedded.optim import Work, fit, rate_of
from cai.engines.embedded.settings import Hardware
from cai.engines.embedded.trunk import Trunk
from cai.engines.methods.base import SupervisedSettings, TrainText
from cai.engines.methods.sft import SftData, SftSettings
from cai.errors import Problem, SpecError, StepFailed
from cai.identity import sampling_seed


class Example:
    """Token ids to read, and where loss is taken: the state at place ``state_positions[i]`` predicts ``targets[i]``."""

    __slots__ = ("branches", "id", "state_positions", "targets")

    def __init__(self, id: str, ids: Sequence[int], loss: Sequence[bool]) -> None:
        self.id = id
        where = [t for t in range(1, len(ids)) if loss[t]]
        # The last target is predicted, never read; what follows it has no part in the loss.
        self.branches = Branches((), (tuple(ids[: where[-1]]),)) if where else Branches((), ((),))
        self.state_positions = [t - 1 for t in where]
        self.targets = [ids[t] for t in where]


def tokenized(tokenizer: Any, text: TrainText) -> tuple[list[int], list[bool]]:
    """Ids of the whole text, and for each token whether its first character lies in a loss span."""
    ids, loss, _ = _with_offsets(tokenizer, text)
    return ids, loss


def _with_offsets(tokenizer: Any, text: TrainText) -> tuple[list[int], list[bool], list[tuple[int, int]]]:
    spans = learnt_ranges(text)
    whole = "".join(span.text for span in text.spans)
    encoded = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
    loss = [any(a <= start < b for a, b in spans) for start, _ in encoded["offset_mapping"]]
    return list(encoded["input_ids"]), loss, list(encoded["offset_mapping"])


def learnt_ranges(text: TrainText) -> list[tuple[int, int]]:
    """Where the loss spans lie in the whole text, in characters."""
    ranges: list[tuple[int, int]] = []
    offset = 0
    for span in text.spans:
        if span.loss and span.text:
            ranges.append((offset, offset + len(span.text)))
        offset += len(span.text)
    return ranges


def learnt_ends(tokenizer: Any, text: TrainText, answer_end: str) -> list[bool]:
    """For each loss span, whether it closes with ``answer_end`` and every token of that carries loss."""
    _, loss, offsets = _with_offsets(tokenizer, text)
    whole = "".join(span.text for span in text.spans)
    learnt = []
    for begin, end in learnt_ranges(text):
        closing = end - len(answer_end)
        tokens = [i for i, (start, stop) in enumerate(offsets) if start < end and closing < stop and start < stop]
        closed = begin <= closing and whole.endswith(answer_end, begin, end)
        learnt.append(closed and bool(tokens) and all(loss[i] for i in tokens))
    return learnt


def check_ends(tokenizer: Any, texts: Sequence[TrainText], answer_end: str) -> None:
    """At least one answer's end must be learnt; a model that never learns it never stops.

    Raises:
        SpecError: none is, which is for the template to mend.
    """
    if answer_end and not any(any(learnt_ends(tokenizer, text, answer_end)) for text in texts):
        message = f"no answer's end is learnt: loss lies on no {answer_end!r}, so the model would never stop"
        todo = "put answer_end inside the template's generation blocks, or directly behind them"
        raise SpecError(Problem("template", message, todo))


def examples_of(tokenizer: Any, texts: Sequence[TrainText], max_length: int, dropped: Counter[str]) -> list[Example]:
    """Tokenise; what is too long or has nothing to learn is left out and counted by reason."""
    examples = []
    for text in texts:
        ids, loss = tokenized(tokenizer, text)
        if len(ids) > max_length:
            dropped["too long"] += 1
        elif not any(loss[1:]):
            dropped["nothing to learn"] += 1
        else:
            examples.append(Example(text.id, ids, loss))
    return examples


def prepared(model: Path, settings: SupervisedSettings, seed: int, hardware: Hardware, *, head: bool = True) -> Trunk:
    """The model, ready to be trained as the settings say."""
    if hardware.threads:
        torch.set_num_threads(hardware.threads)
    trunk = Trunk(model, settings.precision, hardware.device)
    if settings.lora is None:
        trunk.train_all(head)
    else:
        trunk.adapt(settings.lora, seed)
    return trunk


def dropout_generator(
    settings: SupervisedSettings, seed: int, *, step: int, micro: int, device: str
) -> torch.Generator | None:
    """Random numbers of one micro-batch's dropout, counted; None when there is no dropout."""
    if settings.lora is None or not settings.lora.dropout:
        return None
    return torch.Generator(device).manual_seed(sampling_seed(seed, f"{step}.{micro}", "dropout"))


def packed(examples: Sequence[Example], device: str) -> tuple[Packed, Tensor, Tensor]:
    """A micro-batch, where in its line loss is taken [S], and the tokens that are looked for there [S]."""
    batch = pack([e.branches for e in examples], device)
    state_positions = [
        start + p for start, e in zip(batch.starts_B.tolist(), examples, strict=True) for p in e.state_positions
    ]
    targets = [t for e in examples for t in e.targets]
    return batch, torch.tensor(state_positions, device=device), torch.tensor(targets, device=device)


def train(data: SftData, settings: SftSettings, attempt: Attempt, hardware: Hardware = Hardware()) -> Trained:
    """Fine-tune a model and write a Hugging Face folder with metrics.jsonl to ``attempt.dest``.

    Loss is the mean over the batch's loss tokens of their negative log-probability, in nats.

    Raises:
        StepFailed: when no example is left, or training diverges: what was good of the model is kept (``optim.fit``).
    """
    seed, device = attempt.seed, hardware.device
    trunk = prepared(data.model, settings, seed, hardware)
    tokenizer = load_tokenizer(data.model)
    dropped: Counter[str] = Counter()
    limit = min(settings.max_length, trunk.longest)
    learn_from = examples_of(tokenizer, data.train, limit, dropped)
    held_out = examples_of(tokenizer, data.val, limit, Counter())
    if learn_from:
        usable = {example.id for example in learn_from}
        check_ends(tokenizer, [text for text in data.train if text.id in usable], data.answer_end)
    else:
        raise StepFailed(f"sft: none of {len(data.train)} examples can be used ({dict(dropped)}); raise max_length")
    ids = [e.id for e in learn_from]
    batches = batches_of(ids, settings.batch_size, settings.epochs, seed)
    steps = len(batches)
    train_states = LowerStates(trunk, [e.branches for e in learn_from], settings.epochs)
    val_states = LowerStates(trunk, [e.branches for e in held_out], 2)
    attempt.progress.expect(
        rows=sum(map(len, batches)), tokens=sum(learn_from[i].branches.tokens for b in batches for i in b)
    )

    def learn(step: int) -> dict[str, float]:
        total = sum(len(learn_from[i].targets) for i in batches[step])
        loss, tokens = torch.zeros((), device=device), 0
        micros = by_length(batches[step], settings.micro_batch_size, lambda i: learn_from[i].branches.tokens)
        for number, micro in enumerate(micros):
            batch, state_positions, targets = packed([learn_from[i] for i in micro], device)
            generator = dropout_generator(settings, seed, step=step, micro=number, device=device)
            states = trunk.above(train_states(micro, batch), batch, generator=generator)
            logprobs = token_logprobs(
                states.index_select(0, state_positions), trunk.head, targets, master=trunk.head_master
            )
            part = logprobs.sum() / -total
            part.backward()
            loss += part.detach()
            tokens += batch.tokens
        return {"loss": float(loss), "tokens": tokens, "loss_tokens": total, "rows": len(batches[step])}

    @without_gradient
    def validate() -> dict[str, float]:
        total, count = 0.0, 0
        for micro in by_length(range(len(held_out)), 8, lambda i: held_out[i].branches.tokens):
            batch, state_positions, targets = packed([held_out[i] for i in micro], device)
            states = trunk.above(val_states(micro, batch), batch)
            total -= float(token_logprobs(states.index_select(0, state_positions), trunk.head, targets).sum())
            count += len(targets)
        return {"val_loss": total / count} if count else {}

    losses = TokenLosses(len(trunk.head), steps)

    def finished(rows: list[dict[str, Any]]) -> str:
        best, loss = rows[0].get("val_loss"), rows[-1].get("val_loss")
        if best is None or loss is None or not says_nothing(loss, best, len(trunk.head)):
            return ""
        return f"on what was held out {uniform_loss(loss, best, len(trunk.head))}"

    work = Work(
        steps=steps,
        parameters=trunk.parameters(),
        refresh=trunk.refresh,
        learn=learn,
        validate=validate,
        belongs=fingerprint(settings, seed, data.train, str(trunk.dtype)),
        event="sft",
        save=trunk.save,
        health=lambda step, numbers: losses.see(numbers["loss"]),
        finished=finished,
    )
    rows = fit(work, settings, attempt)
    trunk.save(attempt.dest)
    metrics: dict[str, Any] = {
        "examples": len(learn_from),
        "steps": steps,
        "tokens": int(sum(r.get("tokens", 0) for r in rows)),
        "tokens_per_s": round(rate_of(rows), 1),
        "first_loss": rows[1]["loss"],
        "last_loss": rows[-1]["loss"],
        "precision": str(trunk.dtype).removeprefix("torch."),
    }
    if "val_loss" in rows[-1]:
        metrics |= {"val_loss_before": rows[0]["val_loss"], "val_loss": rows[-1]["val_loss"]}
    return Trained(metrics, dict(dropped))
