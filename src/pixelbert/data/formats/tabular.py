"""The user's own data: CSV and JSONL. Which columns there are says what the rows are for: see `columns`.

Several texts of an image are several rows, or in JSONL a list: {"image": "a.jpg", "text": ["one", "two"]}. Text is
UTF-8, with or without a byte order mark. The columns may have other names: `columns={"image": "file"}`.
"""

from __future__ import annotations

import csv
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pixelbert.data.files import OnRead
from pixelbert.data.formats.columns import COLUMNS, IMAGE_COLUMNS, OwnRows, missing_column, missing_labels, task_of
from pixelbert.data.formats.common import find_annotations, is_cut_off, not_json, parse_json, split_of_name, text_lines
from pixelbert.data.records import BadRow, Example
from pixelbert.errors import DataError, UsageError, nearest

_DELIMITERS = (",", "\t", ";", "|")
_MAX_FIELD = 1 << 24
_LINES_TO_TELL_TASK = 100
_QUOTE = "a quote opens here and closes only in line"
_PICTURE = re.compile(r"^\s*\S+\.(jpe?g|png|webp|gif|bmp|tiff?)\s*$", re.IGNORECASE)


def locate_csv(source: Path) -> list[Path]:
    """The CSV files of a folder."""
    return find_annotations(source, ("*.csv", "*.csv.gz", "*.tsv", "*.tsv.gz"), "CSV file", depth=0)


def locate_jsonl(source: Path) -> list[Path]:
    """The JSONL files of a folder."""
    return find_annotations(source, ("*.jsonl", "*.jsonl.gz"), "JSONL file", depth=0)


def task_of_csv(
    source: Path,
    *,
    split: str | None = None,
    columns: Mapping[str, str] | None = None,
    delimiter: str | None = None,
    **_: Any,
) -> str:
    """What the first row's columns are for. Raises DataError as `read_csv`."""
    names = _names(columns)
    header = _header(source, text_lines(source), names, delimiter, split or _split_of(source))[0]
    return task_of(_ours(header, names))


def task_of_jsonl(source: Path, *, columns: Mapping[str, str] | None = None, **_: Any) -> str:
    """What the fields of the first objects are for; pairs when there is none, for the reader to say what is wrong."""
    return task_of(_ours(_fields_of_objects(source), _names(columns)))


def read_csv(
    source: Path,
    *,
    split: str | None = None,
    columns: Mapping[str, str] | None = None,
    delimiter: str | None = None,
    name: str = "",
    on_read: OnRead | None = None,
    **_: Any,
) -> Iterator[Example | BadRow]:
    """One example a row. The first row names the columns; the delimiter is told from it unless given. Rows without an
    id are called by `name`, else the file's, and their line.

    Raises DataError naming the line when a column is missing, the text is not UTF-8, a quote is never closed, or a
    label is none or spelled in several ways.
    """
    names = _names(columns)
    split = split or _split_of(source)
    lines = text_lines(source, on_read)
    header, separator = _header(source, lines, names, delimiter, split)
    place = _ours(header, names)
    task, images = task_of(place), [place[side] for side in IMAGE_COLUMNS if side in place]
    own = OwnRows(source, task, split, name, _lacking(task, header, names))
    rows = csv.reader(lines, delimiter=separator, strict=True)
    any_row = False
    while True:
        line = rows.line_num + 2  # where the next row begins; line 1 is the header
        try:
            row = next(rows, None)
        except csv.Error as error:
            if "expected after" not in str(error):  # a quote that is never closed swallows the rest of the file
                raise DataError(f"{source}: line {line}: not valid CSV ({error})") from error
            if rows.line_num >= line:
                raise DataError(f"{source}: line {line}: {_QUOTE} {rows.line_num + 1} ({error})") from error
            yield BadRow(str(source), f"line {line}", f"not valid CSV ({error})", split)
            any_row = True
            continue
        if row is None:
            break
        if not row:
            continue
        any_row = True
        if rows.line_num >= line and _holds_rows(row, images, separator):
            raise DataError(f"{source}: line {line}: {_QUOTE} {rows.line_num + 1}, over other rows")
        if len(row) != len(header):
            yield BadRow(str(source), f"line {line}", f"has {len(row)} fields, expected {len(header)}", split)
            continue
        yield from own.examples(f"line {line}", {ours: row[column] for ours, column in place.items()})
    if not any_row:
        raise DataError(f"{source}: has a header and no row")
    own.labels.check()


