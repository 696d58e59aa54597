"""Arrays and tensors as pictures: which axis holds the colours, which values there may be."""

import numpy as np
import pytest
import torch

from pixelbert.model.image_processing import BadImage, decode_image


def test_grey_and_alpha_arrays():
    grey = np.array([[0, 7], [9, 255]], np.uint8)
    for source in (grey, grey[..., None], grey[None], torch.from_numpy(grey)):
        assert decode_image(source).tolist() == np.repeat(grey[..., None], 3, 2).tolist()
    assert decode_image(grey > 8)[..., 0].tolist() == [[0, 0], [255, 255]]
    assert decode_image(np.array([[[1, 2, 3, 0]]], np.uint8)).tolist() == [[[255, 255, 255]]]


def test_a_bfloat16_tensor_is_read_like_a_float32_one() -> None:
    half = torch.rand(3, 4, 5, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert np.array_equal(decode_image(half), decode_image(half.float()))


def test_ambiguous_axes():
    """Three rows of three channels: arrays are read channels-last, tensors channels-first."""
    array = np.arange(3 * 5 * 3, dtype=np.uint8).reshape(3, 5, 3)
    assert np.array_equal(decode_image(array), array)
    assert np.array_equal(decode_image(torch.from_numpy(array)), array.transpose(1, 2, 0))


@pytest.mark.parametrize(
    "source, reason",
    [
        (np.zeros((5, 4, 2), np.uint8), "no axis holds 1, 3 or 4"),
        (np.zeros((2, 3, 4, 4), np.uint8), "shape"),
        (np.zeros((0, 4, 3), np.uint8), "no pixels"),
        (np.full((4, 4, 3), 255.0), "outside 0..1"),
        (np.full((4, 4, 3), np.nan), "outside 0..1"),
        (np.full((4, 4, 3), -1), "outside 0..255"),
        (np.full((4, 4), "a"), "not of numbers"),
        (3, "is a int"),
        (None, "is a NoneType"),
    ],
)
def test_arrays_that_are_no_images(source, reason):
    with pytest.raises(BadImage, match=reason):
        decode_image(source)
