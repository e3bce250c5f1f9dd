"""A run whose steps are jobs of a cluster: what its folder says of it before anybody is asked."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from pydantic import ValidationError

from cai.engines import engine_of
from cai.errors import Problem, SpecError
from cai.launchers.settings import Slurm
from cai.plan import Plan, plan_from_json
from cai.run.job_files import job_file, read_json
from cai.store.artifacts import Store


@dataclass(frozen=True, slots=True)
class Submission:
    """What is known of a submitted run before anybody is asked."""

    run_dir: Path
    plan: Plan
    store: Store
    cwd: str
    began: datetime
    launcher: Slurm

    def file(self, step: str, end: str) -> Path:
        """A step's file among the jobs'."""
        return job_file(self.run_dir, step, end)


def is_submitted(run_dir: Path) -> bool:
    """Whether a run's steps are jobs of a cluster."""
    return (run_dir / "submission.json").is_file()


def launcher_of(plan: Plan) -> Slurm | None:
    """The cluster that a plan's steps run on; None when they run in this process.

    Raises:
        SpecError: when the plan's engine is none that is known.
    """
    try:
        kind, settings = engine_of(plan.engine)
    except (KeyError, ValidationError) as error:
        raise SpecError(Problem("plan: engine", f"cannot be used: {error}", "make the plan again")) from error
    launcher = kind.launcher(settings)
    return launcher if isinstance(launcher, Slurm) else None


def open_submission(run_dir: Path) -> Submission:
    """What a run's folder says of its submission.

    Raises:
        SpecError: when the run was not submitted to a cluster, or its files cannot be read.
    """
    run_dir = run_dir.resolve()
    path = run_dir / "submission.json"
    try:
        facts = read_json(path)
        plan = plan_from_json((run_dir / "plan.json").read_text(encoding="utf-8"), str(run_dir / "plan.json"))
        began = datetime.fromisoformat(facts["submitted"])
        home, cwd = Path(facts["home"]), str(facts["cwd"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SpecError(Problem(str(path), f"cannot be read ({error})", "name a run whose steps are jobs")) from error
    launcher = launcher_of(plan)
    if launcher is None:
        raise SpecError(Problem(str(run_dir / "plan.json"), "its engine runs on no cluster", "name another run"))
    return Submission(run_dir, plan, Store(home), cwd, began, launcher)
