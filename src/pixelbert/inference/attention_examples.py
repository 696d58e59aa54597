"""Attention sheets of a few held-out records, beside the examples of a validation or an evaluation, for its report."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from pixelbert.data.batches import Records
from pixelbert.errors import UsageError
from pixelbert.inference.attention import Method, Photo, look_all, see
from pixelbert.inference.attention_pictures import sheet

FILE = "attention.json"
_COUNTS = {"lot": 2, "failed": 1}  # of each group of examples: as they come, and where it went wrong
_PANEL, _COLUMNS, _QUALITY = 160, 6, 72  # as wide as the page at the most; a sheet of 12 panels takes some 80 KB


def write_attention(folder: Path, model: Any, processor: Any, records: Records) -> None:
    """FOLDER/attention.json and the sheets it names in FOLDER/examples/, for some records of FOLDER/examples.json.

    For every word of the record's text: attention in the first layer (the paper's Figure 3), and `similarity` where the
    model has pooled vectors; of two pictures, each has its sheet. A text without a word gets none.
    """
    told = json.loads((folder / "examples.json").read_text(encoding="utf-8"))["examples"]
    rows = {records.record_id(row): row for row in range(records.num_records)}
    left, found = dict(_COUNTS), []
    for example in told:
        row = rows.get(example.get("record"))
        if row is None or left.get(example["group"], 0) == 0:
            continue
        left[example["group"]] -= 1
        found.append({"group": example["group"], "text": records.text(row), "sheets": []})
        photos = _photos(model, processor, records, row)
        sides = ("left", "right") if len(photos) == 2 else ("",)
        for place, photo in enumerate(photos):
            for method in _methods(model):
                name = f"examples/attention-{len(found):02}-{place}-{method.name}.jpg"
                try:
                    drawn = _drawn(model, processor, photo, records.text(row), method)
                except UsageError:
                    continue
                (folder / name).write_bytes(drawn)
                found[-1]["sheets"].append({"method": str(method), "picture": name, "side": sides[place]})
    shown = [one for one in found if one["sheets"]]
    (folder / FILE).write_text(json.dumps({"attention": shown}, indent=1) + "\n", encoding="utf-8")


def _photos(model: Any, processor: Any, records: Records, row: int) -> list[Photo]:
    """The record's picture, or both of a statement about two."""
    images = [int(records.image_of[row]), records.second_image(row)]
    return [see(model, processor, records.image(image).read()) for image in images if image >= 0]


def _methods(model: Any) -> list[Method]:
    """The paper's, and the one that tells words apart best of those that this model has (docs/attention.md)."""
    if getattr(model, "word_pixels", None) is not None:
        return [Method(), Method("nearness")]
    return [Method(), Method("similarity")] if getattr(model, "contrastive", None) is not None else [Method()]


def _drawn(model: Any, processor: Any, photo: Photo, text: str, method: Method) -> bytes:
    with torch.no_grad():
        maps = look_all(model, processor, photo, text, method)
    panels = len(maps) + 1
    columns = math.ceil(panels / math.ceil(panels / _COLUMNS))  # rows as long as each other
    image: Image.Image = sheet(maps, photo.pixels, text, size=_PANEL, columns=columns)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_QUALITY, optimize=True)
    return buffer.getvalue()
