"""No message may forge a turn: control strings inside contents are broken by one invisible character.

Breaking happens in the text, so that it holds for every engine, those that read text files included. A zero-width
space goes into each control string found in a content; everything else stays byte for byte. A content can also
complete a control string together with the template's own text, or through what the template does to it (trim,
replace, join). The templates therefore render once more with blanked contents when that is possible, and compare the
control strings of both texts: a message must not change which there are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import TypeVar

from cai.errors import Problem, SpecError

BREAK = "\u200b"
# Stand-ins for a content: a letter of no script, and white space that no control string holds.
_BLANK, _SPACE = "\ue000", "\u2003"

Contents = TypeVar("Contents")


class Guard:
    """Breaks a set of control strings in contents. Immutable after construction; safe to share between threads.

    Raises:
        SpecError: for a control string that cannot be broken: shorter than two characters, or with U+200B in it.
    """

    __slots__ = ("_closing", "_every", "_longest", "_loose", "_opened", "_pattern", "controls")

    def __init__(self, controls: Iterable[str], where: str) -> None:
        self.controls = tuple(sorted({c for c in controls if c}, key=lambda c: (-len(c), c)))
        for control in self.controls:
            if len(control) < 2 or BREAK in control:
                why = "is one character" if len(control) < 2 else "contains U+200B"
                raise SpecError(
                    Problem(
                        where,
                        f"control string {control!r} {why} and cannot be broken inside messages",
                        "use a longer marker",
                    )
                )
        joined = "|".join(map(re.escape, self.controls)) or "(?!)"
        self._pattern = re.compile(joined)
        # As a template that collapses white space or changes case would make them.
        loose = "|".join(r"\s+".join(map(re.escape, c.split())) for c in self.controls if c.strip())
        self._loose = re.compile(loose or "(?!)", re.IGNORECASE)
        self._every = re.compile(f"(?=({joined}))")
        self._longest = max(map(len, self.controls), default=0)
        self._opened = tuple({c[:n] for c in self.controls for n in range(1, len(c))})
        self._closing = tuple({c[n:] for c in self.controls for n in range(1, len(c))})

    def clean(self, content: str) -> str:
        """``content`` without any control string; the same object when there was none."""
        while self._pattern.search(content):  # until none is left: breaking one may uncover another that overlapped it
            content = self._pattern.sub(_broken, content)
        return content

    def touches(self, content: str) -> bool:
        """Whether ``content``, as it is or stripped, could complete a control string with text before or after it."""
        stripped = content.strip()
        return (
            self._meets(content)
            or (len(stripped) != len(content) and self._meets(stripped))
            or (0 < len(stripped) < self._longest and any(stripped in c for c in self.controls))
        )

    def _split(self, content: str) -> str:
        if self.touches(content):
            content = f"{BREAK}{content}{BREAK}"
        return self._loose.sub(lambda match: f"{match.group()[0]}{BREAK}{match.group()[1:]}", content)

    def _meets(self, content: str) -> bool:
        return content.endswith(self._opened) or content.startswith(self._closing)

    def occurrences(self, text: str) -> list[str]:
        """Every control string in ``text`` in order, overlapping ones included."""
        return self._every.findall(text)

    def apply(
        self,
        contents: Contents,
        each: Callable[[Contents, Callable[[str], str]], Contents],
        render: Callable[[Contents], str],
        *,
        always: bool,
        where: str,
    ) -> tuple[Contents, str]:
        """Clean ``contents`` and render them; returns both.

        ``each`` maps a function over the strings of ``contents``. ``always`` compares with the blanked text even when
        no content looks suspicious, for templates that cut or change contents.

        Raises:
            SpecError: when the template itself turns a content into a control string.
        """
        suspicious = always

        def cleaned(content: str) -> str:
            nonlocal suspicious
            content = self.clean(content)
            suspicious = suspicious or self.touches(content)
            return content

        contents = each(contents, cleaned)
        text = render(contents)
        if not suspicious:
            return contents, text
        honest = self.occurrences(render(each(contents, _blanked)))
        if self.occurrences(text) == honest:
            return contents, text
        contents = each(contents, self._split)
        text = render(contents)
        if self.occurrences(text) != honest:
            raise SpecError(
                Problem(
                    where,
                    "the template turns a message's content into one of its control strings",
                    "write contents as they are or with `| trim`, not cut, joined or replaced",
                )
            )
        return contents, text


def _broken(match: re.Match[str]) -> str:
    # Markers that open with blank lines are broken before their last character: '\n\nHuman:' reads 'Human' + ':'.
    text = match.group()
    cut = len(text) - 1 if text[0].isspace() else 1
    return f"{text[:cut]}{BREAK}{text[cut:]}"


def _blanked(content: str) -> str:
    return (_BLANK if content.strip() else _SPACE) * len(content)
