"""Augmentation: the same size, never a flip, hues kept, keyed by its draw."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixelbert.data.augment import augment, random_colour, random_crop
from pixelbert.data.draws import generator


def ramps(height: int = 60, width: int = 80) -> np.ndarray:
    """Red grows to the right, green downwards."""
    picture = np.zeros((height, width, 3), dtype=np.uint8)
    picture[..., 0] = np.linspace(0, 255, width).astype(np.uint8)
    picture[..., 1] = np.linspace(0, 255, height).astype(np.uint8)[:, None]
    return picture


def test_none_is_the_picture_itself() -> None:
    picture = ramps()
    assert augment(picture, "none", generator(0, "augment"), 0.5) is picture


@given(st.integers(1, 90), st.integers(1, 90), st.integers(0, 10**6), st.sampled_from(["crop", "crop-colour"]))
def test_any_picture_keeps_its_size(height: int, width: int, seed: int, kind: str) -> None:
    picture = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    before = picture.copy()
    result = augment(picture, kind, generator(seed, "augment"), 0.3)
    assert result.shape == picture.shape and result.dtype == np.uint8
    assert (picture == before).all()


@pytest.mark.parametrize("kind", ["crop", "crop-colour"])
def test_left_stays_left_and_up_stays_up(kind: str) -> None:
    for seed in range(60):
        result = augment(ramps(), kind, generator(seed, "augment"), 0.3).astype(int)
        assert result[:, -1, 0].mean() > result[:, 0, 0].mean() + 40
        assert result[-1, :, 1].mean() > result[0, :, 1].mean() + 40


@pytest.mark.parametrize("smallest", [0.3, 0.8, 1.0])
def test_a_crop_keeps_the_share_of_the_area_it_should(smallest: float) -> None:
    picture = ramps(300, 400)
    shares, stretches = [], []
    for seed in range(150):
        part = random_crop(picture, generator(seed, "augment"), smallest).astype(float)
        # the ramps tell how much of each side is left
        wide = (part[150, -1, 0] - part[150, 0, 0]) / 255
        high = (part[-1, 200, 1] - part[0, 200, 1]) / 255
        shares.append(wide * high)
        stretches.append(wide / high)
    # a stretched crop of nearly the whole area would not fit: it is cut to the picture, hence the eight tenths
    assert min(shares) > smallest * 0.8 - 0.03
    assert max(shares) > 0.85
    if smallest < 0.5:
        assert min(shares) < smallest + 0.1
        assert 0.76 < min(stretches) < 0.85 and 1.18 < max(stretches) < 1.32


def test_colours_keep_their_hue() -> None:
    """Captions name colours: red must not become orange."""
    for seed in range(40):
        for colour in ((200, 40, 40), (40, 160, 60), (50, 60, 190)):
            picture = np.full((8, 8, 3), colour, dtype=np.uint8)
            picture[:4] = (colour[0] // 2, colour[1] // 2, colour[2] // 2)
            result = random_colour(picture, generator(seed, "augment"))[6, 6]
            hues = [colorsys.rgb_to_hsv(*(float(v) / 255 for v in c))[0] for c in (colour, result)]
            assert abs(hues[0] - hues[1]) < 0.03 or abs(abs(hues[0] - hues[1]) - 1) < 0.03


def test_a_draw_gives_the_same_picture_and_another_another() -> None:
    one, again, other = (augment(ramps(), "crop-colour", generator(0, "augment", 0, i), 0.5) for i in (7, 7, 8))
    assert (one == again).all()
    assert (one != other).any()
