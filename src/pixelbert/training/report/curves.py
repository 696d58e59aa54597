"""The report's curves: what is drawn against what, and beside which line that means «no better than chance»."""

from __future__ import annotations

import itertools
import math
from typing import Any

from markupsafe import Markup

from pixelbert.training.report.record import Row, RunRecord
from pixelbert.training.report.svg import Curve, Panel, draw

_NO_LOSS = ("kind", "step", "pairs", "seconds", "grad_norm", "rate", "pairs_per_s", "data_wait")
_LOSSES = {"loss": "All losses", "mlm": "Masked-word loss", "itm": "Match loss", "contrastive": "Contrastive loss"}


def curve_groups(record: RunRecord, blind: RunRecord | None) -> list[dict[str, Any]]:
    """The panels in groups, drawn; a panel without values and a group without panels are left out."""
    phases = _phases(record)
    told = "Thin: every step. Thick: the running mean." + (" Upright lines: the next phase begins." if phases else "")
    groups = (
        ("On held-out pictures", "", validation_panels(record, blind)),
        ("Losses", told, loss_panels(record)),
        ("Steps and speed", "Waiting: the mean since the start or the last resume.", machine_panels(record)),
    )
    drawn, number = [], 0
    for title, note, panels in groups:
        shown, items = [panel for panel in panels if not panel.empty], []
        columns = 4 if len(shown) % 4 == 0 else 3
        for panel in shown:
            panel.marks = phases
            panel.width = 330 if columns == 3 else 240
            items.append({"panel": panel, "svg": Markup(draw(panel, number))})
            number += 1
        if items:
            drawn.append({"title": title, "note": note, "panels": items, "columns": columns})
    return drawn


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


def loss_panels(record: RunRecord) -> list[Panel]:
    """One panel a loss; their sum only where there are several."""
    names = list(dict.fromkeys(name for row in record.train for name in row if name not in _NO_LOSS))
    if len(names) == 2:  # the sum and its only part
        names = [n for n in names if n != "loss"]
    panels = []
    for name in names:
        title, coin = _LOSSES.get(name, name), [(math.log(2), "a coin")] if name == "itm" else []
        panels.append(
            Panel(title, [Curve(title, _points(record.train, name), smoothed=True)], references=coin, span=0.05)
        )
    return panels


def validation_panels(record: RunRecord, blind: RunRecord | None) -> list[Panel]:
    """Held-out figures over pairs: masked words with their baselines, matches, recall by each scoring."""
    rows = _figure_rows(record)
    words = [Curve("own picture", _points(rows, "mlm_accuracy"), 1, dots=True),
             Curve("another picture", _points(rows, "mlm_accuracy_shuffled"), 2, dots=True)]  # fmt: skip
    if blind is not None:
        words.append(Curve("blind model", _points(_figure_rows(blind), "mlm_accuracy"), 3, dots=True, dashed=True))
    panels = [Panel("Masked words", [c for c in words if c.points], " %", span=5.0)]
    matches = [Curve("matches", _points(rows, "itm_accuracy"), 1, dots=True)]
    panels.append(Panel("Matches", matches, " %", references=[(50.0, "a coin")], span=5.0))
    for scoring, how in (("itm", "match score"), ("rerank", "re-ranked"), ("dual", "pooled vectors")):
        ranks = [(f"R@{k}", _points(rows, f"{scoring}_t2i_r{k}"), colour) for colour, k in ((1, 10), (2, 5), (3, 1))]
        found = [Curve(name, points, colour, dots=True) for name, points, colour in ranks if points]
        panels.append(Panel(f"Picture for a caption, {how}", found, " %", zero=True))
    return panels


def _figure_rows(record: RunRecord) -> list[Row]:
    return [{"pairs": r["pairs"], **r["figures"]} for r in record.validations]


def machine_panels(record: RunRecord) -> list[Panel]:
    """Learning rates, gradient norm, speed, and the share of time spent waiting for data."""
    optim, rows = record.recipe.get("optim") or {}, record.train
    cnn, text = optim.get("cnn") or {}, optim.get("text") or {}
    rates = [("CNN", cnn.get("lr"), 1), ("encoder", text.get("lr"), 2), ("new parts", text.get("new_lr"), 3)]
    known = [(name, rate, colour) for name, rate, colour in rates if isinstance(rate, (int, float))]
    curves = [Curve(name, _points(rows, "rate", rate), colour) for name, rate, colour in known]
    peaks = [max((y for _, y in c.points), default=0.0) for c in curves]
    spread = bool(peaks) and 0 < 30 * min(peaks) < max(peaks)
    norms = _points(rows, "grad_norm")
    clip = optim.get("clip_norm")
    reference = [(float(clip), "clipped above")] if clip and any(y > 0.3 * clip for _, y in norms) else []
    return [
        Panel("Learning rates", curves, log=spread, zero=not spread),
        Panel("Gradient norm", [Curve("norm", norms, 1, smoothed=True)], references=reference, zero=True),
        Panel("Pairs a second", [Curve("rate", _speed(rows), 1)], zero=True),
        Panel("Waiting for data", [Curve("share", _points(rows, "data_wait", 100.0), 1)], " %", zero=True),
    ]  # fmt: skip
