"""Where cells lie in the photo: against sizes worked out by hand, and against the network's own mask."""

from __future__ import annotations

import numpy as np
import pytest
from attending import noise, pretraining_model, processor

from pixelbert.inference.attention import see
from pixelbert.inference.cells import Cells


def test_a_photo_twice_as_large_as_what_the_network_sees():
    cells = Cells(shape=(2, 3), stride=32, resized=(64, 96), photo=(128, 192))
    assert cells.rectangles[1, 2].tolist() == [128, 64, 192, 128]  # left, top, right, bottom
    assert cells.rectangles[0, 0].tolist() == [0, 0, 64, 64]
    assert cells.valid.all()


def test_a_square_squeezes_a_wide_photo():
    cells = Cells(shape=(7, 7), stride=32, resized=(224, 224), photo=(100, 300))
    assert np.allclose(cells.rectangles[3, 6], [300 * 6 / 7, 100 * 3 / 7, 300, 100 * 4 / 7])


def test_padding_is_invalid_and_the_last_cell_ends_with_the_photo():
    cells = Cells(shape=(4, 4), stride=64, resized=(100, 200), photo=(50, 100))
    assert cells.valid_shape == (2, 4)
    assert cells.valid.sum() == 8
    assert np.isnan(cells.rectangles[2]).all()
    assert cells.rectangles[1, 3].tolist() == [96, 32, 100, 50]
    assert cells.even.sum() == pytest.approx(1)
    assert (cells.even[2:] == 0).all()
    assert (cells.covered([[0, 0, 1000, 1000]]) == cells.valid).all()


def test_covered_counts_overlapping_boxes_once():
    cells = Cells(shape=(1, 2), stride=32, resized=(32, 64), photo=(32, 64))
    assert cells.covered([[0, 0, 16, 32], [8, 0, 8, 32]]).tolist() == [[0.5, 0]]
    assert cells.covered([[0, 0, 16, 32], [16, 16, 32, 16]]).tolist() == [[0.75, 0.25]]
    assert cells.covered([]).tolist() == [[0, 0]]


@pytest.mark.parametrize("size", [(120, 90), (50, 199), (301, 77), (64, 64)])
@pytest.mark.parametrize("pool", [True, False])
def test_cells_tile_the_photo_and_are_those_of_the_network(size, pool):
    photo = see(pretraining_model(visual_pool=pool), processor(), noise(*size))
    cells = photo.cells
    assert cells.photo == size
    assert cells.valid.flatten().tolist() == photo.grid.mask[0].tolist()
    left, top, right, bottom = np.moveaxis(cells.rectangles[cells.valid], -1, 0)
    assert ((right - left) * (bottom - top)).sum() == pytest.approx(size[0] * size[1])
    assert (right.max(), bottom.max()) == (pytest.approx(size[1]), pytest.approx(size[0]))
