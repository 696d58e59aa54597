"""How a scene looks: soft tinted paper, six clear shapes with a gentle light from above and a small shadow.

Shapes are drawn at eight times their size and reduced, so edges are smooth; the outline that is drawn is also the
outline that the instance annotations tell, so attention can be measured against the truth.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from pixelbert.bench.quickstart.world import IMAGE_SIZE, Scene, Thing

PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (221, 62, 70),
    "pink": (243, 142, 182),
    "yellow": (248, 204, 60),
    "green": (66, 160, 98),
    "blue": (56, 116, 208),
    "purple": (138, 84, 188),
}

#: Pairs of background tints, from one end of the gradient to the other: all pale, so no thing is lost on them.
BACKDROPS: tuple[tuple[tuple[int, int, int], tuple[int, int, int]], ...] = (
    ((252, 249, 242), (240, 233, 220)),  # paper
    ((243, 247, 250), (222, 231, 239)),  # mist
    ((243, 248, 243), (223, 234, 225)),  # sage
    ((252, 244, 241), (241, 226, 223)),  # blush
    ((246, 243, 251), (229, 224, 241)),  # lilac
    ((249, 245, 233), (236, 227, 205)),  # sand
)

_SCALE = 8  # how much larger a shape is drawn before it is reduced
_PAD = 6  # pixels around a shape that its shadow may reach
_SHADOW_DOWN, _SHADOW_BLUR, _SHADOW_DARKNESS = 1.5, 1.8, 0.22
_SHADOW_COLOR = np.array([42, 40, 66], np.float32)


def outline(shape: str) -> np.ndarray:
    """float64 [n, 2]: the outline as x, y (down) with its bounding box centred and inside [-1, 1]."""
    return _OUTLINES[shape]


def polygon(thing: Thing) -> np.ndarray:
    """float64 [n, 2]: the thing's outline in image pixels, as x, y."""
    return outline(thing.shape) * (thing.diameter / 2) + (thing.x, thing.y)


def draw(scene: Scene) -> Image.Image:
    """The RGB picture, IMAGE_SIZE x IMAGE_SIZE."""
    size = IMAGE_SIZE + 2 * _PAD
    canvas = _backdrop(scene, size)
    for thing in scene.things:
        mask, shadow = _sprite(thing.shape, thing.diameter)
        half = mask.shape[0] // 2
        rows = slice(thing.y + _PAD - half, thing.y + _PAD + half)
        columns = slice(thing.x + _PAD - half, thing.x + _PAD + half)
        patch = canvas[rows, columns]
        patch += shadow * (_SHADOW_COLOR - patch)
        light = np.linspace(1.07, 0.93, mask.shape[0], dtype=np.float32)[:, None, None] * np.float32(thing.shade)
        patch += mask * (np.array(PALETTE[thing.color], np.float32) * light - patch)
    inside = canvas[_PAD:-_PAD, _PAD:-_PAD]
    return Image.fromarray(np.clip(np.rint(inside), 0, 255).astype(np.uint8))


def _backdrop(scene: Scene, size: int) -> np.ndarray:
    """float32 [size, size, 3]: a straight gradient between the two tints."""
    light, dark = (np.array(tint, np.float32) for tint in BACKDROPS[scene.backdrop])
    steps = np.linspace(-0.5, 0.5, size, dtype=np.float32)
    along = steps[None, :] * np.float32(np.cos(scene.angle)) + steps[:, None] * np.float32(np.sin(scene.angle))
    share = np.clip(0.5 + along / np.float32(np.sqrt(2)), 0, 1)[..., None]
    return light + share * (dark - light)


@lru_cache(maxsize=256)
def _sprite(shape: str, diameter: int) -> tuple[np.ndarray, np.ndarray]:
    """float32 [side, side, 1] twice, 0 to 1: where the shape is, and how dark its shadow is."""
    side = 2 * ((diameter + 1) // 2 + _PAD)
    large = Image.new("L", (side * _SCALE, side * _SCALE))
    points = (outline(shape) * (diameter / 2) + side / 2) * _SCALE
    ImageDraw.Draw(large).polygon([tuple(point) for point in points], fill=255)
    mask = large.reduce(_SCALE)
    fallen = Image.new("L", large.size)
    fallen.paste(large, (0, round(_SHADOW_DOWN * _SCALE)))
    shadow = fallen.filter(ImageFilter.GaussianBlur(_SHADOW_BLUR * _SCALE)).reduce(_SCALE)
    return (
        np.asarray(mask, np.float32)[..., None] / 255,
        np.asarray(shadow, np.float32)[..., None] * (_SHADOW_DARKNESS / 255),
    )


def _regular(points: int, *, inner: float = 1.0) -> np.ndarray:
    """A star or regular polygon with one tip up; every second corner at radius `inner`."""
    angles = np.arange(points) * (2 * np.pi / points) - np.pi / 2
    radii = np.where(np.arange(points) % 2, inner, 1.0)
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)


def _ring(hole: float) -> np.ndarray:
    """A disc with a hole of that radius: round the outside, then back round the inside, so that one polygon does."""
    outside = _regular(64)
    return np.concatenate([outside, outside[:1], hole * outside[:1], hole * outside[::-1]])


def _moon(radius: float, shift: float) -> np.ndarray:
    """A crescent open to the right: the unit disc without a disc of that radius, `shift` to the right of it."""
    x = (1 - radius**2 + shift**2) / (2 * shift)  # where the two circles meet
    outside, inside = np.arccos(x), np.arccos((x - shift) / radius)
    around = np.linspace(outside, 2 * np.pi - outside, 48)
    back = np.linspace(2 * np.pi - inside, inside, 32)
    return np.concatenate(
        [
            np.stack([np.cos(around), np.sin(around)], axis=1),
            np.stack([shift + radius * np.cos(back), radius * np.sin(back)], axis=1),
        ]
    )


def _heart() -> np.ndarray:
    """The usual heart curve."""
    t = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return np.stack([x, y], axis=1)


def _rounded(corners: np.ndarray, radius: float, steps: int = 5) -> np.ndarray:
    """The polygon with each corner replaced by a curve that starts `radius` before it and ends `radius` after."""
    points = []
    for before, corner, after in zip(np.roll(corners, 1, 0), corners, np.roll(corners, -1, 0), strict=True):
        start = corner + (before - corner) * min(0.5, radius / np.linalg.norm(before - corner))
        end = corner + (after - corner) * min(0.5, radius / np.linalg.norm(after - corner))
        t = np.linspace(0, 1, steps)[:, None]
        points.append((1 - t) ** 2 * start + 2 * t * (1 - t) * corner + t**2 * end)
    return np.concatenate(points)


def _fitted(points: np.ndarray, reach: float) -> np.ndarray:
    """The points with their bounding box centred and its longer side 2 * reach: so all look equally large."""
    low, high = points.min(0), points.max(0)
    return (points - (low + high) / 2) * (2 * reach / (high - low).max())


def _box(width: float, height: float) -> np.ndarray:
    return np.array([(-width, -height), (width, -height), (width, height), (-width, height)])


_OUTLINES: dict[str, np.ndarray] = {
    "square": _fitted(_rounded(_box(1, 1), 0.24), 0.9),
    "star": _fitted(_rounded(_regular(10, inner=0.4), 0.07), 1.0),
    "heart": _fitted(_heart(), 0.97),
    "moon": _fitted(_moon(0.78, 0.5), 0.98),
    "ring": _fitted(_ring(0.52), 0.97),
    "bar": _fitted(_rounded(_box(1, 0.38), 0.22), 1.0),
}
