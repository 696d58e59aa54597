"""Figures that several tasks show, each beside what guessing would get: bars, recall, what the picture changed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

SCORINGS = {
    "itm": "by match score",
    "rerank": "by pooled vectors, re-ranked by match score",
    "dual": "by pooled vectors",
}
DIRECTIONS = {"t2i": "picture for a caption", "i2t": "caption for a picture"}


def on_one_scale(bars: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Bars with a `value` in percent, each given its `width` (percent) on one scale from zero; the widest nearly fills
    it.
    """
    widest = max((bar["value"] for bar in bars), default=0.0) or 1.0
    scale = min(100.0, 10 * math.ceil(widest * 1.1 / 10))
    for bar in bars:
        bar["width"] = 100 * bar["value"] / scale
    return bars


def share_interval(value: float, count: int | None) -> float | None:
    """Half width of the 95 % interval of a share of `count`, points; `value` in percent. None without a count."""
    return 196 * math.sqrt(value / 100 * (1 - value / 100) / count) if count and 0 <= value <= 100 else None


def mean_interval(values: list[float]) -> float | None:
    """Half width of the 95 % interval of a mean; None from fewer than 30 values."""
    if len(values) < 30:
        return None
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return 1.96 * math.sqrt(variance / len(values))


def ways(pairs: Iterable[tuple[bool, bool]], labels: Mapping[str, str]) -> list[dict[str, Any]]:
    """Of all (right with its picture, right otherwise) the share that is `own` alone, `both`, `other`, `neither`."""
    kinds = {(True, True): "both", (True, False): "own", (False, True): "other", (False, False): "neither"}
    counts = Counter(kinds[own, other] for own, other in pairs)
    total = max(1, counts.total())
    shown = labels.items()
    return [{"kind": k, "label": label, "count": counts[k], "share": 100 * counts[k] / total} for k, label in shown]


def recall_rows(
    figures: Mapping[str, float],
    images: Mapping[str, int | None],
    per_image: int,
    scorings: Mapping[str, str] = SCORINGS,
    directions: Mapping[str, str] = DIRECTIONS,
) -> list[dict[str, Any]]:
    """A row a scoring and direction: R@1, 5, 10 in percent, and what chance gets.

    images: by scoring, how many there were to choose from (None where nothing tells). per_image: captions of each.
    scorings, directions: the parts of a figure's name ("dual_t2i_r1"; no prefix for "") and what they mean.
    """
    rows = []
    for scoring, how in scorings.items():
        for direction, what in directions.items():
            prefix = f"{scoring}_{direction}" if scoring else direction
            values = [figures.get(f"{prefix}_r{k}") for k in (1, 5, 10)]
            if all(value is None for value in values):
                continue
            count = images.get(scoring)
            chances = [chance(direction, k, count, per_image) for k in (1, 5, 10)] if count else None
            rows.append({"what": what, "how": how, "images": count, "values": values, "chances": chances})
    return rows


def chance(direction: str, k: int, images: int, per_image: int) -> float:
    """Percent that random order gets of R@k: one picture of `images`, or any of a picture's captions of all."""
    if direction == "t2i":
        return 100 * min(1.0, k / images)
    texts = images * per_image
    if k > texts - per_image:
        return 100.0
    return 100 * (1 - math.comb(texts - per_image, k) / math.comb(texts, k))
