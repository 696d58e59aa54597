"""Pixels of many images in memory, each image's own cells only, put together for any batch of them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from pixelbert.model.pixels import Grid

_MOST = 2**30  # bytes in float32; more are kept in float16, which halves them


class Grids:
    """The grids of images 0, 1, 2, ...; without padding, however much their sizes differ.

    5,000 photos at 800 x 1333 are some 273 cells each: 2 GiB of 768-wide pixels in float16.

    Args:
        parts: grids of a few images each, in order.
        images: how many there are in all.
        most: bytes that float32 may take; beyond them float16 is kept, its rounding far below bfloat16's.
    """

    def __init__(self, parts: Iterable[Grid], images: int, most: int = _MOST) -> None:
        cells: list[Tensor] = []
        counts: list[Tensor] = []
        dtype: torch.dtype | None = None
        for part in parts:
            own = part.pixels[part.mask]
            if dtype is None:
                expected = own.numel() / part.pixels.shape[0] * images * own.element_size()
                dtype = torch.float16 if expected > most else own.dtype
            cells.append(own.to(dtype))
            counts.append(part.mask.sum(1))
        self.cells, self.count = torch.cat(cells), torch.cat(counts)
        self.first = self.count.cumsum(0) - self.count

    def select(self, images: Tensor) -> Grid:
        """The grids of the images int64 [T], their cells in one row each: `shape` is (1, most cells)."""
        first, count = self.first[images], self.count[images]
        places = torch.arange(int(count.max()), device=count.device)
        # beyond an image's last cell the last one is repeated, and masked
        index = first[:, None] + torch.minimum(places, count[:, None] - 1)
        pixels = self.cells.index_select(0, index.flatten()).view(*index.shape, -1)
        return Grid(pixels.float(), places < count[:, None], (1, len(places)))
