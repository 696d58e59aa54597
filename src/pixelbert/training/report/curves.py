"""The report's curves: what is drawn against what, and beside which line that means «no better than chance»."""

from __future__ import annotations

import itertools
import math
from typing import Any

from markupsafe import Markup

from pixelbert.training.report.part import Part
from pixelbert.training.report.record import Row, RunRecord
from pixelbert.training.report.svg import Curve, Panel, draw

_NO_LOSS = ("kind", "step", "pairs", "seconds", "grad_norm", "rate", "pairs_per_s", "data_wait")
_ONE_ROW = 4  # so many panels stand beside each other


def curve_groups(record: RunRecord, blind: RunRecord | None, part: Part) -> list[dict[str, Any]]:
    """The panels in groups, drawn; a panel without values and a group without panels are left out."""
    phases = _phases(record)
    told = "Thin: every step. Thick: the running mean." + (" Upright lines: the next phase begins." if phases else "")
    held_out, losses = _filled(part.panels(record, blind)), _filled(loss_panels(record, part))
    groups = [("On held-out pictures", "", held_out), ("Losses", told, losses)]
    if held_out and losses and (len(losses) == 1 or len(held_out) + len(losses) <= _ONE_ROW):
        groups = [("Held-out figures and loss", told, held_out + losses)]
    waiting = "Waiting: the mean since the start or the last resume."
    groups.append(("Steps and speed", waiting, _filled(machine_panels(record, part))))
    drawn, number = [], 0
    for title, note, shown in groups:
        items = []
        columns = 4 if len(shown) % 4 == 0 else 3
        for panel in shown:
            panel.marks, panel.unit_seen = phases, part.unit
            panel.width = 330 if columns == 3 else 240
            items.append({"panel": panel, "svg": Markup(draw(panel, number))})
            number += 1
        if items:
            drawn.append({"title": title, "note": note, "panels": items, "columns": columns})
    return drawn


def _filled(panels: list[Panel]) -> list[Panel]:
    return [panel for panel in panels if not panel.empty]


def _phases(record: RunRecord) -> list[tuple[float, str]]:
    """Where a phase of the recipe begins after the first, in pairs, as far as the run has come."""
    ends = [phase.get("until") for phase in record.recipe.get("phases") or []]
    batch, steps = record.get("optim.batch_size", 0), record.steps or 0
    begins = [(math.ceil(end * steps) * batch, f"phase {i + 2}") for i, end in enumerate(ends) if end and end < 1]
    return [(float(pairs), name) for pairs, name in begins if pairs < record.pairs]


def _speed(rows: list[Row]) -> list[tuple[float, float]]:
    """Pairs a second over runs of steps, saving and validation included; as the run told it where it told no time."""
    timed = [(float(r["pairs"]), float(r["seconds"])) for r in rows if "seconds" in r]
    if len(timed) < 2:
        return _points(rows, "pairs_per_s")
    some = timed[:: max(1, len(timed) // 60)]
    between = itertools.pairwise(some)
    return [(to[0], (to[0] - start[0]) / (to[1] - start[1])) for start, to in between if to[1] > start[1]]


def _points(rows: list[Row], key: str, factor: float = 1.0) -> list[tuple[float, float]]:
    return [(float(r["pairs"]), factor * float(r[key])) for r in rows if isinstance(r.get(key), (int, float))]


def loss_panels(record: RunRecord, part: Part) -> list[Panel]:
    """One panel a loss; their sum only where there are several."""
    names = list(dict.fromkeys(name for row in record.train for name in row if name not in _NO_LOSS))
    if len(names) == 2:  # the sum and its only part
        names = [n for n in names if n != "loss"]
    panels = []
    for name in names:
        title = {"loss": "All losses", **part.losses}.get(name, name)
        coin = [(math.log(2), "a coin")] if name in part.coins else []
        panels.append(
            Panel(title, [Curve(title, _points(record.train, name), smoothed=True)], references=coin, span=0.05)
        )
    return panels


def _stays_frozen(recipe: dict[str, Any]) -> bool:
    """Whether no phase trains any of the CNN; recipes write 9 for all of its stages."""
    first = (recipe.get("backbone") or {}).get("frozen_stages", 0)
    phases = [phase.get("frozen_stages") for phase in recipe.get("phases") or []]
    return min(first if stages is None else stages for stages in phases or [None]) >= 9


def machine_panels(record: RunRecord, part: Part) -> list[Panel]:
    """Learning rates, gradient norm, speed, and the share of time spent waiting for data."""
    optim, rows = record.recipe.get("optim") or {}, record.train
    cnn, text = optim.get("cnn") or {}, optim.get("text") or {}
    rates = [
        ("CNN", None if _stays_frozen(record.recipe) else cnn.get("lr"), 1),
        ("encoder", text.get("lr"), 2),
        ("new parts", text.get("new_lr"), 3),
    ]
    known = [(name, rate, colour) for name, rate, colour in rates if isinstance(rate, (int, float))]
    curves = [Curve(name, _points(rows, "rate", rate), colour) for name, rate, colour in known]
    peaks = [max((y for _, y in c.points), default=0.0) for c in curves]
    spread = bool(peaks) and 0 < 30 * min(peaks) < max(peaks)
    norms = _points(rows, "grad_norm")
    clip = optim.get("clip_norm")
    reference = [(float(clip), "")] if clip and any(y > 0.3 * clip for _, y in norms) else []
    norm = f"Gradient norm, clipped above {clip:g}" if reference else "Gradient norm"
    return [
        Panel("Learning rates", curves, log=spread, zero=not spread),
        Panel(norm, [Curve("norm", norms, 1, smoothed=True)], references=reference, zero=True),
        Panel(f"{part.unit.capitalize()} a second", [Curve("rate", _speed(rows), 1)], zero=True),
        Panel("Waiting for data", [Curve("share", _points(rows, "data_wait", 100.0), 1)], " %", zero=True),
    ]  # fmt: skip
