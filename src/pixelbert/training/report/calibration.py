"""Calibration as a part of the report: a reliability diagram, and for questions the risk-coverage curve.

The numbers are those of RUN/calibration.json (tasks/calibration.py); classes instead of colours, as in `svg`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from pixelbert.tasks.calibration import FEW, read_calibration

Point = tuple[float, float]

_WIDTH, _HEIGHT = 330, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 10, 8, 40


def calibration_fragment(run: Path) -> str:
    """HTML for a run folder: a sentence or two and one or two charts; empty where the run has no calibration.

    Raises CheckpointError when calibration.json is damaged.
    """
    found = read_calibration(run)
    if found is None:
        return ""
    words = [_error_told(found)]
    if found["records"] < FEW:
        words.append(f"These are {found['records']} records alone, from which little can be told.")
    named = [(1, "calibrated"), (2, "as stated"), (0, "as it should be")]
    charts = [_chart("How often it is right", named, reliability_svg(found))]
    if "curve" in found:
        words.append(_silence_told(found))
        stop = [(1, f"below {100 * found['threshold']:.0f} % it does not answer")] if found["coverage"] else []
        charts.append(_chart("What answering more costs", stop, risk_coverage_svg(found)))
    paragraphs = "".join(f"<p>{escape(sentence)}</p>" for sentence in words).replace(" %", "\u202f%")
    return f'<div class="calibration">{paragraphs}<div class="panels">{"".join(charts)}</div></div>'


def _chart(title: str, named: Sequence[tuple[int, str]], svg: str) -> str:
    """A chart with its title and what its lines mean; colour 0 is the line of reference."""
    items = "".join(f'<li class="c{colour}"><i></i><span>{escape(what)}</span></li>' for colour, what in named)
    return f'<figure><h4>{escape(title)}</h4><ul class="legend">{items}</ul>{svg}</figure>'


def _error_told(found: Mapping[str, Any]) -> str:
    shift = f" and shift {found['shift']:+.2f}" if found["shift"] else ""
    if found["temperature"] == 1 and not shift:
        return (
            f"Stated and found differ by {100 * found['ece_before']:.1f} points on average (expected calibration "
            f"error, {found['records']:,} held-out records). No temperature betters that: chances are as stated."
        )
    told = (
        f"Stated and found differ by {100 * found['ece_before']:.1f} points on average (expected calibration error, "
        f"{found['records']:,} held-out records), and by {100 * found['ece_after']:.1f} with temperature "
        f"{found['temperature']:.2f}{shift}, each fifth measured with a fit on the others."
    )
    if found["ece_after"] > found["ece_before"]:  # the likelihood decides, and has gained
        told += (
            f" The records are likelier with it all the same ({found['nll_after']:.3f} nats instead of "
            f"{found['nll_before']:.3f}); an error in bins of so few records is partly chance."
        )
    return told


def _silence_told(found: Mapping[str, Any]) -> str:
    if found["coverage"] == 0:
        return "No part of the held-out questions is answered more often right than wrong: it says it does not know."
    return (
        f"It answers {100 * found['coverage']:.0f} % of the held-out questions and says of the others that it does not "
        f"know: {100 * found['risk']:.0f} % of the answers given are lost, instead of {100 * found['risk_of_all']:.0f} "
        f"% of all. The rule: it {found['rule']}."
    )


def reliability_svg(found: Mapping[str, Any]) -> str:
    """Found over stated probability, bin by bin, as the model states it and after calibration."""
    parts = [*_axes("stated, %", "found, %"), _line([(0, 0), (1, 1)], "reference")]
    for name, colour, what in (("bins_before", 2, "as stated"), ("bins_after", 1, "calibrated")):
        points = [(row["stated"], row["found"]) for row in found[name]]
        parts.append(_line(points, f"line c{colour}{' dashed' if colour == 2 else ''}"))
        for row, point in zip(found[name], points, strict=True):
            told = f"{what}: {100 * point[0]:.0f} % stated, {100 * point[1]:.0f} % found, {row['count']:,} records"
            parts.append(_dot(point, f"dot c{colour}", told))
    return _svg("Reliability: found over stated probability", parts)


def risk_coverage_svg(found: Mapping[str, Any]) -> str:
    """The share lost among the answers given, over the share of questions answered; a dot where the run stops."""
    curve = found["curve"]
    points = list(zip(curve["coverage"], curve["risk"], strict=True))
    parts = [*_axes("answered, %", "lost of these, %"), _line(points, "line c1")]
    if found["coverage"]:
        told = f"threshold {100 * found['threshold']:.0f} %: {100 * found['coverage']:.0f} % answered"
        parts.append(_dot((found["coverage"], found["risk"]), "dot c1", told))
    return _svg("Risk over coverage", parts)


def _place(point: Point) -> Point:
    """From two shares, 0 to 1, to places in the SVG."""
    across, up = (min(1.0, max(0.0, value)) for value in point)
    return _LEFT + across * (_WIDTH - _LEFT - _RIGHT), _HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM)


def _axes(along: str, up: str) -> list[str]:
    parts = []
    for value in (0.0, 0.25, 0.5, 0.75, 1.0):
        x, y = _place((value, value))
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 7}" y="{y + 3.5:.1f}" text-anchor="end">{100 * value:.0f}</text>')
        parts.append(f'<text class="tick" x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 15}" text-anchor="middle">'
                     f"{100 * value:.0f}</text>")  # fmt: skip
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text class="meaning" x="{middle}" y="{_HEIGHT - 6}" text-anchor="middle">{along}</text>')
    turned = f'transform="rotate(-90 12 {_HEIGHT / 2 - 16})"'
    parts.append(f'<text class="meaning" x="12" y="{_HEIGHT / 2 - 16}" text-anchor="middle" {turned}>{up}</text>')
    return parts


def _line(points: Sequence[Point], classes: str) -> str:
    if len(points) < 2:
        return ""
    path = " ".join(f"{x:.1f} {y:.1f}" for x, y in map(_place, points))
    return f'<path class="{classes}" d="M{path}"/>'


def _dot(point: Point, classes: str, told: str) -> str:
    x, y = _place(point)
    return f'<circle class="{classes}" cx="{x:.1f}" cy="{y:.1f}" r="3"><title>{escape(told)}</title></circle>'


def _svg(title: str, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title, quote=True)}">'
        f"{''.join(parts)}</svg>"
    )
