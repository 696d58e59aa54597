"""How an error sentence names many things at once."""

from __future__ import annotations

from collections.abc import Iterable


def first_few(names: Iterable[object], shown: int = 5) -> str:
    """The first few names and how many follow: `1, 2, 3, 4, 5 and 7 more`."""
    texts = [repr(name) for name in names]
    more = f" and {len(texts) - shown} more" if len(texts) > shown else ""
    return ", ".join(texts[:shown]) + more
