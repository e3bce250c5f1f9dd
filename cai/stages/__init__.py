"""The kinds of stage, one file each, and the table that names them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from cai.stages import evaluate, fetch, judge, mix, read, respond, revise, reward, rl, sample, sft, snapshot
from cai.stages.base import Context, Outcome, StageSpec


class StageKind(NamedTuple):
    """A kind of stage: the type of its spec, and its work."""

    spec: type[StageSpec]
    run: Callable[[Any, Context], Outcome]


KINDS: dict[str, StageKind] = {
    "fetch": StageKind(fetch.FetchSpec, fetch.run),
    "read": StageKind(read.ReadSpec, read.run),
    "respond": StageKind(respond.RespondSpec, respond.run),
    "revise": StageKind(revise.ReviseSpec, revise.run),
    "mix": StageKind(mix.MixSpec, mix.run),
    "sft": StageKind(sft.SftSpec, sft.run),
    "sample": StageKind(sample.SampleSpec, sample.run),
    "judge": StageKind(judge.JudgeSpec, judge.run),
    "reward": StageKind(reward.RewardSpec, reward.run),
    "rl": StageKind(rl.RlSpec, rl.run),
    "snapshot": StageKind(snapshot.SnapshotSpec, snapshot.run),
    "evaluate": StageKind(evaluate.EvaluateSpec, evaluate.run),
}
