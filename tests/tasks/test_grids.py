"""Grids of many images, each with its own cells only, against the grids they were made of."""

from __future__ import annotations

import torch

from pixelbert.model.pixels import Grid
from pixelbert.tasks.grids import Grids


def parts() -> list[Grid]:
    """Two images of 2 x 3 and 2 x 2 cells in one part, one of 4 x 1 in another."""
    first = Grid(torch.arange(12.0).view(2, 6, 1), torch.tensor([[True] * 6, [True, True, False] * 2]), (2, 3))
    second = Grid(torch.arange(20.0, 24.0).view(1, 4, 1), torch.ones(1, 4, dtype=torch.bool), (4, 1))
    return [first, second]


def test_a_batch_has_each_image_s_own_cells_and_a_mask() -> None:
    grids = Grids(parts(), 3)
    batch = grids.select(torch.tensor([2, 0, 1, 1]))
    assert batch.pixels.shape == (4, 6, 1) and batch.shape == (1, 6)
    assert batch.mask.sum(1).tolist() == [4, 6, 4, 4]
    own = [batch.pixels[i][batch.mask[i]][:, 0].tolist() for i in range(4)]
    assert own == [[20, 21, 22, 23], [0, 1, 2, 3, 4, 5], [6, 7, 9, 10], [6, 7, 9, 10]]
    assert grids.cells.shape == (14, 1)  # no padding is kept


def test_a_batch_of_images_with_as_many_cells_is_not_padded_whatever_their_shapes() -> None:
    batch = Grids(parts(), 3).select(torch.tensor([1, 2]))
    assert batch.pixels.shape == (2, 4, 1) and batch.mask.all()


def test_large_ones_are_kept_in_half_the_memory() -> None:
    exact, halved = Grids(parts(), 3, most=1000), Grids(parts(), 3, most=8)
    assert (exact.cells.dtype, halved.cells.dtype) == (torch.float32, torch.float16)
    batch = halved.select(torch.tensor([0, 2]))
    assert batch.pixels.dtype == torch.float32
    assert torch.equal(batch.pixels, exact.select(torch.tensor([0, 2])).pixels)
