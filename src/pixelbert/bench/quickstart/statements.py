"""Statements about two pictures, true or false, in sets as NLVR2 has them.

A set has four pairs of scenes (eight different ones) and every sentence of the set is judged for all four: it is true
of two and false of two. So the sentence alone is right half the time, whatever one has learned about sentences.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pixelbert.bench.quickstart.world import COLORS, COUNTS, SHAPES, SIZES, Scene

PAIRS_PER_SET = 4
SENTENCES_PER_SET = 4
_ROUNDS = 2  # how many sets each scene stands in
_TRIES = 40  # of one kind of sentence, for a set


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence and its truth for each of the set's four pairs: two are true."""

    text: str
    kind: str
    truths: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class PairSet:
    """Four pairs of scenes (positions in the list of scenes) and the sentences about them."""

    pairs: tuple[tuple[int, int], ...]
    sentences: tuple[Sentence, ...]


def pair_sets(scenes: Sequence[Scene], rng: np.random.Generator) -> list[PairSet]:
    """The sets of one split; a remainder of fewer than eight scenes is left out of each round."""
    size = 2 * PAIRS_PER_SET
    sets = []
    for _ in range(_ROUNDS):
        order = [int(index) for index in rng.permutation(len(scenes))]
        for start in range(0, len(order) - size + 1, size):
            chosen = order[start : start + size]
            pairs = tuple(zip(chosen[::2], chosen[1::2], strict=True))
            sentences = _sentences([(scenes[left], scenes[right]) for left, right in pairs], rng)
            if sentences:
                sets.append(PairSet(pairs, sentences))
    return sets


def _sentences(pairs: Sequence[tuple[Scene, Scene]], rng: np.random.Generator) -> tuple[Sentence, ...]:
    """Up to four sentences of different kinds, each true of exactly half the pairs."""
    found: list[Sentence] = []
    for place in rng.permutation(len(_KINDS)):
        kind = _KINDS[place]
        for _ in range(_TRIES):
            text, holds = kind(_Words(rng))
            truths = tuple(holds(left, right) for left, right in pairs)
            if 2 * sum(truths) == len(pairs):
                found.append(Sentence(text, kind.__name__.strip("_").replace("_", " "), truths))
                break
        if len(found) == SENTENCES_PER_SET:
            break
    return tuple(found)


class _Words:
    """Random words for a sentence."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng

    def of(self, words: Sequence[str]) -> str:
        return words[int(self._rng.integers(len(words)))]

    def things(self) -> tuple[str, Callable[[Scene], bool]]:
        """A phrase such as "heart", "red shape", "red heart" or "small heart", and whether a scene shows one."""
        color, shape, size = self.of(COLORS), self.of(SHAPES), self.of(SIZES)
        options: tuple[tuple[str, Callable[[Scene], bool]], ...] = (
            (shape, lambda scene: scene.with_shape(shape) is not None),
            (f"{color} shape", lambda scene: scene.with_color(color) is not None),
            (f"{color} {shape}", lambda scene: scene.has(color, shape)),
            (f"{size} {shape}", lambda scene: any(t.size == size and t.shape == shape for t in scene.things)),
        )
        return options[int(self._rng.integers(len(options)))]


_Claim = tuple[str, Callable[[Scene, Scene], bool]]


def _left(words: _Words) -> _Claim:
    phrase, shows = words.things()
    return f"The left picture shows a {phrase}.", lambda left, right: shows(left)


def _right(words: _Words) -> _Claim:
    phrase, shows = words.things()
    return f"The right picture shows a {phrase}.", lambda left, right: shows(right)


def _both(words: _Words) -> _Claim:
    phrase, shows = words.things()
    return f"Both pictures show a {phrase}.", lambda left, right: shows(left) and shows(right)


def _neither(words: _Words) -> _Claim:
    phrase, shows = words.things()
    return f"Neither of the two pictures shows a {phrase}.", lambda left, right: not (shows(left) or shows(right))


def _at_least_one(words: _Words) -> _Claim:
    phrase, shows = words.things()
    return f"At least one of the two pictures shows a {phrase}.", lambda left, right: shows(left) or shows(right)


def _exactly_one(words: _Words) -> _Claim:
    phrase, shows = words.things()
    return f"Exactly one of the two pictures shows a {phrase}.", lambda left, right: shows(left) != shows(right)


def _left_and_right(words: _Words) -> _Claim:
    (one, shows_one), (other, shows_other) = words.things(), words.things()
    text = f"There is a {one} in the left picture and a {other} in the right one."
    return text, lambda left, right: shows_one(left) and shows_other(right)


def _left_not_right(words: _Words) -> _Claim:
    phrase, shows = words.things()
    text = f"There is a {phrase} in the left picture but none in the right one."
    return text, lambda left, right: shows(left) and not shows(right)


def _more(words: _Words) -> _Claim:
    side, other = ("left", "right") if words.of(SIZES) == "small" else ("right", "left")
    text = f"There are more shapes in the {side} picture than in the {other} one."
    if side == "left":
        return text, lambda left, right: len(left.things) > len(right.things)
    return text, lambda left, right: len(right.things) > len(left.things)


def _same_number(words: _Words) -> _Claim:
    return "The two pictures show the same number of shapes.", lambda left, right: len(left.things) == len(right.things)


def _total(words: _Words) -> _Claim:
    size, count = words.of(SIZES), 1 + int(words.of("0123"))
    noun = "shape" if count == 1 else "shapes"
    verb = "is" if count == 1 else "are"

    def holds(left: Scene, right: Scene) -> bool:
        return sum(thing.size == size for thing in (*left.things, *right.things)) == count

    return f"There {verb} {COUNTS[count]} {size} {noun} in total.", holds


_KINDS: tuple[Callable[[_Words], _Claim], ...] = (
    _left,
    _right,
    _both,
    _neither,
    _at_least_one,
    _exactly_one,
    _left_and_right,
    _left_not_right,
    _more,
    _same_number,
    _total,
)
