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

import pixelbert
from pixelbert.data.records import PreparedData
from pixelbert.errors import DataError, UsageError
from pixelbert.model import precision
from pixelbert.model.processor import PixelBertProcessor
from pixelbert.tasks.calibration import FILE, calibrate
from pixelbert.tasks.inputs import Inputs
from pixelbert.tasks.run import find_device, load_run, put_on_device, read_recipe
from pixelbert.tasks.table import TASKS
from pixelbert.tasks.task import Scoring, Task
from pixelbert.training.files import write_file, write_folder
from pixelbert.training.frozen_features import scoring_encoder
from pixelbert.training.progress import PairProgress
from pixelbert.training.report import renew_report
from pixelbert.training.validation import Attend, attending

# What of the calibration stands beside the figures.
_SUMMARY = (
    "records", "temperature", "shift", "ece_before", "ece_after", "threshold", "coverage", "risk", "risk_of_all",
)  # fmt: skip


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
    folds: int = 0,
    middle_view: bool = False,
    model: str = "best",
    attend: Attend | None = None,
) -> dict[str, Any]:
    """Score a run on a split of prepared data by its task's rules; writes RUN/evaluation/SPLIT/, or SPLIT-foldsN/
    and SPLIT-middle/, which have rules of their own.

    On the recipe's own val split, whole, it also writes RUN/calibration.json: what the model's probabilities are worth
    (tasks/calibration.py), which the Predictor then uses.

    A long ranking keeps its finished scores in RUN/evaluation/.SPLIT.partial and goes on there after a stop.

    Args:
        blind: the run of the blind model; adds its figures (`..._blind`) and what the picture gains (`..._gain_blind`).
        exact_images: so many images and their captions are all scored against each other; 0 leaves it out.
        shortlist: re-rank so many images per caption by the model; needs pooled vectors; 0 leaves it out.
        captions_per_image: so many captions of each image (pretraining, retrieval).
        images: so many of the split's first images; 0 = all.
        folds: retrieval: rank each so many images alone and take the mean (COCO 1K: 1000); 0 = all together.
        middle_view: an image's pooled vector is the mean of its own and that of its middle (recall, shortlists, fitted
            matches); a Predictor's answers do without, so nothing is calibrated.
        model: `best` (by the recipe's measure on val) or `last`.
        attend: draws attention sheets for the report (`inference.attention_examples.write_attention`); None: none.

    Returns:
        {"figures": percent by name, "images", "texts", "minutes", ..., "calibration" (on the recipe's val split)}

    Raises CheckpointError for a damaged or unfinished run, DataError for a split that is not there or data of another
    task, UsageError for a shortlist without pooled vectors, and for folds that do not fit.
    """
    started, folder, prepared = time.monotonic(), Path(run), PreparedData(data)
    name = split + (f"-folds{folds}" if folds else "") + ("-middle" if middle_view else "")
    partial = folder / "evaluation" / f".{name}.partial"
    scoring = Scoring(
        images=images, captions_per_image=captions_per_image, exact_images=exact_images, shortlist=shortlist,
        folds=folds, middle_view=middle_view, progress=PairProgress(),
        announce=lambda text: print(text, file=sys.stderr), partial=partial,
    )  # fmt: skip
    task, loaded, batches, own = run_on_split(folder, prepared, split, scoring, model)
    if middle_view and not loaded.config.contrastive_size:
        raise UsageError(f"{run}: has no pooled vectors; a middle view is for those")
    if folds and task.name != "retrieval":
        raise UsageError(f"{run}: trained for {task.name}; folds are for retrieval")
    outcome = task.score(loaded, batches, own)
    figures = dict(outcome.figures)
    if blind is not None:
        other_task, other, batches, own = run_on_split(Path(blind), prepared, split, scoring, model, must_be_blind=True)
        if other_task is not task:
            raise DataError(f"{blind}: trained for {other_task.name}, {run} for {task.name}")
        if other.config.id2label != loaded.config.id2label:
            raise DataError(f"{blind}: has another answer list than {run}; train it on the same data")
        try:
            figures |= task.beside_blind(outcome, task.score(other, batches, task.blind_scoring(own)))
        except DataError as error:
            raise DataError(f"{blind}: {error}") from error
    result = {
        "run": folder.name, "task": task.name, "model": model, "data": prepared.folder.name, "split": split,
        "images": outcome.images, "texts": outcome.texts, "exact_images": exact_images, "shortlist": shortlist,
        "folds": folds, "middle_view": middle_view,
        "figures": figures, "minutes": round((time.monotonic() - started) / 60, 2),
        "version": pixelbert.__version__, "date": dt.date.today().isoformat(), "machine": precision.detect().name,
    }  # fmt: skip
    calibration = None
    if (
        model == "best"
        and not images
        and not folds
        and not middle_view
        and outcome.stated
        and split == read_recipe(folder).data.val_split
    ):
        calibration = {"task": task.name, "data": prepared.folder.name, "split": split} | calibrate(outcome.stated())
        result["calibration"] = {name: value for name, value in calibration.items() if name in _SUMMARY}

    sheets = None
    if attend is not None and not read_recipe(folder).blind:
        processor = PixelBertProcessor.from_pretrained(folder)
        sheets = attending(attend, loaded, processor, batches.records, lambda text: print(text, file=sys.stderr))

    def fill(target: Path) -> None:
        (target / "figures.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        outcome.write(target)
        if sheets is not None:
            sheets(target)

    write_folder(folder / "evaluation" / name, fill)
    shutil.rmtree(partial, ignore_errors=True)
    if calibration is not None:
        write_file(folder / FILE, json.dumps(calibration, indent=1) + "\n")
    renew_report(folder, lambda text: print(text, file=sys.stderr), blind=blind)
    return result


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
    encoder_dtype = put_on_device(loaded, recipe.train.precision, find_device())
    count = min(scoring.images or records.num_images, records.num_images)
    if count < task.least_images:
        raise DataError(
            f"{prepared.folder}: split '{split}' has {count} image(s), at least {task.least_images} are needed"
        )
    batches = task.batches(recipe, records, processor, loaded.config, train=False)
    encode = scoring_encoder(recipe, run, loaded.pixelbert, batches, prepared.fingerprint, split, scoring)
    return task, loaded, batches, replace(
        scoring, encode=encode, seed=recipe.validation.seed, batch_size=recipe.validation.batch_size,
        workers=recipe.data.workers,
        encoder_dtype=encoder_dtype,
    )  # fmt: skip
