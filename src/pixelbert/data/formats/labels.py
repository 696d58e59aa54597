"""The truth labels of a file: true or false, each spelled one way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pixelbert.errors import DataError

#: What may stand for (true, false) in a table of one's own; letter case does not matter.
SPELLINGS: tuple[tuple[str, str], ...] = (("true", "false"), ("yes", "no"), ("1", "0"))


class Labels:
    """Reads the labels of one file and holds it to one word for true and one for false.

    "True" and "False", "TRUE" and "FALSE" or "yes" and "no" are all well; "True", "yes" and "TRUE" in one file are
    not: whoever wrote them may have meant more than two things, or joined files that do not belong together.
    """

    def __init__(self, file: object, spellings: Sequence[tuple[str, str]] = SPELLINGS) -> None:
        self._file = file
        self._spellings = spellings
        self._first: dict[str, str] = {}  # each spelling and where it was met first

    def truth(self, value: Any, place: str) -> bool:
        """The truth of a label: text, or JSON's true, false, 1, 0. Raises DataError naming the place of any other."""
        text = str(value).strip() if isinstance(value, (str, int)) else ""
        text = text.lower() if isinstance(value, bool) else text
        for true, false in self._spellings:
            if text.lower() in (true, false):
                self._first.setdefault(text, place)
                return text.lower() == true
        words = " or ".join(f"{true}/{false}" for true, false in self._spellings)
        raise DataError(f"{self._file}: {place}: the label is {value!r}, expected {words}")

    def check(self) -> None:
        """At the end of the file. Raises DataError with every spelling and its place when there is one too many."""
        met = [word.lower() for word in self._first]
        pairs = [pair for pair in self._spellings if set(pair) & set(met)]
        if len(pairs) > 1 or len(set(met)) < len(met):
            told = ", ".join(f"'{word}' ({place})" for word, place in self._first.items())
            raise DataError(
                f"{self._file}: labels are spelled in {len(met)} ways: {told}; use one word for true and one for false"
            )
