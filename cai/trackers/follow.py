"""The process that tells one tracker of one run: reads the run's event log as it grows, until its own input ends.

The run holds the other end of that input and writes nothing into it, so however the run ends, this process sees it. How
far it has told is in ``tracking/<tracker>.json`` of the run's folder; the next process goes on from there.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cai.clients.api_key import ApiKey
from cai.errors import Incomplete
from cai.files.durable import write_durably
from cai.files.locks import locked
from cai.identity import parse_json
from cai.plan import plan_from_json
from cai.store.artifacts import Store
from cai.store.events import EventLog
from cai.text import one_line
from cai.trackers.base import RunAddress, RunFacts, Telling, Tracker
from cai.trackers.settings import Tracking
from cai.trackers.story import Story, config_of

POLL = 0.5
"""Seconds between two looks at the log."""

PATIENCE = 20.0
"""Seconds after the run's end in which everything must have been told."""

_WAITS = (1.0, 5.0, 15.0, 60.0)
"""Seconds until a tracker that failed is tried again: after the first failure, the second ..."""

_AT_ONCE = 100
"""Points and figures that are handed over together; those of a piece that failed are told again."""

_SECRETS = (
    "WANDB_API_KEY",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "AWS_SECRET_ACCESS_KEY",
    "DATABRICKS_TOKEN",
)


def _tensorboard(tracking: Tracking) -> Tracker:
    from cai.trackers.tensorboard_files import TensorBoardFiles

    assert tracking.tensorboard is not None
    return TensorBoardFiles(tracking.tensorboard)


def _wandb(tracking: Tracking) -> Tracker:
    from cai.trackers.wandb_runs import WandbRuns

    assert tracking.wandb is not None
    return WandbRuns(tracking.wandb)


def _mlflow(tracking: Tracking) -> Tracker:
    from cai.trackers.mlflow_runs import MlflowRuns

    assert tracking.mlflow is not None
    return MlflowRuns(tracking.mlflow)


TRACKERS: dict[str, Callable[[Tracking], Tracker]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "mlflow": _mlflow,
}


@dataclass(frozen=True, slots=True)
class Orders:
    """What this process is asked: a tracker, a run, and where the run's store is."""

    tracker: str
    tracking: dict[str, Any]
    folder: str
    home: str
    group: str = ""
    unfinished: str = "killed"


def main() -> int:
    """Follow the run that the first line of standard input orders; 1 when not everything could be told."""
    orders = Orders(**parse_json(_first_line()))
    os.nice(5)  # the run goes first
    folder = Path(orders.folder) / "tracking"
    over = threading.Event()
    threading.Thread(target=_wait_for_end, args=(over,), daemon=True).start()
    with locked(folder / f"{orders.tracker}.lock"):  # an earlier process may still be telling the run's earlier part
        follower = Follower(orders)
        while not over.wait(POLL):
            follower.look()
        whole = follower.finish(time.monotonic() + PATIENCE / 4)
    sys.stdout.flush()
    return 0 if whole else 1


def _wait_for_end(over: threading.Event) -> None:
    """Set ``over`` when the run ends, and end this process when a tracker hangs beyond all patience after that."""
    while os.read(0, 1):
        pass
    over.set()
    time.sleep(PATIENCE)
    os._exit(1)


def _first_line() -> bytes:
    line = b""
    while not line.endswith(b"\n") and (byte := os.read(0, 1)):
        line += byte
    return line


