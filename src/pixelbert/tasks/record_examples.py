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
_PICTURE = (336, 40_000)  # longest side in pixels, bytes


def choose_rows(
    rows: Sequence[dict[str, Any]], wrong: Callable[[dict[str, Any]], bool], seed: int = 1234
) -> list[tuple[str, dict[str, Any]]]:
    """(group, row): by lot, then the wrong ones the model was surest of; no picture of one record twice."""
    order = generator(seed, "record-examples").permutation(len(rows))
    chosen = [(LOT, rows[i]) for i in order[: _COUNTS[LOT]]]
    taken = {id(row) for _, row in chosen}
    failed = sorted((row for row in rows if wrong(row) and id(row) not in taken), key=lambda row: -_sureness(row))
    return chosen + [(FAILED, row) for row in failed[: _COUNTS[FAILED]]]


def _sureness(row: dict[str, Any]) -> float:
    return abs(float(row.get("probability", 0.5)) - 0.5)


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
        for place, image in enumerate(images_of(row)):
            name = f"examples/{number:02}-{place}.jpg"
            (folder / name).write_bytes(thumbnail(_pixels(batches, int(image)), *_PICTURE))
            example["pictures"].append(name)
        examples.append(example)
    (folder / "examples.json").write_text(json.dumps({"examples": examples}, indent=1) + "\n", encoding="utf-8")


def _pixels(batches: Inputs, image: int) -> np.ndarray:
    """What the model saw of an image, uint8 [h, w, 3], without padding."""
    batch = batches.image_batch([image], [0])
    height, width = batch["image_sizes"][0].tolist()
    pixels: np.ndarray = batch["pixel_values"][0, :, :height, :width].permute(1, 2, 0).numpy()
    return pixels
