"""Eq. (5): pool, projection, type and position vectors; random pixel sampling of Section 3.3."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import relative, tiny_config
from torch import Tensor, nn

from pixelbert.model.pixels import MAX_POSITION, Grid, PixelEmbedding, cell_noise, sample_pixels


def embedding(**settings: object) -> PixelEmbedding:
    torch.manual_seed(0)
    module = PixelEmbedding(tiny_config(**settings), channels=12).eval()
    nn.init.normal_(module.type_embedding)
    return module


def rectangle(height: int, width: int, valid: list[tuple[int, int]]) -> Tensor:
    """bool [I, height, width], True in each image's upper left h x w."""
    mask = torch.zeros(len(valid), height, width, dtype=torch.bool)
    for i, (h, w) in enumerate(valid):
        mask[i, :h, :w] = True
    return mask


def grid_of(valid: list[tuple[int, int]], height: int, width: int, size: int = 4) -> Grid:
    """Each pixel says where it stands: (image, row, column, 1)."""
    place = torch.stack(torch.meshgrid(*(torch.arange(n) for n in (len(valid), height, width)), indexing="ij"), -1)
    pixels = torch.cat([place, torch.ones_like(place[..., :1])], -1).float().flatten(1, 2)
    return Grid(pixels[..., :size], rectangle(height, width, valid).flatten(1), (height, width))


# -- Eq. (5) -----------------------------------------------------------------------------------------------------------


def test_a_pixel_is_its_projected_feature_plus_one_shared_vector() -> None:
    module = embedding(visual_pool=False)
    features = torch.randn(2, 12, 3, 5)
    grid = module(features, torch.ones(2, 3, 5, dtype=torch.bool))
    weight, bias = module.projection.weight[:, :, 0, 0], module.projection.bias
    for row, column in ((0, 0), (2, 4), (1, 3)):
        expected = weight @ features[1, :, row, column] + bias + module.type_embedding
        assert torch.allclose(grid.pixels[1, row * 5 + column], expected, atol=1e-5)
    assert grid.shape == (3, 5)
    assert grid.mask.all()


def test_pool_is_two_by_two_maximum_and_an_odd_side_keeps_its_last_cell() -> None:
    module = embedding(visual_pool=True)
    module.projection = nn.Identity()
    module.type_embedding = nn.Parameter(torch.zeros(12))
    features = torch.randn(1, 12, 3, 5)
    grid = module(features, torch.ones(1, 3, 5, dtype=torch.bool))
    expected = [features[0, :, r : r + 2, c : c + 2].amax((1, 2)) for r in (0, 2) for c in (0, 2, 4)]
    assert torch.equal(grid.pixels[0], torch.stack(expected))


@pytest.mark.parametrize("pool", [True, False])
@pytest.mark.parametrize("projection", ["linear", "conv3x3"])
@pytest.mark.parametrize("position", ["none", "sine2d", "learned2d"])
def test_padding_changes_no_pixel(pool: bool, projection: str, position: str) -> None:
    module = embedding(visual_pool=pool, visual_projection=projection, visual_position=position, visual_layer_norm=True)
    valid = [(3, 5), (6, 2), (1, 7)]
    features = 5 + torch.randn(3, 12, 6, 7)
    grid = module(features, rectangle(6, 7, valid))
    for i, (h, w) in enumerate(valid):
        alone = module(features[i : i + 1, :, :h, :w], torch.ones(1, h, w, dtype=torch.bool))
        height, width = alone.shape
        place = grid.pixels[i].view(*grid.shape, -1)[:height, :width].flatten(0, 1)
        assert relative(alone.pixels[0], place) < 1e-5
        assert grid.mask[i].view(grid.shape)[:height, :width].all()
        assert grid.mask[i].sum() == height * width


