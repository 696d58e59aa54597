"""Which split every row belongs to, and what two splits share."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from pixelbert.data.collect import AUTO, Collector
from pixelbert.data.records import SPLITS, TEST_SPLITS
from pixelbert.data.spool import Spool
from pixelbert.data.tables import Ints

_TRAIN, _VAL = SPLITS.index("train"), SPLITS.index("val")


def split_codes(spool: Spool, rows: Collector, val_fraction: float, notes: list[str]) -> npt.NDArray[np.int8]:
    """The split code of every row; those whose file names none become train, or val by a hash of the image's id.

    Images of one row stay on one side.
    """
    codes = spool.numbers("split").astype(np.int8)
    auto = np.flatnonzero(codes == AUTO)
    codes[auto] = _TRAIN
    if val_fraction and not len(auto):
        notes.append("the files name the split of every row, so --val-fraction divided nothing")
    if val_fraction and len(auto):
        image, image2 = spool.numbers("image")[auto], spool.numbers("image2")[auto]
        group = _joined(image, image2, len(rows.refs))
        codes[auto] = np.where(_val_groups(group, image, image2, rows, val_fraction, notes), _VAL, _TRAIN)
    return codes


def _joined(image: Ints, image2: Ints, count: int) -> Ints:
    """For each row the least number of an image that its own hang together with, through rows of two images."""
    group = np.arange(count)
    two = image2 >= 0
    first, second = image[two], image2[two]
    while len(first):
        least = np.minimum(group[first], group[second])
        if (group[first] == least).all() and (group[second] == least).all():
            break
        np.minimum.at(group, first, least)
        np.minimum.at(group, second, least)
        group = group[group]
    joined: Ints = group[image]
    return joined


def _val_groups(
    group: Ints, image: Ints, image2: Ints, rows: Collector, val_fraction: float, notes: list[str]
) -> npt.NDArray[np.bool_]:
    """Which rows become val: those of a share of the groups, by a hash of the id of each group's first image.

    A group of more images than that share stays in train. Where far less or more than the share would be held out so,
    rows are divided by their first image alone, and a note says so.
    """
    chosen, share = _chosen(group, image, image2, rows, val_fraction)
    fits = val_fraction / 2 <= share <= (1 + val_fraction) / 2
    if (image2 >= 0).any() and not fits and len(np.unique(image)) > 1:
        notes.append(
            "too many images hang together through rows of two, so --val-fraction divided the rows by their first"
            " image; a column 'split' divides them as you say"
        )
        chosen, _ = _chosen(image, image, np.full_like(image2, -1), rows, val_fraction)
    return chosen


def _chosen(
    group: Ints, image: Ints, image2: Ints, rows: Collector, val_fraction: float
) -> tuple[npt.NDArray[np.bool_], float]:
    """Which rows become val, and their share of the images."""
    used, place_of = np.unique(group, return_inverse=True)
    place = np.array([hash_share(rows.image_ids[i]) for i in used])
    pairs = np.unique(np.stack([np.tile(place_of, 2), np.concatenate([image, image2])]), axis=1)
    size = np.bincount(pairs[0, pairs[1] >= 0], minlength=len(used))
    is_val = (place < val_fraction) & (size <= max(size.min(), val_fraction * size.sum()))
    if len(used) > 1 and not is_val.any():
        least = np.flatnonzero(size == size.min())
        is_val[least[place[least].argmin()]] = True
    if len(used) > 1 and is_val.all():
        is_val[place.argmax()] = False
    return is_val[place_of], float(size[is_val].sum() / size.sum())


def hash_share(image_id: str) -> float:
    """A number in [0, 1) that depends on the image's id alone."""
    return int.from_bytes(hashlib.sha256(image_id.encode()).digest()[:7], "big") / 2**56


def leaks(good: Mapping[int, Ints], spool: Spool, rows: Collector) -> list[str]:
    """A note for every two splits that share an image (train and restval may, and the test splits)."""
    image, image2 = spool.numbers("image"), spool.numbers("image2")
    used = {code: np.setdiff1d(np.union1d(image[chosen], image2[chosen]), [-1]) for code, chosen in good.items()}
    notes = []
    for one in used:
        for other in used:
            shared = np.intersect1d(used[one], used[other]) if one < other else np.zeros(0, dtype=np.int64)
            names = SPLITS[one], SPLITS[other]
            if len(shared) and names != ("train", "restval") and not set(names) <= set(TEST_SPLITS):
                notes.append(
                    f"LEAK: {len(shared):,} image(s) in both {names[0]} and {names[1]},"
                    f" for example {rows.refs[int(shared[0])].file}"
                )
    return notes
