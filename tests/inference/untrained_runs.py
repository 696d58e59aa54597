"""Run folders with random weights, as `train` leaves them, without a step of training."""

from __future__ import annotations

from pathlib import Path

import torch

from pixelbert.data.records import PreparedData
from pixelbert.recipes.schema import Recipe
from pixelbert.training.run_folder import open_run, save_best
from pixelbert.training.setup import build_parts, open_splits

WIDE = ("text.initializer_range=0.3",)  # so that answers differ from text to text and picture to picture
SIZES = ("image.square=null", "image.shorter=64", "image.longer=128")


def make_run(folder: Path, recipe: Recipe, data: Path) -> Path:
    """What `train` leaves in a run folder, as far as inference reads it, without a step."""
    prepared = PreparedData(data)
    torch.manual_seed(0)
    parts = build_parts(recipe, *open_splits(prepared, recipe))
    open_run(folder, recipe, prepared, resume=False).write(parts)
    save_best(folder, parts.model)
    return folder
