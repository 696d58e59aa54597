"""From feature maps to pixels: 2 x 2 max pool, projection, Eq. (5), and random pixel sampling (Section 3.3)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pixelbert.model.config import PixelBertConfig

MAX_POSITION = 64  # rows and columns with a learned position; cells beyond share the last


@dataclass
class Grid:
    """All pixels of some images: `pixels` [I, N, d], `mask` bool [I, N], and `shape` (h, w) with N = h * w.

    Cells are in raster order; where images differ in size, `mask` tells which cells belong to them.
    """

    pixels: Tensor
    mask: Tensor
    shape: tuple[int, int]

    def select(self, images: Tensor) -> Grid:
        """The grids of the images [T], one per text copy."""
        # index_select and not [images]: its backward adds in a fixed order, also with several threads on a CPU
        return Grid(self.pixels.index_select(0, images), self.mask.index_select(0, images), self.shape)


def mean_over(vectors: Tensor, mask: Tensor) -> Tensor:
    """Mean over the valid places: [B, N, d], bool [B, N] -> [B, d]; 0 where there is none."""
    weights = mask.to(vectors.dtype)[..., None]
    return (vectors * weights).sum(1) / weights.sum(1).clamp(min=1)


class PixelEmbedding(nn.Module):
    """Feature maps -> pixel vectors: v_i + s_v, Eq. (5)."""

    def __init__(self, config: PixelBertConfig, channels: int) -> None:
        super().__init__()
        size = config.hidden_size
        self.pool = nn.MaxPool2d(2, ceil_mode=True) if config.visual_pool else None
        # whole channels: what falls on single cells is averaged out over the many of an image
        self.channel_dropout = nn.Dropout2d(config.visual_channel_dropout)
        kernel = 3 if config.visual_projection == "conv3x3" else 1
        self.projection = nn.Conv2d(channels, size, kernel, padding=kernel // 2)
        self.type_embedding = nn.Parameter(torch.zeros(size))  # s_v; starts as BERT's type-1 row (weights.py)
        self.position = config.visual_position
        if self.position == "learned2d":
            self.row_embedding = nn.Embedding(MAX_POSITION, size)
            self.column_embedding = nn.Embedding(MAX_POSITION, size)
        eps = config.text_config.layer_norm_eps
        self.layer_norm = nn.LayerNorm(size, eps=eps) if config.visual_layer_norm else None
        self.dropout = nn.Dropout(config.visual_dropout)
        self.rounds_maps = False  # as maps that a run kept are rounded: what sees fresh ones answers alike

    def forward(self, features: Tensor, mask: Tensor) -> Grid:
        """features [I, C, h, w], mask bool [I, h, w] -> Grid of d-wide pixels."""
        features, mask = self.pooled(features, mask)
        return self.embed(features.half().to(features.dtype) if self.rounds_maps else features, mask)

    def pooled(self, features: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Behind the 2 x 2 max pool, which has no parameters: [I, C, h / 2, w / 2] and its mask, halves rounded up."""
        if self.pool is None:
            return features, mask
        # a pooled cell is valid if any of its four is; the others must not win the maximum
        features = self.pool(features.masked_fill(~mask[:, None], float("-inf")))
        return features, self.pool(mask[:, None].float())[:, 0] > 0

    def embed(self, features: Tensor, mask: Tensor) -> Grid:
        """What follows the pool: [I, C, h, w] -> Grid of d-wide pixels."""
        features = features.masked_fill(~mask[:, None], 0.0)
        vectors = self.projection(self.channel_dropout(features))
        height, width = vectors.shape[-2:]
        vectors = vectors.flatten(2).transpose(1, 2) + self.type_embedding
        if self.position != "none":
            vectors = vectors + self._positions(height, width, vectors)
        if self.layer_norm is not None:
            vectors = self.layer_norm(vectors)
        return Grid(self.dropout(vectors), mask.flatten(1), (height, width))

    def _positions(self, height: int, width: int, like: Tensor) -> Tensor:
        """[h * w, d]: row vector + column vector of each cell."""
        rows = torch.arange(height, device=like.device)
        columns = torch.arange(width, device=like.device)
        if self.position == "learned2d":
            row = self.row_embedding(rows.clamp(max=MAX_POSITION - 1))
            column = self.column_embedding(columns.clamp(max=MAX_POSITION - 1))
            return (row[:, None] + column[None]).flatten(0, 1)
        half = like.shape[-1] // 2
        row, column = _sine(rows, half), _sine(columns, like.shape[-1] - half)
        both = torch.cat([row[:, None].expand(-1, width, -1), column[None].expand(height, -1, -1)], dim=-1)
        return both.flatten(0, 1).to(like.dtype)


def _sine(positions: Tensor, size: int) -> Tensor:
    """Fixed sine and cosine vectors of integer positions [n] -> [n, size], as in the Transformer."""
    rates = torch.exp(torch.arange(0, size, 2, device=positions.device) * (-math.log(10000.0) / size))
    angles = positions[:, None].float() * rates
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :size]


def cell_noise(seeds: Tensor, shape: tuple[int, int]) -> Tensor:
    """A random number in [0, 2^31) for each cell, from a counter: int64 [T, h * w].

    It depends on the seed and on the cell's row and column alone, so a record keeps the same pixels whatever else is
    in its batch, on any device and after any restart. The mixing is the finaliser of MurmurHash3 on 32 bits.
    """
    height, width = shape
    rows = torch.arange(height, device=seeds.device)[:, None]
    columns = torch.arange(width, device=seeds.device)[None]
    x = (seeds[:, None] + (rows * 65536 + columns).flatten() * 0x9E3779B1) & 0xFFFFFFFF
    for shift, multiplier in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = ((x ^ (x >> shift)) * multiplier) & 0xFFFFFFFF  # products wrap at 2^64, which leaves the low 32 bits right
    return (x ^ (x >> 16)) >> 1


def sample_pixels(grid: Grid, count: int, seeds: Tensor) -> Grid:
    """Random pixel sampling (Section 3.3): `count` valid pixels of each grid, without replacement.

    An image with fewer valid pixels gives all it has, the rest is masked; padding is never sampled. Pixels stay in
    raster order. `seeds` int64 [T], one per text copy; sampling as many as there are returns the grid as it is.
    """
    cells = grid.mask.shape[1]
    if count <= 0 or count >= cells:
        return grid
    noise = cell_noise(seeds, grid.shape).masked_fill(~grid.mask, -1)
    index = noise.topk(count, dim=1).indices.sort(dim=1).values
    pixels = grid.pixels.gather(1, index[..., None].expand(-1, -1, grid.pixels.shape[-1]))
    return Grid(pixels, grid.mask.gather(1, index), (1, count))
