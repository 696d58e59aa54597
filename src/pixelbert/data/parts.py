"""A part of a split: to train on a split and hold some of its images out all the same, as is usual for VQA 2.0."""

from __future__ import annotations

from typing import Any

import numpy as np

from pixelbert.data.batches import JoinedSplits, Records, join
from pixelbert.data.records import ImageRef


class SplitPart:
    """The images [first, last) of a split with their records, as a split of its own. For records of one image."""

    def __init__(self, split: Records, first: int, last: int) -> None:
        self.split, self.first = split, first
        self.num_images = last - first
        self._record = split.records_of(first).start
        self.num_records = split.records_of(last - 1).stop - self._record
        self.image_of: np.ndarray = split.image_of[self._record : self._record + self.num_records] - first

    def records_of(self, image: int) -> range:
        whole = self.split.records_of(image + self.first)
        return range(whole.start - self._record, whole.stop - self._record)

    def text(self, record: int) -> str:
        return self.split.text(record + self._record)

    def record_id(self, record: int) -> str:
        return self.split.record_id(record + self._record)

    def target(self, record: int) -> dict[str, Any]:
        return self.split.target(record + self._record)

    def second_image(self, record: int) -> int:
        return -1

    def image_id(self, image: int) -> str:
        return self.split.image_id(image + self.first)

    def image(self, image: int) -> ImageRef:
        return self.split.image(image + self.first)

    def image_places(self) -> list[tuple[str, int]]:
        return self.split.image_places()[self.first : self.first + self.num_images]

    def rows_of_photo(self, image: int) -> list[int]:
        rows = (row - self.first for row in self.split.rows_of_photo(image + self.first))
        return [row for row in rows if 0 <= row < self.num_images]


def whole(records: Records) -> Records:
    """The records with what was held out of them: the official answer list of VQA 2.0 is of all of train and val."""
    if isinstance(records, SplitPart):
        return records.split
    if isinstance(records, JoinedSplits):
        return join([whole(split) for split in records.splits])
    return records
