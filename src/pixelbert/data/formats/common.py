"""What all readers share: finding their files, streaming JSON, naming a place in a file, splits and ids."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from pixelbert.data.files import OnRead, is_url, open_bytes
from pixelbert.data.records import SPLIT_ALIASES, SPLITS
from pixelbert.errors import DataError, nearest


class RowError(Exception):
    """A row cannot be used; the message is the reason. Readers turn it into a BadRow."""


class NoText(RowError):
    """An image of pairs comes without any text."""


# Above this the whole text is not read again just to name the line of a damaged place.
_MAX_BYTES_TO_LOCATE = 256 * 1024 * 1024
# Brackets that one block of a file (64 KiB) may open and not close. No format read here goes deeper than ten.
_MAX_OPENED = 2000


def json_items(source: Path | str, prefix: str, on_read: OnRead | None = None) -> Iterator[Any]:
    """The elements under `prefix` of a JSON file, one by one, whatever the file's size ("images.item", "item").

    Raises DataError naming line and byte when the file is no JSON, is cut off, or is not UTF-8.
    """
    import ijson

    with _json_stream(source, on_read) as stream:
        yield from ijson.items(stream, prefix, use_float=True)


def first_key(source: Path | str, keys: tuple[str, ...]) -> str:
    """Which of `keys` a JSON object has, reading no further than the first; "" when it has none.

    Raises DataError as `json_items` does.
    """
    import ijson

    with _json_stream(source) as stream:
        for prefix, event, value in ijson.parse(stream):
            if event == "map_key" and not prefix and value in keys:
                return str(value)
    return ""


def load_json(source: Path | str) -> Any:
    """A small JSON file whole. Raises DataError as `json_items` does."""
    values = list(json_items(source, ""))
    return values[0] if values else None


class _Shallow:
    """A stream of JSON that ends, with a ValueError, where brackets open by the thousand: the parser's time grows with
    the square of the depth, and would be minutes."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream = stream

    def read(self, size: int = -1) -> bytes:
        block = self.stream.read(size)
        opened = block.count(b"[") + block.count(b"{") - block.count(b"]") - block.count(b"}")
        if opened > _MAX_OPENED:
            raise ValueError("it is nested too deeply")
        return block


@contextmanager
def _json_stream(source: Path | str, on_read: OnRead | None = None) -> Iterator[_Shallow]:
    """The bytes of a JSON file without a byte order mark; errors of the parser become a DataError."""
    import ijson

    with open_bytes(source, on_read) as stream:
        if stream.peek(3)[:3] == b"\xef\xbb\xbf":  # as some editors write
            stream.read(3)
        try:
            yield _Shallow(stream)
        except (ijson.JSONError, ValueError) as error:  # ValueError: not UTF-8, or a number of thousands of digits
            raise _damaged_json(source, error) from error


def json_lines(source: Path | str, on_read: OnRead | None = None) -> Iterator[tuple[int, Any]]:
    """(line number, value) of every line of a JSON lines file that is not blank.

    Raises DataError naming the line that is not UTF-8, no JSON, or cut off in the middle.
    """
    for number, line in enumerate(text_lines(source, on_read), 1):
        if not line.strip():
            continue
        try:
            value = parse_json(line)
        except ValueError as error:
            raise DataError(f"{source}: line {number}: {not_json(line, error)}") from error
        yield number, value


def parse_json(text: str) -> Any:
    """The value that a text of JSON says. Raises ValueError for what is none, or is nested too deeply to be read."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def not_json(line: str, error: ValueError) -> str:
    """What is wrong with a line that should have been JSON; see `is_cut_off`."""
    return f"the JSON is cut off in the middle ({error})" if is_cut_off(line) else f"not valid JSON ({error})"


def is_cut_off(line: str) -> bool:
    """Whether a line of JSON that cannot be read is the file's last, cut off: only that one has no line end."""
    return line.lstrip().startswith("{") and not line.endswith(("}", "\n"))


def text_lines(source: Path | str, on_read: OnRead | None = None) -> Iterator[str]:
    """The lines of a UTF-8 file, a byte order mark dropped. Raises DataError naming the line that is not UTF-8."""
    with open_bytes(source, on_read) as stream:
        for number, line in enumerate(stream, 1):
            if number == 1:
                if line.startswith((b"\xff\xfe", b"\xfe\xff")):
                    raise DataError(f"{source}: line 1: the text is UTF-16; save it as UTF-8")
                line = line.removeprefix(b"\xef\xbb\xbf")
            try:
                yield line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{source}: line {number}: byte {error.start} is not UTF-8; save the file as UTF-8"
                ) from error


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
            parse_json(text)
            if found := _no_json_number(text):
                what = f"{found[0]} is no number there"
                return DataError(f"{source}: {_place(text, found.start())}: not valid JSON ({what})")
        except UnicodeDecodeError as wrong:
            line = data.count(b"\n", 0, wrong.start) + 1
            return DataError(f"{source}: line {line}, byte {wrong.start}: not UTF-8")
        except json.JSONDecodeError as wrong:
            # A string without its end, or the beginning of a number, word or escape as the very last thing.
            beginning = re.fullmatch(r"[-+.\w\\\"]{0,6}", text[wrong.pos :]) and "Extra data" not in wrong.msg
            cut_off = cut_off or "Unterminated" in wrong.msg or bool(beginning)
            if not cut_off:
                return DataError(f"{source}: {_place(text, wrong.pos)}: not valid JSON ({wrong.msg})")
        except ValueError as wrong:
            error = wrong
    if cut_off:
        return DataError(f"{source}: the JSON is cut off at byte {size} (line {lines})")
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return DataError(f"{source}: not valid JSON ({reason})")


_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|NaN|-?Infinity|-?\d+(?:\.\d+)?[eE]\+?\d+')


def _no_json_number(text: str) -> re.Match[str] | None:
    """The first NaN, Infinity or number past all floats outside of strings: Python reads them, JSON has none."""
    tokens = (token for token in _TOKEN.finditer(text) if not token[0].startswith('"'))
    return next((token for token in tokens if not math.isfinite(float(token[0].replace("Infinity", "inf")))), None)


def _place(text: str, position: int) -> str:
    line, start = text.count("\n", 0, position) + 1, text.rfind("\n", 0, position) + 1
    return f"line {line}, column {position - start + 1} (byte {len(text[:position].encode())})"


def canonical_split(name: object) -> str:
    """The split a file's own word stands for. Raises RowError with the nearest name for an unknown one."""
    if not isinstance(name, str) or not name.strip():
        raise RowError(f"split is {name!r}, expected one of {', '.join(SPLITS)}")
    lower = name.strip().lower()
    lower = SPLIT_ALIASES.get(lower, lower)
    if lower not in SPLITS:
        raise RowError(f"unknown split '{name}'; {nearest(lower, SPLITS)}")
    return lower


def known_split(name: object) -> str:
    """As `canonical_split`, "" for an unknown one: of a row that is bad anyway."""
    try:
        return canonical_split(name)
    except RowError:
        return ""


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
    """An id as text: 42 and "42" are one id; a bool, None, NaN, list or blank is none ("")."""
    if isinstance(value, bool) or value is None:
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, float) and not math.isfinite(value):  # NaN stands for nothing in tables
        return ""
    return str(value).strip() if isinstance(value, (int, str, float)) else ""
