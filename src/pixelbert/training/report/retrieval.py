"""The report of retrieval: the six recalls beside chance and the blind model, ranks, and what the shortlist costs."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from typing import Any

from pixelbert.training.report.blind import Blind, compare_blind
from pixelbert.training.report.figures import chance, on_one_scale, recall_rows
from pixelbert.training.report.part import GROUPS, Headline, Part, blind_bar, figure_points, own_label
from pixelbert.training.report.pictures import Pictures
from pixelbert.training.report.record import Row, RunRecord, Scored
from pixelbert.training.report.svg import Curve, Panel

_DIRECTIONS = {"t2i": "picture for a sentence", "i2t": "sentence for a picture"}
_KS = (1, 5, 10)
_ENDS = (1, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)  # last rank of each bar
_SMALL = 100  # pictures; below this R@10 is hardly a question
_GROUPS = GROUPS | {
    "failed": ("Where it was sure and wrong", "Its own picture is not among the first ten, and the first is far ahead.")
}


def figures(record: RunRecord, shown: Scored, blind: RunRecord | None) -> dict[str, Any]:
    """The cards at the top. What comes from single sentences is left out where there are none."""
    rows = ranked(shown.records)
    images = shown.images or len({row["image"] for row in rows if "image" in row}) or None
    texts = shown.captions or len(rows) or None
    compared = compare_blind(record, shown, blind, "rsum", "pairs")
    shortlist = _shortlist(record, shown)
    directions = [direction_bars(record, shown, d, images, texts, compared) for d in _DIRECTIONS]
    return {
        "directions": [bars for bars in directions if bars],
        "recalls": recalls(shown.figures, images, texts, shown.exact_images, shortlist, compared),
        "rsum": shown.figures.get("rsum"),
        "blind": compared,
        "whole": shown.whole,
        "images": images,
        "texts": texts,
        "ranks": rank_bars(rows, images),
        "shortlist": shortlist,
        "lost": shortlist_loss(shown.figures),
        "lost_images": shown.exact_images,
    }


def ranked(rows: Iterable[Row]) -> list[Row]:
    """The rows of ranks.jsonl that tell the rank of a sentence's own picture."""
    return [row for row in rows if isinstance(row.get("rank"), int) and row["rank"] > 0]


def _shortlist(record: RunRecord, shown: Scored) -> int:
    """Through how long a shortlist the figures were ranked; 0 when every pair was scored."""
    result = record.evaluations.get(shown.folder.name, {}) if shown.date else {}
    return int((result.get("shortlist") if shown.date else record.get("validation.shortlist", 0)) or 0)


def direction_bars(
    record: RunRecord, shown: Scored, direction: str, images: int | None, texts: int | None, blind: Blind | None
) -> dict[str, Any] | None:
    """One direction's R@10 (R@1 of a few pictures) beside the blind model's and chance; None where it is not told."""
    k = 10 if images is None or images >= _SMALL else 1
    name = f"{direction}_r{k}"
    value = shown.figures.get(name)
    if value is None:
        return None
    bars: list[dict[str, Any]] = [{"label": own_label(record), "value": value, "kind": "own"}]
    if blind is not None and name in blind.figures:
        bars += blind_bar(Blind("", blind.figures[name], 0, []))
    if images:
        guess = chance(direction, k, images, _per_image(images, texts))
        bars.append({"label": "Any order", "value": guess, "kind": "commonest"})
    return {"what": _DIRECTIONS[direction], "k": k, "value": value, "bars": on_one_scale(bars)}


def recalls(
    figures: Mapping[str, float],
    images: int | None,
    texts: int | None,
    exact_images: int | None,
    shortlist: int,
    blind: Blind | None = None,
) -> list[dict[str, Any]]:
    """Rows of R@1, 5, 10: both directions by the model, by pooled vectors alone, and exactly; with chance and blind."""
    how = f"by match score, through a shortlist of {shortlist}" if shortlist else "by match score, every pair"
    scorings = {"": how, "dual": "by pooled vectors alone", "exact": "by match score, every pair"}
    counts = {"": images, "dual": images, "exact": exact_images}
    rows = recall_rows(figures, counts, _per_image(images, texts), scorings, _DIRECTIONS)
    for row in rows:
        direction = next(d for d, what in _DIRECTIONS.items() if what == row["what"])
        if blind is not None and row["how"] == how and row["images"] == images:
            row["blinds"] = [blind.figures.get(f"{direction}_r{k}") for k in _KS]
    return rows


def _per_image(images: int | None, texts: int | None) -> int:
    return max(1, round(texts / images)) if images and texts else 1