class Follower:
    """Tells one tracker what a run's log says, as far as it goes now."""

    def __init__(self, orders: Orders, make: Callable[[Tracking], Tracker] | None = None) -> None:
        self._orders = orders
        self._run_dir = Path(orders.folder)
        self._make = make or TRACKERS[orders.tracker]
        self._settings = Tracking.model_validate(orders.tracking)
        self._state = self._run_dir / "tracking" / f"{orders.tracker}.json"
        state: dict[str, Any] = {}
        with suppress(OSError, ValueError):
            state = parse_json(self._state.read_text(encoding="utf-8"))
        self._id = str(state.get("id", ""))
        self._sent_offset = int(state.get("offset", 0))
        """End of the last event, in bytes of the log, that the tracker has."""
        self._group = orders.group or str(state.get("group", ""))
        self._read_offset = 0
        """End of the last event that the story has; what it told beyond ``_sent_offset`` is in ``_pending``."""
        self._pending: list[Telling] = []
        self._tracker: Tracker | None = None
        self._story: Story | None = None
        self._facts: RunFacts | None = None
        self._failures = 0
        self._next_try = 0.0
        self._printed: set[str] = set()
        self._hide = [ApiKey(os.environ[name]).hide for name in _SECRETS if os.environ.get(name)]

    def look(self, now: bool = False) -> bool:
        """Tell what is new, unless the tracker has just failed (``now``: even then); whether all has been told."""
        for event, end in self._events():
            assert self._story is not None
            entries = self._story.take(event)
            if end > self._sent_offset:
                self._pending += entries
            self._read_offset = end
        if self._story is None:
            return True
        if not now and time.monotonic() < self._next_try:
            return False
        return self._tell()

    def finish(self, deadline: float) -> bool:
        """Tell the rest and the run's end; a tracker that fails is tried until ``deadline``."""
        while not self.look(now=True):
            if time.monotonic() > deadline:
                return False
            time.sleep(1.0)
        if self._tracker is None or self._story is None:
            return True  # the run ended before it began
        try:
            self._tracker.finish(self._story.ending(self._orders.unfinished))
        except Exception as error:
            self._trouble(error)
            return False
        return True

    def _tell(self) -> bool:
        try:
            if self._tracker is None:
                self._start()
                if self._story is None:
                    return False
            while self._pending and self._tracker is not None:
                self._tracker.log(self._pending[:_AT_ONCE])
                del self._pending[:_AT_ONCE]
            if self._read_offset > self._sent_offset:
                self._note(self._read_offset)
        except Exception as error:  # whatever a tracker raises, the run goes on, and the person hears of it
            self._trouble(error)
            return False
        self._failures = 0
        return True

    def _start(self) -> None:
        assert self._facts is not None
        tracker = self._make(self._settings)
        place: RunAddress = tracker.start(self._facts, self._id)
        previous_id = self._id
        self._tracker = tracker
        self._id = place.id
        self._say(place.description)
        if previous_id and previous_id != place.id:  # what was told is not there any more: tell all of it again
            self._sent_offset = 0
            self._read_offset = 0
            self._story = None
            self._pending.clear()
        self._note(self._sent_offset)

    def _note(self, offset: int) -> None:
        self._sent_offset = offset
        write_durably(self._state, json.dumps({"id": self._id, "offset": offset, "group": self._group}) + "\n")

    def _events(self) -> Iterator[tuple[Mapping[str, Any], int]]:
        """Events that were written since the last look, each with the place where it ends."""
        log = self._run_dir / "events.jsonl"
        if not log.is_file():
            return
        if self._story is None:
            plan = plan_from_json((self._run_dir / "plan.json").read_text(encoding="utf-8"))
            store = Store(Path(self._orders.home))
            self._story = Story(plan, lambda step: store.find(step.kind, step.key))
            self._facts = RunFacts(plan.experiment, self._run_dir, config_of(plan), self._group)
        with log.open("rb") as file:
            file.seek(self._read_offset)
            end = self._read_offset
            for line in file:
                if not line.endswith(b"\n"):
                    return  # the rest of it is to come
                end += len(line)
                with suppress(ValueError):
                    event = parse_json(line)
                    if isinstance(event, dict):
                        yield event, end

    def _trouble(self, error: Exception) -> None:
        """Tell of a failure once, and try again later with a new tracker."""
        self._tracker = None
        self._next_try = time.monotonic() + _WAITS[min(self._failures, len(_WAITS) - 1)]
        self._failures += 1
        text = one_line(f"{type(error).__name__}: {error}", 300)
        for hide in self._hide:
            text = hide(text)
        print(text, file=sys.stderr, flush=True)
        if "trouble" not in self._printed:
            self._printed.add("trouble")
            self._say(f"cannot be told now, and the run goes on without it ({text})")
            with suppress(OSError, Incomplete):
                log = EventLog(self._run_dir / "events.jsonl")
                try:
                    log.write("tracking.failed", tracker=self._orders.tracker, error=text)
                finally:
                    log.close()

    def _say(self, text: str) -> None:
        if text not in self._printed:
            self._printed.add(text)
            with suppress(OSError):
                print(f"{self._orders.tracker}: {text}", flush=True)
