"""Where the prompt ends in the answer of a server that repeats it: by token ids, else by letters, never by length.

Detokenisation changes white space, invisible characters and control tokens, and Unicode normalisation changes letters;
the prompt's length in characters therefore says nothing. With the model's tokenizer the prompt's ids must begin the
answer's ids, which is exact. Without it, or where a server tokenises in a way of its own, the letters of the prompt
must all occur in the answer in their order, white space aside. What fits neither way is an error.
"""

from __future__ import annotations

import codecs
import re
import unicodedata
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import takewhile

from cai.data.nemo_tokens import Pieces

# Texts of end tokens, for answers whose tokenizer is not at hand.
ENDS = frozenset({"</s>", "<|endoftext|>", "<|end_of_text|>", "<|eot_id|>", "<|im_end|>", "<eos>", "<extra_id_1>"})
BEGINS = frozenset({"<s>", "<bos>", "<|begin_of_text|>", "<|startoftext|>", "<|endoftext|>", "[BOS]"})
_CONTROL = re.compile(r"<[|/]?[A-Za-z_][\w./-]*\|?>|\[/?[A-Z][A-Z_]+\]")
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True, slots=True)
class ServerRow:
    """One row of a server's answer: the text with the prompt, and its tokens as pieces and as ids."""

    sentence: str
    tokens: tuple[str, ...]
    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Continuation:
    """What was written within the budget. ``ended``: at an end token, which ``tokens`` counts and ``text`` lacks."""

    text: str
    tokens: int
    ended: bool
    prompt_tokens: int


class EchoNotFound(ValueError):
    """The answer does not begin with its prompt."""

    def __init__(self, prompt: str, answer: str) -> None:
        super().__init__(f"the prompt goes on with {prompt[:60]!r} where the answer has {answer[:60]!r}")


def strip_prompt(
    answer: ServerRow, prompt: str, *, budget: int, pieces: Pieces | None, stops: Collection[str] = ()
) -> Continuation:
    """What was written after the prompt, at most ``budget`` tokens; stop strings that are tokens end it too.

    Raises:
        EchoNotFound: when the prompt is not found at the beginning of the answer.
    """
    continuation: Continuation | None = None
    if pieces is not None:
        continuation = _strip_by_ids(answer, prompt, budget=budget, pieces=pieces, stops=stops)
    return continuation or _strip_by_letters(answer, prompt, budget=budget, stops=stops)


def span(answer: ServerRow, prompt: str, continuation: str, pieces: Pieces | None) -> range:
    """Which tokens of the answer to ``prompt + continuation`` are the continuation's.

    They begin with the first token that the prompt alone does not have: a token that spans the border counts.

    Raises:
        EchoNotFound: when the two texts are not found at the beginning of the answer.
    """
    if pieces is not None:
        whole = pieces.ids(prompt + continuation)
        offset = _offset(answer.ids, whole, pieces)
        if offset is not None:
            alone = pieces.ids(prompt)
            same = next((n for n, (a, b) in enumerate(zip(alone, whole, strict=False)) if a != b), len(alone))
            return range(offset + min(same, len(whole)), offset + len(whole))
    piece_text = _PieceText(answer.tokens)
    start, end = (_find(text, piece_text.text, whole=True) for text in (prompt, prompt + continuation))
    return range(piece_text.holding(start), piece_text.after(end))


def _offset(ids: Sequence[int], head: Sequence[int], pieces: Pieces) -> int | None:
    """0 or, when the server put a BOS before it, 1, if ``ids`` begin with ``head``; else None."""
    starts = (0, 1) if pieces.begin is not None and ids and ids[0] == pieces.begin else (0,)
    return next((offset for offset in starts if head and tuple(ids[offset : offset + len(head)]) == tuple(head)), None)


def _strip_by_ids(
    answer: ServerRow, prompt: str, *, budget: int, pieces: Pieces, stops: Collection[str]
) -> Continuation | None:
    head = pieces.ids(prompt)
    offset = _offset(answer.ids, head, pieces)
    if offset is None or any(not 0 <= token < pieces.vocab for token in answer.ids):
        return None
    start = offset + len(head)
    new = answer.ids[start : start + budget]
    end_ids = {pieces.end} if pieces.end is not None else {pieces.token(name) for name in ENDS}
    ends = end_ids.union(pieces.token(stop) for stop in stops) - {None}
    last = next((n for n, token in enumerate(new) if token in ends), None)
    kept_count = len(new) if last is None else last
    # Together with the prompt: alone, SentencePiece would drop the first token's space.
    before, text = pieces.text(answer.ids[:start]), pieces.text(answer.ids[: start + kept_count])
    if not text.startswith(before):
        return None
    text = text[len(before) :]
    if last is None:
        return Continuation(text.rstrip("\ufffd"), kept_count, False, start)  # the budget may end within a character
    return Continuation(text, kept_count + 1, True, start)


