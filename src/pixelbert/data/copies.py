"""Images of the same bytes under two names: a copy of a training picture among the held-out ones is a leak too."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from pixelbert.data.files import file_size, is_url
from pixelbert.data.records import ImageRef
from pixelbert.data.tables import Ints
from pixelbert.errors import DataError

_PROBE = 64  # bytes from the middle of a file: of two compressed pictures these differ


def copies(refs: Sequence[ImageRef], one: Ints, other: Ints) -> list[tuple[int, int]]:
    """Pairs (of `one`, of `other`) of images with the same bytes; each of `one` once, what both hold left out.

    Only what has the length of an image of the other side is opened, and only what has its middle too is read whole.
    Images at URLs are not looked at.
    """
    held = np.setdiff1d(one, other), np.setdiff1d(other, one)
    sizes = [np.array([_size(refs[image]) for image in images.tolist()], dtype=np.int64) for images in held]
    common = np.setdiff1d(np.intersect1d(sizes[0], sizes[1]), [-1, 0])
    left, right = (images[np.isin(size, common)] for images, size in zip(held, sizes, strict=True))
    by_probe: dict[tuple[int, bytes], list[int]] = {}
    for image in right.tolist():
        by_probe.setdefault(_probe(refs[image]), []).append(image)
    found, digests = [], dict[int, bytes]()
    for image in left.tolist():
        for candidate in by_probe.get(_probe(refs[image]), ()):
            for number in (image, candidate):
                if number not in digests:
                    digests[number] = _digest(refs[number])
            if digests[image] and digests[image] == digests[candidate]:
                found.append((image, candidate))
                break
    return found


def _size(ref: ImageRef) -> int:
    """In bytes, -1 where it is not known."""
    if is_url(ref.file):
        return -1
    return ref.length if ref.offset >= 0 else file_size(ref.file)


def _probe(ref: ImageRef) -> tuple[int, bytes]:
    size = _size(ref)
    try:
        with open(ref.file, "rb") as stream:
            stream.seek(max(0, ref.offset) + max(0, size - _PROBE) // 2)
            return size, stream.read(min(size, _PROBE))
    except OSError:
        return -1, b""


def _digest(ref: ImageRef) -> bytes:
    try:
        return hashlib.sha256(ref.read()).digest()
    except (DataError, OSError):
        return b""