def test_positions_are_a_row_and_a_column_vector() -> None:
    module = embedding(visual_pool=False, visual_position="learned2d")
    plain = embedding(visual_pool=False)
    plain.load_state_dict(module.state_dict(), strict=False)
    features, mask = torch.randn(1, 12, 2, 3), torch.ones(1, 2, 3, dtype=torch.bool)
    added = (module(features, mask).pixels - plain(features, mask).pixels)[0]
    for cell in range(6):
        expected = module.row_embedding.weight[cell // 3] + module.column_embedding.weight[cell % 3]
        assert torch.allclose(added[cell], expected, atol=1e-5)


def test_rows_beyond_the_learned_ones_share_the_last() -> None:
    module = embedding(visual_pool=False, visual_position="learned2d")
    positions = module._positions(MAX_POSITION + 3, 1, torch.zeros(1, 32))
    assert torch.equal(positions[MAX_POSITION - 1], positions[MAX_POSITION + 2])
    assert not torch.equal(positions[MAX_POSITION - 2], positions[MAX_POSITION - 1])


def test_sine_positions_are_those_of_the_transformer() -> None:
    module = embedding(visual_pool=False, visual_position="sine2d")
    positions = module._positions(3, 4, torch.zeros(1, 32)).view(3, 4, 32)
    for row, column in ((0, 0), (2, 3), (1, 2)):
        for k in range(8):
            rate = 10000 ** (-2 * k / 16)
            expected = [f(p * rate) for p in (row, column) for f in (math.sin, math.cos)]
            got = [positions[row, column, i].item() for i in (2 * k, 2 * k + 1, 16 + 2 * k, 16 + 2 * k + 1)]
            assert got == pytest.approx(expected, abs=1e-5)


# -- sampling ----------------------------------------------------------------------------------------------------------


def test_sampling_all_there_are_or_more_is_not_sampling() -> None:
    grid = grid_of([(2, 3), (3, 4)], 3, 4)
    for count in (12, 13, 0):
        assert sample_pixels(grid, count, torch.tensor([1, 2])) is grid


@given(
    st.lists(st.tuples(st.integers(1, 5), st.integers(1, 6)), min_size=1, max_size=4),
    st.integers(1, 29),
    st.integers(0, 2**62),
)
def test_a_sample_is_valid_pixels_without_replacement_in_raster_order(
    valid: list[tuple[int, int]], count: int, seed: int
) -> None:
    sample = sample_pixels(grid_of(valid, 5, 6), count, torch.arange(len(valid)) * 7919 + seed)
    for i, (h, w) in enumerate(valid):
        taken = sample.pixels[i][sample.mask[i]].tolist()
        assert len(taken) == min(count, h * w)
        assert len({tuple(t) for t in taken}) == len(taken)
        assert all(image == i and row < h and column < w for image, row, column, _ in taken)
        assert taken == sorted(taken)


def test_an_image_with_fewer_pixels_gives_them_all() -> None:
    sample = sample_pixels(grid_of([(1, 3), (4, 4)], 4, 4), 5, torch.tensor([3, 4]))
    assert sample.mask.sum(1).tolist() == [3, 5]
    assert sample.pixels[0][sample.mask[0]][:, 1:3].tolist() == [[0, 0], [0, 1], [0, 2]]


def test_a_sample_depends_on_its_seed_and_image_alone() -> None:
    alone = sample_pixels(grid_of([(3, 4)], 3, 4), 5, torch.tensor([42]))
    beside = sample_pixels(grid_of([(3, 4), (7, 9), (1, 1)], 7, 9), 5, torch.tensor([42, 7, 8]))
    assert torch.equal(alone.pixels[0, :, 1:3], beside.pixels[0, :, 1:3])
    other = sample_pixels(grid_of([(3, 4)], 3, 4), 5, torch.tensor([43]))
    assert not torch.equal(alone.pixels, other.pixels)


def test_copies_of_an_image_draw_their_own_pixels() -> None:
    copies = grid_of([(6, 6)], 6, 6).select(torch.tensor([0, 0]))
    sample = sample_pixels(copies, 10, torch.tensor([1, 2]))
    assert not torch.equal(sample.pixels[0], sample.pixels[1])


def test_every_cell_is_drawn_equally_often() -> None:
    draws = 6000
    grid = grid_of([(4, 5)], 4, 5).select(torch.zeros(draws, dtype=torch.long))
    sample = sample_pixels(grid, 8, torch.arange(draws))
    counts = Counter((int(r), int(c)) for r, c in sample.pixels[..., 1:3].flatten(0, 1).tolist())
    expected, spread = draws * 8 / 20, math.sqrt(draws * 0.4 * 0.6)
    assert len(counts) == 20
    assert all(abs(count - expected) < 5 * spread for count in counts.values())
    pairs = Counter(
        tuple(sorted((int(r) * 5 + int(c)) for r, c in copy[:, 1:3].tolist())[:2]) for copy in sample.pixels
    )
    assert len(pairs) > 40  # neighbours are not drawn together


@given(st.integers(0, 2**62), st.integers(1, 4), st.integers(1, 5))
def test_noise_is_the_finaliser_of_murmurhash3(seed: int, height: int, width: int) -> None:
    def finalise(x: int) -> int:
        x = (x ^ (x >> 16)) * 0x85EBCA6B % 2**32
        x = (x ^ (x >> 13)) * 0xC2B2AE35 % 2**32
        return (x ^ (x >> 16)) // 2

    cells = [row * 65536 + column for row in range(height) for column in range(width)]
    expected = [finalise((seed + cell * 0x9E3779B1) % 2**32) for cell in cells]
    assert cell_noise(torch.tensor([seed]), (height, width))[0].tolist() == expected


def test_channel_dropout_takes_whole_channels_of_an_image() -> None:
    module = embedding(visual_pool=False, visual_channel_dropout=0.5)
    module.projection = nn.Identity()
    module.type_embedding = nn.Parameter(torch.zeros(12))
    features, mask = torch.rand(3, 12, 2, 4) + 1, torch.ones(3, 2, 4, dtype=torch.bool)
    assert torch.equal(module(features, mask).pixels, features.flatten(2).transpose(1, 2))  # not in evaluation
    pixels = module.train()(features, mask).pixels
    kept = pixels != 0
    assert torch.equal(kept, kept[:, :1].expand_as(kept))  # the same channels in every cell
    assert not torch.equal(kept[0], kept[1])  # others in another image
    assert torch.equal(pixels[kept], 2 * features.flatten(2).transpose(1, 2)[kept])  # the mean stays