def evaluation_recalls(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The recalls of an evaluation."""
    counts = (result.get("images"), result.get("texts"), result.get("exact_images") or None)
    return recalls(result["figures"], *counts, int(result.get("shortlist") or 0))


def rank_bars(rows: list[Row], images: int | None) -> dict[str, Any] | None:
    """How many sentences have their own picture at what rank, beside any order: bars, median and mean."""
    ranks = [row["rank"] for row in rows]
    if not ranks:
        return None
    last, first, bars = max([*ranks, images or 0]), 1, []
    for end in _ENDS:
        if first > last:
            break
        to = last if end == _ENDS[-1] else min(end, last)
        count = sum(first <= rank <= to for rank in ranks)
        label = f"{first}" if first == to else f"{first:,}–{to:,}"
        chance = 100 * (to - first + 1) / images if images else None
        bars.append({"label": label, "value": 100 * count / len(ranks), "count": count, "chance": chance})
        first = to + 1
    highest = max(bar["value"] for bar in bars)
    scale = max([highest, *(bar["chance"] or 0.0 for bar in bars)]) or 1.0
    for bar in bars:
        bar["width"] = 100 * bar["value"] / scale
        bar["mark"] = None if bar["chance"] is None else 100 * bar["chance"] / scale
    middle = statistics.median(ranks)
    return {"bars": bars, "median": middle, "mean": statistics.fmean(ranks), "sentences": len(ranks)}


def shortlist_loss(figures: Mapping[str, float]) -> list[dict[str, Any]]:
    """Exact ranking and the shortlist's on the same pictures, by direction: R@1, 5, 10 and the difference in points."""
    rows = []
    for direction, what in _DIRECTIONS.items():
        exact = [figures.get(f"exact_{direction}_r{k}") for k in _KS]
        lost = [figures.get(f"shortlist_loss_{direction}_r{k}") for k in _KS]
        cells = [(e, e - gap, gap) for e, gap in zip(exact, lost, strict=True) if e is not None and gap is not None]
        if len(cells) == len(_KS):
            rows.append({"what": what, "cells": cells})
    return rows


# -- curves and examples -----------------------------------------------------------------------------------------------


def panels(record: RunRecord, blind: RunRecord | None) -> list[Panel]:
    """R@1, 5, 10 over pairs seen, both directions, and by pooled vectors alone; the blind run's R@10 beside them."""
    found = []
    for scoring, how in (("", ""), ("dual_", ", pooled vectors")):
        for direction, what in _DIRECTIONS.items():
            ranks = [(10, 1), (5, 2), (1, 4)]
            curves = [
                Curve(f"R@{k}", figure_points(record, f"{scoring}{direction}_r{k}"), c, dots=True) for k, c in ranks
            ]
            curves = [curve for curve in curves if curve.points]
            if curves and not scoring and blind is not None:
                points = figure_points(blind, f"{direction}_r10")
                curves += [Curve("R@10, blind", points, 3, dots=True, dashed=True)] if points else []
            found.append(Panel(f"{what.capitalize()}{how}", curves, " %", zero=True))
    return found


def example(example: Row, pictures: Pictures) -> dict[str, Any]:
    """A sentence with its best pictures in order, its own one marked; it comes last where it is not among them."""
    best, own = [str(image) for image in example["best"]], str(example["image"])
    shown = pictures.embed_all(example.get("pictures"))
    shown += [None] * (len(best) - len(shown))
    found = [
        {"picture": p, "image": i, "own": i == own, "place": n + 1}
        for n, (i, p) in enumerate(zip(best, shown, strict=False))
    ]
    if own not in best and len(shown) > len(best):
        found.append({"picture": shown[len(best)], "image": own, "own": True, "place": int(example["rank"])})
    return {
        "text": str(example["text"]),
        "rank": int(example["rank"]),
        "right": int(example["rank"]) == 1,
        "pictures": found,
        "listed": len(best),
        "record": str(example.get("record", "")),
    }


def headlines(cards: dict[str, Any]) -> list[Headline]:
    """Both directions."""
    found = []
    for number, direction in enumerate(cards["directions"]):
        bars = {bar["kind"]: bar["value"] for bar in direction["bars"]}
        measure = f"{direction['what']}, R@{direction['k']}"
        guess = bars.get("commonest")
        found.append(Headline(measure, direction["value"], bars.get("blind"), guess, "any order", main=number == 0))
    return found


PART = Part(
    name="retrieval",
    kind="Pixel-BERT retrieval",
    title="Pictures by sentence",
    what="The picture that belongs to a sentence is found among all, and the sentence that belongs to a picture.",
    unit="pairs",
    texts="sentences",
    losses={"retrieval": "Ranking loss", "contrastive": "Contrastive loss"},
    groups=_GROUPS,
    figures=figures,
    example=example,
    panels=panels,
    headlines=headlines,
    recalls=evaluation_recalls,
)
