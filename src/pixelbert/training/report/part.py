"""What the report of one task has of its own; the rest of the page is the same for all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pixelbert.training.report.blind import Blind
from pixelbert.training.report.pictures import Pictures
from pixelbert.training.report.record import Row, RunRecord, Scored
from pixelbert.training.report.svg import Curve, Panel, Point

#: Groups of the sheet of examples that every downstream task has: title, and by what rule they were taken.
GROUPS = {
    "lot": ("Drawn by lot", "Not chosen for what they show: the model as it is."),
    "failed": ("Where it was sure and wrong", "Wrong, and the surest of all wrong ones. Chosen for that."),
}


@dataclass(frozen=True)
class Headline:
    """One line of an overview: a measure, the model's figure in percent, beside the blind model and beside guessing.

    guess: what it takes no model for, and what that is called. main: the figure that stands large.
    """

    measure: str
    value: float
    blind: float | None = None
    guess: float | None = None
    guess_name: str = ""
    main: bool = False


@dataclass(frozen=True)
class Part:
    """The parts of a task's page. Its template `NAME.html.jinja` has the macros `headline`, `cards`, `about`, `key`
    and `example`.

    title, what: the task, and in a sentence what the model does. unit: what a run counts; texts: what is scored.
    losses: titles of curves. groups: of examples, with the rule by which they were taken.
    figures: the cards' values, from the run, what is shown, and the blind run.
    example: an example's values with its pictures embedded; KeyError, TypeError, IndexError, ValueError or
    AttributeError for one that lacks something.
    panels: curves on held-out records. headlines: the overview's lines, from what `figures` gave.
    recalls: rows of an evaluation's figures. coins: losses of a choice between two, of which guessing gets ln 2.
    """

    name: str
    kind: str
    title: str
    what: str
    unit: str
    texts: str
    losses: Mapping[str, str]
    groups: Mapping[str, tuple[str, str]]
    figures: Callable[[RunRecord, Scored, RunRecord | None], dict[str, Any]]
    example: Callable[[Row, Pictures], dict[str, Any]]
    panels: Callable[[RunRecord, RunRecord | None], list[Panel]]
    headlines: Callable[[dict[str, Any]], list[Headline]]
    recalls: Callable[[dict[str, Any]], list[dict[str, Any]]] = lambda result: []
    coins: Sequence[str] = ()

    @property
    def template(self) -> str:
        return f"{self.name}.html.jinja"


# -- what the parts share ----------------------------------------------------------------------------------------------


def blind_bar(blind: Blind | None) -> list[dict[str, Any]]:
    """The blind model's bar, if there is one."""
    return [{"label": "Blind model", "value": blind.accuracy, "kind": "blind"}] if blind is not None else []


def own_label(record: RunRecord, label: str = "With its pictures") -> str:
    """What the bar of the run's own figure is called."""
    return "Blind model" if record.blind else label


def figure_points(record: RunRecord, name: str) -> list[Point]:
    """A held-out figure over what the run has seen."""
    told = ((r["pairs"], r["figures"].get(name)) for r in record.validations)
    return [(float(pairs), float(value)) for pairs, value in told if isinstance(value, (int, float))]


def beside_blind(title: str, record: RunRecord, blind: RunRecord | None, figure: str, **more: Any) -> Panel:
    """One figure's curve, with that of the blind run."""
    curves = [Curve("with pictures", figure_points(record, figure), 1, dots=True)]
    if blind is not None and (points := figure_points(blind, figure)):
        curves.append(Curve("blind model", points, 3, dots=True, dashed=True))
    return Panel(title, curves, " %", span=5.0, **more)
