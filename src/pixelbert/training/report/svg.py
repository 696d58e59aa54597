"""Curves as inline SVG: a few lines of our own, so that the report needs no library and no network.

A `Panel` is one small chart; `draw` gives its SVG, with classes instead of colours (the page's style sheet has them,
for light and dark). Long curves are thinned before drawing: a page stays small however many steps a run has.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

Point = tuple[float, float]

HEIGHT = 190  # of a panel, in SVG units; about CSS pixels on the page
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 10, 8, 24
_POINTS = 240  # kept of a curve


@dataclass
class Curve:
    """One named line: points (pairs seen, value); values that are not finite are left out, and break the line.

    smoothed: draw the raw values faintly and their running mean on top. dots: mark every point (few values).
    """

    name: str
    points: Sequence[Point]
    colour: int = 1  # 1 to 5, of the style sheet
    smoothed: bool = False
    dots: bool = False
    dashed: bool = False


@dataclass
class Panel:
    """One chart. `unit` follows a value in the readout; `references` are horizontal lines
    (value, what it means), `marks` vertical ones (pairs, what happened there).
    """

    title: str
    curves: list[Curve]
    unit: str = ""
    references: list[tuple[float, str]] = field(default_factory=list)
    marks: list[tuple[float, str]] = field(default_factory=list)
    log: bool = False
    zero: bool = False  # the axis begins at zero
    span: float = 0.0  # the least that the axis covers, so that a flat curve looks flat
    width: int = 330  # SVG units
    unit_seen: str = "pairs"  # of what the bottom axis counts

    @property
    def empty(self) -> bool:
        return not any(math.isfinite(y) for curve in self.curves for _, y in curve.points)

    @property
    def shown(self) -> list[tuple[Curve, list[Point]]]:
        """Each curve with the points that stand for it in the readout: smoothed and thinned."""
        return [(c, thin(smooth(c.points) if c.smoothed else finite(c.points), _POINTS // 2)) for c in self.curves]

    @property
    def readout(self) -> dict[str, Any]:
        """What the page's script needs to show values under the pointer: numbers of four digits."""
        left, right = self.x_range()
        return {
            "x": [left, right],
            "plot": [_LEFT, self.width - _RIGHT, self.width],
            "unit": self.unit,
            "seen": self.unit_seen,
            "curves": [[[_digits(x, 6), _digits(y, 4)] for x, y in points] for _, points in self.shown],
        }

    def x_range(self) -> tuple[float, float]:
        """Pairs: from none to the most of any curve."""
        ends = [x for curve in self.curves for x, _ in curve.points]
        return 0.0, max([*ends, 1.0])

    def y_range(self) -> tuple[float, float]:
        """What the axis shows: all smoothed values, the references, and all but the wildest raw values."""
        values = [y for curve in self.curves for y in _core(curve)] + [value for value, _ in self.references]
        values = [y for y in values if y > 0] if self.log else values
        low, high = min(values, default=1.0), max(values, default=1.0)
        if self.log:  # three powers of ten below the lowest peak: a rate that ends at zero would take the whole axis
            peaks = [max((y for _, y in finite(c.points)), default=high) for c in self.curves]
            low = max(low, 1e-3 * min([p for p in peaks if p > 0], default=low))
            return low * 0.9, high * 1.1 if high > low else high * 10
        if self.zero:
            low = min(low, 0.0)
        short = max(self.span, abs(high) * 1e-3 or 1.0) - (high - low)
        if short > 0:
            below = 0.0 if self.zero else min(short / 2, low) if low >= 0 else short / 2
            low, high = low - below, high + short - below
        margin = 0.06 * (high - low)
        return (low if self.zero and low == 0 else low - margin), high + margin


def finite(points: Sequence[Point]) -> list[Point]:
    return [(x, y) for x, y in points if math.isfinite(y)]


def _core(curve: Curve) -> list[float]:
    """The values that decide the axis: one raw value in fifty may lie outside on either side."""
    raw = sorted(y for _, y in finite(curve.points))
    if not curve.smoothed or len(raw) < 50:
        return raw
    cut = len(raw) // 50
    return raw[cut:-cut] + [y for _, y in smooth(curve.points)]


def smooth(points: Sequence[Point], share: float = 0.04) -> list[Point]:
    """Mean over a window of `share` of the points around each; at the ends over the part of it that there is."""
    kept = finite(points)
    sums = [0.0]
    for _, y in kept:
        sums.append(sums[-1] + y)
    reach = max(1, round(len(kept) * share / 2))
    means = []
    for i, (x, _) in enumerate(kept):
        first, end = max(0, i - reach), min(len(kept), i + reach + 1)
        means.append((x, (sums[end] - sums[first]) / (end - first)))
    return means


