"""Five captions a scene: seven to eleven words, each with at least two that need the picture.

Every caption names things so that one masked word can be filled in by looking: shapes and colours are unique in a
scene. What a model gets without looking, from the caption's other words (chance, by construction of `world`):

- a colour or shape word: 1 in 6 when the caption names no other colour (shape), 1 in 5 when it names one;
- a row or column word: 1 in 3; a relation (above or below, left or right): 1 in 2;
- a size word: 1 in 2; a number word: 1 in 3.

So the best blind guesses are near 18 % (colour, shape), 42 % (place), 50 % (size), 33 % (number).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pixelbert.bench.quickstart.world import COLUMNS, COUNTS, ROWS, Scene, Thing

CAPTIONS_PER_SCENE = 5


def captions(scene: Scene, rng: np.random.Generator) -> list[str]:
    """Five captions of five different kinds, in random order."""
    found = [kind(scene, *_two(scene, rng)) for kind in _KINDS]
    possible = [caption for caption in found if caption]
    return [possible[index] for index in rng.permutation(len(possible))[:CAPTIONS_PER_SCENE]]


def _two(scene: Scene, rng: np.random.Generator) -> tuple[Thing, Thing]:
    """Two different things in random order."""
    first, second = rng.permutation(len(scene.things))[:2]
    return scene.things[first], scene.things[second]


def _in_row(scene: Scene, a: Thing, b: Thing) -> str:
    return f"a {a.size} {a.color} {a.shape} in the {ROWS[a.row]} row"


def _in_column(scene: Scene, a: Thing, b: Thing) -> str:
    return f"there is a {a.size} {a.color} {a.shape} in the {COLUMNS[a.column]} column"


def _colored_place(scene: Scene, a: Thing, b: Thing) -> str:
    return f"the {a.shape} in the {ROWS[a.row]} row and {COLUMNS[a.column]} column is {a.color}"


def _above_or_below(scene: Scene, a: Thing, b: Thing) -> str | None:
    if a.row == b.row:
        return None
    return f"a {a.color} {a.shape} {'above' if a.row < b.row else 'below'} a {b.color} {b.shape}"


def _left_or_right(scene: Scene, a: Thing, b: Thing) -> str | None:
    if a.column == b.column:
        return None
    side = "left" if a.column < b.column else "right"
    return f"the {a.color} {a.shape} is to the {side} of the {b.color} {b.shape}"


def _two_sizes(scene: Scene, a: Thing, b: Thing) -> str:
    return f"a {a.size} {a.color} {a.shape} and a {b.size} {b.color} {b.shape}"


def _two_colors(scene: Scene, a: Thing, b: Thing) -> str:
    return f"the {a.shape} is {a.color} and the {b.shape} is {b.color}"


def _counted(scene: Scene, a: Thing, b: Thing) -> str:
    return f"{COUNTS[len(scene.things)]} shapes and the {a.color} one is a {a.shape}"


_KINDS: tuple[Callable[[Scene, Thing, Thing], str | None], ...] = (
    _in_row,
    _in_column,
    _colored_place,
    _above_or_below,
    _left_or_right,
    _two_sizes,
    _two_colors,
    _counted,
)
