"""TensorBoard: scalars, the config as text, and hyper-parameters for its HPARAMS page, in one event file an attempt.

Events are put together here from TensorBoard's own messages and record format. Its writer would hand them to a thread
and tell of a full disk later or never; here what was told is in the file, or an error.
"""

from __future__ import annotations

import io
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cai.files.paths import user_path
from cai.trackers.base import CurvePoint, Ending, RunAddress, RunFacts, Scalar, Telling, clean
from cai.trackers.settings import TensorBoard


class TensorBoardFiles:
    """A ``Tracker`` whose runs are folders."""

    def __init__(self, settings: TensorBoard) -> None:
        self._settings = settings
        self._file: io.BufferedRandom | None = None

    def start(self, run: RunFacts, resume_id: str) -> RunAddress:
        """Open a new event file; files in one folder are one run to TensorBoard."""
        from tensorboard.compat.proto.event_pb2 import Event

        folder = folder_of(self._settings, run)
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns() // 1000}.{socket.gethostname()}.{os.getpid()}"
        self._file = (folder / name).open("x+b")
        first = [Event(wall_time=time.time(), file_version="brain.Event:2")]
        if not resume_id:
            first += [_event(_config_text(run.config)), _event(_session_start(run))]
        self._write(first)
        return RunAddress(str(folder), f"tensorboard --logdir {_display_path(folder)}")

    def log(self, entries: Sequence[Telling]) -> None:
        """Scalars: curves at their own steps, figures at step 0."""
        self._write(list(_scalars(entries)))

    def finish(self, ending: Ending) -> None:
        """The run's sums and its status; closes the file."""
        values = [_scalar(name, value) for name, value in ending.values.items()]
        self._write([_event(value, ending.t) for value in [*values, _session_end(ending)]])
        if self._file is not None:
            self._file.close()

    def _write(self, events: Sequence[Any]) -> None:
        """All of them or none: a record of which a part is missing would hide what follows it."""
        from tensorboard.summary.writer.record_writer import RecordWriter

        assert self._file is not None
        records = io.BytesIO()
        writer = RecordWriter(records)
        for event in events:
            writer.write(event.SerializeToString())
        before = self._file.tell()
        try:
            self._file.write(records.getvalue())
            self._file.flush()
        except OSError:
            os.ftruncate(self._file.fileno(), before)
            raise


def folder_of(settings: TensorBoard, run: RunFacts) -> Path:
    """Where a run's event files lie."""
    base = user_path(settings.dir)
    return base / run.group / run.experiment / run.folder.name if base.is_absolute() else run.folder / base


def _display_path(folder: Path) -> str:
    relative = os.path.relpath(folder)
    return str(folder) if relative.startswith("..") else relative


def _scalars(entries: Sequence[Telling]) -> Iterator[Any]:
    for entry in entries:
        if isinstance(entry, CurvePoint):
            for name, value in entry.values.items():
                yield _event(_scalar(f"{entry.prefix}/{name}", value), entry.t, entry.position)
        else:
            for name, value in {**entry.values, clean(f"{entry.step}/end/reused"): float(entry.reused)}.items():
                yield _event(_scalar(name, value), entry.t)


def _event(value: Any, t: float = 0.0, step: int = 0) -> Any:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    return Event(wall_time=t or time.time(), step=step, summary=Summary(value=[value]))


def _scalar(name: str, number: float) -> Any:
    from tensorboard.compat.proto.summary_pb2 import Summary

    return Summary.Value(tag=name, simple_value=number)


def _config_text(config: Mapping[str, Scalar]) -> Any:
    """The config as a table for the TEXT page."""
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
    from tensorboard.compat.proto.types_pb2 import DT_STRING

    rows = [
        f"| {name} | `{str(value).replace('|', chr(0x2502)).replace('`', chr(39))}` |" for name, value in config.items()
    ]
    text = "\n".join(["| field | value |", "|---|---|", *rows])
    shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)])
    return Summary.Value(
        tag="config/text_summary",
        metadata=SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text")),
        tensor=TensorProto(dtype=DT_STRING, tensor_shape=shape, string_val=[text.encode()]),
    )


def _session_start(run: RunFacts) -> Any:
    """The hyper-parameters; runs of one group stand together on the HPARAMS page."""
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionStartInfo

    start = SessionStartInfo(group_name=run.name, start_time_secs=time.time())
    for name, value in run.config.items():
        if name.startswith("keys."):
            continue
        if isinstance(value, str):
            start.hparams[name].string_value = value
        elif isinstance(value, bool):
            start.hparams[name].bool_value = value
        else:
            start.hparams[name].number_value = value
    return _hparams("_hparams_/session_start_info", HParamsPluginData(session_start_info=start, version=0))


def _session_end(ending: Ending) -> Any:
    from tensorboard.plugins.hparams.api_pb2 import Status
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo

    word = {"done": "STATUS_SUCCESS", "running": "STATUS_RUNNING"}.get(ending.status, "STATUS_FAILURE")
    end = SessionEndInfo(status=Status.Value(word), end_time_secs=ending.t or time.time())
    return _hparams("_hparams_/session_end_info", HParamsPluginData(session_end_info=end, version=0))


def _hparams(tag: str, content: Any) -> Any:
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata

    data = SummaryMetadata.PluginData(plugin_name="hparams", content=content.SerializeToString())
    return Summary.Value(tag=tag, metadata=SummaryMetadata(plugin_data=data))
