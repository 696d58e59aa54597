"""What the user asked to read: formats, files, and where their images may lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pixelbert.data.files import is_url
from pixelbert.data.formats import FORMATS, Format
from pixelbert.data.formats.common import RowError, canonical_split
from pixelbert.errors import UsageError, nearest


@dataclass(frozen=True)
class SourceItem:
    """One annotation file (or tar, or prepared folder) to read.

    origin:  number of the SOURCE that it came from; a folder may hold several files.
    guessed: folders in which its images may lie when the user names none.
    """

    name: str
    format: Format
    file: Path | str
    split: str | None
    guessed: tuple[str, ...]
    origin: int


def parse_sources(format: str, sources: Sequence[str | Path], split: str | None) -> list[SourceItem]:
    """The files behind FORMAT SOURCE..., folders searched.

    FORMAT `mix` takes its sources as `format=path` or `format:split=path`. Raises UsageError for an unknown format
    or split, with the nearest name, and DataError for a source that does not exist.
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
    return items


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
