"""From the engine's texts to upstream's files in a step's work folder; what is left out is told by reason.

What upstream would do in silence is done here first, and counted: pairs and prompts that it would replace, masks that
would cover everything, labels that it cannot take, a last batch that is not full.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from cai.data.formats import FORMATS
from cai.data.formats.base import Dropped, Written
from cai.data.formats.nemo_aligner import prompt_lines
from cai.data.nemo_tokens import Pieces
from cai.engines.base import Trained
from cai.engines.methods.base import PromptText
from cai.engines.methods.ppo import RlSettings
from cai.engines.methods.reward import RewardData, RewardSettings
from cai.engines.methods.sft import SftData, SftSettings
from cai.engines.nemo_aligner.labels import hard_labels
from cai.engines.nemo_aligner.settings import Hard, LabelSettings
from cai.errors import Problem, SpecError
from cai.identity import uniform

TRAIN, VAL = "train.jsonl", "val.jsonl"


def write_sft(folder: Path, data: SftData, settings: SftSettings, tokens: Pieces) -> Trained:
    """``train.jsonl`` and ``val.jsonl`` for train_gpt_sft.py; each holds at least one global batch.

    Raises:
        SpecError: too few conversations are left.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write = FORMATS["nemo_sft_chat"].write
    written = [
        write(folder / name, texts, tokens.count, max_length=settings.max_length, at_least=settings.batch_size)
        for name, texts in ((TRAIN, data.train), (VAL, data.val))
    ]
    return _summary(written, {})


def write_pairs(
    folder: Path,
    data: RewardData,
    settings: RewardSettings,
    *,
    tokens: Pieces,
    labels: LabelSettings,
    seed: int,
) -> Trained:
    """``train.jsonl`` and ``val.jsonl`` for train_reward_model.py, soft labels made hard.

    Raises:
        SpecError: too few pairs are left.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # Validation counts each pair once, as its likelier order: replicas would put a ceiling on its accuracy.
    measured = LabelSettings(margin=0.0) if labels.how is Hard.REPLICAS else labels
    hard = [hard_labels(data.train, labels, seed), hard_labels(data.val, measured, seed)]
    write = FORMATS["nemo_reward"].write
    written = [
        write(
            folder / name, hard_part.pairs, tokens.count, max_length=settings.max_length, at_least=settings.batch_size
        )
        for name, hard_part in zip((TRAIN, VAL), hard, strict=True)
    ]
    parts = zip(("train", "val"), hard, strict=True)
    counts = {f"{part} {name}": count for part, hard_part in parts for name, count in hard_part.record().items()}
    summary = _summary(written, counts)
    dropped = Counter(summary.dropped)
    for hard_part in hard:
        dropped.update(hard_part.dropped)
    return Trained(summary.metrics, dict(dropped))


def write_prompts(
    folder: Path, prompts: Sequence[PromptText], settings: RlSettings, *, tokens: Pieces, val_samples: int, seed: int
) -> Trained:
    """``train.jsonl`` and ``val.jsonl`` for train_gpt_ppo_actor.py; validation prompts are drawn and not trained on.

    Training holds exactly iterations x rollouts prompts, since upstream's training is one pass over its file: drawn
    where there are more, each as often as any other where there are fewer (one time more for some).

    Raises:
        SpecError: there are too few prompts for one round of rollouts and one of validation.
    """
    folder.mkdir(parents=True, exist_ok=True)
    val_count = val_samples or settings.rollouts
    if len(prompts) < val_count + settings.rollouts:
        message = f"{len(prompts)} prompts, but one iteration takes {settings.rollouts} and validation {val_count}"
        raise SpecError(Problem("rl.prompts", message, "give more prompts, fewer rollouts or fewer val_samples"))
    count = cache(tokens.count)  # each prompt is counted to draw it and again to write it
    usable: list[PromptText] = []
    dropped: Counter[str] = Counter()
    for prompt in prompts:
        try:
            prompt_lines(prompt, count, settings.max_prompt_tokens)
        except Dropped as reason:
            dropped[str(reason)] += 1
        else:
            usable.append(prompt)
    drawn = _drawn(usable, seed, "rl/validation")
    held_out, rest = drawn[:val_count], drawn[val_count:]
    trained = _repeated(_drawn(rest, seed, "rl/training"), settings.iterations * settings.rollouts)
    write = FORMATS["nemo_prompts"].write
    written = [
        write(folder / name, part, count, max_length=settings.max_prompt_tokens, at_least=least)
        for name, part, least in ((TRAIN, trained, settings.rollouts), (VAL, held_out, val_count))
    ]
    summary = _summary(written, {"prompts not drawn": len(rest) - written[0].rows})
    return Trained(summary.metrics, dict(dropped))


def _drawn(prompts: Sequence[PromptText], seed: int, purpose: str) -> list[PromptText]:
    return sorted(prompts, key=lambda p: (uniform(seed, p.id, purpose), p.id))


def _repeated(prompts: Sequence[PromptText], number: int) -> list[PromptText]:
    """``number`` prompts: all of them as often as they fit, then the first ones once more."""
    if not prompts:
        return []
    whole, more = divmod(number, len(prompts))
    return [*prompts] * whole + [*prompts[:more]]


def _summary(written: Sequence[Written], more: dict[str, Any]) -> Trained:
    dropped: Counter[str] = Counter()
    for each in written:
        dropped.update(each.dropped)
    train, val = written
    metrics = {
        "train rows": train.rows,
        "val rows": val.rows,
        "train samples": train.samples,
        "train tokens": train.tokens,
        "longest": max(train.longest, val.longest),
        **more,
    }
    return Trained(metrics, dict(dropped))
