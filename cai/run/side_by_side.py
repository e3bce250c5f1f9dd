"""The steps of a run: those that only ask models behind an API run beside the others, which go one by one.

A step that trains, or asks a model that this machine holds, wants the machine for itself. One that asks servers
elsewhere mostly waits, so it runs in a thread of its own while another step works here. What two such steps ask of the
same servers is counted together (cai/clients/sharing.py), and what one leaves free at its end the other uses.

The first step that fails lets no other begin. Steps beside it stop when they next tell of their progress, with all that
they have; a step that works here comes to its end.
"""

from __future__ import annotations

import threading
from collections.abc import Collection
from dataclasses import replace

from cai.plan import Step
from cai.run.building import Site, build_step
from cai.run.results import StepResult
from cai.run.shards import shards_of
from cai.run.stopping import StopSign
from cai.stages.base import ENDPOINT, Artifact

MOST_BESIDE = 8
"""Steps beside the one that works here."""

PATIENCE = 5.0
"""Seconds that steps in other threads have to stop; what they have on the disk by then is what counts."""

_LOOK = 0.5
"""Seconds between two looks while nothing can be begun here, so that Ctrl-C is heard."""

MODELS = ("model", "reward_model")
"""What a step asks, by the kind of artifact."""


class SideBySide:
    """Builds all steps of a plan; ``working`` names those whose artifacts are not in the store."""

    def __init__(self, site: Site, working: Collection[str]) -> None:
        self._site = site
        self._working = frozenset(working)
        self._stop = StopSign()
        self._changed = threading.Condition()
        # All below belongs to whoever holds the condition.
        self._waiting = list(site.plan.steps)
        self._threads: dict[str, threading.Thread] = {}
        self._here: Step | None = None
        self._results: dict[str, StepResult] = {}
        self._error: BaseException | None = None

    @property
    def results(self) -> list[StepResult]:
        """Those that are there, in the order of the plan."""
        with self._changed:
            return [self._results[step.name] for step in self._site.plan.steps if step.name in self._results]

    def run(self) -> None:
        """Make or reuse every step's artifact.

        Raises:
            CaiError: what the first step that failed raised; whatever else ends the work here.
        """
        try:
            while (step := self._next_here()) is not None:
                self._build(step)
        except BaseException as error:
            with self._changed:
                first = self._error
            self._end_others(self._here.name if self._here is not None else "the run")
            if first is not None and isinstance(error, Exception):
                raise first from None  # That the step here was stopped for it says less.
            raise
        if self._error is not None:
            raise self._error

    def _next_here(self) -> Step | None:
        """The step to do in this thread, after steps to be done beside it have begun; None at the end."""
        with self._changed:
            self._here = None
            while True:
                if self._error is None:
                    ready = [step for step in self._waiting if self._is_ready(step)]
                    here = next((step for step in ready if not self._asks_outside(step)), None)
                    here = here or (ready[0] if ready else None)
                    if here is not None:
                        self._here = here
                        self._waiting.remove(here)
                        self._begin_beside()
                        return here
                if not self._threads:
                    return None
                self._changed.wait(_LOOK)

    def _begin_beside(self) -> None:
        """Start what can run beside the step that works here."""
        for step in list(self._waiting):
            if len(self._threads) >= MOST_BESIDE:
                return
            if self._is_ready(step) and self._asks_outside(step):
                self._waiting.remove(step)
                thread = threading.Thread(target=self._beside, args=(step,), name=f"step {step.name}", daemon=True)
                self._threads[step.name] = thread
                thread.start()

    def _beside(self, step: Step) -> None:
        """One step, in a thread of its own."""
        error: BaseException | None = None
        try:
            self._build(step)
        except BaseException as raised:  # It is raised again in the thread that waits for all.
            error = raised
        with self._changed:
            if error is not None and self._error is None:
                self._error = error
                self._stop.ask(f"stopped because {step.name} failed")
            del self._threads[step.name]
            if self._error is None and self._here is not None:
                self._begin_beside()
            self._changed.notify_all()

    def _build(self, step: Step) -> None:
        with self._changed:
            outside = self._asks_outside(step)
            artifacts = self._artifacts()
        # One that trains here is not stopped half-way for the sake of another.
        site = replace(self._site, stop=self._stop) if outside else self._site
        result = build_step(site, step, artifacts, spread=True)
        with self._changed:
            self._results[step.name] = result

    def _artifacts(self) -> dict[str, Artifact]:
        return {name: result.artifact for name, result in self._results.items()}

    def _is_ready(self, step: Step) -> bool:
        return all(name in self._results for name in step.needs())

    def _asks_outside(self, step: Step) -> bool:
        """Whether all that a step asks is behind an API; what is in the store already is taken from there here."""
        if step.name not in self._working or shards_of(step) > 1:
            return False
        inputs = [self._results[name].artifact for name in step.needs()]
        models = [artifact for artifact in inputs if artifact.makes in MODELS]
        return bool(models) and all((model.path / ENDPOINT).is_file() for model in models)

    def _end_others(self, name: str) -> None:
        """Let the steps in other threads stop; not longer than a person waits."""
        self._stop.ask(f"stopped with {name}")
        with self._changed:
            self._error = self._error or RuntimeError("nothing more begins")
            threads = list(self._threads.values())
        for thread in threads:
            thread.join(PATIENCE)
