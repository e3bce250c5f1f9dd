"""Echo removal under every pair of manglings of white space, control tokens and Unicode; a changed echo is an error."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pytest

from cai.clients.echo import EchoNotFound, ServerRow, span, strip_prompt
from cai.data.nemo_tokens import Pieces, open_tokenizer
from tests.support.echoes import MANGLINGS, Mangle, chat_prompt, squeezed
from tests.support.nemo_rows import TURN
from tests.support.small_tokenizers import byte_level_folder, quickstart_spm


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Pieces:
    path = tmp_path_factory.mktemp("sp") / "tokenizer.model"
    path.write_bytes(quickstart_spm(symbols=(TURN,)))
    return open_tokenizer(path)


CASES = [
    (chat_prompt("Hello there"), "Fine. And you?"),
    ("Human: Why, oh why?\n\nAssistant:", " Because. It is,so"),
    ("<s>[INST] Say it. [/INST]", "It!"),
    ("List:\n- one\n-  two\n\n", "- three"),
    ("naïve café ﬁne ½ ① Straße\u200b\u00ad", "Ünïcode, ﬁn"),
    ("a", "a a a"),
    ("Repeat: abc abc", " abc abc"),
    ("1 < 2 and <b>bold</b> [A] or [B]? ", "<b>yes</b>"),
    ("漢字と、かな。", "はい。"),
    ('quote: "it\'s"', "'tis"),
]


def answer_of(pieces: Pieces, prompt: str, new: str, mangle: Mangle, pad: int = 3) -> tuple[ServerRow, int]:
    import sentencepiece

    own = sentencepiece.SentencePieceProcessor(model_proto=quickstart_spm(symbols=(TURN,)))
    ids = own.encode(prompt) + own.encode(f"\n{new}")[2:]
    padded = ids + [own.eos_id()] * pad
    shown = tuple(own.id_to_piece(token) for token in padded)
    return ServerRow(mangle(prompt + new), shown, tuple(padded)), len(ids) - len(own.encode(prompt))


@pytest.mark.parametrize(("prompt", "new"), CASES)
@pytest.mark.parametrize("first", MANGLINGS)
def test_any_two_manglings_leave_the_completion_whole(prompt: str, new: str, first: str, pieces: Pieces) -> None:
    for second in MANGLINGS:

        def mangle(text: str, second: str = second) -> str:
            return MANGLINGS[second](MANGLINGS[first](text))

        answer, count = answer_of(pieces, prompt, new, mangle)
        found = strip_prompt(answer, prompt, budget=99, pieces=None)
        assert squeezed(found.text) == squeezed(mangle(new)), (first, second)
        assert (found.tokens, found.ended) == (count + 1, True)
        exact = strip_prompt(answer, prompt, budget=99, pieces=pieces)
        assert (exact.text, exact.tokens, exact.ended) == (new, count + 1, True)


@pytest.mark.parametrize("mangling", MANGLINGS)
def test_every_budget_gives_a_beginning_of_the_answer(mangling: str, pieces: Pieces) -> None:
    prompt, new = chat_prompt("How?"), "Well, naïvely: 1,2 漢字.\n\nThen do it  slowly."
    answer, count = answer_of(pieces, prompt, new, MANGLINGS[mangling])
    whole = squeezed(new)
    for known in (pieces, None):
        last = ""
        for budget in range(1, count + 1):
            found = strip_prompt(answer, prompt, budget=budget, pieces=known)
            assert (found.tokens, found.ended) == (budget, False)
            text = squeezed(found.text)
            assert whole.startswith(text)
            assert text.startswith(last)
            last = text
        assert last == whole


def test_byte_level_pieces_are_read(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    folder = byte_level_folder(tmp_path / "model")
    own = Tokenizer.from_file(str(folder / "tokenizer.json"))
    prompt, new = "<|im_start|>user\nHow café?<|im_end|>\n<|im_start|>assistant\n", "Like  this: é\n漢."
    made_of = own.encode(prompt + new, add_special_tokens=False)
    end = own.token_to_id("<|im_end|>")
    tokens = (*made_of.tokens, "<|im_end|>", "<|im_end|>")
    answer = ServerRow(own.decode(made_of.ids), tokens, (*made_of.ids, end, end))
    count = len(own.encode(new, add_special_tokens=False).ids)
    for known in (None, open_tokenizer(folder)):
        found = strip_prompt(answer, prompt, budget=99, pieces=known)
        assert (found.text, found.tokens, found.ended) == (new, count + 1, True)
        assert new.startswith(strip_prompt(answer, prompt, budget=count - 1, pieces=known).text)


@pytest.mark.parametrize(("prompt", "new"), CASES)
def test_a_changed_echo_is_not_taken_for_the_prompt(prompt: str, new: str, pieces: Pieces) -> None:
    drawn = random.Random(int(hashlib.sha256(prompt.encode()).hexdigest(), 16))
    letters = [n for n, char in enumerate(prompt) if char.isalnum()]
    for n in drawn.sample(letters, min(6, len(letters))):
        other = prompt[:n] + ("q" if prompt[n] != "q" else "z") + prompt[n + 1 :]
        answer, _ = answer_of(pieces, other, new, MANGLINGS["as it is"])
        for known in (pieces, None):
            with pytest.raises(EchoNotFound):
                strip_prompt(answer, prompt, budget=99, pieces=known)
            with pytest.raises(EchoNotFound):
                span(answer, prompt, new, known)


def test_an_answer_that_stops_within_the_prompt_is_an_error(pieces: Pieces) -> None:
    answer, _ = answer_of(pieces, "Once upon a time", "", MANGLINGS["as it is"], pad=0)
    for known in (pieces, None):
        with pytest.raises(EchoNotFound, match=r"the prompt goes on with ' ?there was'"):
            strip_prompt(answer, "Once upon a time there was", budget=9, pieces=known)


def test_the_end_is_known_by_its_name_where_no_file_says_which_it_is(tmp_path: Path) -> None:
    folder = byte_level_folder(tmp_path / "model")
    (folder / "tokenizer_config.json").unlink()
    nameless = open_tokenizer(folder)
    assert nameless.end is None
    end = nameless.token("<|im_end|>")
    assert end is not None
    ids = (*nameless.ids("Say it. It!"), end, end, end)
    found = strip_prompt(ServerRow("Say it. It!", (), ids), "Say it.", budget=9, pieces=nameless)
    assert (found.text, found.ended) == (" It!", True)
