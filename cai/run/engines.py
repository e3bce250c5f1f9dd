"""The engines of a run, each made when a step first asks something of it: a run that reuses every step makes none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from cai.clients.base import Client
from cai.engines.base import Attempt, D, Engine, ModelSource, Progress, RewardScorer, S, Session, Trained
from cai.engines.methods.base import Method
from cai.plan import Plan, Step

MakeEngine = Callable[[dict[str, Any]], Engine]
"""From an ``engine`` block of a plan to the engine."""


class LazySession:
    """A session (see ``cai.engines.base.Session``) that begins when something is first asked of it."""

    def __init__(self, open_session: Callable[[], Session]) -> None:
        self._open_session = open_session
        self._session: Session | None = None

    def _begun(self) -> Session:
        if self._session is None:
            self._session = self._open_session()
        return self._session

    @property
    def flows(self) -> bool:
        """The engine's."""
        return self._begun().flows

    def fetch(self, source: ModelSource, dest: Path, progress: Progress) -> dict[str, Any]:
        """Bring a model into ``dest``."""
        return self._begun().fetch(source, dest, progress)

    def client(self, model: Path) -> Client:
        """Serve a model."""
        return self._begun().client(model)

    def train(self, method: Method[D, S], data: D, settings: S, attempt: Attempt) -> Trained:
        """Train by ``method``."""
        return self._begun().train(method, data, settings, attempt)

    def reward_scorer(self, model: Path) -> RewardScorer:
        """Open a finished reward model."""
        return self._begun().reward_scorer(model)

    def close(self) -> None:
        """End the session, if it has begun."""
        if self._session is not None:
            self._session.close()


class Engines:
    """All engines that a plan names. Sessions of several steps, and of several engines, may be open at once."""

    def __init__(self, make: MakeEngine, plan: Plan) -> None:
        self._make = make
        self._plan = plan
        self._engines: dict[str, Engine] = {}

    def session(self, step: Step) -> LazySession:
        """What a step asks of its engine."""
        return LazySession(lambda: self._engine_of(step).session(step))

    def _engine_of(self, step: Step) -> Engine:
        if step.engine not in self._engines:
            self._engines[step.engine] = self._make(self._plan.engine_of(step))
        return self._engines[step.engine]

    def rest(self) -> None:
        """Close every engine; each is made anew when something is asked of it."""
        self.close()
        self._engines.clear()

    def close(self) -> None:
        """Close the engines that were made."""
        for engine in self._engines.values():
            engine.close()
