"""The report of pretraining: masked words and matches, each beside guessing, and captions with words hidden."""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import Any

from pixelbert.training.report.blind import Blind, compare_blind
from pixelbert.training.report.figures import on_one_scale, recall_rows, share_interval, ways
from pixelbert.training.report.part import Headline, Part, figure_points
from pixelbert.training.report.pictures import Pictures
from pixelbert.training.report.record import Row, RunRecord, Scored
from pixelbert.training.report.svg import Curve, Panel

_GROUPS = {
    "lot": ("Drawn by lot", "Not chosen for what they show: the model as it is."),
    "helped": ("Where the picture mattered most", "Right with its own picture, wrong with another. Chosen for that."),
    "failed": ("Where it was sure and wrong", "Wrong with its own picture, and confident. Chosen for that."),
}
_CLOSING, _OPENING = re.compile(r"[.,;:!?%)\]}’'-]"), re.compile(r"[(\[{‘-]")
_PLACES = 3  # masked places of an example that are open to the eye; the others unfold


def figures(record: RunRecord, shown: Scored, blind: RunRecord | None) -> dict[str, Any]:
    """The cards at the top."""
    compared = compare_blind(record, shown, blind)
    counts = {"dual": shown.images, "rerank": shown.images, "itm": shown.exact_images or None}
    return {
        "words": word_bars(shown.figures, shown.words, compared, record.blind),
        "gain": shown.figures.get("mlm_gain_shuffled"),
        "gain_interval": gain_interval(shown.words) if shown.whole else None,
        "mlm_trained": record.trained("mlm"),
        "blind": compared,
        "match": match_tile(shown.figures, shown.captions, record.trained("itm")),
        "recalls": recall_rows(shown.figures, counts, shown.per_image),
        "four_ways": four_ways(shown.words),
        "places": len(shown.words),
        "whole": shown.whole,
    }


def headlines(cards: dict[str, Any]) -> list[Headline]:
    """Masked words and matches."""
    found, bars = [], {bar["kind"]: bar for bar in cards["words"]}
    if "own" in bars:
        blind, guess = bars.get("blind"), bars.get("commonest")
        told = {"guess": guess["value"], "guess_name": guess["label"].lower()} if guess else {}
        own = bars["own"]["value"]
        found.append(Headline("masked words right", own, blind and blind["value"], main=True, **told))
    if cards["match"]:
        blind = cards["blind"].figures.get("itm_accuracy") if cards["blind"] else None
        found.append(Headline("matches judged right", cards["match"]["value"], blind, 50.0, "a coin"))
    return found


# -- masked words ------------------------------------------------------------------------------------------------------


def word_bars(figures: dict[str, float], words: list[Row], blind: Blind | None, is_blind: bool) -> list[dict[str, Any]]:
    """Masked-word accuracy side by side, percent: `label`, `value`, `kind` (own, shuffled, blind, commonest)."""
    if "mlm_accuracy" not in figures:
        return []
    own = "Blind model" if is_blind else "With its own picture"
    bars: list[dict[str, Any]] = [{"label": own, "value": figures["mlm_accuracy"], "kind": "own"}]
    if not is_blind and "mlm_accuracy_shuffled" in figures:
        bars.append({"label": "With another picture", "value": figures["mlm_accuracy_shuffled"], "kind": "shuffled"})
    if blind is not None:
        bars.append({"label": "Blind model", "value": blind.accuracy, "kind": "blind"})
    counts = Counter(str(w["word"]) for w in words if "word" in w)
    if counts:
        piece, count = min(counts.items(), key=lambda item: (-item[1], item[0]))
        bars.append({"label": f"Always “{piece}”", "value": 100 * count / counts.total(), "kind": "commonest"})
    for bar in bars:
        bar["less"] = bars[0]["value"] - bar["value"] if bar["kind"] in ("shuffled", "blind") else None
    return on_one_scale(bars)


def gain_interval(words: list[Row]) -> float | None:
    """Half width of the 95 % interval of the gain over shuffled pictures, points; captions are what is resampled.

    The variance of a ratio (gain of a caption's places, number of its places), by its usual linear approximation.
    """
    gains: dict[str, list[int]] = {}
    for w in words:
        gains.setdefault(str(w.get("record")), []).append(_gain(w))
    places = sum(len(g) for g in gains.values())
    if len(gains) < 30:
        return None
    mean = sum(sum(g) for g in gains.values()) / places
    variance = sum((sum(g) - mean * len(g)) ** 2 for g in gains.values()) / places**2
    return 196 * math.sqrt(variance)


def _gain(word: Row) -> int:
    return (word["predicted"] == word["word"]) - (word["predicted_shuffled"] == word["word"])


