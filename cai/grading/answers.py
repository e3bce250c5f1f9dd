"""Whether an answer declines or evades: by its grade where it has one, else by phrases (``cai.figures.answers``)."""

from __future__ import annotations

from cai.figures import answers as phrases
from cai.grading.grades import Grade


def declines(text: str, grade: str = "") -> bool:
    """Whether an answer says no and leaves it at that. Without a grade, whether its opening has a phrase of refusal."""
    return Grade(grade).declines if grade else phrases.refuses(text)


def evades(text: str, grade: str = "") -> bool:
    """Whether an answer neither helps nor says no. Without a grade, whether nothing is left beside empty phrases."""
    return Grade(grade) is Grade.EVADED if grade else phrases.evades(text)
