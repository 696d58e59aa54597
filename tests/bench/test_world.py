"""The drawn world: always the same, all different inside a scene, no scene in two splits, and nothing to guess from."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixelbert.bench.quickstart.drawing import BACKDROPS, PALETTE, draw, outline, polygon
from pixelbert.bench.quickstart.world import (
    CELL,
    COLORS,
    COLUMNS,
    IMAGE_SIZE,
    MOST_THINGS,
    ROWS,
    SHAPES,
    SPLITS,
    Scene,
    Thing,
    make_scene,
)


def contents(scene: Scene) -> tuple[tuple[str, str, str, int, int], ...]:
    """What a scene holds, whatever the order and the exact pixels."""
    return tuple(sorted((t.color, t.shape, t.size, t.row, t.column) for t in scene.things))


def centres_inside(points: np.ndarray) -> np.ndarray:
    """Which pixels' centres lie inside a polygon, by the even-odd rule."""
    x, y = np.meshgrid(np.arange(IMAGE_SIZE) + 0.5, np.arange(IMAGE_SIZE) + 0.5)
    inside = np.zeros(x.shape, bool)
    for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, 0), strict=True):
        if y0 != y1:
            inside ^= ((y0 > y) != (y1 > y)) & (x < (x1 - x0) * (y - y0) / (y1 - y0) + x0)
    return inside


@given(split=st.sampled_from(SPLITS), number=st.integers(0, 5000), seed=st.integers(0, 2**40))
def test_things_of_a_scene_differ_and_stay_in_their_cells(split: str, number: int, seed: int) -> None:
    scene = make_scene(split, number, seed=seed, backdrops=len(BACKDROPS))
    assert scene == make_scene(split, number, seed=seed, backdrops=len(BACKDROPS))
    things = scene.things
    assert 1 <= len(things) <= MOST_THINGS == 3
    for attribute in ("color", "shape"):
        assert len({getattr(thing, attribute) for thing in things}) == len(things)
    assert len({(thing.row, thing.column) for thing in things}) == len(things)
    for thing in things:
        points = polygon(thing)
        assert (points >= (thing.column * CELL, thing.row * CELL)).all()
        assert (points <= ((thing.column + 1) * CELL, (thing.row + 1) * CELL)).all()


def test_global_random_state_is_neither_used_nor_changed() -> None:
    np.random.seed(3)
    before = np.random.get_state()[1].tolist()
    first = make_scene("train", 5, seed=1)
    assert np.random.get_state()[1].tolist() == before
    np.random.seed(4)
    assert make_scene("train", 5, seed=1) == first
    assert make_scene("train", 5, seed=2) != first
    assert make_scene("train", 6, seed=1) != first


def test_no_scene_is_in_two_splits() -> None:
    scenes = {split: {contents(make_scene(split, n, seed=s)) for n in range(1500) for s in (0, 1)} for split in SPLITS}
    for one in SPLITS:
        for other in SPLITS:
            assert one == other or not scenes[one] & scenes[other]


def test_attributes_and_numbers_are_uniform() -> None:
    scenes = [make_scene("train", n, seed=0) for n in range(3000)]
    things = [thing for scene in scenes for thing in scene.things]
    expected = {"color": len(COLORS), "shape": len(SHAPES), "size": 2, "row": 3, "column": 3}
    found = {name: [getattr(thing, name) for thing in things] for name in expected}
    found["number"], expected["number"] = [len(scene.things) for scene in scenes], MOST_THINGS
    for attribute, kinds in expected.items():
        counts = Counter(found[attribute])
        assert len(counts) == kinds
        for count in counts.values():  # five standard deviations of a fair draw
            share, drawn = 1 / kinds, len(found[attribute])
            assert abs(count / drawn - share) < 5 * np.sqrt(share * (1 - share) / drawn)


@pytest.mark.parametrize(
    ("row", "column", "name"), [(0, 0, "top left"), (0, 1, "top"), (1, 1, "center"), (1, 2, "right"), (2, 1, "bottom")]
)
def test_names_of_places(row: int, column: int, name: str) -> None:
    assert Thing("red", "star", "small", row, column, 0, 0, 15, 1.0).place == name


def test_nine_places_have_nine_names() -> None:
    names = {Thing("red", "star", "small", r, c, 0, 0, 15, 1.0).place for r in range(3) for c in range(3)}
    assert len(names) == len(ROWS) * len(COLUMNS)


@pytest.mark.parametrize("shape", SHAPES)
def test_outline_is_what_is_drawn(shape: str) -> None:
    """The pixels that took the thing's colour are the polygon's, up to its smooth edge."""
    thing = Thing("blue", shape, "large", 1, 1, 49, 46, 26, 1.0)
    picture = np.asarray(draw(Scene("train", 0, (thing,), 0, 0.0)), np.float32)
    # Halfway between the blue's and the paper's red: the pixel is more than half covered. The shadow stays above.
    covered = picture[..., 0] < (PALETTE["blue"][0] + 245) / 2
    inside = centres_inside(polygon(thing))
    assert (covered & inside).sum() / (covered | inside).sum() > 0.9
    assert np.abs(outline(shape)).max() <= 1 + 1e-9
    assert np.allclose(outline(shape).min(0), -outline(shape).max(0))  # centred: a box's middle is the thing's place


def test_pictures_are_small_rgb_with_a_pale_background_and_every_color_of_the_scene() -> None:
    for number in range(30):
        scene = make_scene("val", number, seed=0, backdrops=len(BACKDROPS))
        picture = draw(scene)
        assert (picture.mode, picture.size) == ("RGB", (IMAGE_SIZE, IMAGE_SIZE))
        pixels = np.asarray(picture, np.float32)
        assert np.median(pixels.min(-1)) > 190
        for thing in scene.things:  # what lies inside every outline is nearest to its colour of all colours
            inside = np.median(pixels[centres_inside(polygon(thing))], axis=0)
            nearest = min(PALETTE, key=lambda name, inside=inside: np.abs(inside - PALETTE[name]).sum())
            assert nearest == thing.color
