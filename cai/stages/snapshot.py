"""Snapshot: a policy that RL kept on its way, as a model like any other, so that it can be compared and talked to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from cai.engines.snapshots import FOLDER, put_file, snapshot_folder
from cai.errors import StepFailed
from cai.stages.base import Context, Estimate, Ledger, Outcome, StageSpec, Wants


class SnapshotSpec(StageSpec):
    """The policy of ``of`` after ``iteration`` iterations, one of those that its ``training.snapshots`` names."""

    MAKES: ClassVar[str] = "model"
    RESULT: ClassVar[bool] = False
    kind: Literal["snapshot"] = "snapshot"
    of: Annotated[str, Wants("model"), Field(description="a stage of kind rl")]
    iteration: Annotated[int, Field(ge=1)]

    def estimate(self, rows: Mapping[str, int | None]) -> Estimate:
        """Files are put in place; no row is read."""
        return Estimate()


def run(spec: SnapshotSpec, ctx: Context) -> Outcome:
    """Put the files in place. Where training ended before the iteration, the policy it ended with stands for it.

    Raises:
        StepFailed: when the training kept no such policy; planning says so before.
    """
    of = ctx.input("of")
    source = snapshot_folder(of.path, spec.iteration)
    if not source.is_dir():
        kept_iterations = sorted(int(path.name) for path in (of.path / FOLDER).glob("*"))
        available = f"it keeps {', '.join(map(str, kept_iterations))}" if kept_iterations else "it keeps none"
        raise StepFailed(f"{ctx.name}: no policy of iteration {spec.iteration} in {of.path}; {available}")
    for path in sorted(source.iterdir()):
        put_file(path, ctx.out / path.name)
    iterations_reached = of.record.get("outcome", {}).get("metrics", {}).get("snapshots", {})
    return Outcome(Ledger(), {"iteration": iterations_reached.get(str(spec.iteration), spec.iteration)})
