"""Answered records to look at: pictures, text, what the model said; by lot, and where it failed."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pixelbert.data.draws import generator
from pixelbert.tasks.inputs import Inputs
from pixelbert.tasks.pretraining_examples import thumbnail

LOT, FAILED = "lot", "failed"
_COUNTS = {LOT: 12, FAILED: 6}
_PICTURE, _SMALL = (336, 40_000), (200, 14_000)  # longest side in pixels, bytes; small where many stand together


def choose_rows(
    rows: Sequence[dict[str, Any]],
    wrong: Callable[[dict[str, Any]], bool],
    sureness: Callable[[dict[str, Any]], float] | None = None,
    seed: int = 1234,
) -> list[tuple[str, dict[str, Any]]]:
    """(group, row): by lot, then the wrong ones the model was surest of (by default, by their probability)."""
    order = generator(seed, "record-examples").permutation(len(rows))
    chosen = [(LOT, rows[i]) for i in order[: _COUNTS[LOT]]]
    taken = {id(row) for _, row in chosen}
    failed = [row for row in rows if wrong(row) and id(row) not in taken]
    failed.sort(key=sureness or _sureness, reverse=True)
    return chosen + [(FAILED, row) for row in failed[: _COUNTS[FAILED]]]


def _sureness(row: dict[str, Any]) -> float:
    """The probability of what the model said; a statement's row has that of «true»."""
    probability = float(row.get("probability", 0.0))
    return 1 - probability if row.get("judged") is False else probability


def write_examples(
    folder: Path,
    batches: Inputs,
    chosen: Sequence[tuple[str, dict[str, Any]]],
    images_of: Callable[[dict[str, Any]], Sequence[int]],
) -> None:
    """FOLDER/examples.json and the pictures it names in FOLDER/examples/: `pictures` of each chosen row."""
    examples = []
    (folder / "examples").mkdir(exist_ok=True)
    for number, (group, row) in enumerate(chosen):
        example = {"group": group} | {k: v for k, v in row.items() if k not in ("split_record", "best_rows")}
        example["pictures"] = []
        images = images_of(row)
        size = _PICTURE if len(images) <= 2 else _SMALL
        for place, image in enumerate(images):
            name = f"examples/{number:02}-{place}.jpg"
            (folder / name).write_bytes(thumbnail(_pixels(batches, int(image)), *size))
            example["pictures"].append(name)
        examples.append(example)
    (folder / "examples.json").write_text(json.dumps({"examples": examples}, indent=1) + "\n", encoding="utf-8")


def _pixels(batches: Inputs, image: int) -> np.ndarray:
    """What the model saw of an image, uint8 [h, w, 3], without padding."""
    batch = batches.image_batch([image], [0])
    height, width = batch["image_sizes"][0].tolist()
    pixels: np.ndarray = batch["pixel_values"][0, :, :height, :width].permute(1, 2, 0).numpy()
    return pixels
