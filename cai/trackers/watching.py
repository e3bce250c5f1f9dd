"""The run's side of tracking: make sure that what is asked for is there, start the processes that tell it, end them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

from cai.clients.key_hosts import check_key_hosts
from cai.errors import PrerequisiteError
from cai.plan import Plan

Say = Callable[[str], None]

PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}
"""What has to be installed for each tracker."""

MLFLOW_SECRETS = ("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_PASSWORD")
"""Variables with which MLflow sends something of the user's to its server; the password is kept in a file as well."""

PATIENCE = 22.0
"""Seconds that a run waits at its end for its trackers; they give up shortly before."""


def check_trackers(plan: Plan) -> list[str]:
    """The trackers that a plan asks for, when all that they need is there; imports none of them.

    Raises:
        PrerequisiteError: when a package or a key is missing, or a server may not have the user's password.
    """
    if not plan.source.get("tracking"):
        return []
    from cai.trackers.settings import Tracking

    tracking = Tracking.model_validate(plan.source["tracking"])
    enabled = tracking.enabled()
    if missing := [name for name in enabled if find_spec(PACKAGES[name]) is None]:
        raise PrerequisiteError(
            f"tracking: {', '.join(missing)} is not installed; pip install 'constitution-as-code[trackers]', "
            f"or leave it out: {' '.join(f'tracking.{name}=null' for name in missing)}"
        )
    if tracking.wandb is not None and tracking.wandb.mode == "online" and not _wandb_key():
        raise PrerequisiteError(
            "tracking.wandb: there is no key; export WANDB_API_KEY, or write files for later with "
            "tracking.wandb.mode=offline"
        )
    if tracking.mlflow is not None:
        from cai.trackers.mlflow_runs import uri_of

        _check_mlflow_secrets(tracking.mlflow.uri or "")

        scheme = uri_of(tracking.mlflow).partition(":")[0].partition("+")[0]
        if scheme in ("sqlite", "mysql", "mssql", "postgresql") and find_spec("sqlalchemy") is None:
            raise PrerequisiteError(
                f"tracking.mlflow.uri: {scheme} needs all of MLflow; pip install mlflow, or use a folder, file:./mlruns"
            )
    return list(enabled)


def _check_mlflow_secrets(uri: str) -> None:
    """An experiment's ``uri`` gets what MLflow would send with every request only where the user allowed it."""
    from_environment = os.environ.get("MLFLOW_TRACKING_URI", "").strip()
    if not uri.startswith(("http://", "https://")) or uri.rstrip("/") == from_environment.rstrip("/"):
        return
    kept = Path("~/.mlflow/credentials").expanduser().is_file()
    for name in MLFLOW_SECRETS:
        if os.environ.get(name, "").strip() or (kept and name == "MLFLOW_TRACKING_PASSWORD"):
            check_key_hosts(name, [uri])


def _wandb_key() -> bool:
    netrc = Path(os.environ.get("NETRC") or "~/.netrc").expanduser()
    return bool(os.environ.get("WANDB_API_KEY", "").strip()) or netrc.is_file()


@dataclass(frozen=True, slots=True)
class _Telling:
    """A process that tells one tracker, and the thread that passes on what it says."""

    name: str
    process: subprocess.Popen[str]
    heard: threading.Thread


@contextmanager
def tracked(
    plan: Plan, run_dir: Path, home: Path, say: Say, *, group: str = "", unfinished: str = "killed"
) -> Iterator[None]:
    """While this lasts, the trackers of the plan are told what ``events.jsonl`` of ``run_dir`` says.

    ``home`` is the store's. ``say`` gets a line when a tracker begins or fails, from another thread. ``group`` names
    the sweep that the run is a cell of. ``unfinished`` is what a run is called whose log has no end when this ends:
    ``running`` where jobs go on that were only watched.

    Raises:
        PrerequisiteError: as ``check_trackers``, before anything starts.
    """
    names = check_trackers(plan)
    telling: list[_Telling] = []
    try:
        for name in names:
            try:
                telling.append(_start(name, plan, run_dir, home=home, say=say, group=group, unfinished=unfinished))
            except OSError as error:
                say(f"{name}: cannot be told, and the run goes on without it ({error})")
        yield
    finally:
        _end(telling, say)


def _start(name: str, plan: Plan, run_dir: Path, *, home: Path, say: Say, group: str, unfinished: str) -> _Telling:
    from cai.trackers.follow import Orders

    folder = run_dir.absolute() / "tracking"
    folder.mkdir(parents=True, exist_ok=True)
    orders = Orders(name, plan.source["tracking"], str(run_dir.absolute()), str(home), group, unfinished)
    with (folder / f"{name}.log").open("ab") as log:
        # In a session of its own: Ctrl-C and the end of the terminal are the run's affair, whose end this one tells.
        process = subprocess.Popen(
            [sys.executable, "-m", "cai.trackers"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
    assert process.stdin is not None
    with suppress(BrokenPipeError):
        process.stdin.write(json.dumps(asdict(orders)) + "\n")
        process.stdin.flush()
    heard = threading.Thread(target=_hear, args=(process, say), name=f"tracking-{name}", daemon=True)
    heard.start()
    return _Telling(name, process, heard)


def _hear(process: subprocess.Popen[str], say: Say) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        say(line.rstrip("\n"))


def _end(telling: list[_Telling], say: Say) -> None:
    """Close every process's input and wait for its last word; all of them together have ``PATIENCE``."""
    for follower in telling:
        assert follower.process.stdin is not None
        with suppress(OSError):
            follower.process.stdin.close()
    deadline = time.monotonic() + PATIENCE
    try:
        for follower in telling:
            with suppress(subprocess.TimeoutExpired):
                follower.process.wait(max(deadline - time.monotonic(), 0.0))
    finally:
        for follower in telling:
            _close(follower, say)


def _close(follower: _Telling, say: Say) -> None:
    stuck = follower.process.poll() is None
    if stuck:
        with suppress(ProcessLookupError):
            os.killpg(follower.process.pid, signal.SIGKILL)
    follower.process.wait()
    follower.heard.join(1.0)
    assert follower.process.stdout is not None
    follower.process.stdout.close()
    if stuck or follower.process.returncode != 0:
        say(f"{follower.name}: not all was told; `python -m cai resume` of this run tells the rest")
