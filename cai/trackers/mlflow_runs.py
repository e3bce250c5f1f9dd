"""MLflow, through its client: the config as parameters, curves as metrics with steps, figures as metrics at step 0."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from cai.files.locks import locked
from cai.files.paths import user_path
from cai.trackers.base import CurvePoint, Ending, RunAddress, RunFacts, Telling
from cai.trackers.settings import Mlflow

T = TypeVar("T")

DEFAULT_URI = "file:./mlruns"
_MOST_METRICS, _MOST_PARAMS = 500, 100
_TOO_MANY = 2
_STATUS = {"done": "FINISHED", "failed": "FAILED", "running": "RUNNING"}


class MlflowRuns:
    """A ``Tracker`` of runs in one experiment of a tracking store."""

    def __init__(self, settings: Mlflow) -> None:
        self._settings = settings
        self._client: Any = None
        self._id = ""

    def start(self, run: RunFacts, resume_id: str) -> RunAddress:
        """Make the run, below its group's, or go on with it."""
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        uri = uri_of(self._settings)
        if uri.startswith("file:") or "://" not in uri:
            # Newer releases want to be told that a folder is meant.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        from mlflow import MlflowClient
        from mlflow.entities import Param
        from mlflow.exceptions import MlflowException

        self._client = MlflowClient(tracking_uri=uri)
        if resume_id:
            try:
                self._id = self._client.get_run(resume_id).info.run_id
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
        if self._id:
            self._client.update_run(self._id, status="RUNNING")
            return RunAddress(self._id, f"run {self._id} of {uri}")
        experiment = self._experiment()
        tags = {"mlflow.runName": run.name, "cai.experiment": run.experiment, "cai.folder": str(run.folder)}
        if run.group:
            tags |= {"cai.group": run.group, "mlflow.parentRunId": self._parent(experiment, run)}
        self._id = self._client.create_run(experiment, run_name=run.name, tags=tags).info.run_id
        params = [Param(name, str(value)) for name, value in run.config.items()]
        for some in _pieces(params, _MOST_PARAMS):
            self._client.log_batch(self._id, params=some)
        return RunAddress(self._id, f"run {self._id} of {uri}")

    def log(self, entries: Sequence[Telling]) -> None:
        """Metrics, with the time at which they were noted."""
        from mlflow.entities import Metric

        metrics: list[Any] = []
        for entry in entries:
            step, t = (entry.position, entry.t) if isinstance(entry, CurvePoint) else (0, entry.t)
            prefix = f"{entry.prefix}/" if isinstance(entry, CurvePoint) else ""
            metrics += [Metric(f"{prefix}{name}", value, int(t * 1000), step) for name, value in entry.values.items()]
        for some in _pieces(metrics, _MOST_METRICS):
            self._send(some)

    def finish(self, ending: Ending) -> None:
        """The run's sums and its status."""
        from mlflow.entities import Metric

        t = int(ending.t * 1000)
        self._send([Metric(name, value, t, 0) for name, value in ending.values.items()])
        self._client.set_tag(self._id, "cai.status", ending.status)
        self._client.set_tag(self._id, "cai.reused", ", ".join(ending.reused))
        if ending.status != "running":
            self._client.set_terminated(self._id, _STATUS.get(ending.status, "KILLED"), t or None)

    def _send(self, metrics: Sequence[Any]) -> None:
        """Send a batch; where it fails, each by itself, so that one that a store cannot take holds up no other."""
        from mlflow.exceptions import MlflowException

        refused: list[str] = []
        try:
            self._client.log_batch(self._id, metrics=list(metrics))
        except (MlflowException, OSError) as error:
            in_a_row = 0
            for metric in metrics:
                try:
                    self._client.log_batch(self._id, metrics=[metric])
                    in_a_row = 0
                except (MlflowException, OSError):
                    in_a_row += 1
                    if in_a_row == _TOO_MANY:
                        raise error from None  # the store is not there
                    refused.append(metric.key)
        if refused:
            print(f"not taken: {', '.join(refused)}", file=sys.stderr)

    def _experiment(self) -> str:
        from mlflow.exceptions import MlflowException

        name = self._settings.experiment
        if (existing := self._client.get_experiment_by_name(name)) is not None:
            return str(existing.experiment_id)
        try:
            return str(self._client.create_experiment(name))
        except MlflowException:
            existing = self._client.get_experiment_by_name(name)  # another run has made it meanwhile
            if existing is None:
                raise
            return str(existing.experiment_id)

    def _parent(self, experiment: str, run: RunFacts) -> str:
        """The run that stands for the group; cells that begin together make it once."""
        with locked(run.folder.parent / ".mlflow.lock"):
            quoted = run.group.replace("'", "''")
            parents = self._client.search_runs(
                [experiment], f"tags.`cai.group` = '{quoted}' and tags.`cai.is_group` = 'true'", max_results=1
            )
            if parents:
                return str(parents[0].info.run_id)
            tags = {"cai.group": run.group, "cai.is_group": "true"}
            parent_id = self._client.create_run(experiment, run_name=run.group, tags=tags).info.run_id
            self._client.set_terminated(parent_id)
            return str(parent_id)


def uri_of(settings: Mlflow) -> str:
    """The address of the tracking store; a folder's with its whole path."""
    uri = settings.uri or os.environ.get("MLFLOW_TRACKING_URI", "").strip() or DEFAULT_URI
    folder = uri.removeprefix("file:")
    if "://" in uri or (folder == uri and ":" in uri):
        return uri
    return user_path(folder).absolute().as_uri()


def _pieces(items: Sequence[T], size: int) -> Iterator[list[T]]:
    for start in range(0, len(items), size):
        yield list(items[start : start + size])
