"""Tokenizers and context lengths out of .nemo archives and model folders; all of them real, made and trained here."""

from __future__ import annotations

import io
import json
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest

from cai.chat import Message
from cai.data.nemo_tokens import Pieces, context_length, open_tokenizer
from cai.data.rows import Conversation, Row
from cai.errors import PrerequisiteError
from tests.support.mixing import mix
from tests.support.nemo_archives import config_member, nemo_archive
from tests.support.nemo_rows import TURN
from tests.support.small_tokenizers import byte_level_folder, quickstart_spm, word_level_folder
from tests.support.stage_doubles import TEMPLATE, artifact, user

TEXTS = [
    "Hello there.",
    "  two  spaces,\n\na new line",
    f"<extra_id_0>System\n\n{TURN}User\nHi\n",
    "naïve ① 漢字 🙂",
    "a",
]


def same(one: Pieces, data: bytes) -> None:
    import sentencepiece

    own = sentencepiece.SentencePieceProcessor(model_proto=data)
    assert [one.ids(text) for text in TEXTS] == own.encode(TEXTS)
    assert one.counts(TEXTS) == [one.count(text) for text in TEXTS] == [len(ids) for ids in own.encode(TEXTS)]
    assert one.vocab == own.get_piece_size()


@pytest.mark.parametrize("mode", ["w", "w:gz"])
@pytest.mark.parametrize("name", ["tokenizer.model", "0a1b2c_tokenizer.model", "./f00_mistral.model"])
def test_the_tokenizer_comes_out_of_an_archive(mode: str, name: str, tmp_path: Path) -> None:
    weights = ("./model_weights/0/x", b"\0" * 100_000)
    named = f"nemo:{Path(name).name}"
    path = nemo_archive(
        tmp_path / "m" / "model.nemo", [weights, config_member(model=named), (name, quickstart_spm()), weights], mode
    )
    same(open_tokenizer(path), quickstart_spm())
    same(open_tokenizer(path.parent), quickstart_spm())


def test_the_config_says_which_of_several(tmp_path: Path) -> None:
    files = [
        ("a_old.model", quickstart_spm(400)),
        ("b_tokenizer.model", quickstart_spm()),
        ("c_other.model", quickstart_spm(410)),
    ]
    for place in (0, 3):
        listed = [*files]
        listed.insert(place, config_member(model="nemo:b_tokenizer.model"))
        same(open_tokenizer(nemo_archive(tmp_path / f"{place}.nemo", listed)), quickstart_spm())
    # Configs written before packing lack the hash, or hold the whole path.
    same(
        open_tokenizer(nemo_archive(tmp_path / "bare.nemo", [config_member(model="/data/tokenizer.model"), *files])),
        quickstart_spm(),
    )
    with pytest.raises(PrerequisiteError, match=r"several tokenizers \(a_old.model, b_tok.*names 'z.model'"):
        open_tokenizer(nemo_archive(tmp_path / "none.nemo", [config_member(model="nemo:z.model"), *files]))
    with pytest.raises(PrerequisiteError, match=r"no model_config.yaml says which"):
        open_tokenizer(nemo_archive(tmp_path / "silent.nemo", files))


def test_a_large_archive_is_passed_over_quickly(tmp_path: Path) -> None:
    path = tmp_path / "model.nemo"
    size = 8 * 2**30
    head = tarfile.TarInfo("./model_weights.ckpt")
    head.size = size
    with path.open("wb") as file:  # 8 GiB of weights that take no disk space
        file.write(head.tobuf(tarfile.GNU_FORMAT))
        file.seek(size, io.SEEK_CUR)
        tail = io.BytesIO()
        with tarfile.open(fileobj=tail, mode="w") as archive:
            for name, data in [config_member(model="nemo:tokenizer.model"), ("tokenizer.model", quickstart_spm())]:
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
        file.write(tail.getvalue())
    start = time.perf_counter()
    same(open_tokenizer(path), quickstart_spm())
    assert context_length(path) == 4096
    assert time.perf_counter() - start < 2


def test_folders(tmp_path: Path) -> None:
    unpacked = tmp_path / "unpacked"
    unpacked.mkdir()
    (unpacked / "model_config.yaml").write_bytes(config_member(model="nemo:b.model")[1])
    for name, data in (("a.model", quickstart_spm(400)), ("b.model", quickstart_spm())):
        (unpacked / name).write_bytes(data)
    same(open_tokenizer(unpacked), quickstart_spm())
    assert context_length(unpacked) == 4096
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "tokenizer.model").write_bytes(quickstart_spm())
    same(open_tokenizer(plain), quickstart_spm())
    same(open_tokenizer(plain / "tokenizer.model"), quickstart_spm())
    assert context_length(plain) is None


