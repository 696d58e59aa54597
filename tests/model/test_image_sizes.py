"""Sizes by hand and by their properties: the resize rule, padded batches, what a backbone asks for."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pixelbert.errors import UsageError
from pixelbert.model.image_processing import ImageLimits, ResizeRule, collate_images, multiple_for_backbone

# ---- the size rule

EDGE = st.integers(1, 6000)


def test_sizes_of_the_paper():
    rule = ResizeRule()
    assert rule.target(480, 640) == (800, 1067)  # 1066.67
    assert rule.target(640, 480) == (1067, 800)
    assert rule.target(427, 640) == (800, 1199)  # 1199.06
    assert rule.target(200, 800) == (333, 1333)  # the longer edge rules
    assert ResizeRule(600, 1000).target(480, 640) == (600, 800)


def test_other_rules_by_hand():
    assert ResizeRule(square=224).target(480, 640) == (224, 224)
    assert ResizeRule(square=200, multiple=64).target(480, 640) == (192, 192)
    assert ResizeRule(224, None).target(100, 1000) == (224, 2240)
    assert ResizeRule(None, 500).target(100, 1000) == (50, 500)
    assert ResizeRule(None, None).target(123, 45) == (123, 45)
    assert ResizeRule(None, None, multiple=32).target(123, 45) == (128, 32)
    assert ResizeRule(enlarge=False).target(300, 400) == (300, 400)
    assert ResizeRule(square=224, enlarge=False).target(300, 100) == (224, 100)
    assert ResizeRule(multiple=64).target(480, 640) == (832, 1088)  # 800 = 12.5 x 64, 1066.67 = 16.67 x 64
    assert ResizeRule(multiple=64).target(200, 800) == (320, 1280)  # 21 x 64 = 1344 would exceed 1333


@given(h=EDGE, w=EDGE, shorter=st.integers(1, 1000), more=st.integers(0, 1000))
def test_plain_rule_properties(h, w, shorter, more):
    rule = ResizeRule(shorter, shorter + more)
    th, tw = rule.target(h, w)
    assert rule.target(w, h) == (tw, th)
    assert 1 <= min(th, tw) <= shorter and max(th, tw) <= shorter + more
    assert min(th, tw) == shorter or max(th, tw) == shorter + more
    if min(th, tw) > 1:  # the aspect is kept to within half a pixel an edge
        scale = max(th, tw) / max(h, w)
        assert abs(min(th, tw) - min(h, w) * scale) <= 1


@given(
    h=EDGE,
    w=EDGE,
    m=st.sampled_from([2, 32, 64]),
    rule=st.sampled_from([(800, 1333), (600, 1000), (64, None), (None, 200)]),
)
def test_multiple_properties(h, w, m, rule):
    plain = ResizeRule(*rule)
    th, tw = ResizeRule(*rule, multiple=m).target(h, w)
    assert th % m == tw % m == 0 and min(th, tw) >= m
    if rule[1]:
        assert max(th, tw) <= rule[1]
    for rounded, exact in zip((th, tw), plain.target(h, w), strict=True):
        assert abs(rounded - exact) <= m  # half a multiple, or a whole one below `longer`


@pytest.mark.parametrize(
    "fields", [{"shorter": 0}, {"longer": -1}, {"square": 0}, {"multiple": 0}, {"shorter": 900, "longer": 800}]
)
def test_senseless_rules(fields):
    with pytest.raises(UsageError):
        ResizeRule(**fields)
    with pytest.raises(UsageError):
        ImageLimits(max_pixels=0)


# ---- batches


def test_one_size_is_not_padded():
    images = [np.full((50, 70, 3), value, np.uint8) for value in (1, 2)]
    pixel_values, image_sizes = collate_images(images)
    assert pixel_values.shape == (2, 3, 50, 70) and pixel_values.dtype == torch.uint8
    assert image_sizes.tolist() == [[50, 70]] * 2 and image_sizes.dtype == torch.int64
    assert pixel_values.is_contiguous(memory_format=torch.channels_last)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=5), st.sampled_from([1, 16, 64])
)
def test_batches_hold_each_image_and_zeros(sizes, divisor):
    rng = np.random.default_rng(0)
    images = [rng.integers(1, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    pixel_values, image_sizes = collate_images(images, divisor)
    _, _, height, width = pixel_values.shape
    if len(set(sizes)) == 1:
        assert (height, width) == sizes[0]
    else:
        assert height % divisor == width % divisor == 0
        assert 0 <= height - max(h for h, _ in sizes) < divisor and 0 <= width - max(w for _, w in sizes) < divisor
    for image, batched, (h, w) in zip(images, pixel_values, image_sizes.tolist(), strict=True):
        assert np.array_equal(batched[:, :h, :w].permute(1, 2, 0).numpy(), image)
        assert int(batched.sum()) == int(image.sum())  # zeros elsewhere


@pytest.mark.parametrize(
    "name, multiple",
    [
        ("resnet50", 1), ("resnet101.tv_in1k", 1), ("timm/resnet50.a1_in1k", 1), ("resnext152_32x8d", 1),
        ("resnext101_32x8d", 1), ("regnety_016", 1), ("efficientnet_lite0", 1), ("wide_resnet50_2", 1),
        ("resnet50d", 64), ("resnet50_clip.openai", 64), ("resnet50x4_clip.openai", 64), ("convnext_tiny", 64),
        ("tf_efficientnet_lite0", 64), ("resnet26t", 64), ("resnetv2_50", 64), ("resnet50_gn", 64), ("no_such_net", 64),
    ],
)  # fmt: skip
def test_multiple_for_backbone(name, multiple):
    assert multiple_for_backbone(name, pool=True) == multiple
    assert multiple_for_backbone(name, pool=False) == max(1, multiple // 2)


def test_importing_loads_no_torch():
    code = "import sys, pixelbert.model.image_processing; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
