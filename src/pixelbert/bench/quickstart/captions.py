"""Five captions a scene: five to eleven words, each with at least two that need the picture.

Every caption names things so that one masked word can be filled in by looking: shapes and colours are unique in a
scene. Several name a shape without its colour: colours are seen so much sooner that beside them nothing would press a
small CNN to see shapes.

What a model gets without looking, from the caption's other words (chance, by construction of `world`):

- a colour or shape word: 1 in 6 when the caption names no other colour (shape), 1 in 5 when it names one;
- a row or column word: 1 in 3; a relation (above or below, left or right): 1 in 2;
- a size word: 1 in 2; a number word: 1 in 3, because every scene gets the caption that counts.

So the best blind guesses are near 18 % (colour, shape), 36 % (place), 50 % (size), 33 % (number).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pixelbert.bench.quickstart.world import COLUMNS, COUNTS, ROWS, Scene, Thing

CAPTIONS_PER_SCENE = 5


def captions(scene: Scene, rng: np.random.Generator) -> list[str]:
    """Five captions of five different kinds, one of them `_counted`, in random order."""
    found = [about_one(_some(scene, 1, rng)[0]) for about_one in _ABOUT_ONE]
    if len(scene.things) > 1:
        found += [caption for about_two in _ABOUT_TWO if (caption := about_two(*_some(scene, 2, rng)))]
    chosen = [found[index] for index in rng.permutation(len(found))[: CAPTIONS_PER_SCENE - 1]]
    chosen.append(_counted(scene, *_some(scene, 1, rng)))
    return [chosen[index] for index in rng.permutation(CAPTIONS_PER_SCENE)]


def _some(scene: Scene, count: int, rng: np.random.Generator) -> list[Thing]:
    """So many different things in random order."""
    return [scene.things[index] for index in rng.permutation(len(scene.things))[:count]]


def _counted(scene: Scene, a: Thing) -> str:
    return f"the number of shapes is {COUNTS[len(scene.things)]} and there is a {a.color} {a.shape}"


def _plain(a: Thing) -> str:
    return f"the {a.color} {a.shape} is {a.size}"


def _in_row(a: Thing) -> str:
    return f"a {a.size} {a.shape} in the {ROWS[a.row]} row"


def _in_column(a: Thing) -> str:
    return f"there is a {a.size} {a.color} {a.shape} in the {COLUMNS[a.column]} column"


def _colored_place(a: Thing) -> str:
    return f"the {a.shape} in the {ROWS[a.row]} row and {COLUMNS[a.column]} column is {a.color}"


def _above_or_below(a: Thing, b: Thing) -> str | None:
    if a.row == b.row:
        return None
    return f"a {a.size} {a.shape} {'above' if a.row < b.row else 'below'} a {b.size} {b.shape}"


def _left_or_right(a: Thing, b: Thing) -> str | None:
    if a.column == b.column:
        return None
    side = "left" if a.column < b.column else "right"
    return f"the {a.color} {a.shape} is to the {side} of the {b.color} {b.shape}"


def _two_sizes(a: Thing, b: Thing) -> str:
    return f"there is a {a.size} {a.shape} and a {b.size} {b.shape}"


def _two_colors(a: Thing, b: Thing) -> str:
    return f"the {a.shape} is {a.color} and the {b.shape} is {b.color}"


_ABOUT_ONE: tuple[Callable[[Thing], str], ...] = (_plain, _in_row, _in_column, _colored_place)
_ABOUT_TWO: tuple[Callable[[Thing, Thing], str | None], ...] = (
    _above_or_below,
    _left_or_right,
    _two_sizes,
    _two_colors,
)
