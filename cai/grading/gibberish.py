"""What tells text from noise: loops, characters that make no words, words in no order, and their spread.

Loops are measured as in arXiv 1908.04319 (the share of four-word sequences that came before). Any script counts as
words; a text in another language than English is no gibberish.
"""

from __future__ import annotations

import math
import re
import zlib
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

_WORDS = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
_VOWELS = frozenset("aeiouyäöüáéíóúàèìòùâêîôûåæøœAEIOUY")
_GRAM = 4
LOOPING = 0.5
"""The share of repeated four-word sequences from which on a text of ``ENOUGH`` words loops."""
ENOUGH = 16
"""Words from which on repetition and spread mean something."""
ODD_WORDS = 0.35
"""The share of Latin words that cannot be said from which on a text is noise."""
ODD_CHARACTERS = 0.45
"""The share of characters beside letters, digits and spaces from which on a text without code is noise."""
FEW_BITS = 1.6
"""Bits of entropy a word below which a text of ``ENOUGH`` words says the same few words over and over."""
NO_BITS, FEW_WORDS = 1.0, 6
"""The same of a short text, of at least so many words."""
COMPRESSED, LONG = 0.12, 100
"""The share of its bytes to which zlib brings a text, of at least so many, below which it goes round in circles. It
holds for scripts without spaces too; prose stays above 0.3, and tables and code mostly do."""
SHUFFLED, ARTICLES = 0.3, 4
"""The share of English articles that no article can stand before, of at least so many, from which on words are in no
order. In prose it is next to nothing, in shuffled prose about a third."""
_ARTICLES = frozenset({"the", "a", "an"})
_NEVER_AFTER_ARTICLES = _ARTICLES | frozenset(
    """
    and at be by for from he her him i if in is it its me my of on or our she than that their them they this to was we
    were with you your are his as has have had not but so
    """.split()  # noqa: SIM905 - lines of words read better than fifty strings
)


def words_of(text: str) -> list[str]:
    """The words of a text, in small letters."""
    return [word.lower() for word in _WORDS.findall(text)]


def looping(words: Sequence[str]) -> float:
    """The share of the four-word sequences that have come before; 0 where there is none."""
    grams = [tuple(words[i : i + _GRAM]) for i in range(len(words) - _GRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def bits_per_word(words: Sequence[str]) -> float:
    """Shannon's entropy of the words of a text, in bits."""
    counts = Counter(words)
    return -sum(n / len(words) * math.log2(n / len(words)) for n in counts.values()) if words else 0.0


def broken_articles(words: Sequence[str]) -> float:
    """The share of English articles with a word after them that cannot stand there; 0 of fewer than ``ARTICLES``."""
    followers = [after for word, after in pairwise(words) if word in _ARTICLES]
    if len(followers) < ARTICLES:
        return 0.0
    return sum(after in _NEVER_AFTER_ARTICLES for after in followers) / len(followers)


def compressed(text: str) -> float:
    """The share of its bytes to which zlib brings a text; 1 of one shorter than ``LONG`` bytes."""
    raw = text.encode("utf-8", "replace")
    return len(zlib.compress(raw)) / len(raw) if len(raw) >= LONG else 1.0


def odd_words(words: Sequence[str]) -> float:
    """The share of longer Latin words that nobody could say: four consonants in a row, say."""
    latin = [word for word in words if len(word) > 3 and word.isascii()]
    return sum(map(_unspeakable, latin)) / len(latin) if latin else 0.0


def _unspeakable(word: str) -> bool:
    run = longest = 0
    for letter in word:
        run = 0 if letter in _VOWELS or not letter.isalpha() else run + 1
        longest = max(longest, run)
    return longest > 3 or not _VOWELS & set(word) or re.search(r"(.)\1\1|q(?!u)", word) is not None or len(word) > 34


def odd_characters(text: str) -> float:
    """The share of characters that are neither letters, digits nor spaces; U+FFFD counts like any of them."""
    return sum(not (c.isalnum() or c.isspace()) for c in text) / len(text) if text else 0.0


def gibberish(text: str, *, code: bool) -> float:
    """How surely a text is no language at all, 0 to 1. An empty text is 1. ``code`` allows for marks and odd names."""
    words = words_of(text)
    if not text.strip() or not (words or any(c.isdigit() for c in text)):
        return 1.0
    measures = [0.0 if code else _over(odd_characters(text), ODD_CHARACTERS)]
    if len(words) >= 3 and not code:
        measures.append(_over(odd_words(words), ODD_WORDS))
    measures.append(1.0 if compressed(text) < COMPRESSED else 0.0)
    measures.append(_over(broken_articles(words), SHUFFLED))
    if len(words) >= FEW_WORDS:
        measures.append(1.0 if bits_per_word(words) < NO_BITS else 0.0)
    if len(words) >= ENOUGH:
        measures.append(_over(looping(re.findall(r"\w+", text.lower())), LOOPING))
        measures.append(1.0 if bits_per_word(words) < FEW_BITS else 0.0)
    return max(measures)


def _over(share: float, limit: float) -> float:
    """0.5 at the limit, 1 at a share of 1, 0 at none."""
    return share / limit / 2 if share < limit else 0.5 + (share - limit) / (1 - limit) / 2
