"""Texts as people give them, checked before anything is computed; and how many of them go with how many pictures."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

from pixelbert.errors import UsageError
from pixelbert.model.tokenization import encodable, is_blank

MOST_WORDS = 256  # a little too long is cut, as in training; this long is a mistake
MOST_LETTERS = 4096


def check_texts(texts: Any, what: str) -> list[str]:
    """One text or several as a list. `what`: what they are called. Raises UsageError, which says the place."""
    listed = [texts] if isinstance(texts, str) else texts
    if not isinstance(listed, Sequence) or isinstance(listed, (bytes, bytearray, memoryview)):
        raise UsageError(f"the {what} is a {type(texts).__name__}, not a string or a list of strings")
    if not listed:
        raise UsageError(f"the list of {what}s is empty")
    alone = len(listed) == 1
    return [check_text(text, f"the {what}" if alone else f"{what} {i + 1}") for i, text in enumerate(listed)]


def check_text(text: Any, name: str) -> str:
    """A text that can be read. Raises UsageError for one that is none, is empty, or is absurdly long."""
    if not isinstance(text, str):
        raise UsageError(f"{name} is a {type(text).__name__}, not a string")
    words = len(text.split())
    if is_blank(text):
        raise UsageError(f"{name} is empty")
    if words > MOST_WORDS:
        raise UsageError(f"{name} has {words:,} words, more than the {MOST_WORDS} that are taken; shorten it")
    if len(text) > MOST_LETTERS:
        raise UsageError(f"{name} has {len(text):,} letters, more than the {MOST_LETTERS:,} that are taken; shorten it")
    return encodable(text)


def whole_number(value: Any, name: str) -> int:
    """A count that may be NumPy's. Raises UsageError for anything else."""
    if not isinstance(value, Integral):
        raise UsageError(f"{name} {value!r}: not a whole number")
    return int(value)


def common_count(**counts: int) -> int:
    """How many results there are: as many as the longest list, the others being as long or of one.

    counts: by what they are called, in the plural. Raises UsageError for lists of different lengths.
    """
    count = max(counts.values())
    if any(number not in (1, count) for number in counts.values()):
        given = [f"{number} {name.replace('_', ' ')}" for name, number in counts.items()]
        raise UsageError(f"{', '.join(given[:-1])} and {given[-1]}: give one of a kind, or as many of each")
    return count
