"""Every planned command of the shipped experiments was built by upstream's own classes: the lab's lock says so.

A test that fails here means that a command, a config or a data file has changed since the lab last passed: run
``make nemo-lab``, and commit the lock that it writes.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from cai.data.nemo_tokens import open_tokenizer
from cai.engines.nemo_aligner.upstream import config_files
from tests.lab import planned, samples
from tests.support.small_tokenizers import sentencepiece_model

AGAIN = "run `make nemo-lab` and commit tests/lab/validated.json"


@pytest.mark.parametrize("experiment", planned.EXPERIMENTS)
def test_every_planned_command_was_validated(experiment: str) -> None:
    now = {name: planned.command_digest(command) for name, command in planned.planned(experiment).items()}
    assert now == planned.read_lock()["commands"][experiment], AGAIN


def test_the_lock_is_of_the_pinned_packages() -> None:
    assert planned.read_lock()["packages"] == planned.pins(), AGAIN


def test_the_files_are_those_that_upstream_has_read(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model())
    files = samples.write(tmp_path / "files", open_tokenizer(tmp_path))
    assert samples.digests(files) == planned.read_lock()["files"], AGAIN


def test_the_configs_are_those_that_were_merged() -> None:
    if not (named := os.environ.get("CAI_UPSTREAM")):
        pytest.skip("CAI_UPSTREAM names no folder with upstream's configs")
    configs = config_files([Path(named)], set(planned.CONFIGS))
    now = {name: planned.config_digest(path) for name, path in configs.items()}
    assert now == planned.read_lock()["configs"], AGAIN


def test_any_word_of_a_command_changes_its_digest_and_a_key_of_the_store_does_not() -> None:
    command = planned.planned("mistral_rl_cai")["reward.train"]
    digest = planned.command_digest(command)
    other = replace(command, command=replace(command.command, argv=(*command.command.argv, "model.x=1")))
    assert planned.command_digest(other) != digest
    moved = tuple(word.replace("/store/sft-", "/store/sft-0123456789abcdef/../sft-") for word in command.command.argv)
    assert planned.command_digest(replace(command, command=replace(command.command, argv=moved))) != digest
    rekeyed = [planned._KEY.sub("-fedcba9876543210", word) for word in command.command.argv]
    assert planned.command_digest(replace(command, command=replace(command.command, argv=tuple(rekeyed)))) == digest
