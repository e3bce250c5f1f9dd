"""The engine of a run, made when a stage first asks something of it: a run that reuses every step loads no torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cai.engines.base import Engine
from cai.plan import Step

MakeEngine = Callable[[dict[str, Any]], Engine]


class LazyEngine:
    """Stands for the engine and makes it when something is first asked of it."""

    def __init__(self, make: MakeEngine, settings: dict[str, Any]) -> None:
        self._make, self._settings = make, settings
        self._engine: Engine | None = None
        self._step: Step | None = None

    def begin(self, step: Step) -> None:
        """A step's work begins: an engine that starts processes looks up which ones."""
        self._step = step
        self._tell()

    def _tell(self) -> None:
        begin = getattr(self._engine, "begin", None)
        if begin is not None:
            begin(self._step)

    def __getattr__(self, name: str) -> Any:
        if self._engine is None:
            self._engine = self._make(self._settings)
            self._tell()
        return getattr(self._engine, name)

    def rest(self) -> None:
        """Close the engine, if it was made; it is made anew when something is asked of it."""
        self.close()
        self._engine = None

    def close(self) -> None:
        """Close the engine if it was made and can be closed."""
        close = getattr(self._engine, "close", None)
        if close is not None:
            close()
