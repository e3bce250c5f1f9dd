"""What the lab's tests share: upstream's packages and configs, a tiny checkpoint, and what was validated so far."""

from __future__ import annotations

import json
import os
from importlib import metadata
from pathlib import Path

import pytest

from cai.engines.nemo_aligner.upstream import config_files
from tests.lab import checkpoint, planned
from tests.lab.chain import ChainRun
from tests.lab.validated import Validated
from tests.support.small_tokenizers import sentencepiece_model

HERE = Path(__file__).parent


def lacking() -> str:
    """Why the lab cannot run here; empty when it can."""
    for name, version in planned.pins().items():
        try:
            here = metadata.version(name)
        except metadata.PackageNotFoundError:
            return f"{name}=={version} is not on the path: `make nemo-lab` brings it"
        if here != version:
            return f"{name} is {here}, not {version}: `make nemo-lab` brings that"
    return ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here is long, and skipped where upstream's packages are not; their warnings are not ours to mend."""
    why = lacking()
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.long)
            item.add_marker(pytest.mark.filterwarnings("ignore"))
            item.add_marker(pytest.mark.timeout(600))
            if why:
                item.add_marker(pytest.mark.skip(reason=why))


@pytest.fixture(scope="session", autouse=True)
def _quiet() -> None:
    """NeMo logs every step that it takes. Plans first: Hydra, as NeMo leaves it, finds no configs of ours."""
    for experiment in planned.EXPERIMENTS:
        planned.plan_of(experiment)
    if not lacking():
        from nemo.utils import logging

        logging.setLevel(logging.ERROR)


@pytest.fixture(scope="session")
def validated(request: pytest.FixtureRequest) -> Validated:
    """Filled by the tests; written at the end when all of them have passed."""
    made = Validated()
    request.config.stash[_VALIDATED] = made
    return made


_VALIDATED = pytest.StashKey[Validated]()


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Say what was built; with CAI_LAB_LOCK=write, and all green, write the lock."""
    made = session.config.stash.get(_VALIDATED, None)
    if made is None:
        return
    print("\n\nbuilt and compared by upstream's own classes:", *made.lines, sep="\n  ")
    whole = all(set(planned.planned(name)) <= set(made.commands.get(name, ())) for name in planned.EXPERIMENTS)
    if exitstatus or not whole or not made.files or os.environ.get("CAI_LAB_LOCK") != "write":
        print("the lock is as it was" if os.environ.get("CAI_LAB_LOCK") == "write" else "")
        return
    configs = config_files([Path(os.environ["CAI_UPSTREAM"])], set(planned.CONFIGS))
    lock = {
        "packages": planned.pins(),
        "configs": {name: planned.config_digest(path) for name, path in configs.items()},
        "commands": made.commands,
        "files": made.files,
    }
    planned.LOCK.write_text(json.dumps(lock, indent=1, sort_keys=True) + "\n", encoding="utf-8")


@pytest.fixture(scope="session")
def configs() -> dict[str, Path]:
    """Upstream's own YAML files, by name."""
    named = os.environ.get("CAI_UPSTREAM", "")
    paths = config_files([Path(named)], set(planned.CONFIGS)) if named else {}
    if lack := set(planned.CONFIGS) - set(paths):
        pytest.fail(f"CAI_UPSTREAM must name a folder with upstream's configs: {', '.join(sorted(lack))}")
    return paths


@pytest.fixture(scope="session")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the converter makes of Mistral-7B, tiny."""
    folder = tmp_path_factory.mktemp("checkpoints") / "converted"
    return checkpoint.write(folder, checkpoint.converted(), sentencepiece_model())


@pytest.fixture(scope="module", params=planned.EXPERIMENTS)
def run(
    request: pytest.FixtureRequest, configs: dict[str, Path], converted: Path, tmp_path_factory: pytest.TempPathFactory
) -> ChainRun:
    """The chain of each experiment; a module's tests share what it builds."""
    return ChainRun(request.param, configs, converted, tmp_path_factory.mktemp(request.param))
