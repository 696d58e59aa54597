"""Rows of all sources into one spool; each image looked up once."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable

from pixelbert.data.badrows import BadRows
from pixelbert.data.records import SPLITS, TEST_SPLITS, BadRow, Example, Excluded, ImageRef
from pixelbert.data.shards import ImageFinder, ImageNotFound
from pixelbert.data.sources import TABLES, SourceItem
from pixelbert.data.spool import Spool
from pixelbert.model.tokenization import is_blank

HELD_OUT = tuple(SPLITS.index(name) for name in ("val", *TEST_SPLITS))  # split codes
AUTO = len(SPLITS)  # the split code of a row whose file names no split
# Ids of these are unique over all their files, so that a caption or question read twice is found out.
_ONE_ID_SPACE = ("coco", "visual_genome", "flickr30k", "flickr8k", "vqa", "nlvr2")


class Collector:
    """Takes examples, resolves their images and spools them; bad ones go to the list.

    refs, image_ids: where each image lies and what it is called, by image number.
    seen: rows by split code, good or bad. excluded: {reason: [photos, rows]}.
    missing: images that were nowhere. task: what the rows are for.
    textless: rows of held-out splits without a text, as (split code, image id, the bad row).
    """

    def __init__(self, spool: Spool, bad: BadRows) -> None:
        self.refs: list[ImageRef] = []
        self.image_ids: list[str] = []
        self.seen: Counter[int] = Counter()
        self.excluded: dict[str, list[int]] = {}
        self.missing = 0
        self.textless: list[tuple[int, str, BadRow]] = []
        self.task = ""
        self._keep_missing = False
        self._spool = spool
        self.bad = bad
        self._number_of: dict[tuple[str, int], int] = {}

    def read(
        self,
        item: SourceItem,
        rows: Iterable[Example | BadRow | Excluded],
        finder: ImageFinder,
        *,
        keep_missing: bool = False,
    ) -> None:
        """All rows of one file. `keep_missing` takes an image that is nowhere for one that lies at its name."""
        self._keep_missing = keep_missing
        self.task = item.task
        names: dict[str, int | str] = {}  # image name -> its number, or why it has none
        default = AUTO if item.split is None else SPLITS.index(item.split)
        for row in rows:
            if isinstance(row, Example):
                code = SPLITS.index(row.split) if row.split else default
                self.seen[code] += 1
                try:
                    self._add(item, row, code, names, finder)
                except _Rejected as rejected:
                    file, _, place = row.where.rpartition(": ")
                    told = BadRow(file, place, str(rejected))
                    self.bad.add(told, code)
                    if code in HELD_OUT and isinstance(rejected, _Textless):
                        self.textless.append((code, row.image_id, told))
            elif isinstance(row, BadRow):
                self.bad.add(row, SPLITS.index(row.split) if row.split else -1)
            else:
                counts = self.excluded.setdefault(row.reason, [0, 0])
                counts[0] += 1
                counts[1] += row.rows

    def rows_seen(self) -> int:
        """Rows so far: good, bad or left out."""
        return sum(self.seen.values()) + self.bad.total + sum(rows for _, rows in self.excluded.values())

    def _add(self, item: SourceItem, row: Example, code: int, names: dict[str, int | str], finder: ImageFinder) -> None:
        text = _checked_text(row.text)
        image, image2 = self._images(row, names, finder)
        target = json.dumps(row.target, ensure_ascii=False, sort_keys=True) if row.target else ""
        self._spool.add(
            code, image, image2, _scope(item, row), _record_id(row.id), text, _encodable(target, "target"),
            row.source, row.where,
        )  # fmt: skip

    def _images(self, row: Example, names: dict[str, int | str], finder: ImageFinder) -> tuple[int, int]:
        """The numbers of the row's images, -1 for no second one; of two, the missing one is told by its side."""
        if row.image2 is None:
            return self._number(row.image, row.image_id, row.ref, names, finder, row.image_number), -1
        side = "left"
        try:
            left = self._number(row.image, row.image_id, row.ref, names, finder)
            side = "right"
            return left, self._number(row.image2, row.image2, row.ref2, names, finder)
        except _Rejected as rejected:
            raise _Rejected(f"{side} {rejected}") from rejected

    def _number(
        self, name: str, image_id: str, ref: ImageRef | None, names: dict[str, int | str], finder: ImageFinder,
        number: int | None = None,
    ) -> int:  # fmt: skip
        if ref is not None:
            return self._place_of(ref, _checked_id(image_id))
        known = names.get(name)
        if known is None:
            try:
                known = self._place_of(finder.find(_checked_id(name), number), _checked_id(image_id))
            except ImageNotFound as error:
                self.missing += 1
                known = self._place_of(ImageRef(f"missing://{name}"), image_id) if self._keep_missing else str(error)
            except _Rejected as rejected:
                known = str(rejected)
            names[name] = known
        if isinstance(known, str):
            raise _Rejected(known)
        return known

    def _place_of(self, ref: ImageRef, image_id: str) -> int:
        """The number of the image that lies there, a new one for a new place."""
        number = self._number_of.get((ref.file, ref.offset))
        if number is None:
            local = ref.offset < 0 and "://" not in ref.file
            real = (os.path.realpath(ref.file) if local else ref.file, ref.offset)
            number = self._number_of.get(real)
            if number is None:
                number = self._number_of[real] = len(self.refs)
                self.refs.append(ref)
                self.image_ids.append(image_id)
            self._number_of[(ref.file, ref.offset)] = number
        return number


class _Rejected(Exception):
    """Why a row is bad."""


class _Textless(_Rejected):
    """A row that says nothing of its image."""


def _checked_text(text: object) -> str:
    if not isinstance(text, str):
        raise _Textless("the text is missing" if text is None else f"the text is no text but {type(text).__name__}")
    text = text.strip()
    if is_blank(text):
        raise _Textless("the text is empty")
    return _encodable(text, "text")


def _checked_id(name: str) -> str:
    if not name:
        raise _Rejected("image has no name")
    return _encodable(name, "name")


def _record_id(identity: str) -> str:
    """Predictions are written under it, a line each."""
    if any(mark in identity for mark in "\r\n\0"):
        raise _Rejected(f"the id {identity!r} has a line break or a zero byte")
    return _checked_id(identity)


def _encodable(text: str, what: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise _Rejected(f"the {what} is not valid Unicode (half a surrogate pair)") from error
    return text


def _scope(item: SourceItem, row: Example) -> str:
    """Within what a record's id must be unique."""
    if row.source in _ONE_ID_SPACE:
        return row.source
    if item.name in TABLES:
        return "own"
    return f"{item.origin}/{row.source}"
