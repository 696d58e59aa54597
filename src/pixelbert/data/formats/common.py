"""What all readers share: finding their files, streaming JSON, naming a place in a file, splits and ids."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pixelbert.data.files import OnRead, is_url, open_bytes
from pixelbert.data.records import SPLIT_ALIASES, SPLITS
from pixelbert.errors import DataError, nearest


class RowError(Exception):
    """A row cannot be used; the message is the reason. Readers turn it into a BadRow."""


# Above this the whole text is not read again just to name the line of a damaged place.
_MAX_BYTES_TO_LOCATE = 256 * 1024 * 1024


def json_items(source: Path | str, prefix: str, on_read: OnRead | None = None) -> Iterator[Any]:
    """The elements under `prefix` of a JSON file, one by one, whatever the file's size ("images.item", "item").

    Raises DataError naming line and byte when the file is no JSON, is cut off, or is not UTF-8.
    """
    import ijson

    with open_bytes(source, on_read) as stream:
        if stream.peek(3)[:3] == b"\xef\xbb\xbf":  # a byte order mark, as some editors write
            stream.read(3)
        try:
            yield from ijson.items(stream, prefix, use_float=True)
        except (ijson.JSONError, UnicodeDecodeError) as error:
            raise _damaged_json(source, error) from error


def _damaged_json(source: Path | str, error: Exception) -> DataError:
    """One sentence naming the place where a JSON file stops being one."""
    with open_bytes(source) as stream:
        data = stream.read(_MAX_BYTES_TO_LOCATE)
        size, lines = len(data), data.count(b"\n") + 1
        while block := stream.read(1 << 20):
            size, lines = size + len(block), lines + block.count(b"\n")
    if not data.strip():
        return DataError(f"{source}: the file is empty")
    cut_off = "premature EOF" in str(error)
    if len(data) == size:
        try:
            text = data.decode("utf-8-sig")
            json.loads(text)
        except UnicodeDecodeError as wrong:
            line = data.count(b"\n", 0, wrong.start) + 1
            return DataError(f"{source}: line {line}, byte {wrong.start}: not UTF-8")
        except json.JSONDecodeError as wrong:
            # A string without its end, or the beginning of a number, word or escape as the very last thing.
            beginning = re.fullmatch(r"[-+.\w\\\"]{0,6}", text[wrong.pos :]) and "Extra data" not in wrong.msg
            cut_off = cut_off or "Unterminated" in wrong.msg or bool(beginning)
            if not cut_off:
                byte = len(text[: wrong.pos].encode())
                place = f"line {wrong.lineno}, column {wrong.colno} (byte {byte})"
                return DataError(f"{source}: {place}: not valid JSON ({wrong.msg})")
    if cut_off:
        return DataError(f"{source}: the JSON is cut off at byte {size} (line {lines})")
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return DataError(f"{source}: not valid JSON ({reason})")


def canonical_split(name: object) -> str:
    """The split a file's own word stands for. Raises RowError with the nearest name for an unknown one."""
    if not isinstance(name, str) or not name.strip():
        raise RowError(f"split is {name!r}, expected one of {', '.join(SPLITS)}")
    lower = name.strip().lower()
    lower = SPLIT_ALIASES.get(lower, lower)
    if lower not in SPLITS:
        raise RowError(f"unknown split '{name}'; {nearest(lower, SPLITS)}")
    return lower


def split_of_name(file: Path | str) -> str:
    """The split a file name speaks of ("captions_val2014.json" -> "val"), "" when it speaks of none."""
    name = Path(str(file)).name.lower()
    words = re.findall(r"[a-z]+", name)
    for word in words:
        word = SPLIT_ALIASES.get(word, word)
        if word in SPLITS:
            return word
    return ""


def find_annotations(source: Path, patterns: tuple[str, ...], what: str, depth: int = 2) -> list[Path]:
    """The files in `source` (or `source` itself, when a file) that match a pattern, sorted by path.

    Folders nearer the top win: deeper ones are searched only when nothing lies above. Raises DataError when
    nothing is found.
    """
    if is_url(source) or source.is_file():
        return [source]
    if not source.is_dir():
        raise DataError(f"{source}: no such file or folder")
    level = [source]
    for _ in range(depth + 1):
        found = {p for folder in level for pattern in patterns for p in folder.glob(pattern) if p.is_file()}
        if found:
            return sorted(found)
        level = sorted(p for folder in level for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    raise DataError(f"{source}: holds no {what} ({' or '.join(patterns)})")


def as_id(value: object) -> str:
    """An id as text: 42 and "42" are one id; a bool, None, list or blank is none ("")."""
    if isinstance(value, bool) or value is None:
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip() if isinstance(value, (int, str, float)) else ""
