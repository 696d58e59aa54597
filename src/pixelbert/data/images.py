"""A record's image: from where it lies (`ImageRef`) to uint8 pixels, with errors that name the file."""

from __future__ import annotations

import os

import numpy as np

from pixelbert.data.records import ImageRef
from pixelbert.errors import DataError
from pixelbert.model.image_processing import (
    DEFAULT_LIMITS,
    BadImage,
    ImageLimits,
    ResizeRule,
    collate_images,
    decode_image,
    load_image,
)

__all__ = [
    "BadImage",
    "ImageLimits",
    "ResizeRule",
    "check_image",
    "collate_images",
    "decode_image",
    "describe",
    "load_image",
    "load_ref",
]


def load_ref(ref: ImageRef, rule: ResizeRule, limits: ImageLimits = DEFAULT_LIMITS, *, record: str = "") -> np.ndarray:
    """The record's image, decoded and resized: uint8 [h, w, 3]. Raises DataError naming the file and the record."""
    try:
        return load_image(read_ref(ref, limits), rule, limits)
    except BadImage as error:
        raise DataError(f"{describe(ref, record)}: {error}") from error


def check_image(ref: ImageRef, limits: ImageLimits = DEFAULT_LIMITS, *, record: str = "") -> tuple[int, int]:
    """Decode the image once and return its (height, width). Raises DataError naming the file and the record."""
    try:
        pixels = decode_image(read_ref(ref, limits), limits=limits)
    except BadImage as error:
        raise DataError(f"{describe(ref, record)}: {error}") from error
    return pixels.shape[0], pixels.shape[1]


def read_ref(ref: ImageRef, limits: ImageLimits = DEFAULT_LIMITS) -> bytes:
    """The encoded bytes, not read at all when there are too many. Raises BadImage or DataError."""
    if ref.offset >= 0:
        limits.check_bytes(ref.length)
    elif "://" not in ref.file:
        try:
            limits.check_bytes(os.stat(ref.file).st_size)
        except OSError as error:
            raise BadImage(f"cannot be read ({error.strerror or error})") from error
    return ref.read()


def describe(ref: ImageRef, record: str = "") -> str:
    """What to call an image in a message: its file, its place in a shard, and the record that asks for it."""
    where = ref.file if ref.offset < 0 else f"{ref.file} at byte {ref.offset}"
    return f"{where} (record {record})" if record else where