def thin(points: Sequence[Point], count: int) -> list[Point]:
    """At most `2 * count` points: the lowest and the highest of each of `count` equal runs, in order; ends kept."""
    if len(points) <= 2 * count:
        return list(points)
    kept: list[Point] = []
    for i in range(count):
        part = points[i * len(points) // count : (i + 1) * len(points) // count]
        ends = {part.index(min(part, key=_y)), part.index(max(part, key=_y))}
        if i in (0, count - 1):
            ends = {min(ends), 0} if i == 0 else {max(ends), len(part) - 1}
        kept += [part[place] for place in sorted(ends)]
    return kept


def _y(point: Point) -> float:
    return point[1]


# -- axes --------------------------------------------------------------------------------------------------------------


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers in [low, high]: 1, 2 or 5 times a power of ten apart, at most `most` of them."""
    step = _nice((high - low) / max(1, most - 1))
    while math.floor(high / step) - math.ceil(low / step) + 1 > most:
        step = _nice(step * 1.01)
    return [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _nice(value: float) -> float:
    """The least of 1, 2, 5 times a power of ten that is at least `value`."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= value * (1 - 1e-9))


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten in [low, high]; with 2 and 5 between them when there are fewer than three."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [10.0**d for d in decades if low <= 10.0**d <= high]
    if len(found) < 3:
        found = [m * 10.0**d for d in decades for m in (1, 2, 5) if low <= m * 10.0**d <= high]
    return found[:: math.ceil(len(found) / 6)] if found else [low]


def number(value: float, near: float = 0.0) -> str:
    """A tick's label: 20k, 1.5M, 0.25, 2e-4; `near` is the distance of the ticks, which sets the digits."""
    size = abs(value)
    if size < 1e-12:
        return "0"
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size >= limit:
            return f"{value / limit:.4g}{letter}"
    if size < 0.01:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    digits = max(0, -math.floor(math.log10(near))) if near else 3
    return f"{value:.{digits}f}" if near else f"{value:.3g}"


def _digits(value: float, digits: int) -> float:
    return float(f"{value:.{digits}g}")


# -- SVG ---------------------------------------------------------------------------------------------------------------


@dataclass
class _Scale:
    """From (pairs, value) to places in the SVG."""

    x: Point  # what the axes show
    y: Point
    log: bool
    width: int

    @property
    def right(self) -> int:
        return self.width - _RIGHT

    def __call__(self, point: Point) -> Point:
        across = (point[0] - self.x[0]) / (self.x[1] - self.x[0])
        low, high, value = self._level(self.y[0]), self._level(self.y[1]), self._level(point[1])
        up = max(
            -0.5, min(1.5, (value - low) / (high - low))
        )  # what lies far outside is clipped: keep its number short
        return _LEFT + across * (self.right - _LEFT), HEIGHT - _BOTTOM - up * (HEIGHT - _TOP - _BOTTOM)

    def _level(self, value: float) -> float:
        return math.log(max(value, 1e-300)) if self.log else value


def draw(panel: Panel, place: int = 0) -> str:
    """The panel's SVG; `place` is its number on the page. The same input gives the same text; names are escaped."""
    scale = _Scale(panel.x_range(), panel.y_range(), panel.log, panel.width)
    clip = f"plot-{place}"
    window = f'x="{_LEFT}" y="0" width="{scale.right - _LEFT + 5}" height="{HEIGHT - _BOTTOM + 4}"'
    parts = [
        f'<clipPath id="{clip}"><rect {window}/></clipPath>',
        *_axes(panel, scale),
        f'<g clip-path="url(#{clip})">',
    ]
    for pairs, happened in panel.marks:
        x = scale((pairs, scale.y[0]))[0]
        line = f'<path class="event" d="M{x:.1f} {_TOP}V{HEIGHT - _BOTTOM}">'
        parts.append(f"{line}<title>{escape(happened)}</title></path>")
    for value, meaning in panel.references:
        y = scale((0, value))[1]
        parts.append(f'<path class="reference" d="M{_LEFT} {y:.1f}H{scale.right}"/>')
        parts.append(_text(scale.right - 2, y - 4, meaning, "end", "meaning"))
    for curve, points in panel.shown:
        if curve.smoothed:
            parts.append(_line(thin(finite(curve.points), _POINTS), scale, f"raw c{curve.colour}"))
        parts.append(_line(points, scale, f"line c{curve.colour}{' dashed' if curve.dashed else ''}"))
        if curve.dots or len(points) == 1:
            parts += [_dot(scale(point), curve, point, panel) for point in points]
    parts.append(f'</g><path class="cursor" d="M0 {_TOP}V{HEIGHT - _BOTTOM}" visibility="hidden"/>')
    label = escape(f"{panel.title} over {panel.unit_seen} seen", quote=True)
    return f'<svg viewBox="0 0 {panel.width} {HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def _axes(panel: Panel, scale: _Scale) -> list[str]:
    """Horizontal lines with their values, and pairs along the bottom."""
    values = log_ticks(*scale.y) if panel.log else ticks(*scale.y)
    near = 0.0 if panel.log or len(values) < 2 else values[1] - values[0]
    parts = []
    for value in values:
        y = scale((0, value))[1]
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{scale.right}"/>')
        parts.append(_text(_LEFT - 7, y + 3.5, number(value, near), "end"))
    along = ticks(*scale.x, most=6 if panel.width > 300 else 5)
    return parts + [_text(scale((pairs, scale.y[0]))[0], HEIGHT - 6, number(pairs), "middle") for pairs in along]


def _line(points: Sequence[Point], scale: _Scale, classes: str) -> str:
    if len(points) < 2:
        return ""
    path = " ".join(f"{x:.1f} {y:.1f}" for x, y in map(scale, points))
    return f'<path class="{classes}" d="M{path}"/>'


def _dot(place: Point, curve: Curve, point: Point, panel: Panel) -> str:
    told = escape(f"{curve.name}: {point[1]:.4g}{panel.unit} at {point[0]:,.0f} {panel.unit_seen}")
    where = f'cx="{place[0]:.1f}" cy="{place[1]:.1f}" r="2.6"'
    return f'<circle class="dot c{curve.colour}" {where}><title>{told}</title></circle>'


def _text(x: float, y: float, text: str, anchor: str, classes: str = "tick") -> str:
    return f'<text class="{classes}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
