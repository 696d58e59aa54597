"""The report of statements about pictures (NLVR2, NLVR): accuracy, consistency, and what was taken for what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from pixelbert.training.report.blind import Blind, compare_blind
from pixelbert.training.report.figures import on_one_scale, share_interval, ways
from pixelbert.training.report.part import GROUPS, Headline, Part, beside_blind, blind_bar, own_label
from pixelbert.training.report.pictures import Pictures
from pixelbert.training.report.record import Row, RunRecord, Scored
from pixelbert.training.report.svg import Panel


def figures(record: RunRecord, shown: Scored, blind: RunRecord | None) -> dict[str, Any]:
    """The cards at the top. What comes from single statements is left out where there are none."""
    rows, value = judged(shown.records), shown.figures.get("accuracy")
    compared = compare_blind(record, shown, blind, "accuracy", "statements")
    return {
        "value": value,
        "interval": share_interval(value, len(rows)) if value is not None and shown.whole else None,
        "bars": accuracy_bars(record, value, rows, compared),
        "blind": compared,
        "whole": shown.whole,
        "statements": len(rows),
        "consistency": consistency(shown, rows, compared),
        "confusion": confusion(rows),
        "four_ways": picture_changed(rows if shown.whole else [], compared),
    }


def judged(rows: Iterable[Row]) -> list[Row]:
    """The rows of records.jsonl that tell a statement, its label and what the model judged."""
    kept = [row for row in rows if row.keys() >= {"statement", "judged", "label"}]
    return [row for row in kept if isinstance(row["judged"], bool) and isinstance(row["label"], bool)]


def accuracy_bars(record: RunRecord, value: float | None, rows: list[Row], blind: Blind | None) -> list[dict[str, Any]]:
    """Accuracy side by side, percent: the model, the blind model, the commoner label, a coin."""
    if value is None:
        return []
    bars = [{"label": own_label(record), "value": value, "kind": "own"}, *blind_bar(blind)]
    if rows:
        share = 100 * sum(row["label"] for row in rows) / len(rows)
        word = "true" if share >= 50 else "false"
        bars.append({"label": f"Always “{word}”", "value": max(share, 100 - share), "kind": "commonest"})
    bars.append({"label": "A coin", "value": 50.0, "kind": "commonest"})
    return on_one_scale(bars)


def consistency(shown: Scored, rows: list[Row], blind: Blind | None) -> dict[str, Any] | None:
    """Consistency with what a coin gets and over how many groups; None where the data has no groups."""
    value = shown.figures.get("consistency")
    if value is None:
        return None
    sizes = Counter(group for row in rows if (group := _group(row)))
    coin = 100 * sum(0.5**size for size in sizes.values()) / len(sizes) if sizes else None
    other = blind.figures.get("consistency") if blind else None
    return {"value": value, "groups": len(sizes) or None, "coin": coin, "blind": other}


def _group(row: Row) -> tuple[str, ...] | None:
    """A statement's group by its official name split-set-pair-sentence: all pairs that one sentence is told of."""
    parts = str(row.get("record", "")).split("-")
    return (*parts[:2], *parts[3:]) if len(parts) == 4 else None


def confusion(rows: list[Row]) -> list[dict[str, Any]]:
    """For true and false: how many of them were judged true, and false, with the share of each."""
    found: list[dict[str, Any]] = []
    for label in (True, False):
        own = [row["judged"] for row in rows if row["label"] is label]
        cells = [
            {"judged": j, "count": own.count(j), "share": 100 * own.count(j) / max(1, len(own))} for j in (True, False)
        ]
        found.append({"label": label, "count": len(own), "cells": cells})
    return found if rows else []


def picture_changed(rows: list[Row], blind: Blind | None) -> list[dict[str, Any]]:
    """Of the statements that both models judged the share right with pictures alone, blind alone, both, neither."""
    if blind is None:
        return []
    other = {row["record"]: row["judged"] == row["label"] for row in judged(blind.rows) if "record" in row}
    both = [(row["judged"] == row["label"], other[row["record"]]) for row in rows if row.get("record") in other]
    labels = {"own": "right only with the pictures", "both": "right with and without them",
              "other": "right only without them", "neither": "wrong either way"}  # fmt: skip
    return ways(both, labels) if both else []


# -- curves and examples -----------------------------------------------------------------------------------------------


def panels(record: RunRecord, blind: RunRecord | None) -> list[Panel]:
    """Accuracy and consistency over statements seen, beside the blind run."""
    coin = [(50.0, "a coin")]
    return [
        beside_blind("Accuracy", record, blind, "accuracy", references=coin),
        beside_blind("Consistency", record, blind, "consistency"),
    ]


def example(example: Row, pictures: Pictures) -> dict[str, Any]:
    """A statement with its pictures, its label, and what the model judged with what probability."""
    judged, label, true = bool(example["judged"]), bool(example["label"]), float(example["probability"])
    shown = pictures.embed_all(example.get("pictures"))
    return {
        "statement": str(example["statement"]),
        "judged": judged,
        "label": label,
        "right": judged == label,
        "true": true,
        "probability": true if judged else 1 - true,
        "pictures": shown,
        "sides": ["left", "right"] if len(shown) == 2 else [""] * len(shown),
        "record": str(example.get("record", "")),
    }


def headlines(cards: dict[str, Any]) -> list[Headline]:
    """Accuracy, and consistency where the data has groups."""
    if cards["value"] is None:
        return []
    guess = max((bar for bar in cards["bars"] if bar["kind"] == "commonest"), key=lambda bar: bar["value"])
    blind = cards["blind"].accuracy if cards["blind"] else None
    found = [Headline("accuracy", cards["value"], blind, guess["value"], guess["label"].lower(), main=True)]
    groups = cards["consistency"]
    if groups:
        found.append(Headline("consistency", groups["value"], groups["blind"], groups["coin"], "a coin"))
    return found


PART = Part(
    name="image_pairs",
    kind="Pixel-BERT statements about pictures",
    title="Statements about pictures",
    what="A statement is judged true or false of the pictures it is told of.",
    unit="statements",
    texts="statements",
    losses={"statement": "Statement loss"},
    groups=GROUPS,
    figures=figures,
    example=example,
    panels=panels,
    headlines=headlines,
    coins=("statement",),
)
