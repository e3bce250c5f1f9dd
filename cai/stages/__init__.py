"""The kinds of stage, one file or one folder each, and the table that names them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from cai.stages import decontaminate, dpo, fetch, grade, read, respond, revise, reward, rl, sample, sft, snapshot
from cai.stages.base import Context, Outcome, StageSpec
from cai.stages.evaluate.spec import EvaluateSpec
from cai.stages.judge.spec import JudgeSpec
from cai.stages.mix import stage as mix


class StageKind(NamedTuple):
    """A kind of stage: the type of its spec, and its work."""

    spec: type[StageSpec]
    run: Callable[[Any, Context], Outcome]


# The work of these is more than planning should load.
def _judge(spec: JudgeSpec, ctx: Context) -> Outcome:
    from cai.stages.judge.stage import run

    return run(spec, ctx)


def _evaluate(spec: EvaluateSpec, ctx: Context) -> Outcome:
    from cai.stages.evaluate.stage import run

    return run(spec, ctx)


KINDS: dict[str, StageKind] = {
    "fetch": StageKind(fetch.FetchSpec, fetch.run),
    "read": StageKind(read.ReadSpec, read.run),
    "respond": StageKind(respond.RespondSpec, respond.run),
    "revise": StageKind(revise.ReviseSpec, revise.run),
    "decontaminate": StageKind(decontaminate.DecontaminateSpec, decontaminate.run),
    "mix": StageKind(mix.MixSpec, mix.run),
    "sft": StageKind(sft.SftSpec, sft.run),
    "sample": StageKind(sample.SampleSpec, sample.run),
    "judge": StageKind(JudgeSpec, _judge),
    "reward": StageKind(reward.RewardSpec, reward.run),
    "dpo": StageKind(dpo.DpoSpec, dpo.run),
    "rl": StageKind(rl.RlSpec, rl.run),
    "snapshot": StageKind(snapshot.SnapshotSpec, snapshot.run),
    "grade": StageKind(grade.GradeSpec, grade.run),
    "evaluate": StageKind(EvaluateSpec, _evaluate),
}
