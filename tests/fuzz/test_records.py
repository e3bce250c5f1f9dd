"""What runs and locks leave on the disk, with every odd value and every odd file: read, or told by name.

A lock comes with a pull request, a run's folder or a store from another team. Each case changes one value of one file,
or all of its bytes, and runs the verbs that read it.
"""

from __future__ import annotations

import gc
import io
import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import yaml

from cai.cli import main
from tests.fuzz.test_plans import changed, places
from tests.fuzz.values import VALUES, chosen
from tests.support.report_runs import make_run
from tests.support.review_project import project, run_cai

pytestmark = pytest.mark.long

ODD_FILES: dict[str, bytes] = {
    "empty": b"",
    "zeros": b"\0" * 100,
    "no UTF-8": b'{"a": "\xff\xfe"}',
    "nested lists": b"[" * 100_000,
    "nested objects": b'{"a":' * 100_000,
    "a long number": b'{"seconds": ' + b"9" * 10_000 + b"}",
    "null": b"null",
    "a list": b"[]",
    "an object": b"{}",
    "not JSON": b"not: [json",
    "aliases": b"a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nd: [*c, *c]\n",
    "lone surrogate": b'{"a\\ud800": "\\ud800"}',
    "half": b"",  # stands for the first half of the file
}
ALLOWED = {0, 1, 2, 3}


