"""The list of rows that were left out."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from pathlib import Path

from pixelbert.data.records import BadRow
from pixelbert.errors import DataError

_SHOWN = 5


class BadRows:
    """Writes bad_rows.jsonl as rows come in, and remembers the first few and their counts by kind of reason and split.

    of_split, first_of: by split code, -1 for rows whose file does not tell. captionless: images without any text.
    """

    def __init__(self, path: Path, most: int | None = None) -> None:
        self.total = 0
        self.kinds: Counter[str] = Counter()
        self.of_split: Counter[int] = Counter()
        self.first: list[BadRow] = []
        self.first_of: dict[int, BadRow] = {}
        self.captionless: dict[int, list[BadRow]] = {}
        self._most = most
        self._stream = open(path, "w", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115 - see close()

    def add(self, row: BadRow, split: int = -1) -> None:
        """`split` is the row's split code, -1 when it has none. Raises DataError at more rows than the user allows."""
        self.total += 1
        self.of_split[split] += 1
        self.first_of.setdefault(split, row)
        if row.captionless:
            self.captionless.setdefault(split, []).append(row)
        self.kinds[kind_of(row.reason)] += 1
        if len(self.first) < _SHOWN:
            self.first.append(row)
        self._stream.write(json.dumps(as_listed(row), ensure_ascii=False) + "\n")
        if self._most is not None and self.total > self._most:
            raise DataError(
                f"{row.file}: {row.place}: {row.reason}; this is bad row number {self.total}, and --max-bad allows"
                f" {self._most}"
            )

    def close(self) -> None:
        """Flush the list to the disk."""
        if not self._stream.closed:
            self._stream.flush()
            os.fsync(self._stream.fileno())
            self._stream.close()


def as_listed(row: BadRow) -> dict[str, str]:
    """The row as bad_rows.jsonl has it."""
    return {"file": row.file, "place": row.place, "reason": row.reason}


def kind_of(reason: str) -> str:
    """The reason without its particulars: names in quotes become '...', numbers become N, places after ':' go."""
    kind = re.sub(r"'[^']*'", "'...'", reason)
    kind = re.sub(r"\d[\d,.]*", "N", kind)
    for cut in (" not found in ", " is ambiguous: ", "; first at "):
        head, found, _ = kind.partition(cut)
        kind = head + cut.rstrip(": ").removesuffix(" in").removesuffix("; first at") if found else kind
    return kind
