"""`pixelbert evaluate`: a run's figures on held-out data, beside chance and beside the blind model."""

from __future__ import annotations

import datetime as dt
import json
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import ValidationError

import pixelbert
from pixelbert.data.records import PreparedData
from pixelbert.errors import CheckpointError, DataError, UsageError, nearest
from pixelbert.model.processor import PixelBertProcessor
from pixelbert.model.weights import load_pretrained
from pixelbert.recipes.schema import Recipe
from pixelbert.tasks.inputs import Inputs
from pixelbert.tasks.table import TASKS
from pixelbert.tasks.task import Scoring, Task
from pixelbert.training import precision
from pixelbert.training.files import write_folder
from pixelbert.training.progress import PairProgress
from pixelbert.training.report import renew_report


def evaluate(
    run: str | Path,
    data: str | Path,
    *,
    split: str = "val",
    blind: str | Path | None = None,
    exact_images: int = 0,
    shortlist: int = 0,
    captions_per_image: int = 5,
    images: int = 0,
    model: str = "best",
) -> dict[str, Any]:
    """Score a run on a split of prepared data by its task's rules; writes RUN/evaluation/SPLIT/.

    A long ranking keeps its finished scores in RUN/evaluation/.SPLIT.partial and goes on there after a stop.

    Args:
        blind: the run of the blind model; adds its figures (`..._blind`) and what the picture gains (`..._gain_blind`).
        exact_images: so many images and their captions are all scored against each other; 0 leaves it out.
        shortlist: re-rank so many images per caption by the model; needs pooled vectors; 0 leaves it out.
        captions_per_image: so many captions of each image (pretraining, retrieval).
        images: so many of the split's first images; 0 = all.
        model: `best` (by the recipe's measure on val) or `last`.

    Returns:
        {"figures": percent by name, "images", "texts", "minutes", ...}

    Raises CheckpointError for a damaged or unfinished run, DataError for a split that is not there or data of another
    task, UsageError for a shortlist without pooled vectors.
    """
    started, folder, prepared = time.monotonic(), Path(run), PreparedData(data)
    partial = folder / "evaluation" / f".{split}.partial"
    scoring = Scoring(
        images=images, captions_per_image=captions_per_image, exact_images=exact_images, shortlist=shortlist,
        progress=PairProgress(), announce=lambda text: print(text, file=sys.stderr), partial=partial,
    )  # fmt: skip
    task, loaded, batches, own = run_on_split(folder, prepared, split, scoring, model)
    outcome = task.score(loaded, batches, own)
    figures = dict(outcome.figures)
    if blind is not None:
        other_task, other, batches, own = run_on_split(Path(blind), prepared, split, scoring, model, must_be_blind=True)
        if other_task is not task:
            raise DataError(f"{blind}: trained for {other_task.name}, {run} for {task.name}")
        if other.config.id2label != loaded.config.id2label:
            raise DataError(f"{blind}: has another answer list than {run}; train it on the same data")
        try:
            figures |= task.beside_blind(outcome, task.score(other, batches, own))
        except DataError as error:
            raise DataError(f"{blind}: {error}") from error
    result = {
        "run": folder.name, "task": task.name, "model": model, "data": prepared.folder.name, "split": split,
        "images": outcome.images, "texts": outcome.texts, "exact_images": exact_images, "shortlist": shortlist,
        "figures": figures, "minutes": round((time.monotonic() - started) / 60, 2),
        "version": pixelbert.__version__, "date": dt.date.today().isoformat(), "machine": precision.detect().name,
    }  # fmt: skip

    def fill(target: Path) -> None:
        (target / "figures.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        outcome.write(target)

    write_folder(folder / "evaluation" / split, fill)
    shutil.rmtree(partial, ignore_errors=True)
    renew_report(folder, lambda text: print(text, file=sys.stderr), blind=blind)
    return result


def load_run(run: Path, model: str = "best") -> tuple[Recipe, Any, PixelBertProcessor]:
    """A run's recipe, trained model (in evaluation mode) and processor. Raises CheckpointError when one is missing."""
    if model not in ("best", "last"):
        raise UsageError(f"model is '{model}'; {nearest(model, ('best', 'last'))}")
    source = run / "last" if model == "last" else run
    if not (run / "recipe.yaml").is_file():
        raise CheckpointError(f"{run}: not a run folder (no recipe.yaml)")
    if not (source / "model.safetensors").is_file():
        raise CheckpointError(f"{run}: has no trained model yet; go on with pixelbert train --resume")
    try:
        recipe = Recipe.model_validate(yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8")))
    except (ValidationError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{run}: a damaged recipe.yaml ({str(error).splitlines()[0]})") from error
    loaded = load_pretrained(TASKS[recipe.task].model_class, source)
    loaded.eval()
    return recipe, loaded, PixelBertProcessor.from_pretrained(run)


def run_on_split(
    run: Path, prepared: PreparedData, split: str, scoring: Scoring, model: str, must_be_blind: bool = False
) -> tuple[Task, Any, Inputs, Scoring]:
    """A run's task, model on its device, the batches of the split, and how it is scored.

    Raises CheckpointError, and DataError for data of another task, a split that is not there or has too few images.
    """
    recipe, loaded, processor = load_run(run, model)
    if must_be_blind and not recipe.blind:
        raise DataError(f"{run}: not a blind run; train one with --blind")
    task = TASKS[recipe.task]
    task.check(prepared)
    records = prepared.split(split)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    chosen = precision.choose(recipe.train.precision, device)
    loaded.to(device)
    loaded.pixelbert.visual.body.to(memory_format=torch.channels_last)
    loaded.pixelbert.visual.compute_dtype = torch.bfloat16 if chosen.backbone == "bfloat16" else None
    count = min(scoring.images or records.num_images, records.num_images)
    if count < task.least_images:
        raise DataError(
            f"{prepared.folder}: split '{split}' has {count} image(s), at least {task.least_images} are needed"
        )
    batches = task.batches(recipe, records, processor, loaded.config, train=False)
    return task, loaded, batches, replace(
        scoring, seed=recipe.validation.seed, batch_size=recipe.validation.batch_size, workers=recipe.data.workers,
        encoder_dtype=torch.bfloat16 if chosen.encoder == "bfloat16" else None,
    )  # fmt: skip