def test_a_tokenizer_json_counts_as_it_did(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    folder = byte_level_folder(tmp_path / "model")
    one, own = open_tokenizer(folder), Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert [one.ids(text) for text in TEXTS] == [own.encode(text, add_special_tokens=False).ids for text in TEXTS]
    assert one.counts(TEXTS) == [one.count(text) for text in TEXTS]
    assert [one.text(one.ids(text)) for text in TEXTS] == TEXTS
    assert (one.vocab, one.begin, one.end) == (own.get_vocab_size(), 1, 2)
    assert context_length(folder) == 512
    assert one.token("<|im_end|>") == 2
    assert one.token("no such token") is None
    # A file may hold padding and truncation; the length of a text is not theirs to change.
    own.enable_truncation(4)
    own.enable_padding(length=64)
    own.save(str(tmp_path / "tokenizer.json"))
    assert open_tokenizer(tmp_path).counts(TEXTS) == one.counts(TEXTS)


def test_an_archive_without_a_tokenizer_takes_the_one_beside_it(tmp_path: Path) -> None:
    foreign = config_member(library="huggingface", type="org/model", model=None)
    nemo_archive(tmp_path / "m" / "model.nemo", [foreign])
    with pytest.raises(PrerequisiteError, match=r"names the tokenizer 'org/model', which is not in it; put that"):
        open_tokenizer(tmp_path / "m")
    word_level_folder(tmp_path / "w").joinpath("tokenizer.json").rename(tmp_path / "m" / "tokenizer.json")
    assert open_tokenizer(tmp_path / "m").count("one two three") == 3


def test_control_tokens_and_text() -> None:
    one = open_tokenizer_of(quickstart_spm(symbols=(TURN,)))
    assert (one.token("</s>"), one.token("<s>"), one.end, one.begin) == (2, 1, 2, 1)
    turn = one.token(TURN)
    assert turn is not None
    assert turn in one.ids(f"Hi\n{TURN}")
    assert one.token("\n") is None, "a character that is no token of its own"
    assert one.text([1, *one.ids("Hello  there.\n"), 2]) == "Hello  there.\n"


def open_tokenizer_of(data: bytes) -> Pieces:
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.model"
        path.write_bytes(data)
        return open_tokenizer(path)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda p: None, "no such file or folder"),
        (lambda p: p.mkdir(), "holds no model.nemo, model_config.yaml, tokenizer.json or tokenizer.model"),
        (lambda p: p.write_bytes(b"not a tar" * 200), "cannot be read as a .nemo archive"),
        (
            lambda p: nemo_archive(p, [config_member(model="nemo:t.model"), ("t.model", b"\x01junk")]),
            "is not a SentencePiece model",
        ),
        (lambda p: nemo_archive(p, [("./model_config.yaml", b"a: [")]), "is not YAML"),
        (lambda p: nemo_archive(p, [("./model_config.yaml", b"just text")]), "holds no settings"),
        (lambda p: nemo_archive(p, [("weights", b"x")]), r"holds no tokenizer \(\*.model\)"),
        (lambda p: torn(p), "is the file whole"),
    ],
)
def test_errors_say_what_is_wrong_with_which_file(make: Any, match: str, tmp_path: Path) -> None:
    path = tmp_path / "m.nemo"
    make(path)
    with pytest.raises(PrerequisiteError, match=match) as caught:
        open_tokenizer(path)
    assert str(path) in str(caught.value)


def torn(path: Path) -> None:
    import random

    noise = random.Random(0).randbytes(50_000)
    whole = nemo_archive(
        path, [("w", noise), config_member(model="nemo:t.model"), ("t.model", quickstart_spm())], "w:gz"
    ).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


@pytest.mark.parametrize(
    ("told", "length"),
    [
        ({"encoder_seq_length": 2048, "max_position_embeddings": 4096}, 2048),
        ({"max_position_embeddings": 1024}, 1024),
        ({"encoder_seq_length": "${oc.env:LENGTH}", "max_position_embeddings": 77}, 77),
        ({"text_config": {"max_position_embeddings": 99}}, 99),
        ({"hidden_size": 3}, None),
    ],
)
def test_context_length(told: dict[str, Any], length: int | None, tmp_path: Path) -> None:
    path = nemo_archive(tmp_path / "m" / "model.nemo", [("model_config.yaml", json.dumps(told).encode())], "w:gz")
    assert context_length(path) == context_length(path.parent) == length
    (tmp_path / "config.json").write_text(json.dumps(told))
    assert context_length(tmp_path) == length
    with pytest.raises(PrerequisiteError, match=r"holds no model_config.yaml"):
        context_length(nemo_archive(tmp_path / "x.nemo", [("weights", b"x")]))


def test_mix_counts_the_tokens_of_a_nemo_model(tmp_path: Path) -> None:
    model = artifact(tmp_path / "model", "model")
    nemo_archive(model.path / "model.nemo", [config_member(model="nemo:t.model"), ("t.model", quickstart_spm())])
    rows: list[Row] = [
        Conversation(name, (*user(f"question {name}"), Message("assistant", text)))
        for name, text in (("a", "Short."), ("b", "A much longer answer than the other. " * 4))
    ]
    longest = [open_tokenizer(model.path).count(TEMPLATE.render(row.messages)) for row in rows]
    for most, kept in ((longest[1], ["a", "b"]), (longest[1] - 1, ["a"])):
        raw = {"model": "m", "max_tokens": most, "val": 0}
        outcome, train, _ = mix(tmp_path / str(most), [rows], raw, model=model)
        assert sorted(row.id for row in train) == kept
        assert sum(outcome.ledger.dropped.values()) == 2 - len(kept)


def test_mix_without_a_tokenizer_says_what_else_to_do(tmp_path: Path) -> None:
    rows: list[Row] = [Conversation("a", (*user("q"), Message("assistant", "x")))]
    with pytest.raises(PrerequisiteError, match="use max_chars instead"):
        mix(tmp_path, [rows], {"model": "m", "max_tokens": 3}, model=artifact(tmp_path / "model", "model"))
