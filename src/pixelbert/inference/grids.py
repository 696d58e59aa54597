"""Pictures to pixels for the Predictor: read, known by their content, encoded once, kept in a bounded cache."""

from __future__ import annotations

import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pixelbert.errors import UsageError
from pixelbert.model.image_processing import (
    BadImage,
    ImageLimits,
    ImageSource,
    collate_images,
    decode_image,
    load_image,
    read_limited,
)
from pixelbert.model.pixels import Grid
from pixelbert.tasks.inputs import Inputs
from pixelbert.tasks.objective import Objective

_AT_ONCE = 16  # pictures of one size a forward pass of the CNN
_URL_SECONDS = 20


@dataclass(frozen=True)
class Encoded:
    """The pixels of one picture: cells [N, d] in raster order, `shape` (rows, columns), `size` (height, width) seen."""

    cells: Tensor
    shape: tuple[int, int]
    size: tuple[int, int]

    @property
    def bytes(self) -> int:
        """Of memory."""
        return self.cells.numel() * self.cells.element_size()


@dataclass(frozen=True)
class Picture:
    """A picture that was read: its name for messages, what it is known by, and its encoded bytes or uint8 pixels."""

    name: str
    key: bytes
    content: Any


class ImageGrids:
    """Pictures -> their pixels. Each is encoded alone or beside others of its own size, so that none is padded.

    Args:
        objective: has the model. inputs: the task's rule of sizes, limits, and the constant of a blind run.
        most_bytes: of pixels kept; the least recently used go first. 0 keeps none.
        allow_urls: whether http and https addresses are opened.
        lock: held while the model runs: the CNN keeps the sizes of a batch as it goes.
    """

    def __init__(
        self, objective: Objective, inputs: Inputs, most_bytes: int, allow_urls: bool, lock: threading.RLock
    ) -> None:
        self.objective, self.inputs, self.most_bytes = objective, inputs, most_bytes
        self.allow_urls, self.lock = allow_urls, lock
        self.device = next(objective.parameters()).device
        self._kept: OrderedDict[bytes, Encoded] = OrderedDict()
        self._bytes = 0

    def read(self, source: ImageSource, name: str) -> Picture:
        """Read a path, bytes, PIL image, array, tensor or URL. Raises BadImage with its name; UsageError for a URL."""
        limits = self.inputs.limits
        if isinstance(source, (str, os.PathLike)):
            if not str(source):
                raise UsageError(f"{name}: its path is empty")
            name = str(source)
            content: Any = self._read_named(name, limits)
        elif isinstance(source, (bytes, bytearray, memoryview)):
            content = bytes(source)
        else:
            content = _named(name, lambda: decode_image(source, limits=limits))
        key = hashlib.blake2b(content if isinstance(content, bytes) else content.tobytes(), digest_size=16)
        if not isinstance(content, bytes):
            key.update(repr(content.shape).encode())
        return Picture(name, key.digest(), content)

    def _read_named(self, name: str, limits: ImageLimits) -> bytes:
        if name.lower().startswith(("http://", "https://")):
            if not self.allow_urls:
                raise UsageError(f"{name}: is a URL, which is opened only with allow_urls=True (--allow-urls)")
            return _named(name, lambda: _download(name, limits))
        return _named(name, lambda: read_limited(Path(name), limits))

    def __call__(self, pictures: Sequence[Picture]) -> list[Encoded]:
        """The pixels of each picture, in order. Raises BadImage for one that cannot be decoded."""
        with self.lock:
            found = {p.key: self._kept[p.key] for p in pictures if p.key in self._kept}
            for key in found:
                self._kept.move_to_end(key)
        missing = {p.key: p for p in pictures if p.key not in found}
        pixels = {key: self._decode(picture) for key, picture in missing.items()}
        for size in dict.fromkeys(p.shape[:2] for p in pixels.values()):
            same = [key for key, p in pixels.items() if p.shape[:2] == size]
            for start in range(0, len(same), _AT_ONCE):
                keys = same[start : start + _AT_ONCE]
                for key, encoded in zip(keys, self._encode([pixels[k] for k in keys]), strict=True):
                    found[key] = encoded
                    self._keep(key, encoded)
        return [found[p.key] for p in pictures]

    def pixels(self, picture: Picture) -> np.ndarray:
        """The picture as a person sees it, uint8 [H, W, 3]."""
        return _named(picture.name, lambda: decode_image(picture.content, limits=self.inputs.limits))

    def _decode(self, picture: Picture) -> np.ndarray:
        """What the model sees, uint8 [h, w, 3]."""
        rule, limits = self.inputs.rule, self.inputs.limits
        pixels = _named(picture.name, lambda: load_image(picture.content, rule, limits))
        if self.inputs.constant is not None:
            return np.broadcast_to(np.array(self.inputs.constant, dtype=np.uint8), pixels.shape)
        return pixels

    def _encode(self, pixels: Sequence[np.ndarray]) -> list[Encoded]:
        values, sizes = collate_images(pixels, self.inputs.size_divisor)
        batch = {"pixel_values": values.to(self.device), "image_sizes": sizes.to(self.device)}
        with self.lock:
            grid = self.objective.encode_images(batch)
        size = (pixels[0].shape[0], pixels[0].shape[1])
        return [Encoded(cells.clone(), grid.shape, size) for cells in grid.pixels]

    def _keep(self, key: bytes, encoded: Encoded) -> None:
        if encoded.bytes > self.most_bytes:
            return
        with self.lock:
            if key not in self._kept:
                self._kept[key] = encoded
                self._bytes += encoded.bytes
            while self._bytes > self.most_bytes:
                _, oldest = self._kept.popitem(last=False)
                self._bytes -= oldest.bytes


def put_together(encoded: Sequence[Encoded]) -> Grid:
    """Pictures of any sizes as one grid of I images, their cells in one row each; what is beyond them is masked."""
    counts = torch.tensor([len(e.cells) for e in encoded], device=encoded[0].cells.device)
    cells = torch.nn.utils.rnn.pad_sequence([e.cells for e in encoded], batch_first=True)
    mask = torch.arange(cells.shape[1], device=cells.device) < counts[:, None]
    return Grid(cells, mask, (1, cells.shape[1]))


def _named(name: str, read: Any) -> Any:
    """`read()`, with the picture's name before what is wrong with it."""
    try:
        return read()
    except BadImage as error:
        raise BadImage(f"{name}: {error}") from error


def _download(address: str, limits: ImageLimits) -> bytes:
    from http.client import HTTPException
    from urllib.error import URLError
    from urllib.request import Request, urlopen

    try:
        with urlopen(Request(address, headers={"User-Agent": "pixelbert"}), timeout=_URL_SECONDS) as stream:
            data: bytes = stream.read(limits.max_bytes + 1)
    except (URLError, HTTPException, OSError, ValueError) as error:
        raise BadImage(f"cannot be downloaded ({getattr(error, 'reason', error)})") from error
    limits.check_bytes(len(data))
    return data
