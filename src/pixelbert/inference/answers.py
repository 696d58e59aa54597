"""What the Predictor gives back: plain values, each with its probability."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Result:
    """Base: `to_dict()` is what `--json` prints.

    calibrated: whether the run has a calibration.json, so that the probabilities mean what tasks/calibration.py says.
    cut: the text had more wordpieces than the model reads; what is beyond them was left out, as in training.
    """

    text: str
    calibrated: bool
    cut: bool

    def to_dict(self) -> dict[str, Any]:
        """Dictionaries, lists, strings and numbers."""
        return asdict(self)


@dataclass(frozen=True)
class Guess:
    """One of several possible words or answers."""

    text: str
    probability: float


@dataclass(frozen=True)
class Answer(Result):
    """The answer to a question.

    answer, probability: the best of the model's list. knows: whether the probability reaches the run's threshold;
    None where the run has none. guesses: the best answers, `answer` first; each stands alone: they need not sum to 1.
    """

    answer: str
    probability: float
    knows: bool | None
    guesses: list[Guess] = field(default_factory=list)

    @property
    def said(self) -> str:
        """The answer, or that it is not known."""
        return "I do not know" if self.knows is False else self.answer


@dataclass(frozen=True)
class Match(Result):
    """Whether a text and a picture belong together.

    probability: against one random text of another picture; `matches` from one half on. log_odds: as the model states
    it, before calibration.
    """

    matches: bool
    probability: float
    log_odds: float


@dataclass(frozen=True)
class Judgement(Result):
    """Whether a statement is true of its pictures. probability: that it is."""

    true: bool
    probability: float


@dataclass(frozen=True)
class Place:
    """A hidden wordpiece. guesses: with the picture; without: from the text alone; each list is in falling order."""

    guesses: list[Guess]
    without: list[Guess]


@dataclass(frozen=True)
class Filling(Result):
    """A text with hidden words. filled: the text with the best guess in each place, by the picture if there is one."""

    filled: str
    places: list[Place] = field(default_factory=list)


@dataclass(frozen=True)
class Ranked:
    """One of the ranked things, best first. index: its place in the list given; name: the text, or the picture's."""

    index: int
    name: str
    probability: float
    log_odds: float
    calibrated: bool

    def to_dict(self) -> dict[str, Any]:
        """As a dictionary."""
        return asdict(self)


@dataclass(frozen=True)
class Attention:
    """Where the network looked for one word.

    word: as written. weights [rows][columns]: sum 1 over the photo's cells. boxes [rows][columns]: left, top, right and
    bottom of each cell in the photo's own pixels; all 0 where the method found nothing. layer: None for methods that
    look at none. to_photo: the part of the word's attention that goes to the photo (method `attention` alone).
    """

    word: str
    method: str
    layer: int | None
    head: int | None
    weights: list[list[float]]
    boxes: list[list[list[float]]]
    to_photo: float | None

    def to_dict(self) -> dict[str, Any]:
        """As a dictionary."""
        return asdict(self)
