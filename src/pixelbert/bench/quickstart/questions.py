"""Questions with ten answers each, and what they give to a model that does not look.

- yes/no: every question string is asked about two scenes of a split, once with the answer yes and once no (as the
  balanced pairs of VQA 2.0), so each wording is right half the time whatever one guesses: 50 %.
- number: of the wordings and answers that a scene allows, the one asked least often so far is taken: no wording's
  commonest answer goes far above a third.
- other: a colour or shape is uniform over six, a place over nine, as `world` says.

The ten annotators mostly agree. Some use another name for the same thing (a purple thing is "violet" to some), so an
answer may be worth 0.3, 0.6 or 0.9; a few yes/no questions have one or two who saw it otherwise. A synonym stands for
one answer only, so it helps nobody who guesses.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pixelbert.bench.quickstart.world import COLUMNS, ROWS, SIZES, Scene, Thing

#: What some annotators say instead.
SYNONYMS: dict[str, str] = {
    "red": "crimson",
    "yellow": "gold",
    "blue": "navy",
    "purple": "violet",
    "square": "box",
    "moon": "crescent",
    "ring": "hoop",
    "top left": "upper left",
    "top right": "upper right",
    "bottom left": "lower left",
    "bottom right": "lower right",
    "center": "in the middle",
}
_SYNONYM_VOTES = ((0, 0.5), (1, 0.2), (2, 0.13), (3, 0.1), (6, 0.07))  # votes of ten, how often
_OTHER_VIEWS = ((0, 0.85), (1, 0.1), (2, 0.05))  # of ten, on yes/no
_PARTNERS_TRIED = 400


@dataclass(frozen=True, slots=True)
class Question:
    """One question about one scene. `answers` holds what the ten annotators said, in order."""

    scene: int  # position in the list of scenes
    text: str
    kind: str  # VQA's question_type: the first words
    answer_type: str  # "yes/no", "number", "other"
    answers: tuple[str, ...]

    @property
    def majority(self) -> str:
        """The answer given most often; of several the one given first."""
        return Counter(self.answers).most_common(1)[0][0]


@dataclass(frozen=True, slots=True)
class _Claim:
    """A yes/no question: `holds` is None where it makes no sense (it asks about a thing that is not there)."""

    text: str
    kind: str
    holds: Callable[[Scene], bool | None]


def questions(scenes: Sequence[Scene], rng: np.random.Generator) -> list[Question]:
    """About six questions a scene: two yes/no (on average), one number, one each of colour, shape and place."""
    found: list[Question] = []
    asked: Counter[tuple[str, int]] = Counter()
    for index, scene in enumerate(scenes):
        found.extend(_yes_and_no(index, scenes, rng))
        found.append(_number(index, scene, asked, rng))
        found.extend(_other(index, scene, rng))
    return sorted(found, key=lambda question: question.scene)  # stable: the order within a scene stays


def _yes_and_no(index: int, scenes: Sequence[Scene], rng: np.random.Generator) -> list[Question]:
    """A question whose answer is yes here, and the same question about another scene where it is no."""
    claims = _claims(scenes[index], rng)
    claim = claims[rng.integers(len(claims))]
    for partner in rng.integers(len(scenes), size=_PARTNERS_TRIED):
        if claim.holds(scenes[partner]) is False:
            pair = ((index, "yes", "no"), (int(partner), "no", "yes"))
            return [
                Question(scene, claim.text, claim.kind, "yes/no", _votes(answer, other, _OTHER_VIEWS, rng))
                for scene, answer, other in pair
            ]
    return []  # too few scenes to keep the balance


def _claims(scene: Scene, rng: np.random.Generator) -> list[_Claim]:
    """One true claim of each kind about random things of the scene."""
    a, *others = (scene.things[place] for place in rng.permutation(len(scene.things)))

    def relates(b: Thing, test: Callable[[Thing, Thing], bool]) -> Callable[[Scene], bool | None]:
        def holds(other: Scene) -> bool | None:
            x, y = other.with_shape(a.shape), other.with_shape(b.shape)
            return None if x is None or y is None else test(x, y)

        return holds

    def of_shape(test: Callable[[Thing], bool]) -> Callable[[Scene], bool | None]:
        def holds(other: Scene) -> bool | None:
            x = other.with_shape(a.shape)
            return None if x is None else test(x)

        return holds

    row, column = ROWS[a.row], COLUMNS[a.column]
    claims = [
        _Claim(f"Is there a {a.color} {a.shape}?", "is there a", lambda other: other.has(a.color, a.shape)),
        _Claim(f"Is the {a.shape} {a.color}?", "is the", of_shape(lambda x: x.color == a.color)),
        _Claim(f"Is the {a.shape} {a.size}?", "is the", of_shape(lambda x: x.size == a.size)),
        _Claim(f"Is the {a.shape} in the {row} row?", "is the", of_shape(lambda x: x.row == a.row)),
        _Claim(f"Is the {a.shape} in the {column} column?", "is the", of_shape(lambda x: x.column == a.column)),
    ]
    for b in others[:1]:
        if a.row < b.row:
            text = f"Is the {a.shape} above the {b.shape}?"
            claims.append(_Claim(text, "is the", relates(b, lambda x, y: x.row < y.row)))
        if a.column < b.column:
            text = f"Is the {a.shape} to the left of the {b.shape}?"
            claims.append(_Claim(text, "is the", relates(b, lambda x, y: x.column < y.column)))
    return claims


def _number(index: int, scene: Scene, asked: Counter[tuple[str, int]], rng: np.random.Generator) -> Question:
    """The count, of those this scene allows, that was asked least often so far with its answer."""
    things = scene.things
    counts = {"How many shapes are there?": len(things)}
    for size in SIZES:
        counts[f"How many {size} shapes are there?"] = sum(thing.size == size for thing in things)
    for place, (row, column) in enumerate(zip(ROWS, COLUMNS, strict=True)):
        counts[f"How many shapes are in the {row} row?"] = sum(thing.row == place for thing in things)
        counts[f"How many shapes are in the {column} column?"] = sum(thing.column == place for thing in things)
    options = list(counts.items())
    order = rng.permutation(len(options))
    text, count = min((options[place] for place in order), key=lambda option: asked[option])
    asked[text, count] += 1
    return Question(index, text, "how many", "number", (str(count),) * 10)


def _other(index: int, scene: Scene, rng: np.random.Generator) -> list[Question]:
    """One question each about a colour, a shape and a place."""
    a, b, c = (scene.things[place] for place in rng.integers(len(scene.things), size=3))
    asked = (
        (f"What color is the {a.shape}?", "what color is the", a.color),
        (f"What shape is the {b.color} one?", "what shape is the", b.shape),
        (f"Where is the {c.color} {c.shape}?", "where is the", c.place),
    )
    return [
        Question(index, text, kind, "other", _votes(answer, SYNONYMS.get(answer), _SYNONYM_VOTES, rng))
        for text, kind, answer in asked
    ]


def _votes(
    answer: str, other: str | None, chances: Sequence[tuple[int, float]], rng: np.random.Generator
) -> tuple[str, ...]:
    """Ten answers in random order, some of them `other`."""
    votes = [votes for votes, _ in chances]
    count = votes[int(rng.choice(len(votes), p=[chance for _, chance in chances]))]
    said = [answer] * 10 if other is None else [other] * count + [answer] * (10 - count)
    return tuple(said[place] for place in rng.permutation(10))
