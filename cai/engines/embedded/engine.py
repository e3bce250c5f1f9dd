"""The embedded engine: fetches, serves and trains models in this process, on the CPU or one GPU.

Everything heavy is imported when it is first needed; opening the engine costs nothing, and needs none of it installed.
"""

from __future__ import annotations

from collections.abc import Generator as Iteration
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from cai.clients.base import Client, Completion, Request, Score, ScoreRequest
from cai.engines.base import Attempt, ModelSource, Progress, RewardScorer, Trained
from cai.engines.embedded.settings import (
    Chosen,
    EmbeddedSettings,
    Generator,
    Hardware,
    check_installed,
    choose,
    installed,
)
from cai.engines.embedded.trainers import TRAINERS
from cai.engines.methods.base import D, Method, S
from cai.models.passport import passport_of
from cai.plan import Step


class _Generates(Protocol):
    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]: ...

    def close(self) -> None: ...


class _Scores(Protocol):
    def score(self, requests: Sequence[ScoreRequest]) -> Iterator[Score]: ...

    def close(self) -> None: ...


class EmbeddedClient:
    """One model in this process: a generator and a scorer, each loaded when it is first asked.

    ``generate(requests)`` and ``score(requests)`` are pure functions of the model, the settings and the list: the
    same list gives the same results in any process, whatever was asked before.
    """

    def __init__(self, model: Path, settings: EmbeddedSettings) -> None:
        self._model = model
        self._settings = settings
        self._chosen: Chosen = choose(settings, passport_of(model))
        self._generators: dict[Generator, _Generates] = {}
        self._scorer: _Scores | None = None
        if self._chosen.generator is Generator.TRANSFORMERS:
            # openvino-genai cannot be left in the middle of an answer in our way, so there is nothing to call then.
            self.stream = self._stream

    def _stream(self, request: Request) -> Iteration[str, None, Completion]:
        """One answer piece by piece (see ``cai.terminal.chat.StreamingClient``)."""
        from cai.engines.embedded.torch_client import TorchGenerator

        if Generator.TRANSFORMERS not in self._generators:
            self._generators[Generator.TRANSFORMERS] = self._open(Generator.TRANSFORMERS)
        generator = self._generators[Generator.TRANSFORMERS]
        assert isinstance(generator, TorchGenerator)
        return generator.stream(request)

    @property
    def name(self) -> str:
        """The generator, its version and precision: ``openvino-genai 2026.4.1 float32``."""
        package = "openvino-genai" if self._chosen.generator is Generator.OPENVINO else "transformers"
        return f"{package} {installed(package)} {self._chosen.precision.value}"

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """Complete every request; each draw depends on its request's seed."""
        if not requests:
            return
        kind = self._chosen.generator
        if kind not in self._generators:
            self._generators[kind] = self._open(kind)
        yield from self._generators[kind].generate(requests)

    def score(self, requests: Sequence[ScoreRequest]) -> Iterator[Score]:
        """Log-likelihoods of continuations, in the precision that the settings say."""
        if not requests:
            return
        if self._scorer is None:
            from cai.engines.embedded.scoring import TorchScorer

            self._scorer = TorchScorer(self._model, self._settings)
        yield from self._scorer.score(requests)

    def close(self) -> None:
        """Release both models' memory; a later call loads them again."""
        for part in (*self._generators.values(), self._scorer):
            if part is not None:
                part.close()
        self._generators = {}
        self._scorer = None

    def _open(self, kind: Generator) -> _Generates:
        if kind is Generator.OPENVINO:
            from cai.engines.embedded.openvino_client import OpenVinoGenerator

            return OpenVinoGenerator(self._model, self._settings)
        from cai.engines.embedded.torch_client import TorchGenerator

        return TorchGenerator(self._model, self._settings)


class EmbeddedSession:
    """See ``cai.engines.base.Session``. Every step is done in this process, so a session holds nothing."""

    flows = False

    def __init__(self, settings: EmbeddedSettings) -> None:
        self._settings = settings

    @property
    def _hardware(self) -> Hardware:
        return Hardware(choose(self._settings).device.value, self._settings.threads)

    def fetch(self, source: ModelSource, dest: Path, progress: Progress) -> dict[str, Any]:
        """Bring a model into ``dest`` as a Hugging Face folder; returns what it is."""
        check_installed()
        from cai.engines.embedded.model_sources import fetch

        return fetch(source, dest, progress)

    def client(self, model: Path) -> Client:
        """Serve a model in this process."""
        check_installed()
        return EmbeddedClient(model, self._settings)

    def train(self, method: Method[D, S], data: D, settings: S, attempt: Attempt) -> Trained:
        """Train by ``method`` and write a Hugging Face folder to ``attempt.dest``."""
        check_installed()
        return TRAINERS[method.name](data, settings, attempt, self._hardware)

    def reward_scorer(self, model: Path) -> RewardScorer:
        """Open a finished reward model."""
        check_installed()
        from cai.engines.embedded.reward import EmbeddedRewardScorer

        hardware = self._hardware
        return EmbeddedRewardScorer(model, device=hardware.device, threads=hardware.threads)

    def close(self) -> None:
        """Nothing to release."""


class EmbeddedEngine:
    """Torch, transformers and openvino-genai on this machine (see ``cai.engines.base.Engine``)."""

    def __init__(self, settings: EmbeddedSettings | None = None) -> None:
        self.settings = settings or EmbeddedSettings()

    def session(self, step: Step | None) -> EmbeddedSession:
        """Begin a step."""
        return EmbeddedSession(self.settings)

    def close(self) -> None:
        """Nothing to take down."""