def four_ways(words: list[Row]) -> list[dict[str, Any]]:
    """Of all masked places the share right with both pictures, with its own alone, with another alone, with neither."""
    labels = {"own": "right only with its own picture", "both": "right with either picture",
              "other": "right only with another picture", "neither": "wrong with either"}  # fmt: skip
    return ways(((w["predicted"] == w["word"], w["predicted_shuffled"] == w["word"]) for w in words), labels)


def match_tile(figures: dict[str, float], captions: int | None, trained: bool) -> dict[str, Any] | None:
    """ITM accuracy with its 95 % interval: `value`, `interval`, `pairs` judged, `trained`."""
    value = figures.get("itm_accuracy")
    if value is None:
        return None
    pairs = 2 * captions if captions else None
    return {"value": value, "interval": share_interval(value, pairs), "pairs": pairs, "trained": trained}


# -- curves and examples -----------------------------------------------------------------------------------------------


def panels(record: RunRecord, blind: RunRecord | None) -> list[Panel]:
    """Held-out figures over pairs: masked words with their baselines, matches, recall by each scoring."""
    words = [Curve("own picture", figure_points(record, "mlm_accuracy"), 1, dots=True),
             Curve("another picture", figure_points(record, "mlm_accuracy_shuffled"), 2, dots=True)]  # fmt: skip
    if blind is not None:
        words.append(Curve("blind model", figure_points(blind, "mlm_accuracy"), 3, dots=True, dashed=True))
    drawn = [Panel("Masked words", [c for c in words if c.points], " %", span=5.0)]
    matches = [Curve("matches", figure_points(record, "itm_accuracy"), 1, dots=True)]
    drawn.append(Panel("Matches", matches, " %", references=[(50.0, "a coin")], span=5.0))
    for scoring, how in (("itm", "match score"), ("rerank", "re-ranked"), ("dual", "pooled vectors")):
        ranks = [
            (f"R@{k}", figure_points(record, f"{scoring}_t2i_r{k}"), colour) for colour, k in ((1, 10), (2, 5), (3, 1))
        ]
        found = [Curve(name, points, colour, dots=True) for name, points, colour in ranks if points]
        drawn.append(Panel(f"Picture for a caption, {how}", found, " %", zero=True))
    return drawn


def evaluation_recalls(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The recalls of an evaluation."""
    images, texts = result.get("images"), result.get("texts")
    per_image = max(1, round(texts / images)) if images and texts else 1
    counts = {"dual": images, "rerank": images, "itm": result.get("exact_images") or None}
    return recall_rows(result["figures"], counts, per_image)


def example(example: Row, pictures: Pictures) -> dict[str, Any]:
    """An example's caption as tokens, its masked places with the telling ones marked, and its two pictures."""
    more = {"tokens": tokens(example), "masked": telling(example["masked"])}
    embedded = {name: pictures.embed(example.get(name)) for name in ("picture", "other_picture")}
    return {**example, **embedded, **more}


def telling(places: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Masked places in their order, each with `telling`: the three where the picture, or a sure mistake, shows most."""

    def worth(place: dict[str, Any]) -> float:
        return max(abs(place["own_true"] - place["other_true"]), place["own"][0][1] - place["own_true"])

    best = sorted(range(len(places)), key=lambda i: -worth(places[i]))[:_PLACES]
    return [{**place, "telling": i in best} for i, place in enumerate(places)]


def tokens(example: dict[str, Any]) -> list[dict[str, Any]]:
    """The caption's pieces to set as text: `text`, whether a `space` goes before, and the masked place or None."""
    masked = {m["place"]: m for m in example["masked"]}
    found: list[dict[str, Any]] = []
    before = "("  # no space before the first
    for place, piece in enumerate(example["pieces"]):
        endings = before in ("'", "’") and piece in ("s", "t", "d", "m", "re", "ve", "ll")
        glued = piece.startswith("##") or _CLOSING.fullmatch(piece) or _OPENING.fullmatch(before) or endings
        found.append({"text": plain(piece), "space": not glued, "masked": masked.get(place)})
        before = piece
    return found


def plain(piece: str) -> str:
    """A word piece without its mark."""
    return piece.removeprefix("##") if len(piece) > 2 else piece


PART = Part(
    name="pretraining",
    kind="Pixel-BERT pretraining",
    title="Pretraining",
    what="Words hidden in a caption are filled in from the picture; a caption is told from that of another picture.",
    unit="pairs",
    texts="captions",
    losses={
        "mlm": "Masked-word loss",
        "itm": "Match loss",
        "contrastive": "Contrastive loss",
        "align": "Alignment loss",
        "tags": "Words from the mean pixel",
        "text_mlm": "Masked words without the picture",
    },
    groups=_GROUPS,
    figures=figures,
    example=example,
    panels=panels,
    headlines=headlines,
    recalls=evaluation_recalls,
    coins=("itm",),
)
