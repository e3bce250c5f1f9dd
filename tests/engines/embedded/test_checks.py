"""What a plan says of its models before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cai.cli import main
from tests.support.model_files import gguf_file, model_folder

RESPOND = ["experiment=quickstart", "models.base.sha256=''"]


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A verb's exit code and all that it printed."""
    monkeypatch.setenv("CAI_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "200")

    def run(*args: str) -> tuple[int, str]:
        code = main([*args])
        captured = capsys.readouterr()
        return code, " ".join((captured.out + captured.err).split())

    return run


def of_base(source: str, *more: str) -> list[str]:
    return [*RESPOND, f"models.base.source={source}", *more]


def test_a_family_that_is_not_trained_is_refused_with_who_can(say: Any, tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m", model_type="gemma3")
    for verb in ("plan", "validate"):
        code, text = say(verb, *of_base(f"hf:{folder}"))
        assert code == 2
        assert "model type 'gemma3' cannot be trained by the embedded engine" in text
        assert "take a model of llama, mistral, qwen2, qwen3, or another engine" in text


def test_packed_weights_and_activations_are_refused_while_planning(say: Any, tmp_path: Path) -> None:
    packed = model_folder(tmp_path / "fp8", {"w.weight": ("F8_E4M3", [2, 2])})
    code, text = say("plan", *of_base(f"hf:{packed}"))
    assert code == 2
    assert "models.base.source: its weights are packed by fp8" in text
    gelu = model_folder(tmp_path / "gelu", hidden_act="gelu")
    code, text = say("plan", *of_base(f"hf:{gelu}"))
    assert code == 2
    assert "activation 'gelu' cannot be trained" in text


def test_a_missing_folder_is_said_to_be_missing(say: Any, tmp_path: Path) -> None:
    code, text = say("plan", *of_base(f"hf:{tmp_path}/nowhere"))
    assert code == 2
    assert f"models.base.source: no folder {tmp_path}/nowhere; give the path of a Hugging Face model folder" in text
    code, text = say("plan", *of_base("hf:models/nowhere"))
    assert code == 2
    assert "needs a pinned revision" in text
    assert "if it is a folder of yours, there is none at models/nowhere" in text
    empty = tmp_path / "empty"
    empty.mkdir()
    code, text = say("plan", *of_base(f"hf:{empty}"))
    assert code == 2
    assert "has no config.json" in text


def test_another_generator_is_taken_where_openvino_has_no_such_family(say: Any, tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m", model_type="qwen2")
    code, text = say("plan", *of_base(f"hf:{folder}"))
    assert code == 0
    assert "generates with transformers: openvino-genai cannot (its reader has no 'qwen2')" in text
    code, text = say("plan", *of_base(f"hf:{folder}", "engine.generator=openvino"))
    assert code == 2
    assert "openvino-genai cannot generate with it: its reader has no 'qwen2'" in text
    code, text = say("plan", *of_base(f"hf:{model_folder(tmp_path / 'llama')}"))
    assert code == 0
    assert "generates with transformers" not in text


def test_answers_that_leave_no_room_are_refused(say: Any, tmp_path: Path) -> None:
    file = gguf_file(tmp_path / "m.gguf", context_length=48, embedding_length=64, **{"attention.head_count": 4})
    code, text = say("plan", *of_base(f"gguf:{file}", "stages.respond.sampling.max_tokens=48"))
    assert code == 2
    assert "stages.respond.sampling.max_tokens: 48 tokens leave no room for a prompt: the model reads 48 in all" in text


def test_more_memory_than_there_is_and_longer_rows_are_told(
    say: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cai.engines.embedded.checks.memory_bytes", lambda: 2**30)
    large = {"model.embed_tokens.weight": ("BF16", [1_000_000, 1000])}
    folder = model_folder(tmp_path / "m", large, max_position_embeddings=200)
    code, text = say("plan", *of_base(f"hf:{folder}"))
    assert code == 0
    assert "GiB of memory; this machine has 1 GiB" in text
    assert "is beyond the model's 200 tokens: longer rows drop out" in text


@pytest.mark.parametrize(("revision", "told"), [("main", True), ("v1.0", True), ("0" * 40, False)])
def test_a_revision_that_can_move_is_told(say: Any, revision: str, told: bool) -> None:
    code, text = say("plan", *of_base("hf:org/name", f"models.base.revision='{revision}'"))
    assert code == 0
    assert (f"'{revision}' can move: pin it to a commit" in text) == told
