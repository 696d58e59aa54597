"""What a drawn scene holds: one to three things on an invisible 3 x 3 grid, no two alike in shape, colour or cell.

Everything about a scene is drawn by a generator keyed by (seed, number of the scene), so scene 17 is the same whether
10 or 10,000 scenes are asked for. The split is a property of the scene itself: a checksum of what it holds puts it
into train, val or test, and a scene number is redrawn until its checksum says its own split. So no scene of one split
can turn up in another, whatever the seed and the counts.

What nobody can know without looking, by construction:
- colours and shapes are each a random choice without repetition from six: given all the other words about a scene, the
  colour of a thing is uniform over the colours not yet named, and so is its shape;
- cells are a random choice without repetition from nine: row and column of one thing are uniform over three words;
- sizes are fair coins, and there are one, two or three things with the same probability.

Scenes of one thing are there to learn from: what a word looks like can be found there without knowing which thing of
several is meant. A network from random weights begins with them and gets to the others much sooner than without.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np

COLORS = ("red", "pink", "yellow", "green", "blue", "purple")  # none begins with a vowel: "an" would tell too much
SHAPES = ("square", "star", "heart", "moon", "ring", "bar")  # as unlike to a small CNN as friendly shapes can be
SIZES = ("small", "large")
ROWS = ("top", "middle", "bottom")
COLUMNS = ("left", "center", "right")
COUNTS = ("zero", "one", "two", "three", "four")
MOST_THINGS = 3  # in one scene
SPLITS = ("train", "val", "test")

#: The words that need the picture, by what they say. "left" and "right" also stand in relations: all are places.
WORD_CLASSES: dict[str, frozenset[str]] = {
    "color": frozenset(COLORS),
    "shape": frozenset(SHAPES),
    "place": frozenset((*ROWS, *COLUMNS, "above", "below")),
    "size": frozenset(SIZES),
    "number": frozenset(COUNTS[1 : MOST_THINGS + 1]),
}

IMAGE_SIZE = 96  # pixels; a cell is 32, so one or four cells of a CNN's grid at stride 32 or 16
CELL = IMAGE_SIZE // 3
DIAMETERS = {"small": (17, 18), "large": (27, 28)}  # pixels, both ends included; never two of them alike to the eye
_SHIFT = 3  # pixels a small thing may lie off the middle of its cell, each way

# The checksum's remainder by ten that belongs to each split.
_BUCKETS = {"train": range(2, 10), "val": range(1), "test": range(1, 2)}
_LAYOUT, _LOOK = 0, 1  # streams of random numbers: redrawing one never shifts the other


@dataclass(frozen=True, slots=True)
class Thing:
    """One object of a scene. `x`, `y` (centre) and `diameter` are pixels of the image."""

    color: str
    shape: str
    size: str
    row: int
    column: int
    x: int
    y: int
    diameter: int
    shade: float  # the colour's brightness, about 1

    @property
    def place(self) -> str:
        """One of nine names: "top left", "top", ..., "center", ..., "bottom right"."""
        if self.row == self.column == 1:
            return "center"
        row, column = ROWS[self.row], COLUMNS[self.column]
        return column if self.row == 1 else row if self.column == 1 else f"{row} {column}"


@dataclass(frozen=True, slots=True)
class Scene:
    """One picture's contents. `things` are in random order; shapes, colours and cells are all different."""

    split: str
    number: int  # within its split, from 0
    things: tuple[Thing, ...]
    backdrop: int  # which pair of background tints
    angle: float  # direction of the background's gradient, radians

    def with_shape(self, shape: str) -> Thing | None:
        """The only thing of that shape, or None."""
        return next((thing for thing in self.things if thing.shape == shape), None)

    def with_color(self, color: str) -> Thing | None:
        """The only thing of that colour, or None."""
        return next((thing for thing in self.things if thing.color == color), None)

    def has(self, color: str, shape: str) -> bool:
        """Whether there is a thing of that colour and that shape."""
        return any(thing.color == color and thing.shape == shape for thing in self.things)


def random_of(seed: int, split: str, number: int, stream: int) -> np.random.Generator:
    """The generator that belongs to one scene and one purpose."""
    return np.random.default_rng([seed, SPLITS.index(split), number, stream])


def make_scene(split: str, number: int, *, seed: int, backdrops: int = 1) -> Scene:
    """The scene of that number in that split, always the same for one seed."""
    rng = random_of(seed, split, number, _LAYOUT)
    layout = _layout(rng)
    while _bucket(layout) not in _BUCKETS[split]:
        layout = _layout(rng)
    look = random_of(seed, split, number, _LOOK)
    things = tuple(_place(look, *attributes) for attributes in layout)
    return Scene(split, number, things, int(look.integers(backdrops)), float(look.uniform(0, 2 * np.pi)))


def _layout(rng: np.random.Generator) -> list[tuple[str, str, str, int]]:
    """Colour, shape, size and cell (0 to 8) of one to three things."""
    count = int(rng.integers(1, MOST_THINGS + 1))
    colors = rng.permutation(len(COLORS))[:count]
    shapes = rng.permutation(len(SHAPES))[:count]
    sizes = rng.integers(len(SIZES), size=count)
    cells = rng.permutation(9)[:count]
    return [
        (COLORS[color], SHAPES[shape], SIZES[size], int(cell))
        for color, shape, size, cell in zip(colors, shapes, sizes, cells, strict=True)
    ]


def _bucket(layout: list[tuple[str, str, str, int]]) -> int:
    """0 to 9 from what the scene holds, whatever the order of its things."""
    return zlib.crc32(repr(sorted(layout)).encode()) % 10


def _place(rng: np.random.Generator, color: str, shape: str, size: str, cell: int) -> Thing:
    """The thing near the middle of its cell, two pixels clear of the cell's edge so that neighbours never touch."""
    row, column = divmod(cell, 3)
    low, high = DIAMETERS[size]
    diameter = int(rng.integers(low, high + 1))
    slack = min(_SHIFT, (CELL - 4 - diameter) // 2)
    dx, dy = (int(step) for step in rng.integers(-slack, slack + 1, size=2))
    x, y = column * CELL + CELL // 2 + dx, row * CELL + CELL // 2 + dy
    return Thing(color, shape, size, row, column, x, y, diameter, float(rng.uniform(0.96, 1.04)))
