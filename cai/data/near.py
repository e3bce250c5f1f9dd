"""Near duplicates: whether what is trained on was asked, nearly word for word, in a set that is evaluated on.

The rule is that of Tülu 3 (arXiv 2411.15124, section 3.2): a word of an evaluation prompt is matched where the two
prompts share a run of eight words around it, and the prompts are alike where more than half of the evaluation prompt's
words are matched by the same training prompt. Words are compared without case, punctuation and forms of characters.
Prompts of fewer than eight words are alike only when they are equal: XSTest's pairs of a safe and an unsafe request
differ in a single word and are no duplicates. Runs of words that stand in many different evaluation prompts are a form
and not a question; they do not count. Written by hand because the libraries for it estimate the overlap (MinHash), and
what is refused here must be there to be seen.
"""

from __future__ import annotations

import re
import unicodedata
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from typing import TYPE_CHECKING

from cai.data.rows import Conversation, Row
from cai.errors import Problem, SpecError
from cai.text import one_line

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

WORDS = 8
"""Words of a run, a shingle."""
SHARE = 0.5
"""The share of an evaluation prompt's words beyond which a training prompt is like it."""
MOST_SHARED = 64
"""Evaluation prompts that may have a run in common before it is taken for a form."""
MOST_WORDS = 4_096
"""Words of a prompt that are looked at, those at its end: there the question stands."""
MOST_PROMPTS = 1_000_000
"""Evaluation prompts that are held: some 0.3 KB each and 14 bytes a word."""

FEW_RUNS, FEW_WORDS = 20_000, 512
"""Up to so many runs, and words of a text, plain Python is as quick as loading numpy."""

_SHOWN = 80
# Languages that do not part their words: each character is one.
_CHARACTERS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
_WORD = re.compile(f"[{_CHARACTERS}]|[^\\W{_CHARACTERS}]+")


@dataclass(frozen=True, slots=True)
class EvaluationPrompt:
    """A prompt of a set that is evaluated on: which set, and its beginning, for showing."""

    source: str
    beginning: str


def prompt_text(row: Row) -> str:
    """What a row asks: the user's turns, those after the last answer not counted."""
    messages = row.prompt if isinstance(row, Conversation) else row.messages
    return "\n".join(message.content for message in messages if message.role == "user")


