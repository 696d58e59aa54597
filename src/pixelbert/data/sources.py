"""What the user asked to read: formats, files, and where their images may lie."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pixelbert.data.files import is_url
from pixelbert.data.formats import FORMATS, Format
from pixelbert.data.formats.columns import stem
from pixelbert.data.formats.common import RowError, canonical_split
from pixelbert.errors import DataError, UsageError, nearest

TABLES = ("csv", "jsonl")  # the formats of one's own tables


@dataclass(frozen=True)
class SourceItem:
    """One annotation file (or tar, or prepared folder) to read.

    origin:  number of the SOURCE that it came from; a folder may hold several files.
    guessed: folders in which its images may lie when the user names none.
    beside:  the annotation file that goes with a question file.
    task:    what its rows are for.
    title:   of a table: what rows without an id are called by.
    """

    name: str
    format: Format
    file: Path | str
    split: str | None
    guessed: tuple[str, ...]
    origin: int
    beside: Path | str | None = None
    task: str = ""
    title: str = ""


def parse_sources(
    format: str, sources: Sequence[str | Path], split: str | None, reader: Mapping[str, Any] | None = None
) -> list[SourceItem]:
    """The files behind FORMAT SOURCE..., folders searched.

    FORMAT `mix` takes its sources as `format=path` or `format:split=path`. `reader` are the options of the readers.
    Raises UsageError for an unknown format or split, with the nearest name, and DataError for a source that does not
    exist or is for another task than those before it.
    """
    if not sources:
        raise UsageError("no SOURCE given")
    split = option_split(split)
    items: list[SourceItem] = []
    for origin, source in enumerate(sources):
        name, own_split, path = format, split, str(source)
        if format == "mix":
            name, equals, path = str(source).partition("=")
            name, _, named = name.partition(":")
            own_split = option_split(named) if named else split
            if not equals or not path:
                raise UsageError(f"'{source}': the format 'mix' takes sources as FORMAT=PATH")
        if name not in FORMATS:
            raise UsageError(f"unknown format '{name}'; {nearest(name, [*FORMATS, 'mix'])}")
        items += _items(name, path, own_split, origin)
    items = [replace(item, task=_task(item, reader or {})) for item in _titled(_pair(_first_origins(items)))]
    for item in items:
        if item.task != items[0].task:
            raise DataError(
                f"{item.file}: holds data for the task {item.task}, and the sources before it for {items[0].task}"
            )
    return items


def _first_origins(items: list[SourceItem]) -> list[SourceItem]:
    """A file that is named again belongs to the SOURCE that named it first: its rows are found to be repeated."""
    first: dict[str, int] = {}
    real = [str(item.file) if is_url(item.file) else os.path.realpath(item.file) for item in items]
    return [replace(item, origin=first.setdefault(file, item.origin)) for file, item in zip(real, items, strict=True)]


def _pair(items: list[SourceItem]) -> list[SourceItem]:
    """Two files that make one source become one item, where the first of them stood."""
    for form in {item.name: item.format for item in items if item.format.pair}.values():
        own = {str(item.file): item for item in items if item.format is form}
        pairs = {str(file): second for file, second in form.pair([item.file for item in own.values()])}  # type: ignore[misc]
        items = [
            _with(item, pairs[str(item.file)], own) if item.format is form else item
            for item in items
            if item.format is not form or str(item.file) in pairs
        ]
    return items


def _with(item: SourceItem, second: Path | str | None, own: Mapping[str, SourceItem]) -> SourceItem:
    other = own.get(str(second), item)
    guessed = (*item.guessed, *(folder for folder in other.guessed if folder not in item.guessed))
    return replace(item, beside=second, split=item.split or other.split, guessed=guessed)


def _titled(items: list[SourceItem]) -> list[SourceItem]:
    titles = table_titles([item.file for item in items if item.name in TABLES])
    return [replace(item, title=titles[str(item.file)]) if item.name in TABLES else item for item in items]


def table_titles(files: Sequence[Path | str]) -> dict[str, str]:
    """What each table is called: its file's name without the ending, or as much of the path as tells two files apart.

    A file that is named twice is one: what its rows are called by tells that they were read before.
    """
    real = {str(file): str(file) if is_url(file) else os.path.realpath(file) for file in files}
    names = {real[file]: _names(file) for file in real}
    titles: dict[str, str] = {}
    level = 0
    while len(titles) < len(names):
        told = {file: own[min(level, len(own) - 1)] for file, own in names.items()}
        times = Counter(told.values())
        titles |= {file: title for file, title in told.items() if file not in titles and times[title] == 1}
        level += 1
    return {file: titles[real[file]] for file in real}


def _names(file: str) -> list[str]:
    """data, data.csv, x/data, x/data.csv, ...: what a file may be called, the shortest first."""
    *folders, name = (file if is_url(file) else os.path.abspath(file)).strip("/").split("/")
    above = ["".join(f"{folder}/" for folder in folders[depth:]) for depth in range(len(folders), -1, -1)]
    return [folder + end for folder in above for end in (stem(name), name)]


def _task(item: SourceItem, reader: Mapping[str, Any]) -> str:
    task = item.format.task
    return task if isinstance(task, str) else task(item.file, split=item.split, **reader)


def _items(name: str, path: str, split: str | None, origin: int) -> list[SourceItem]:
    form = FORMATS[name]
    items = []
    files: list[Path | str] = [path] if is_url(path) else [*form.locate(Path(path))]
    for file in files:
        if is_url(path):
            guessed: tuple[str, ...] = (path.rpartition("/")[0],)
        elif Path(path).is_dir():
            guessed = (path,)
        else:
            folder = Path(file).parent
            guessed = (str(folder), str(folder.parent)) if folder.name == "annotations" else (str(folder),)
        items.append(SourceItem(name, form, file, split, guessed, origin))
    return items


def option_split(split: str | None) -> str | None:
    """A split named by an option. Raises UsageError for an unknown one, with the nearest name."""
    if split is None:
        return None
    try:
        return canonical_split(split)
    except RowError as error:
        raise UsageError(str(error)) from error
