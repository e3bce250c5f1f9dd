"""The precision of what judges read: it is what the settings say, it is told, and only another one moves keys."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from cai.clients.base import ScoreRequest
from cai.engines import ENGINES
from cai.engines.embedded import settings as embedded
from cai.engines.embedded.engine import EmbeddedClient
from cai.engines.embedded.scoring import TorchScorer
from cai.engines.embedded.settings import EmbeddedSettings, ScoringPrecision, choose, describe
from cai.settings import semantic

HERE: dict[str, Any] = {"device": "cpu", "generator": "transformers", "generation_precision": "float32"}
ASKS = ("What is the capital of France?", "How do I bake bread?", "Is it safe to mix flour and water?")


def settings(precision: str | None = None) -> EmbeddedSettings:
    return EmbeddedSettings(**HERE, **({} if precision is None else {"scoring_precision": precision}))


def identity(of: EmbeddedSettings) -> dict[str, Any]:
    return dict(ENGINES["embedded"].identity(of, "judge", "judge", {}))


def requests() -> list[ScoreRequest]:
    return [
        ScoreRequest(f"{i}{answer}", f"<|im_start|>user\n{ask}<|im_end|>\n", answer)
        for i, ask in enumerate(ASKS)
        for answer in ("(A)", "(B)", "Paris, of course.")
    ]


def logprobs(model: Path, precision: str | None) -> list[float]:
    client = EmbeddedClient(model, settings(precision))
    scores = {score.id: score for score in client.score(requests())}
    client.close()
    return [scores[request.id].logprob for request in requests()]


def test_float32_is_the_default_and_leaves_every_key_as_it_was() -> None:
    assert settings().scoring_precision is ScoringPrecision.FLOAT32
    assert "scoring_precision" not in semantic(settings())
    assert identity(settings()) == identity(settings("float32"))
    assert set(identity(settings())) == {*HERE, "generation_batch", "scoring_batch_tokens", "kv_cache_gb"}
    assert identity(settings("bfloat16")) == {**identity(settings()), "scoring_precision": "bfloat16"}


@pytest.mark.parametrize("has_bfloat16", [True, False])
def test_auto_is_what_the_processor_is_quick_at_and_counts_as_that(
    has_bfloat16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "_cpu_has_bfloat16", lambda: has_bfloat16)
    named = "bfloat16" if has_bfloat16 else "float32"
    assert choose(settings("auto")).scoring.value == named
    assert choose(settings("auto")).precision.value == "float32", "generation has a setting of its own"
    assert identity(settings("auto")) == identity(settings(named))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_plan_tells_it(precision: str) -> None:
    assert describe(settings(precision))["scoring"] == precision


def test_the_model_is_computed_in_it_and_its_logits_in_float32(tiny_model: Path) -> None:
    import torch

    for precision, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        scorer = TorchScorer(tiny_model, settings(precision))
        assert scorer._model.base_model.layers[0].mlp.up_proj.weight.dtype == dtype
        assert scorer._model.get_input_embeddings().weight.dtype == dtype
        assert scorer._model.get_output_embeddings().weight.dtype == torch.float32


def test_bfloat16_says_nearly_the_same(tiny_model: Path) -> None:
    exact, short = logprobs(tiny_model, "float32"), logprobs(tiny_model, "bfloat16")
    assert exact == logprobs(tiny_model, None)
    assert all(map(math.isfinite, short))
    assert exact != short
    assert short == pytest.approx(exact, rel=0.05)
    assert len(set(short)) == len(short), "no two of them are alike for want of digits"