def _strip_by_letters(answer: ServerRow, prompt: str, *, budget: int, stops: Collection[str]) -> Continuation:
    piece_text = _PieceText(answer.tokens)
    begin = _find(prompt, answer.sentence)
    start = piece_text.after(_find(prompt, piece_text.text, whole=True))
    new = answer.tokens[start : start + budget]
    ends = ENDS.union(stops)
    last = next((n for n, token in enumerate(new) if token in ends), None)
    kept_count = len(new) if last is None else last
    end = len(answer.sentence)
    if start + kept_count < len(answer.tokens):
        end = max(begin, _find(piece_text.text[: piece_text.starts[start + kept_count]], answer.sentence))
    text = answer.sentence[begin:end]
    return Continuation(text, kept_count if last is None else kept_count + 1, last is not None, start)


class _PieceText:
    """Pieces as text: ``starts[k]`` is where piece k begins in ``text``, and ``starts[-1]`` where the last one ends."""

    def __init__(self, tokens: Sequence[str]) -> None:
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        piece_texts: list[str] = []
        byte_level = any(mark in token for token in tokens for mark in "ĠĊ") and not any("▁" in t for t in tokens)
        for token in tokens:
            byte = _BYTE.fullmatch(token)
            if byte is not None:
                piece_texts.append(decoder.decode(bytes([int(byte[1], 16)])))
            elif byte_level and not _CONTROL.fullmatch(token):
                piece_texts.append(decoder.decode(bytes(_gpt2_bytes().get(c, 0x3F) for c in token)))
            else:
                decoder.reset()
                piece_texts.append(token.replace("▁", " "))
        self.text = "".join(piece_texts)
        self.starts = [0]
        for part in piece_texts:
            self.starts.append(self.starts[-1] + len(part))

    def after(self, position: int) -> int:
        """The first piece that begins at ``at`` or later."""
        return next((k for k, start in enumerate(self.starts) if start >= position), len(self.starts) - 1)

    def holding(self, position: int) -> int:
        """The piece that has the character at ``at``, or the first that begins there."""
        k = self.after(position)
        return k if self.starts[k] == position else k - 1


@lru_cache(maxsize=1)
def _gpt2_bytes() -> dict[str, int]:
    """Byte-level BPE writes a byte as itself where it can be seen, and as the next free character from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in set(printable)]
    return {**{chr(b): b for b in printable}, **{chr(0x100 + n): b for n, b in enumerate(hidden)}}


def _find(prompt: str, text: str, whole: bool = False) -> int:
    """Where in ``text`` the prompt at its beginning ends: by letters alone, else with control strings optional.

    ``whole``: none of the prompt's control strings may be missing; pieces show them all.
    """
    for lead in ("", " "):  # mostly it is there as it was, behind SentencePiece's first space
        if text.startswith(lead + prompt):
            return len(lead + prompt)
    parted: tuple[int, int] | None = None
    for control in (False, True):
        prompt_units, text_units = _units(prompt, control), _units(text, control)
        i = j = 0
        while i < len(prompt_units):
            want, have = prompt_units[i][0], text_units[j][0] if j < len(text_units) else ""
            if want == have:
                i, j = i + 1, j + 1
            elif have in BEGINS and all(len(unit) > 1 for unit, _, _ in text_units[:j]):
                j += 1  # printed before the prompt
            elif not whole and len(want) > 1 and (len(have) < 2 or have in _controls(prompt_units, i)):
                i += 1  # left out; another one in its place would be a change
            else:
                break
        if i == len(prompt_units):
            return _past_spaces(prompt, text, text_units[j - 1][2] if j else 0)
        parted = parted or (prompt_units[i][1], text_units[j][1] if j < len(text_units) else len(text))
    assert parted is not None
    raise EchoNotFound(prompt[parted[0] :], text[parted[1] :])


def _controls(units: list[tuple[str, int, int]], start: int) -> list[str]:
    """The control strings that follow one another from ``at`` on."""
    return [unit for unit, _, _ in takewhile(lambda unit: len(unit[0]) > 1, units[start:])]


def _past_spaces(prompt: str, text: str, position: int) -> int:
    """Past as much white space, visible or not, as the prompt ends with; what more there is the model wrote."""
    for _ in takewhile(lambda char: not _letters(char), reversed(prompt)):
        if position < len(text) and not _letters(text[position]):
            position += 1
    return position


def _units(text: str, control: bool) -> list[tuple[str, int, int]]:
    """Letters, each with its place, as they compare: decomposed, no case, nothing invisible; control strings whole."""
    units: list[tuple[str, int, int]] = []
    position = 0
    for match in [*(_CONTROL.finditer(text) if control else ()), None]:
        upto = match.start() if match else len(text)
        for n in range(position, upto):
            units += [(letter, n, n + 1) for letter in _letters(text[n])]
        if match:
            units.append((match[0], match.start(), match.end()))
            position = match.end()
    return units


@lru_cache(maxsize=4096)
def _letters(char: str) -> str:
    spread = unicodedata.normalize("NFKD", char.casefold())
    return "".join(c for c in spread if not c.isspace() and unicodedata.category(c) not in ("Cc", "Cf", "Zs"))
