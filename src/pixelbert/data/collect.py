"""Rows of all sources into one spool; each image looked up once."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable

from pixelbert.data.badrows import BadRows
from pixelbert.data.records import SPLITS, BadRow, Example, Excluded, ImageRef
from pixelbert.data.shards import ImageFinder
from pixelbert.data.sources import SourceItem
from pixelbert.data.spool import Spool
from pixelbert.errors import DataError

AUTO = len(SPLITS)  # the split code of a row whose file names no split
# Ids of these are unique over all their files, so that a caption read twice is found out.
_ONE_ID_SPACE = ("coco", "visual_genome", "flickr30k", "flickr8k")


class Collector:
    """Takes examples, resolves their images and spools them; bad ones go to the list.

    refs, image_ids: where each image lies and what it is called, by image number.
    seen: rows by split code, good or bad. excluded: {reason: [photos, rows]}.
    """

    def __init__(self, spool: Spool, bad: BadRows) -> None:
        self.refs: list[ImageRef] = []
        self.image_ids: list[str] = []
        self.seen: Counter[int] = Counter()
        self.excluded: dict[str, list[int]] = {}
        self._spool = spool
        self.bad = bad
        self._place: dict[tuple[str, int], int] = {}

    def read(self, number: int, item: SourceItem, rows: Iterable[Example | BadRow | Excluded], finder: ImageFinder) -> None:
        """All rows of one source; `number` tells sources apart."""
        names: dict[str, int | str] = {}  # image name -> its number, or why it has none
        default = AUTO if item.split is None else SPLITS.index(item.split)
        for row in rows:
            if isinstance(row, Example):
                code = SPLITS.index(row.split) if row.split else default
                self.seen[code] += 1
                try:
                    self._add(number, item, row, code, names, finder)
                except _Rejected as rejected:
                    file, _, place = row.where.rpartition(": ")
                    self.bad.add(BadRow(file, place, str(rejected)))
            elif isinstance(row, BadRow):
                self.bad.add(row)
            else:
                counts = self.excluded.setdefault(row.reason, [0, 0])
                counts[0] += 1
                counts[1] += row.rows

    def _add(
        self, number: int, item: SourceItem, row: Example, code: int, names: dict[str, int | str], finder: ImageFinder
    ) -> None:
        text = _checked_text(row.text)
        image = self._number(row.image, row.image_id, row.ref, names, finder)
        image2 = -1 if row.image2 is None else self._number(row.image2, row.image2, row.ref2, names, finder)
        target = json.dumps(row.target, ensure_ascii=False, sort_keys=True) if row.target else ""
        self._spool.add(
            code, image, image2, _scope(number, item, row), _checked_id(row.id), text, target, row.source, row.where
        )

    def _number(
        self, name: str, image_id: str, ref: ImageRef | None, names: dict[str, int | str], finder: ImageFinder
    ) -> int:
        known = names.get(name)
        if known is None:
            known = names[name] = self._look_up(name, image_id, ref, finder)
        if isinstance(known, str):
            raise _Rejected(known)
        return known

    def _look_up(self, name: str, image_id: str, ref: ImageRef | None, finder: ImageFinder) -> int | str:
        try:
            _checked_id(name)
            ref = ref or finder.find(name)
        except DataError as error:
            if not str(error).startswith("image "):  # a damaged tar, an unreadable folder: nothing to do with this row
                raise
            return str(error)
        except _Rejected as rejected:
            return str(rejected)
        local = ref.offset < 0 and "://" not in ref.file
        key = (os.path.realpath(ref.file) if local else ref.file, ref.offset)
        if key not in self._place:
            self._place[key] = len(self.refs)
            self.refs.append(ref)
            self.image_ids.append(image_id)
        return self._place[key]


class _Rejected(Exception):
    """Why a row is bad."""


def _checked_text(text: object) -> str:
    if not isinstance(text, str):
        raise _Rejected("the text is missing" if text is None else f"the text is no text but {type(text).__name__}")
    text = text.strip()
    if not text:
        raise _Rejected("the text is empty")
    return _encodable(text, "text")


def _checked_id(name: str) -> str:
    if not name:
        raise _Rejected("the image has no name")
    return _encodable(name, "name")


def _encodable(text: str, what: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise _Rejected(f"the {what} is not valid Unicode (half a surrogate pair)") from error
    return text


def _scope(number: int, item: SourceItem, row: Example) -> str:
    """Within what a record's id must be unique."""
    if row.source in _ONE_ID_SPACE:
        return row.source
    if item.name in ("csv", "jsonl"):
        return "own"
    return f"{number}/{row.source}"


