"""Held-out pairs to look at: picture, masked caption, what was filled in with the right picture and with another.

Three groups, so that the sheet can be trusted: most are drawn by lot; the others are the ends of the scale, chosen for
what they show and labelled as such. All choices are keyed by the validation seed, so two validations of a run, or two
runs on the same data, show the same pictures in the first group.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from pixelbert.data.draws import generator
from pixelbert.tasks.masking import IGNORED
from pixelbert.tasks.pretraining_scores import HeldOut

Words = Sequence[dict[str, Any]]  # rows of `HeldOut.masked_words`

LOT, HELPED, FAILED = "lot", "helped", "failed"
_CANDIDATES = 8  # so many are measured for each one shown of the chosen groups
_TOP = 3  # guesses kept for each masked place
_PICTURE, _OTHER = (336, 40_000), (144, 8_000)  # longest side in pixels, bytes: 24 of each stay under 1.2 MB


@dataclass(frozen=True)
class SheetSize:
    """How many examples of each group: by lot, where the picture helped most, where the model was sure and wrong."""

    lot: int = 12
    helped: int = 6
    failed: int = 6


def write_examples(folder: Path, held_out: HeldOut, words: Words, size: SheetSize = SheetSize()) -> None:
    """FOLDER/examples.json and the pictures it names in FOLDER/examples/, as JPEG files.

    words: what `held_out.masked_words()` gave.
    """
    texts = choose(held_out, words, size)
    examples = describe(held_out, texts)
    (folder / "examples").mkdir(exist_ok=True)
    for number, (example, (text, _)) in enumerate(zip(examples, texts, strict=True)):
        own = int(held_out.image_of[text])
        other = int(held_out.shuffled()[own])
        for key, image, limit in (("picture", own, _PICTURE), ("other_picture", other, _OTHER)):
            example[key] = f"examples/{number:02}{'' if key == 'picture' else '-other'}.jpg"
            (folder / example[key]).write_bytes(thumbnail(_pixels(held_out, image), *limit))
    sheet = {"images": len(held_out.images), "captions": len(held_out.records), "examples": examples}
    (folder / "examples.json").write_text(json.dumps(sheet, indent=1) + "\n", encoding="utf-8")


# -- which ones --------------------------------------------------------------------------------------------------------


def choose(held_out: HeldOut, words: Words, size: SheetSize = SheetSize()) -> list[tuple[int, str]]:
    """(text, group) of the examples, texts as places among `held_out.records`; no image twice."""
    place = {held_out.batches.records.record_id(record): i for i, record in enumerate(held_out.records)}
    order = generator(held_out.seed, "sheet").permutation(len(held_out.records))
    rank = np.argsort(order)
    groups: dict[str, set[int]] = {LOT: set(), HELPED: set(), FAILED: set()}
    for row in words:
        text = place[row["record"]]
        groups[LOT].add(text)
        if row["predicted"] != row["word"]:
            groups[FAILED].add(text)
        elif row["predicted_shuffled"] != row["word"]:
            groups[HELPED].add(text)
    taken: set[int] = set()  # images
    chosen: list[tuple[int, str]] = []
    for group in (LOT, HELPED, FAILED):
        count = getattr(size, group)
        by_lot = sorted(groups[group], key=lambda text: rank[text])
        if group != LOT:
            candidates = _take(held_out, by_lot, _CANDIDATES * count, set(taken))
            worth = _worth(held_out, candidates, group)
            by_lot = [candidates[i] for i in np.argsort(-worth, kind="stable")]
        chosen += [(text, group) for text in _take(held_out, by_lot, count, taken)]
    return chosen


def _take(held_out: HeldOut, texts: Iterable[int], count: int, taken: set[int]) -> list[int]:
    """The first `count` texts whose image is not in `taken`, which grows with them."""
    found: list[int] = []
    for text in texts:
        image = int(held_out.image_of[text])
        if len(found) < count and image not in taken:
            taken.add(image)
            found.append(text)
    return found


def _worth(held_out: HeldOut, texts: Sequence[int], group: str) -> np.ndarray:
    """How much each example shows, float64: the most that picture or failure amounts to at one of its places."""
    worth = np.zeros(len(texts))
    for i, places in enumerate(_fills(held_out, texts)):
        if group == HELPED:
            worth[i] = max(p["own_true"] - p["other_true"] for p in places)
        else:
            worth[i] = max(p["own"][0][1] - p["own_true"] for p in places)
    return worth


# -- what they show ----------------------------------------------------------------------------------------------------


def describe(held_out: HeldOut, texts: Sequence[tuple[int, str]]) -> list[dict[str, Any]]:
    """What the sheet tells of each (text, group): pieces, guesses and match probabilities; no pictures yet."""
    split, tokenizer = held_out.batches.records, held_out.batches.tokenizer
    places = np.array([text for text, _ in texts], dtype=np.int64)
    false = np.array([held_out.false_caption(text) for text, _ in texts], dtype=np.int64)
    images = held_out.image_of[places]
    match_own = _sigmoid(held_out.match_scores(images, places, "examples"))
    match_false = _sigmoid(held_out.match_scores(images, false, "examples"))
    examples = []
    for i, masked in enumerate(_fills(held_out, places.tolist())):
        text = int(places[i])
        examples.append({
            "group": texts[i][1],
            "image": split.image_id(held_out.images[images[i]]),
            "record": split.record_id(held_out.records[text]),
            "pieces": tokenizer.convert_ids_to_tokens(held_out.texts[text][1:-1].tolist()),
            "masked": masked,
            "match": {"own": match_own[i], "false": match_false[i],
                      "false_caption": split.text(held_out.records[false[i]])},
        })  # fmt: skip
    return examples


def _fills(held_out: HeldOut, texts: Sequence[int]) -> list[list[dict[str, Any]]]:
    """For each text its masked places: what stood there, the true piece, and the best guesses with both pictures.

    `place` counts the pieces without [CLS]; `shown` is None for [MASK], else the piece the model saw there.
    """
    rows = np.asarray(texts, dtype=np.int64)
    own = held_out.image_of[rows]
    guesses: dict[str, list[list[dict[str, Any]]]] = {}
    for name, images in (("own", own), ("other", held_out.shuffled()[own])):
        guesses[name] = [[] for _ in texts]
        for i, logits in held_out.word_logits(rows, images, "examples"):
            _, labels = held_out.masked[texts[i]]
            guesses[name][i] = _best(held_out, logits, labels[labels != IGNORED], name)
    return [
        [
            {**place, **own, **other}
            for place, own, other in zip(_hidden(held_out, text), guesses["own"][i], guesses["other"][i], strict=True)
        ]
        for i, text in enumerate(texts)
    ]


def _best(held_out: HeldOut, logits: torch.Tensor, truth: np.ndarray, name: str) -> list[dict[str, Any]]:
    """Per masked place `name`: the best pieces with their probabilities, and `name`_true: that of the true one."""
    chances = logits.float().softmax(-1).cpu()
    values, ids = chances.topk(min(_TOP, chances.shape[-1]))
    true = chances[torch.arange(len(truth)), torch.from_numpy(truth)].tolist()
    pieces = [held_out.batches.tokenizer.convert_ids_to_tokens(row) for row in ids.tolist()]
    return [
        {name: [[piece, value] for piece, value in zip(names, row, strict=True)], f"{name}_true": p}
        for names, row, p in zip(pieces, values.tolist(), true, strict=True)
    ]


def _hidden(held_out: HeldOut, text: int) -> list[dict[str, Any]]:
    """The masked places of a text: `place`, the `true` piece, and what was `shown` instead (None for [MASK])."""
    ids, labels = held_out.masked[text]
    places = np.flatnonzero(labels != IGNORED)
    to_text = held_out.batches.tokenizer.convert_ids_to_tokens
    true, shown = to_text(labels[places].tolist()), to_text(ids[places].tolist())
    mask = held_out.batches.vocabulary.mask_id
    return [
        {"place": int(place) - 1, "true": true[n], "shown": None if ids[place] == mask else shown[n]}
        for n, place in enumerate(places)
    ]


def _sigmoid(log_odds: np.ndarray) -> list[float]:
    return [float(p) for p in 1 / (1 + np.exp(-np.clip(log_odds, -500, 500)))]


# -- pictures ----------------------------------------------------------------------------------------------------------


def _pixels(held_out: HeldOut, image: int) -> np.ndarray:
    """What the model saw of an image, uint8 [h, w, 3]: after resizing, before normalisation, without padding."""
    batch = held_out.batches.image_batch([held_out.images[image]], [0])
    height, width = batch["image_sizes"][0].tolist()
    pixels: np.ndarray = batch["pixel_values"][0, :, :height, :width].permute(1, 2, 0).numpy()
    return pixels


def thumbnail(pixels: np.ndarray, longest: int, most_bytes: int) -> bytes:
    """A JPEG of uint8 [h, w, 3] pixels: no side above `longest`, never enlarged, at most `most_bytes` bytes long.

    What is too large loses quality first, then size.
    """
    image = Image.fromarray(np.ascontiguousarray(pixels))
    while True:
        image.thumbnail((longest, longest))
        for quality in (88, 75, 60):
            stream = io.BytesIO()
            image.save(stream, "JPEG", quality=quality, optimize=True)
            if stream.tell() <= most_bytes or longest <= 32:
                return stream.getvalue()
        longest = longest * 3 // 4
