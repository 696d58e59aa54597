"""Image-text matching: which pairs get a foreign text, and which text (Section 3.3)."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Sequence

import numpy as np
import torch
from torch import Tensor

from pixelbert.data.batches import Records
from pixelbert.errors import DataError

_WORD = re.compile(r"\w+")
_RANDOM_TRIES = 100


def is_negative(position: int, ratio: float) -> bool:
    """Whether the pair at this place of the stream gets another photo's text: the places are spread evenly.

    With a ratio of one half every second pair is negative, so any even run of pairs holds exactly half, however the
    stream is cut into steps, micro-batches and ranks. Which record stands where is drawn anew every epoch.
    """
    return int((position + 1) * ratio) > int(position * ratio)


def text_key(text: str) -> str:
    """The same for texts that say the same: case, accents, spaces and punctuation do not count."""
    if not text.isascii():
        text = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return " ".join(_WORD.findall(text.casefold())) or text


def own_keys(records: Records, image: int) -> set[str]:
    """The keys of all texts of an image, in whichever of joined splits they stand."""
    rows = records.rows_of_photo(image)
    return {text_key(records.text(record)) for row in rows for record in records.records_of(row)}


def true_of(records: Records, images: Sequence[int], keys: Sequence[str]) -> Tensor:
    """bool [I, T]: which of the texts with these keys are true of which image: its own, and equal ones."""
    own = [own_keys(records, image) for image in images]
    return torch.tensor([[key in mine for key in keys] for mine in own])


def draw_foreign(
    records: Records, image: int, draw: np.random.Generator, among: np.ndarray | None = None, own: Collection[str] = ()
) -> int:
    """A record of another image whose text is not one of this image's own.

    Args:
        among: the records to draw from, int64; None = all.
        own: the keys of the image's own texts, where they are known already.

    Raises DataError when there is no such record.
    """
    own, rows = own or own_keys(records, image), records.rows_of_photo(image)
    count = records.num_records if among is None else len(among)

    def foreign(place: int) -> int:
        """The record at a place, -1 when it will not do."""
        record = place if among is None else int(among[place])
        same_image = int(records.image_of[record]) in rows
        return -1 if same_image or text_key(records.text(record)) in own else record

    for _ in range(_RANDOM_TRIES):
        if (record := foreign(int(draw.integers(count)))) >= 0:
            return record
    start = int(draw.integers(count))  # nearly all texts are equal: look at every one, from a random place on
    for place in range(start, start + count):
        if (record := foreign(place % count)) >= 0:
            return record
    raise DataError(
        f"image {records.image_id(image)}: no mismatched text can be drawn for it, because no other image has a text "
        "that differs from its own"
    )