def words_of(text: str) -> list[str]:
    """The last ``MOST_WORDS`` words of a text, without case, punctuation and forms of characters."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())[-MOST_WORDS:]


class NearPrompts:
    """The prompts of evaluation sets, to be asked of training prompts; memory and time grow with the words alone."""

    def __init__(self) -> None:
        self._prompts: list[EvaluationPrompt] = []
        self._by_text: dict[int, int] = {}
        self._runs = array("Q")
        self._owners = array("I")
        self._places = array("H")
        self._table: _RunTable | _PlainTable | None = None

    def __len__(self) -> int:
        return len(self._prompts)

    def add(self, text: str, source: str) -> None:
        """Hold a prompt of a set; one that is held already stays with the set that had it first.

        Raises:
            SpecError: beyond ``MOST_PROMPTS``.
        """
        words = words_of(text)
        number = len(self._prompts)
        if self._by_text.setdefault(_text_digest(words, text), number) != number:
            return
        if number >= MOST_PROMPTS:
            message = f"has more than {MOST_PROMPTS:,} prompts to hold training data against"
            raise SpecError(Problem(source, message, "give its data `limit: N`"))
        self._table = None
        self._prompts.append(EvaluationPrompt(source, one_line(text, _SHOWN)))
        runs = run_digests(words)
        self._runs.extend(runs)
        self._owners.extend([number] * len(runs))
        self._places.extend(range(len(runs)))

    def like(self, text: str) -> EvaluationPrompt | None:
        """The evaluation prompt that a training prompt is a near duplicate of, the one it covers most; else None."""
        words = words_of(text)
        if (number := self._by_text.get(_text_digest(words, text))) is not None:
            return self._prompts[number]
        if self._table is None:
            table = _PlainTable if len(self._runs) <= FEW_RUNS else _RunTable
            self._table = table(self._runs, self._owners, self._places)
        best = self._table.most_covered(run_digests(words))
        return None if best is None else self._prompts[best]


class _PlainTable:
    """As ``_RunTable``, for few runs: planning does not load numpy for them."""

    def __init__(self, runs: array[int], owners: array[int], places: array[int]) -> None:
        by_run: dict[int, list[tuple[int, int]]] = {}
        for run, owner, place in zip(runs, owners, places, strict=True):
            by_run.setdefault(run, []).append((owner, place))
        self._by_run = {
            run: stands for run, stands in by_run.items() if len({owner for owner, _ in stands}) <= MOST_SHARED
        }
        self._words = _covered_words(stand for stands in self._by_run.values() for stand in stands)

    def most_covered(self, runs: Sequence[int]) -> int | None:
        """The prompt of whose words the largest share stands in these runs, if that is more than ``SHARE``."""
        hits = (stand for run in dict.fromkeys(runs) for stand in self._by_run.get(run, ()))
        return _most_covered(_covered_words(hits), self._words)


def _covered_words(stands: Iterable[tuple[int, int]]) -> dict[int, int]:
    """Of each prompt the number of words that runs at these places cover, each word once."""
    words: dict[int, int] = {}
    end = -1
    last_owner = -1
    for owner, place in sorted(stands):
        begin = place if owner != last_owner else max(place, end)
        end = place + WORDS
        last_owner = owner
        words[owner] = words.get(owner, 0) + end - begin
    return words


def _most_covered(words: Mapping[int, int], of: Mapping[int, int]) -> int | None:
    if not words:
        return None
    shares = {owner: n / of[owner] for owner, n in words.items()}
    best = max(shares, key=lambda owner: (shares[owner], -owner))
    return best if shares[best] > SHARE else None


class _RunTable:
    """Runs of words in the order of their digests, each with the prompts and places that it stands at."""

    def __init__(self, runs: array[int], owners: array[int], places: array[int]) -> None:
        import numpy as np

        runs_R, owners_R = np.array(runs, dtype=np.uint64), np.array(owners, dtype=np.uint32)  # noqa: N806 - R runs
        order = np.lexsort((owners_R, runs_R))
        runs_R, owners_R = runs_R[order], owners_R[order]  # noqa: N806
        told_apart = _prompts_of_run(runs_R, owners_R) <= MOST_SHARED
        self._runs_R = runs_R[told_apart]
        self._owners_R = owners_R[told_apart]
        self._places_R = np.array(places, dtype=np.uint16)[order][told_apart].astype(np.int64)
        owners_P, words_P = _covered(self._owners_R, self._places_R)  # noqa: N806 - P prompts
        self._words = dict(zip(owners_P.tolist(), words_P.tolist(), strict=True))

    def most_covered(self, runs: Sequence[int]) -> int | None:
        """The prompt of whose words the largest share stands in these runs, if that is more than ``SHARE``."""
        import numpy as np

        runs_Q = np.unique(np.array(runs, dtype=np.uint64))  # noqa: N806 - Q runs of the training prompt
        begins, ends = (np.searchsorted(self._runs_R, runs_Q, side) for side in ("left", "right"))
        shared = ends > begins
        if not shared.any():
            return None
        hits = np.concatenate([np.arange(b, e) for b, e in zip(begins[shared], ends[shared], strict=True)])
        owners, words = _covered(self._owners_R[hits], self._places_R[hits])
        return _most_covered(dict(zip(owners.tolist(), words.tolist(), strict=True)), self._words)


def _prompts_of_run(
    runs_R: npt.NDArray[np.uint64],  # noqa: N803 - R runs
    owners_R: npt.NDArray[np.uint32],  # noqa: N803
) -> npt.NDArray[np.int64]:
    """For each run, sorted by digest and prompt, the different prompts that it stands in."""
    import numpy as np

    if not len(runs_R):
        return np.zeros(0, dtype=np.int64)
    new_run = np.append(True, runs_R[1:] != runs_R[:-1])
    new_prompt = new_run | np.append(True, owners_R[1:] != owners_R[:-1])
    begins = np.flatnonzero(new_run)
    prompts = np.add.reduceat(new_prompt.astype(np.int64), begins)
    return np.repeat(prompts, np.diff(np.append(begins, len(runs_R))))


def _covered(
    owners: npt.NDArray[np.uint32], places: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]:
    """Of each prompt the number of words that runs at these places cover, each word once."""
    import numpy as np

    order = np.lexsort((places, owners))
    owners, places = owners[order], places[order]
    last_of_prompt = np.append(owners[1:] != owners[:-1], True)[: len(owners)]
    steps = np.full(len(places), WORDS, dtype=np.int64)
    steps[:-1] = np.minimum(places[1:] - places[:-1], WORDS)
    steps[last_of_prompt] = WORDS
    prompts, begins = np.unique(owners, return_index=True)
    return prompts, np.add.reduceat(steps, begins) if len(begins) else steps


def run_digests(words: Sequence[str]) -> list[int]:
    """The digests of all runs of ``WORDS`` words, in order: 64 bits, none for a shorter text.

    Polynomials of the words' own digests, so that a word is digested once and not eight times.
    """
    digests = [_word_digest(word) for word in words]
    if len(words) > max(FEW_WORDS, WORDS - 1):
        return _long_run_digests(digests)
    return [
        sum(digest * power for digest, power in zip(digests[start : start + WORDS], _POWERS, strict=True)) % _TWO_64
        for start in range(len(digests) - WORDS + 1)
    ]


def _long_run_digests(digests: Sequence[int]) -> list[int]:
    """The same for a long text."""
    import numpy as np

    windows = np.lib.stride_tricks.sliding_window_view(np.array(digests, dtype=np.uint64), WORDS)
    runs: list[int] = (windows * np.array(_POWERS, dtype=np.uint64)).sum(axis=1, dtype=np.uint64).tolist()
    return runs


_TWO_64 = 1 << 64
_POWERS = tuple(pow(0x9E3779B97F4A7C15, n, _TWO_64) for n in range(WORDS))


@lru_cache(maxsize=1 << 16)
def _word_digest(word: str) -> int:
    return _digest(word)


def _text_digest(words: list[str], text: str) -> int:
    """Of a whole text: its words, or where it has none its signs."""
    return _digest(" ".join(words or text.split()))


def _digest(text: str) -> int:
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def beginning_of(text: str) -> str:
    """The beginning of a training prompt, on one line."""
    return one_line(text, _SHOWN)
