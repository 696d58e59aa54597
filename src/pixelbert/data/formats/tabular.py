"""The user's own data: CSV and JSONL with columns image and text, optionally id and split.

Several texts of an image are several rows, or in JSONL a list: {"image": "a.jpg", "text": ["one", "two"]}. Text is
UTF-8, with or without a byte order mark. The columns may have other names: `columns={"image": "file"}`.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pixelbert.data.files import OnRead, open_bytes
from pixelbert.data.formats.common import RowError, as_id, canonical_split, find_annotations, split_of_name
from pixelbert.data.records import BadRow, Example
from pixelbert.errors import DataError, UsageError, nearest

COLUMNS = ("image", "text", "id", "split")
REQUIRED = ("image", "text")
_DELIMITERS = (",", "\t", ";", "|")
_MAX_FIELD = 1 << 24


def locate_csv(source: Path) -> list[Path]:
    """The CSV files of a folder."""
    return find_annotations(source, ("*.csv", "*.csv.gz", "*.tsv", "*.tsv.gz"), "CSV file", depth=0)


def locate_jsonl(source: Path) -> list[Path]:
    """The JSONL files of a folder."""
    return find_annotations(source, ("*.jsonl", "*.jsonl.gz"), "JSONL file", depth=0)


def read_csv(
    source: Path,
    *,
    split: str | None = None,
    columns: Mapping[str, str] | None = None,
    delimiter: str | None = None,
    on_read: OnRead | None = None,
    **_: Any,
) -> Iterator[Example | BadRow]:
    """One example a row. The first row names the columns; the delimiter is told from it unless given.

    Raises DataError naming the line when a column is missing, the text is not UTF-8, or a quote is never closed.
    """
    names = _names(columns)
    csv.field_size_limit(_MAX_FIELD)
    lines = _text_lines(source, on_read)
    try:
        header_line = next(lines)
    except StopIteration:
        raise DataError(f"{source}: the file is empty") from None
    if "\r" in header_line.rstrip("\r\n"):
        raise DataError(f"{source}: line 1: lines end with a bare carriage return; save the file with \\n line ends")
    separator = _separator(source, header_line, names, delimiter)
    header = [field.strip() for field in next(csv.reader([header_line], delimiter=separator), [])]
    place = _columns(source, header, names)
    rows = csv.reader(lines, delimiter=separator, strict=True)
    any_row = False
    while True:
        line = rows.line_num + 2  # where the next row begins; line 1 is the header
        try:
            row = next(rows, None)
        except csv.Error as error:
            if "expected after" not in str(error):  # a quote that is never closed swallows the rest of the file
                raise DataError(f"{source}: line {line}: not valid CSV ({error})") from error
            yield BadRow(str(source), f"line {line}", f"not valid CSV ({error})")
            any_row = True
            continue
        if row is None:
            break
        if not row:
            continue
        any_row = True
        if len(row) != len(header):
            yield BadRow(str(source), f"line {line}", f"has {len(row)} fields, expected {len(header)}")
            continue
        values = {name: row[column] for name, column in place.items()}
        yield from _examples(source, f"line {line}", values, split)
    if not any_row:
        raise DataError(f"{source}: has a header and no row")


def read_jsonl(
    source: Path,
    *,
    split: str | None = None,
    columns: Mapping[str, str] | None = None,
    on_read: OnRead | None = None,
    **_: Any,
) -> Iterator[Example | BadRow]:
    """One example a text. A line that is no object, or lacks a column, is a bad row.

    Raises DataError naming the line when the text is not UTF-8, or when the last line is cut off.
    """
    names = _names(columns)
    number = 0
    lines = _text_lines(source, on_read)
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            if line.lstrip().startswith("{") and not line.endswith(("}", "\n")):  # only the last line has no line end
                raise DataError(f"{source}: line {number}: the JSON is cut off in the middle ({error})") from error
            yield BadRow(str(source), f"line {number}", f"not valid JSON ({error})")
            continue
        if not isinstance(row, dict):
            yield BadRow(str(source), f"line {number}", f"an object was expected, found {type(row).__name__}")
            continue
        missing = [names[name] for name in REQUIRED if names[name] not in row]
        if missing:
            have = ", ".join(row) or "nothing"
            if number == 1:
                raise DataError(f"{source}: line 1: no column '{missing[0]}'; found: {have}")
            yield BadRow(str(source), f"line {number}", f"no column '{missing[0]}'; found: {have}")
            continue
        values = {name: row[names[name]] for name in COLUMNS if names[name] in row}
        yield from _examples(source, f"line {number}", values, split)
    if number == 0:
        raise DataError(f"{source}: the file is empty")


def _examples(source: Path, where: str, values: Mapping[str, Any], split: str | None) -> Iterator[Example | BadRow]:
    """The examples of a row: one for each of its texts."""
    image, texts = values["image"], values["text"]
    try:
        if not isinstance(image, str) or not image.strip():
            raise RowError("names no image")
        named = values.get("split")
        if named is not None and not (isinstance(named, str) and not named.strip()):
            own_split = canonical_split(named)
        else:
            own_split = split or _split_of(source)
        identity = as_id(values.get("id"))
        if isinstance(texts, list) and not texts:
            raise RowError("the list of texts is empty")
    except RowError as error:
        yield BadRow(str(source), where, str(error))
        return
    line = where.removeprefix("line ")
    image = image.strip()
    dataset = Path(str(source)).name.removesuffix(".gz").rpartition(".")[0] or Path(str(source)).name
    for k, text in enumerate(texts if isinstance(texts, list) else [texts]):
        suffix = f"#{k}" if isinstance(texts, list) and len(texts) > 1 else ""
        name = (identity or f"{dataset}:{line}") + suffix
        yield Example(name, own_split, image, image, text, f"{source}: {where}", source=dataset)


def _split_of(source: Path) -> str:
    """val.csv and captions_test.jsonl name their split; train.csv may still be split by --val-fraction."""
    stem = Path(str(source)).name.partition(".")[0]
    name = split_of_name(re.split(r"[_\-]", stem)[-1])
    return "" if name == "train" else name


def _names(columns: Mapping[str, str] | None) -> dict[str, str]:
    """Our column names -> the file's."""
    for name in columns or {}:
        if name not in COLUMNS:
            raise UsageError(f"unknown column '{name}'; {nearest(name, COLUMNS)}")
    return {name: (columns or {}).get(name, name) for name in COLUMNS}


def _separator(source: Path, header: str, names: Mapping[str, str], given: str | None) -> str:
    if given is not None:
        given = {"tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";"}.get(given, given)
        if len(given) != 1:
            raise UsageError(f"the delimiter '{given}' is not one character")
        return given
    for delimiter in _DELIMITERS:
        fields = [f.strip() for f in next(csv.reader([header], delimiter=delimiter), [])]
        if all(names[name] in fields for name in REQUIRED):
            return delimiter
    return "\t" if ".tsv" in Path(str(source)).name else max(_DELIMITERS, key=header.count)


def _columns(source: Path, header: list[str], names: Mapping[str, str]) -> dict[str, int]:
    for name in COLUMNS:
        if names[name] not in header and (name in REQUIRED or names[name] != name):
            raise DataError(f"{source}: line 1: no column '{names[name]}'; found: {', '.join(header)}")
        if header.count(names[name]) > 1:
            raise DataError(f"{source}: line 1: two columns are called '{names[name]}'")
    return {name: header.index(names[name]) for name in COLUMNS if names[name] in header}


def _text_lines(source: Path, on_read: OnRead | None) -> Iterator[str]:
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
