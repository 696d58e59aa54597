"""Where the cells of a grid lie in the photo, as the person who gave the photo sees it.

A photo of H x W pixels is resized to h x w (the processor's rule: the shorter edge, a square, ...), perhaps padded on
the right and at the bottom, and read by a CNN of total stride s. Cell (i, j) stands for the s x s pixels of the
resized photo that begin at (s i, s j); divided by h / H and w / W these are pixels of the photo. What lies past h or
w is padding: a cell that begins there is no part of the photo, one that only reaches there ends at the photo's edge.

A cell's vector sees more than its square: on EfficientNet-Lite0 its input gradient has a spread of 1.4 cells around
the middle of the square, and that middle is right to within a sixth of a cell (docs/attention.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

_FINE = 16  # points a side at which a cell is asked whether an object covers it


@dataclass(frozen=True)
class Cells:
    """The cells of one photo.

    shape: (rows, columns) of the whole grid, padding included.
    stride: pixels of the resized photo a cell is wide and high.
    resized: (height, width) the network saw, without padding.
    photo: (height, width) of the photo itself, orientation applied.
    """

    shape: tuple[int, int]
    stride: int
    resized: tuple[int, int]
    photo: tuple[int, int]

    @cached_property
    def valid_shape(self) -> tuple[int, int]:
        """(rows, columns) that belong to the photo; they are the first ones."""
        rows, columns = (-(-edge // self.stride) for edge in self.resized)
        return min(rows, self.shape[0]), min(columns, self.shape[1])

    @cached_property
    def valid(self) -> np.ndarray:
        """bool [rows, columns]: False on padding."""
        mask = np.zeros(self.shape, dtype=bool)
        mask[: self.valid_shape[0], : self.valid_shape[1]] = True
        return mask

    @cached_property
    def rectangles(self) -> np.ndarray:
        """float64 [rows, columns, 4]: left, top, right, bottom in the photo's own pixels; NaN on padding."""
        scale = [self.photo[0] / self.resized[0], self.photo[1] / self.resized[1]]
        edges = [
            np.minimum(np.arange(count + 1) * self.stride, limit) * factor
            for count, limit, factor in zip(self.shape, self.resized, scale, strict=True)
        ]
        y, x = edges
        boxes = np.empty((*self.shape, 4))
        boxes[..., 0], boxes[..., 2] = x[None, :-1], x[None, 1:]
        boxes[..., 1], boxes[..., 3] = y[:-1, None], y[1:, None]
        boxes[~self.valid] = np.nan
        return boxes

    @cached_property
    def even(self) -> np.ndarray:
        """float64 [rows, columns]: the map of one who looks everywhere alike; 0 on padding, sum 1."""
        return self.valid / self.valid.sum()

    def covered(self, boxes: Sequence[Sequence[float]] | np.ndarray) -> np.ndarray:
        """float64 [rows, columns]: the part of each cell, 0 to 1, that lies in any of the boxes; 0 on padding.

        boxes: [n, 4], each x, y, width, height in the photo's pixels (as COCO has them).
        """
        left, top, right, bottom = np.moveaxis(self.rectangles, -1, 0)
        steps = (np.arange(_FINE) + 0.5) / _FINE
        x = left[..., None] + (right - left)[..., None] * steps  # [rows, columns, fine]
        y = top[..., None] + (bottom - top)[..., None] * steps
        inside = np.zeros((*self.shape, _FINE, _FINE), dtype=bool)
        for box_x, box_y, width, height in np.asarray(boxes, dtype=np.float64).reshape(-1, 4):
            in_x = (x >= box_x) & (x < box_x + width)
            in_y = (y >= box_y) & (y < box_y + height)
            inside |= in_y[..., :, None] & in_x[..., None, :]
        return inside.mean((-1, -2))
