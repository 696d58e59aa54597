"""Which split every row belongs to, and what two splits share."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from pixelbert.data.collect import AUTO, Collector
from pixelbert.data.copies import copies
from pixelbert.data.records import SPLITS, TEST_SPLITS, ImageRef
from pixelbert.data.spool import Spool
from pixelbert.data.tables import Ints

# The sentences of `leaks`, and the two splits that each names.
LEAK = re.compile(r"LEAK: \S+ image\(s\) (?:in both|of) (\S+) (?:and|have a copy in) (\S+), for example ")
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
        codes[auto] = np.where(_val_rows(image, image2, rows.image_ids, val_fraction, notes), _VAL, _TRAIN)
    return codes


def _val_rows(
    image: Ints, image2: Ints, image_ids: Sequence[str], val_fraction: float, notes: list[str]
) -> npt.NDArray[np.bool_]:
    """Which rows become val: those of a share of the groups of images that hang together.

    Where far less or more than that share would be held out so, rows are divided by their first image alone, and a note
    says so.
    """
    groups = _joined(image, image2, len(image_ids))
    chosen, share = _chosen(groups, image, np.union1d(image, image2[image2 >= 0]), image_ids, val_fraction)
    fits = val_fraction / 2 <= share <= (1 + val_fraction) / 2
    if (image2 >= 0).any() and not fits and len(np.unique(image)) > 1:
        notes.append(
            "too many images hang together through rows of two, so --val-fraction divided the rows by their first"
            " image; a column 'split' divides them as you say"
        )
        chosen, _ = _chosen(np.arange(len(image_ids)), image, np.unique(image), image_ids, val_fraction)
    return chosen


def _joined(image: Ints, image2: Ints, count: int) -> Ints:
    """For each image the least number of one that it hangs together with, through rows of two images."""
    group: Ints = np.arange(count)
    two = image2 >= 0
    first, second = image[two], image2[two]
    while not np.array_equal(group[first], group[second]):
        least = np.minimum(group[first], group[second])
        np.minimum.at(group, first, least)
        np.minimum.at(group, second, least)
        group = group[group]
    return group


def _chosen(
    groups: Ints, image: Ints, used: Ints, image_ids: Sequence[str], val_fraction: float
) -> tuple[npt.NDArray[np.bool_], float]:
    """The rows whose group becomes val by a hash of its first image's id, and the share of the images `used` in them.

    A group of more images than the share asked for stays in train.
    """
    names, size = np.unique(groups[used], return_counts=True)
    place = np.array([hash_share(image_ids[name]) for name in names])
    is_val = (place < val_fraction) & (size <= max(size.min(), val_fraction * size.sum()))
    if len(names) > 1 and not is_val.any():
        least = np.flatnonzero(size == size.min())
        is_val[least[place[least].argmin()]] = True
    if len(names) > 1 and is_val.all():
        is_val[place.argmax()] = False
    return is_val[np.searchsorted(names, groups[image])], float(size[is_val].sum() / size.sum())


def hash_share(image_id: str) -> float:
    """A number in [0, 1) that depends on the image's id alone."""
    return int.from_bytes(hashlib.sha256(image_id.encode()).digest()[:7], "big") / 2**56


def _told(ref: ImageRef) -> str:
    return ref.file if ref.offset < 0 else f"{ref.file} at byte {ref.offset}"


def leaks(good: Mapping[int, Ints], spool: Spool, rows: Collector) -> list[str]:
    """Notes on every two splits that share an image, or copies of one (train and restval may, and the test splits)."""
    image, image2 = spool.numbers("image"), spool.numbers("image2")
    used = {code: np.setdiff1d(np.union1d(image[chosen], image2[chosen]), [-1]) for code, chosen in good.items()}
    notes = []
    for one in used:
        for other in used:
            names = SPLITS[one], SPLITS[other]
            if one >= other or names == ("train", "restval") or set(names) <= set(TEST_SPLITS):
                continue
            shared = np.intersect1d(used[one], used[other])
            if len(shared):
                example = rows.refs[int(shared[0])].file
                notes.append(f"LEAK: {len(shared):,} image(s) in both {names[0]} and {names[1]}, for example {example}")
            if same := copies(rows.refs, used[one], used[other]):
                first, second = (rows.refs[image] for image in same[0])
                notes.append(
                    f"LEAK: {len(same):,} image(s) of {names[0]} have a copy in {names[1]}, for example {_told(first)}"
                    f" and {_told(second)}"
                )
    return notes
