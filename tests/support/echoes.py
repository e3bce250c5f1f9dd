"""How a server may print a prompt before its answer: every mangling that echo removal has to undo."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

from tests.support.nemo_rows import TURN

HEAD = f"<extra_id_0>System\n\n{TURN}User\n"


def chat_prompt(text: str) -> str:
    """One question as NeMo's template has it."""
    return f"{HEAD}{text}\n{TURN}Assistant\n"


Mangle = Callable[[str], str]
MANGLINGS: dict[str, Mangle] = {
    "as it is": lambda t: t,
    "collapsed": lambda t: re.sub(r"\s+", " ", t),
    "no new lines": lambda t: t.replace("\n", " "),
    "leading space lost": str.lstrip,
    "stripped": str.strip,
    "space after punctuation": lambda t: re.sub(r"([.,!?:;])(?=\S)", r"\1 ", t),
    "no space before punctuation": lambda t: re.sub(r"\s+([.,!?:;])", r"\1", t),
    "spaces around control tokens": lambda t: re.sub(r"\s*(<extra_id_\d>)\s*", r" \1 ", t).strip(),
    "control tokens removed": lambda t: re.sub(r"<extra_id_\d>|</?s>", "", t),
    "BOS printed": lambda t: f"<s>{t}",
    "BOS and space printed": lambda t: f"<s> {t}",
    "doubled": lambda t: t.replace(" ", "  "),
    "NFKC": lambda t: unicodedata.normalize("NFKC", t),
    "invisible characters removed": lambda t: t.replace("\u200b", "").replace("\u00ad", ""),
    "CRLF": lambda t: t.replace("\n", "\r\n"),
    "all white space gone": lambda t: re.sub(r"\s", "", t),
}


def squeezed(text: str) -> str:
    """A text without what servers change of it: white space, BOS, forms of a character."""
    return "".join(unicodedata.normalize("NFKC", text).replace("<s>", "").split())
