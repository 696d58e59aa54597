"""Several runs in a row, each begun or gone on with, and a request to stop heeded between them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from pixelbert.recipes.schema import Recipe
from pixelbert.training import loop
from pixelbert.training.checkpoint import checkpoints


def train_on(recipe: str | Path | Recipe, data: str | Path, run: Path, **how: Any) -> dict[str, float]:
    """One of several runs in a row: `train`, or go on from the last checkpoint; the figures of its last validation.

    how: what `train` takes besides; `from_run` is for the start alone. Raises KeyboardInterrupt also where the request
    to stop came in the last step, so that the next run is not begun.
    """
    resume = bool(checkpoints(run))
    if not resume:
        shutil.rmtree(run, ignore_errors=True)  # killed before its first checkpoint
    start = how.pop("from_run", None)
    result = loop.train(recipe, data, run, from_run=None if resume else start, resume=resume, **how)
    if result.stop_asked:
        raise KeyboardInterrupt
    return result.metrics