def odd_files(raw: bytes) -> list[tuple[str, bytes]]:
    return [(name, odd or raw[: len(raw) // 2]) for name, odd in ODD_FILES.items()]


def odd_values(raw: Any, dumps: Callable[[Any], str]) -> list[tuple[str, bytes]]:
    return [
        (f"{place} = {VALUES[number]!r}", dumps(changed(raw, place, VALUES[number])).encode("utf-8", "surrogatepass"))
        for place in places(raw)
        for number in range(len(VALUES))
    ]


def trouble(args: Sequence[str]) -> str:
    """What is wrong with how a verb ended; empty when it ended as verbs do."""
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            code = main(list(args))
    except SystemExit as error:
        code = int(error.code or 0)
    except Exception as error:
        return f"{' '.join(args)}: {type(error).__name__}: {str(error)[:200]}"
    finally:
        gc.enable()
    return "" if code in ALLOWED else f"{' '.join(args)}: exit code {code}"


def tried(path: Path, cases: Sequence[tuple[str, bytes]], verbs: Sequence[Sequence[str]]) -> list[str]:
    """The troubles of the cases, each the file with other bytes."""
    whole = path.read_bytes()
    failed = []
    for label, odd in cases:
        path.write_bytes(odd)
        failed += [f"{path.name}: {label}: {wrong}" for verb in verbs if (wrong := trouble(verb))]
    path.write_bytes(whole)
    return failed


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    make_run(folder, rows=3)
    make_run(folder, "other", seed=1, rows=3)
    return folder


@pytest.fixture
def here(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two finished runs and their store."""
    folder = tmp_path / "there"
    shutil.copytree(finished, folder, symlinks=True)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("CAI_HOME", str(folder / "home"))
    return folder


RUN = "runs/small/2026-01-01T00-00-00Z"
READERS = {
    "record.json": [["status", RUN], ["report", RUN, "--out", "page.html"]],
    "events.jsonl": [["status", RUN], ["report", RUN, "--out", "page.html"]],
    "evaluation.json": [["report", RUN, "--out", "page.html"], ["diff", RUN, "runs/other/2026-01-02T00-00-00Z"]],
    "judge_report.json": [["report", RUN, "--out", "page.html"], ["diff", RUN, "runs/other/2026-01-02T00-00-00Z"]],
    "metrics.jsonl": [["report", RUN, "--out", "page.html"]],
    "rows.jsonl": [["report", RUN, "--out", "page.html"], ["rows", RUN, "judge"]],
}


def file_of(folder: Path, name: str) -> Path:
    if name in ("record.json", "events.jsonl"):
        return folder / RUN / name
    kinds = {"evaluation.json": "evaluate", "judge_report.json": "judge", "metrics.jsonl": "sft", "rows.jsonl": "judge"}
    return next(path for path in sorted((folder / "home" / "store").glob(f"{kinds[name]}-*/{name}")))


@pytest.mark.parametrize("name", READERS)
def test_a_file_of_a_run_is_read_or_told(here: Path, name: str) -> None:
    path = file_of(here, name)
    if name == "events.jsonl":
        path.write_text('{"t": 1.5, "event": "step.done", "step": "sft", "seconds": 2.0, "rows": 3}\n' * 3)
    raw = path.read_bytes()
    if name.endswith(".jsonl"):
        first, *others = raw.decode().splitlines()
        rest = "".join(f"\n{line}" for line in others)
        values = odd_values(json.loads(first), lambda data: json.dumps(data) + rest)
    else:
        values = odd_values(json.loads(raw), json.dumps)
    cases = [*chosen(odd_files(raw), 3), *chosen(values, 4, 300)]  # a report takes a second
    failed = tried(path, cases, READERS[name])
    assert not failed, f"{len(failed)}: " + "\n".join(failed[:12])


STORE_VERBS = [["store", "ls"], ["store", "verify"], ["store", "gc", "--dry-run"], ["rows", RUN], ["status", RUN]]


@pytest.mark.parametrize("name", ["sample-*.json", "sample-*.seen", "evaluate-*.json"])
def test_a_record_of_the_store_is_read_or_told(here: Path, name: str) -> None:
    path = next(iter(sorted((here / "home" / "store").glob(name))))
    raw = path.read_bytes()
    values = odd_values(json.loads(raw), json.dumps)
    failed = tried(path, [*odd_files(raw), *chosen(values, 25)], STORE_VERBS)
    assert not failed, f"{len(failed)}: " + "\n".join(failed[:12])


def test_what_the_store_knows_of_a_run_is_read_or_told(here: Path) -> None:
    path = here / "home" / "runs" / "a.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"path": str(here / RUN), "experiment": "small", "keys": ["a" * 64]}))
    values = odd_values(json.loads(path.read_bytes()), json.dumps)
    failed = tried(path, [*odd_files(path.read_bytes()), *chosen(values, 40)], STORE_VERBS[:3])
    assert not failed, f"{len(failed)}: " + "\n".join(failed[:12])


def test_what_a_submission_left_is_read_or_told(here: Path) -> None:
    path = here / RUN / "submission.json"
    path.write_text(json.dumps({"submitted": "2026-01-01T00:00:00+00:00", "home": str(here / "home"), "cwd": "."}))
    values = odd_values(json.loads(path.read_bytes()), json.dumps)
    verbs = [["status", RUN], ["cancel", RUN]]
    failed = tried(path, [*odd_files(path.read_bytes()), *values], verbs)
    assert not failed, f"{len(failed)}: " + "\n".join(failed[:12])


def test_a_lock_is_read_or_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project(tmp_path / "there"))
    monkeypatch.setenv("CAI_HOME", str(tmp_path / "home"))
    assert run_cai("lock", "experiment=small") == 0
    path = Path("locks/small.lock.yaml")
    raw = path.read_bytes()

    def dumps(data: Any) -> str:
        try:
            return yaml.safe_dump(data, allow_unicode=True, sort_keys=False)
        except UnicodeEncodeError:
            return json.dumps(data)

    values = odd_values(yaml.safe_load(raw), dumps)
    verbs = [["diff", str(path), "small"], ["validate", "--locked", "experiment=small"]]
    failed = tried(path, [*chosen(odd_files(raw), 5), *chosen(values, 5, 200)], verbs)  # each composes twice
    assert not failed, f"{len(failed)}: " + "\n".join(failed[:12])


@pytest.mark.parametrize("name", ["sweep.json", "0/cell.json", "stop"])
def test_a_sweep_is_read_or_told(here: Path, name: str) -> None:
    folder = here / "runs" / "sweeps" / "a"
    for number in (0, 1):
        shutil.copytree(here / RUN, folder / str(number))
    cells = [
        {"number": n, "label": f"cell {n}", "values": {"seed": n}, "principles": ["a"], "what": "", "principle": ""}
        for n in (0, 1)
    ]
    way = {"preset": "", "metric": "", "on_error": "continue"}
    (folder / "sweep.json").write_text(
        json.dumps({"format": 1, "experiment": "small", "sweep": way, "cells": cells, "detach": False})
    )
    (folder / "0" / "cell.json").write_text(json.dumps({"state": "done", "error": "", "made": [], "seconds": 2.0}))
    (folder / "stop").write_text("130")
    path = folder / name
    raw = path.read_bytes()
    values = [] if name == "stop" else odd_values(json.loads(raw), json.dumps)
    verbs = [["report", str(folder), "--out", "page.html"]]
    assert trouble(verbs[0]) == ""
    failed = tried(path, [*chosen(odd_files(raw), 5), *chosen(values, 10, 200)], verbs)
    assert not failed, f"{len(failed)}: " + "\n".join(failed[:12])