def read_jsonl(
    source: Path,
    *,
    split: str | None = None,
    columns: Mapping[str, str] | None = None,
    name: str = "",
    on_read: OnRead | None = None,
    **_: Any,
) -> Iterator[Example | BadRow]:
    """One example a line (of pairs: a text). A line that is no object, or lacks a column, is a bad row. Ids as in
    `read_csv`.

    Raises DataError naming the line when the text is not UTF-8, the last line is cut off, the first lacks a column,
    or a label is none or spelled in several ways.
    """
    names = _names(columns)
    split = split or _split_of(source)
    fields = _fields_of_objects(source)
    place = _ours(fields, names)
    names |= {ours: fields[number] for ours, number in place.items()}  # as this file spells them
    task = task_of(place)
    own = OwnRows(source, task, split, name, _lacking(task, fields, names))
    number = 0
    for number, line in enumerate(text_lines(source, on_read), 1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError as error:
            if is_cut_off(line):
                raise DataError(f"{source}: line {number}: {not_json(line, error)}") from error
            yield BadRow(str(source), f"line {number}", not_json(line, error), split)
            continue
        if not isinstance(row, dict):
            reason = f"an object was expected, found {type(row).__name__}"
            yield BadRow(str(source), f"line {number}", reason, split)
            continue
        values = {ours: row[theirs] for ours, theirs in names.items() if theirs in row}
        missing = own.missing(values)
        if missing:
            reason = _no_column(missing, row, names)
            if number == 1:
                raise DataError(f"{source}: line 1: {reason}")
            yield BadRow(str(source), f"line {number}", reason, own.split_of(values))
            continue
        yield from own.examples(f"line {number}", values)
    if number == 0:
        raise DataError(f"{source}: the file is empty")
    own.labels.check()


def _holds_rows(row: Sequence[str], images: Sequence[int], separator: str) -> bool:
    """Whether a field of several lines has swallowed rows of the table: one of its lines has a picture's place."""
    lines = [line.split(separator) for field in row for line in field.splitlines()[1:]]
    return any(len(line) > i and _PICTURE.search(line[i]) for line in lines for i in images)


def _fields_of_objects(source: Path) -> list[str]:
    """The fields of the first hundred lines together, so that one which lacks a label hides nothing."""
    fields: dict[str, None] = {}
    for line in itertools.islice(text_lines(source), _LINES_TO_TELL_TASK):
        with suppress(ValueError):
            row = parse_json(line)
            fields.update(dict.fromkeys(row if isinstance(row, dict) else ()))
    return list(fields)


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


def _ours(columns: Sequence[str], names: Mapping[str, str]) -> dict[str, int]:
    """Where each of our columns stands; `Image` is image where no column is called so exactly."""
    place = {}
    for ours, theirs in names.items():
        found = [number for number, name in enumerate(columns) if name == theirs]
        found = found or [number for number, name in enumerate(columns) if name.casefold() == theirs.casefold()]
        if found:
            place[ours] = found[0]
    return place


def _header(
    source: Path, lines: Iterator[str], names: Mapping[str, str], delimiter: str | None, split: str
) -> tuple[list[str], str]:
    """The names of the columns, and the delimiter; takes the first of `lines`."""
    csv.field_size_limit(_MAX_FIELD)
    first = next(lines, None)
    if first is None:
        raise DataError(f"{source}: the file is empty")
    if "\r" in first.rstrip("\r\n"):
        raise DataError(f"{source}: line 1: lines end with a bare carriage return; save the file with \\n line ends")
    separator = _separator(source, first, names, delimiter, split)
    header = _fields(source, first, separator)
    place = _ours(header, names)
    renamed = [name for name in COLUMNS if names[name] != name and name not in place]
    missing = (renamed[0],) if renamed else missing_column(place, split)
    if missing:
        raise DataError(f"{source}: line 1: {_no_column(missing, header, names)}")
    for name, number in place.items():
        if header.count(header[number]) > 1:
            raise DataError(f"{source}: line 1: two columns are called '{names[name]}'")
    return header, separator


def _fields(source: Path, header: str, delimiter: str) -> list[str]:
    try:
        return [field.strip() for field in next(csv.reader([header], delimiter=delimiter), [])]
    except csv.Error as error:
        raise DataError(f"{source}: line 1: not valid CSV ({error})") from error


def _no_column(missing: tuple[str, ...], found: Iterable[str], names: Mapping[str, str]) -> str:
    """What to tell of a column that is missing, or of several of which one would do."""
    told = " or ".join(f"'{names[name]}'" for name in missing)
    return f"no column {told}; found: {', '.join(found) or 'nothing'}"


def _lacking(task: str, columns: Sequence[str], names: Mapping[str, str]) -> str:
    """What to tell of a table without any column of answers or labels, "" when it has one or its task needs none."""
    missing = missing_labels(_ours(columns, names), task)
    return _no_column(missing, columns, names) if missing else ""


def _separator(source: Path, header: str, names: Mapping[str, str], given: str | None, split: str) -> str:
    if given is not None:
        given = {"tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";"}.get(given, given)
        if len(given) != 1:
            raise UsageError(f"the delimiter '{given}' is not one character")
        return given
    for delimiter in _DELIMITERS:
        if not missing_column(_ours(_fields(source, header, delimiter), names), split):
            return delimiter
    return "\t" if ".tsv" in Path(str(source)).name else max(_DELIMITERS, key=header.count)
