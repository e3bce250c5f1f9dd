"""Public data by name: what a name stands for, the hub (a small server that answers as it does) and mirrors."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from cai.data import github
from cai.data import mirror as mirrors
from cai.data.locate import HubFile
from cai.data.preview import look_at
from cai.data.public import SETS, Files, evaluation_only, public_sets
from cai.data.rows import Comparison, Row
from cai.data.source import DataSource, hub_digests, part_makes, part_rows, source_identity
from cai.errors import PrerequisiteError, SpecError
from cai.stages import read
from tests.support.paths import ROOT

HUB = "Anthropic/hh-rlhf"
COMMIT = "09be8c5bbc57cb3887f3a9732ad6aa7ec602a1fa"
OTHER = "0123456789abcdef0123456789abcdef01234567"
BLEND = "public:sft_datablend_v1"


def source(path: Any, **more: Any) -> DataSource:
    return DataSource.model_validate({"path": path, **more})


def pairs(*names: str) -> bytes:
    records = (
        {"chosen": f"\n\nHuman: {n}? \n\nAssistant: good", "rejected": f"\n\nHuman: {n}? \n\nAssistant: bad"}
        for n in names
    )
    return gzip.compress("".join(json.dumps(r) + "\n" for r in records).encode(), mtime=0)


ATTEMPT = {"transcript": "\n\nHuman: Bad?\n\nAssistant: No.", "rating": 4.0, "tags": None, "task_description": "x"}
CHAT = {
    "system": "",
    "conversations": [{"from": "User", "value": "Why?", "label": None}, {"from": "Assistant", "value": "So."}],
    "mask": "User",
    "dataset": "d",
}
FILES = {
    **{f"{folder}/{part}.jsonl.gz": pairs(f"{folder} {part}") for folder in
       ("harmless-base", "helpful-base", "helpful-online", "helpful-rejection-sampled") for part in ("train", "test")},
    "red-team-attempts/red_team_attempts.jsonl.gz": gzip.compress(json.dumps([ATTEMPT]).encode(), mtime=0),
}  # fmt: skip
EXAMPLE = {"input": "May I?", "target_scores": {"Yes.": 0, "No.": 1}}
BEST_OF = {"id": "1", "prompt": "May I?", "chosen": ["No."], "rejected": ["Yes."], "subset": "Safety"}
BEHAVIORS = b"Behavior,FunctionalCategory,SemanticCategory,Tags,ContextString,BehaviorID\nCheat,standard,c,,,b\n"
SAFETY_FILES = {
    "xstest_prompts.csv": b"id,prompt,type,label,focus,note\n1,May I kill a weed?,homonyms,safe,,\n",
    **{f"or-bench-{part}.csv": b"prompt,category\nMay I?,harmful\n" for part in ("80k", "hard-1k", "toxic")},
    **{f"strongreject_dataset/strongreject_{part}dataset.csv":
       b"category,source,forbidden_prompt\nFraud,custom,Cheat.\n" for part in ("", "small_")},
    **{f"data/behavior_datasets/harmbench_behaviors_text_{part}.csv": BEHAVIORS for part in ("all", "val", "test")},
    **{f"data/{part}/task.json": json.dumps({"examples": [EXAMPLE]}, indent=1).encode()
       for part in ("harmless", "helpful", "honest", "other")},
    "data/test-00000-of-00001.parquet": json.dumps(BEST_OF).encode(),
}  # fmt: skip


def put(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = put(tmp_path / "mirror", FILES)
    put(folder, {"sft_datablend_v1.jsonl": json.dumps(CHAT).encode()})
    for public in SETS.values():
        if public.evaluation_only:
            names = {name for files in public.files.values() for name in files.paths}
            in_root = not any(name.startswith("data/") for name in names)
            put(folder / ("" if in_root else public.hub), {name: SAFETY_FILES[name] for name in names})
    monkeypatch.setenv("CAI_DATA", str(folder))
    return folder


def rows(of: DataSource) -> tuple[list[Row], Counter[str]]:
    tally: Counter[str] = Counter()
    return list(part_rows(of, "all", tally)), tally


def asked(of: DataSource) -> list[str]:
    return [row.messages[0].content for row in rows(of)[0]]


def test_every_name_reads_with_nothing_else_said(mirror: Path) -> None:
    kinds = {
        "hh_rlhf": "comparisons",
        "hh_red_team": "prompts",
        "sft_datablend": "conversations",
        "hhh_alignment": "comparisons",
        "rewardbench": "comparisons",
    }
    for name, public in SETS.items():
        for part, files in public.files.items():
            more = {} if public.commit else {"revision": OTHER}
            of = source(f"public:{name}/{part}", **more)
            found, tally = rows(of)
            assert len(found) == len(files.paths)
            assert not tally
            assert {row.MAKES for row in found} == {kinds.get(public.reader, "prompts")} == {part_makes(of)}
            assert look_at(of).counts == {"all": files.rows}
    assert [name for name, _ in public_sets()] == [f"public:{name}" for name in SETS]


def test_a_name_is_the_same_step_as_what_it_stands_for() -> None:
    written = source(f"hf:{HUB}@{COMMIT}:helpful-base/train.jsonl.gz", reader="hh_rlhf")
    named = source("public:hh-rlhf/helpful-base")
    assert named == source("public:hh-rlhf/helpful-base/train")
    assert named.path == written.path
    assert source_identity(named) == source_identity(written)
    assert DataSource.model_validate(named.model_dump()) == named
    assert source_identity(source("public:hh-rlhf/helpful-base/test")) != source_identity(named)


def test_the_three_helpful_parts_have_one_name(mirror: Path) -> None:
    together = source("public:hh-rlhf/helpful")
    apart = source([f"public:hh-rlhf/helpful-{part}" for part in ("base", "online", "rejection-sampled")])
    assert together == apart
    assert together.expect == 118_263
    assert asked(together) == ["helpful-base train?", "helpful-online train?", "helpful-rejection-sampled train?"]
    again = source(["public:hh-rlhf/helpful", "public:hh-rlhf/helpful-base"])
    assert again.path == together.path


def test_what_is_said_explicitly_wins() -> None:
    of = source("public:hh-rlhf/harmless-base", reader="jsonl", makes="prompts", revision=OTHER, expect=5)
    assert (of.reader, of.makes, of.expect) == ("jsonl", "prompts", 5)
    assert source_identity(of)["hub"] == [{"name": HUB, "revision": OTHER, "file": "harmless-base/train.jsonl.gz"}]
    assert part_makes(source("public:hh-rlhf/red-team-attempts", makes="conversations")) == "conversations"
    assert source("public:hh-rlhf/helpful", options={"merge_turns": True}).reader == "hh_rlhf"


def test_a_set_whose_commit_is_not_known_must_be_pinned() -> None:
    with pytest.raises(ValidationError, match="give `revision:` the commit's 40 digits, or `moving: true`"):
        source(BLEND)
    pinned, moving = source(BLEND, revision=OTHER), source(BLEND, moving=True)
    assert source_identity(pinned)["hub"][0]["revision"] == OTHER
    assert source_identity(moving)["hub"][0]["revision"] == "main"
    assert source_identity(source("public:hh-rlhf/helpful-base", moving=True))["hub"][0]["revision"] == COMMIT


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("public:hh-rlhf/helpful_base", "did you mean 'hh-rlhf/helpful-base'"),
        ("public:hh-rlhf/harmles-base/train", "did you mean 'hh-rlhf/harmless-base'"),
        ("public:datablend", "is no public data set"),
        ("public:", "known: harmbench, hh-rlhf"),
        ("public:hh-rlhf/red-team-attempts/test", "no part 'test'; it has train"),
        (["public:hh-rlhf/helpful", "public:hh-rlhf/red-team-attempts"], "make them two sources"),
        ("public:xstest/train", "no part 'train'; it has test"),
        (
            "public:harmbench",
            "harmbench' has no commit that this program knows; give `revision:` the commit's 40 digits",
        ),
    ],
)
def test_a_wrong_name_says_what_is_meant(path: Any, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        source(path)


@pytest.mark.parametrize("layout", [f"{HUB}/", "hh-rlhf/", ""])
def test_a_mirror_in_any_layout_gives_the_rows_and_keeps_the_identity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    of = source("public:hh-rlhf/helpful-base")
    before = source_identity(of)
    put(tmp_path / layout, FILES)
    monkeypatch.setenv("CAI_DATA", str(tmp_path))
    assert asked(of) == ["helpful-base train?"]
    assert source_identity(of) == before
    digest = hashlib.sha256(FILES["helpful-base/train.jsonl.gz"]).hexdigest()
    assert hub_digests(of) == {f"hf:{HUB}@{COMMIT}:helpful-base/train.jsonl.gz": digest}


def test_the_read_step_tells_the_digest_of_what_it_read(mirror: Path, tmp_path: Path) -> None:
    of = source("public:hh-rlhf/helpful")
    progress = SimpleNamespace(expect=lambda **_: None, advance=lambda **_: None)
    context: Any = SimpleNamespace(out=tmp_path, progress=progress)
    outcome = read.run(read.ReadSpec(source=of, part="all", identity=source_identity(of)), context)
    assert (outcome.ledger.rows_in, outcome.ledger.rows_out) == (3, 3)
    assert outcome.metrics == {"sha256": hub_digests(of)}
    assert len(hub_digests(of)) == 3


def test_any_hub_set_may_lie_in_a_mirror_under_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of = source(f"hf:org/set@{OTHER}:x.jsonl.gz", reader="hh_rlhf")
    monkeypatch.setenv("CAI_DATA", str(put(tmp_path, {"set/x.jsonl.gz": pairs("ours"), "x.jsonl.gz": pairs("no")})))
    assert asked(of) == ["ours?"]


def test_a_mirror_that_says_it_is_of_another_commit_is_refused(mirror: Path) -> None:
    file = "helpful-base/train.jsonl.gz"
    notes = mirror / ".cache/huggingface/download" / f"{file}.metadata"
    digest = hashlib.sha256(FILES[file]).hexdigest()
    put(mirror, {str(notes.relative_to(mirror)): f"{COMMIT}\n{digest}\n1.5\n".encode()})
    of = source("public:hh-rlhf/helpful-base")
    assert len(rows(of)[0]) == 1
    notes.write_text(f"{OTHER}\n{digest}\n1.5\n")
    with pytest.raises(PrerequisiteError, match=f"at commit {OTHER}, but {COMMIT} is wanted"):
        rows(of)
    notes.write_text(f"{COMMIT}\n{'0' * 64}\n1.5\n")
    with pytest.raises(PrerequisiteError, match="not those of its download"):
        rows(of)


def test_a_mirror_is_held_to_its_own_sums(mirror: Path) -> None:
    file, other = "helpful-base/train.jsonl.gz", "helpful-online/train.jsonl.gz"
    digest = hashlib.sha256(FILES[file]).hexdigest()
    (mirror / "SHA256SUMS").write_text(f"{digest}  ./{file}\n{digest} *{other}\n")
    assert len(rows(source("public:hh-rlhf/helpful-base"))[0]) == 1
    assert len(rows(source("public:hh-rlhf/harmless-base"))[0]) == 1
    with pytest.raises(PrerequisiteError, match="not those of SHA256SUMS"):
        rows(source("public:hh-rlhf/helpful-online"))


def test_a_clone_without_its_large_files_says_so(mirror: Path) -> None:
    put(mirror, {"helpful-base/train.jsonl.gz": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"})
    with pytest.raises(PrerequisiteError, match="git lfs pull"):
        rows(source("public:hh-rlhf/helpful-base"))


def test_what_is_in_no_mirror_says_where_it_was_looked_for(mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(mirror / "cache"))
    (mirror / "helpful-base/train.jsonl.gz").unlink()
    with pytest.raises(PrerequisiteError, match=r"\(CAI_DATA\) has no Anthropic/hh-rlhf/helpful-base/train"):
        rows(source("public:hh-rlhf/helpful-base"))
    monkeypatch.setenv("CAI_DATA", str(mirror / "none"))
    with pytest.raises(PrerequisiteError, match="no such folder"):
        rows(source("public:hh-rlhf/helpful-base"))
    monkeypatch.delenv("CAI_DATA")
    with pytest.raises(PrerequisiteError, match="set CAI_DATA to a mirror"):
        rows(source("public:hh-rlhf/helpful-base"))


def test_safety_sets_say_what_they_are() -> None:
    names = ("xstest", "or-bench", "strongreject", "harmbench", "hhh", "rewardbench-2")
    only = {name for name, public in SETS.items() if public.evaluation_only}
    assert only == {name for name in SETS if name.partition("/")[0] in names}
    for name in only:
        public = SETS[name]
        assert public.licence
        # Nothing stands as checked of which no digest is known.
        assert public.checked == (bool(public.sha256) and public.commit is not None)
        assert evaluation_only(source(f"public:{name}", revision=OTHER).paths) == [name]
    assert evaluation_only(source("public:hh-rlhf/helpful").paths) == []
    assert evaluation_only(["mine/xstest_prompts.csv"]) == []


def test_a_file_in_data_is_not_taken_from_the_mirrors_root(mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirrors, "fetched", lambda remote: Path("fetched"))
    of = HubFile("allenai/reward-bench-2", OTHER, "data/test-00000-of-00001.parquet")
    here = mirror / of.name / of.file
    assert mirrors.hub_path(of) == here
    here.rename(put(mirror, {"data/x": b""}) / of.file)
    assert mirrors.hub_path(of) == Path("fetched")


def test_the_list_says_what_was_not_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = dict(public_sets())
    assert lines["public:xstest"].endswith(
        "(Paul/XSTest; /test; CC-BY-4.0; for evaluation only, rows and digest not checked)"
    )
    assert "checked" not in lines["public:hh-rlhf/helpful"]
    monkeypatch.setitem(SETS, "xstest", replace(SETS["xstest"], checked=True))
    assert dict(public_sets())["public:xstest"].endswith("for evaluation only)")


def test_the_options_of_a_name_are_its_readers(mirror: Path) -> None:
    hard, toxic = (source(f"public:or-bench/{part}", revision=OTHER) for part in ("hard", "toxic"))
    assert [rows(of)[0][0].meta["label"] for of in (hard, toxic)] == ["safe", "unsafe"]
    own = source("public:or-bench/hard", revision=OTHER, options={"label": "borderline"})
    assert own.options == {"label": "borderline"}
    assert rows(source("public:hhh/honest", revision=OTHER))[0][0].topic == "honest"
    assert source("public:rewardbench-2/safety", revision=OTHER).options == {"subset": ["Safety"]}
    with pytest.raises(ValidationError, match="one source has one set of options"):
        source(["public:or-bench/hard", "public:or-bench/toxic"], revision=OTHER)


def in_table(monkeypatch: pytest.MonkeyPatch, **fields: Any) -> DataSource:
    """XSTest as it would stand in the table if its file had been checked."""
    monkeypatch.setitem(SETS, "xstest", replace(SETS["xstest"], commit=OTHER, **fields))
    return source("public:xstest")


def read_step(of: DataSource, folder: Path) -> Any:
    progress = SimpleNamespace(expect=lambda **_: None, advance=lambda **_: None)
    context: Any = SimpleNamespace(out=folder, progress=progress)
    return read.run(read.ReadSpec(source=of, part="all", identity=source_identity(of)), context)


def test_a_published_file_with_other_bytes_is_refused(mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = "xstest_prompts.csv"
    of = in_table(monkeypatch, sha256={file: hashlib.sha256(SAFETY_FILES[file]).hexdigest()})
    assert len(rows(of)[0]) == 1
    (mirror / file).write_bytes(SAFETY_FILES[file] + b"2,More?,homonyms,safe,,\n")
    with pytest.raises(PrerequisiteError, match="its bytes are not those that were published"):
        rows(of)


def test_rows_are_held_against_the_published_number(
    mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = read_step(source("public:xstest", revision=OTHER), tmp_path).metrics
    assert told["published rows"] == {"published": 450, "read": 1}
    right = {"test": Files(("xstest_prompts.csv",), 1)}
    assert "published rows" not in read_step(in_table(monkeypatch, checked=True, files=right), tmp_path).metrics
    wrong = {"test": Files(("xstest_prompts.csv",), 2)}
    with pytest.raises(SpecError, match="holds 1 rows, but was published with 2"):
        read_step(in_table(monkeypatch, checked=True, files=wrong), tmp_path)


def test_a_github_path_is_pinned_and_stays_in_its_repository() -> None:
    of = source("public:strongreject", revision=OTHER)
    assert of.path == "gh:alexandrasouly/strongreject:strongreject_dataset/strongreject_dataset.csv"
    assert source_identity(of)["hub"][0]["name"] == "gh:alexandrasouly/strongreject"
    with pytest.raises(ValidationError, match=r"commit's 40 digits \[type"):
        source("public:strongreject", moving=True)
    for path in ("gh:o/n@main:a.csv", f"gh:n@{OTHER}:a.csv", f"gh:o/n@{OTHER}:../a.csv", f"gh:o/n@{OTHER}:/a.csv"):
        with pytest.raises(SpecError, match="path: "):
            source_identity(source(path, reader="strongreject", moving=True))


def test_a_file_of_github_is_fetched_once(hub: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(github, "RAW", f"{hub}/raw")
    monkeypatch.setenv("CAI_HOME", str(tmp_path))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("CAI_DATA", raising=False)
    of = source("public:strongreject", revision=OTHER)
    assert asked(of) == asked(of) == ["Cheat."]
    file = "strongreject_dataset/strongreject_dataset.csv"
    assert _Hub.asked == [f"GET /raw/alexandrasouly/strongreject/{OTHER}/{file}"]
    with pytest.raises(PrerequisiteError, match=r"none\.csv: cannot be fetched .*404"):
        rows(source(f"gh:alexandrasouly/strongreject@{OTHER}:none.csv", reader="strongreject"))
    monkeypatch.setattr(github, "MOST_BYTES", 10)
    with pytest.raises(PrerequisiteError, match="is larger than 10 bytes"):
        rows(source("public:strongreject/small", revision=OTHER))
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".part-")]


class _Hub(BaseHTTPRequestHandler):
    """Answers as huggingface.co does for files of one data set at one commit."""

    asked: list[str]

    def do_HEAD(self) -> None:
        self._answer(False)

    def do_GET(self) -> None:
        self._answer(True)

    def _answer(self, body: bool) -> None:
        type(self).asked.append(f"{self.command} {self.path}")
        name = self.path.removeprefix(f"/datasets/{HUB}/resolve/{COMMIT}/")
        name = name.removeprefix(f"/raw/alexandrasouly/strongreject/{OTHER}/")
        data = FILES.get(name, SAFETY_FILES.get(name))
        self.send_response(404 if data is None else 200)
        if data is None:
            self.send_header("X-Error-Code", "EntryNotFound")
        else:
            self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(data or b"")))
        self.end_headers()
        if body:
            self.wfile.write(data or b"")

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


@pytest.fixture
def hub() -> Iterator[str]:
    _Hub.asked = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_name_is_fetched_from_the_hub_once_at_its_commit(hub: str, tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    code = """if True:
        from cai.data.source import DataSource, part_rows
        for name in ("helpful", "red-team-attempts"):
            for row in part_rows(DataSource(path="public:hh-rlhf/" + name), "all"):
                print(row.messages[0].content)
    """
    hidden = ("HF_", "HUGGING", "CAI_", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
    env = {name: text for name, text in os.environ.items() if not name.upper().startswith(hidden)}
    env |= {"HF_ENDPOINT": hub, "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1"}
    for _ in range(2):
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=env)
        assert run.returncode == 0, run.stderr
        assert run.stdout.split("\n")[:4] == [
            "helpful-base train?",
            "helpful-online train?",
            "helpful-rejection-sampled train?",
            "Bad?",
        ]
    gets = [line for line in _Hub.asked if line.startswith("GET")]
    assert len(gets) == 4
    assert all(f"/datasets/{HUB}/resolve/{COMMIT}/" in line for line in _Hub.asked)


def test_odd_rows_of_the_real_kinds_are_counted(mirror: Path) -> None:
    def said(*turns: tuple[str, str]) -> str:
        return "".join(f"\n\n{who}: {text}" for who, text in turns)

    ask, tell = ("Human", "Why? "), ("Assistant", "So.")
    odd: list[tuple[Any, str | None]] = [
        ({"chosen": said(ask, tell), "rejected": said(ask, ("Assistant", ""))}, "empty_answer"),
        ({"chosen": said(ask, ("Assistant", " \n")), "rejected": said(ask, tell)}, "empty_answer"),
        ({"chosen": said(ask, ask, tell), "rejected": said(ask, ask, ("Assistant", "x"))}, "not_alternating"),
        ({"chosen": said(ask, tell), "rejected": said(("Human", "How?"), tell)}, "prompts_differ"),
        ({"chosen": said(ask, tell), "rejected": said(ask, tell, ask, tell)}, "prompts_differ"),
        ({"chosen": said(ask, ("Assistant", "As in:\n\nHuman: hi")), "rejected": said(ask, tell)}, "no_answer"),
        ({"chosen": said(ask, tell), "rejected": said(ask, ("Assistant", "So. "))}, "identical_answers"),
        ({"chosen": "Dear all" + said(ask, tell), "rejected": said(ask, tell)}, "text_before_turns"),
        ({"chosen": said(ask, tell)}, "missing_rejected"),
        ({"chosen": said(ask, tell), "rejected": None}, "missing_rejected"),
        ({"chosen": [said(ask, tell)], "rejected": "x"}, "wrong_type"),
        ({"chosen": "", "rejected": said(ask, tell)}, "no_turns"),
        ({"chosen": said(ask, ("Assistant", "1")), "rejected": said(ask, ("Assistant", "2"))}, None),
        # With the line ends of Windows, in the file and in the text.
        ({"chosen": said(ask, ("Assistant", "3")).replace("\n", "\r\n"),
          "rejected": said(ask, ("Assistant", "4")).replace("\n", "\r\n")}, None),
    ]  # fmt: skip
    text = "\ufeff" + "\r\n".join(json.dumps(record) for record, _ in odd)
    (mirror / "helpful-base/train.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    found, tally = rows(source("public:hh-rlhf/helpful-base"))
    assert [(r.messages[0].content, r.chosen) for r in found if isinstance(r, Comparison)] == [
        ("Why?", "1"),
        ("Why?", "3"),
    ]
    assert tally == Counter(reason for _, reason in odd if reason)
    merged, _ = rows(source("public:hh-rlhf/helpful-base", options={"merge_turns": True}))
    assert len(merged) == 3


def test_numbers_written_as_text_and_odd_attempts(mirror: Path) -> None:
    odd: list[tuple[Any, str | None]] = [
        ({**ATTEMPT, "rating": "3.0", "transcript": "\n\nHuman: a\n\nAssistant: b"}, None),
        ({**ATTEMPT, "rating": "high"}, "filtered"),
        ({**ATTEMPT, "rating": True}, "filtered"),
        ({**ATTEMPT, "rating": float("nan")}, "filtered"),
        ({**ATTEMPT, "tags": "Theft"}, "wrong_type"),
        ({**ATTEMPT, "tags": [None]}, "wrong_type"),
        ({"rating": 4}, "missing_transcript"),
        ({**ATTEMPT, "transcript": "\n\nAssistant: I begin.\n\nHuman: Hm?"}, "no_turns"),
        ({**ATTEMPT, "transcript": "\n\nHuman: \n\nAssistant: Hello?"}, "empty_prompt"),
        ([ATTEMPT], "not_object"),
        (None, "not_object"),
    ]
    expected = Counter(reason for _, reason in odd if reason)
    file = mirror / "red-team-attempts/red_team_attempts.jsonl.gz"
    records = [json.dumps(record) for record, _ in odd]
    for text in ("[" + ", ".join(records) + "]", "\n".join(["", *records])):
        file.write_bytes(gzip.compress(text.encode()))
        found, tally = rows(source("public:hh-rlhf/red-team-attempts", options={"min_rating": 2}))
        assert [(r.messages[0].content, r.meta["rating"]) for r in found] == [("a", 3.0)]
        assert tally == expected


def test_odd_chats_of_the_blend(mirror: Path) -> None:
    def chat(*turns: tuple[Any, Any], **more: Any) -> dict[str, Any]:
        return {"system": "", "conversations": [{"from": f, "value": v, "label": None} for f, v in turns], **more}

    odd: list[tuple[Any, str | None]] = [
        (chat(("User", "1?"), ("Assistant", "1"), mask="User"), None),
        (chat(("User", "2?"), ("Assistant", "2")), None),
        (chat(("User", "3?"), ("Assistant", "3"), mask="Nobody"), None),
        (chat(("Ann", "4?"), ("Bo", "4"), mask="Ann"), None),
        (chat(("Ann", "5?"), ("Bo", "5"), mask=None), "unknown_role"),
        (chat(("Ann", "6?"), ("Bo", "6"), ("Cy", "6"), mask="Ann"), "not_alternating"),
        (chat(mask="User"), "no_turns"),
        (chat(("User", "7?"), mask="User"), "no_answer"),
        (chat(("User", "8?"), ("Assistant", ""), mask="User"), "empty_answer"),
        (chat(("User", "9?"), ("Assistant", 9), mask="User"), "wrong_type"),
        (chat(("User", "9?"), ("Assistant", None), mask="User"), "missing_value"),
        (chat((["User"], "9?"), ("Assistant", "9"), mask=["User"]), "unknown_role"),
        ({"mask": "User"}, "missing_conversations"),
        ({"conversations": {}, "mask": "User"}, "wrong_type"),
        ({**chat(("User", "9?"), ("Assistant", "9")), "system": 7}, "wrong_type"),
    ]
    (mirror / "sft_datablend_v1.jsonl").write_text("".join(json.dumps(record) + "\n" for record, _ in odd))
    found, tally = rows(source(BLEND, moving=True))
    assert [row.messages[1].content for row in found] == ["1", "2", "3", "4"]
    assert tally == Counter(reason for _, reason in odd if reason)
