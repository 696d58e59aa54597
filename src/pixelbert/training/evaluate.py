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
from pixelbert.errors import CheckpointError, DataError, UsageError
from pixelbert.model import precision
from pixelbert.tasks.calibration import FILE, calibrate
from pixelbert.tasks.inputs import Inputs
from pixelbert.tasks.predicting import scored_records
from pixelbert.tasks.run import read_recipe
from pixelbert.tasks.table import TASKS
from pixelbert.tasks.task import Outcome, Scoring, Task
from pixelbert.training.files import check_writable, write_file, write_folder
from pixelbert.training.history import leaks
from pixelbert.training.opened import Opened, check_labels, left_out, open_on, part_to_score, whole_split
from pixelbert.training.progress import PairProgress
from pixelbert.training.report import renew_report
from pixelbert.training.report.blind import trained_otherwise
from pixelbert.training.report.record import RunRecord
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
    """Score a run on a split of prepared data by its task's rules; writes RUN/evaluation/SPLIT/. What has rules of its
    own stands apart: SPLIT-images-N (fewer images), SPLIT-shortlistN (retrieval), SPLIT-foldsN, SPLIT-middle,
    SPLIT-last (the last model).

    Of a val split that the run was trained on too, the images held out of training are scored; of another split that
    it was trained on, all. Either is said on stderr.

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
    task, UsageError for a shortlist without pooled vectors, and for folds that do not fit; all before anything is
    computed, and so for the blind run.
    """
    for name, count in (("images", images), ("exact_images", exact_images), ("shortlist", shortlist), ("folds", folds)):
        if count < 0:
            raise UsageError(f"{name} is {count}; 0 or more is possible")
    if captions_per_image < 1:
        raise UsageError(f"captions_per_image is {captions_per_image}; 1 or more is possible")
    started, folder, prepared = time.monotonic(), Path(run), PreparedData(data)
    recipe = read_recipe(folder)
    task, part = TASKS[recipe.task], part_to_score(folder, recipe, prepared, split)
    scoring = Scoring(
        images=images, captions_per_image=captions_per_image, exact_images=exact_images, shortlist=shortlist,
        folds=folds, middle_view=middle_view, progress=PairProgress(), announce=_say,
    )  # fmt: skip
    count = task.scored_images(scoring, part.records.num_images)
    whole = count == part.records.num_images
    listed = shortlist if task.name == "retrieval" else 0  # pretraining adds figures of their own
    name = _folder_name(split, 0 if whole else count, listed, folds, middle_view, model)
    partial = folder / "evaluation" / f".{name}.partial"
    own = open_on(folder, part, replace(scoring, partial=partial), model)
    if middle_view and not own.model.config.contrastive_size:
        raise UsageError(f"{run}: has no pooled vectors; a middle view is for those")
    if folds and task.name != "retrieval":
        raise UsageError(f"{run}: trained for {task.name}; folds are for retrieval")
    if (shortlist or exact_images) and task.name not in ("retrieval", "pretraining"):
        raise UsageError(f"{run}: trained for {task.name}, which ranks nothing; no shortlist, no exact images")
    check_labels(task, part, scored_records(own.batches, scoring))
    other = None if blind is None else _open_blind(Path(blind), own, model)
    unlike = [] if other is None else trained_otherwise(RunRecord.read(folder), RunRecord.read(other.run))
    if part.note:
        _say(f"{run}: {part.note}")
    if unlike:
        _say(f"{blind}: is not the same but for the pictures: {'; '.join(unlike)}")
    for text in (left_out(prepared, split), *leaks(prepared, split)):
        _say(text)
    check_writable(folder / "evaluation" / name)
    outcome = _score(own)
    figures = dict(outcome.figures)
    if other is not None:
        try:
            figures |= task.beside_blind(outcome, _score(other))
        except DataError as error:
            raise DataError(f"{blind}: {error}") from error
    result = {
        "run": folder.name, "task": task.name, "model": model, "data": prepared.folder.name, "split": split,
        "images": outcome.images, "texts": outcome.texts, "exact_images": exact_images, "shortlist": shortlist,
        "folds": folds, "middle_view": middle_view, "note": part.note, "blind_differs": unlike,
        "figures": figures, "minutes": round((time.monotonic() - started) / 60, 2),
        "version": pixelbert.__version__, "date": dt.date.today().isoformat(), "machine": precision.detect().name,
    }  # fmt: skip
    calibration = None
    if part.is_val and whole and model == "best" and not folds and not middle_view and outcome.stated:
        calibration = {"task": task.name, "data": prepared.folder.name, "split": split} | calibrate(outcome.stated())
        result["calibration"] = {name: value for name, value in calibration.items() if name in _SUMMARY}

    sheets = None
    if attend is not None and not recipe.blind:
        sheets = attending(attend, own.model, own.processor, part.records, _say)

    def fill(target: Path) -> None:
        (target / "figures.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        outcome.write(target)
        if sheets is not None:
            sheets(target)

    write_folder(folder / "evaluation" / name, fill)
    shutil.rmtree(partial, ignore_errors=True)
    if calibration is not None:
        write_file(folder / FILE, json.dumps(calibration, indent=1) + "\n")
    renew_report(folder, _say, blind=blind)
    return result


def _score(opened: Opened) -> Outcome:
    try:
        return opened.task.score(opened.model, opened.batches, opened.ready())
    except CheckpointError as error:
        raise CheckpointError(f"{opened.run}: {error}") from error


def _folder_name(split: str, images: int, shortlist: int, folds: int, middle_view: bool, model: str) -> str:
    """Figures by rules of their own, of fewer images or of the last model do not replace those of the whole split."""
    marks = {
        f"images-{images}": images, f"shortlist{shortlist}": shortlist, f"folds{folds}": folds, "middle": middle_view,
        "last": model == "last",
    }  # fmt: skip
    return "-".join([split, *(mark for mark, wanted in marks.items() if wanted)])


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _open_blind(blind: Path, own: Opened, model: str) -> Opened:
    """The blind run on the records of the run that it stands beside.

    Raises CheckpointError as `load_run`, DataError for a run that is not blind or cannot be compared.
    """
    recipe, task = read_recipe(blind), own.task
    if not recipe.blind:
        raise DataError(f"{blind}: not a blind run; train one with --blind")
    if recipe.task != task.name:
        raise DataError(f"{blind}: trained for {recipe.task}, {own.run} for {task.name}")
    try:
        other = open_on(blind, own.part, task.blind_scoring(own.scoring), model)
        if other.model.config.id2label != own.model.config.id2label:
            raise DataError(f"has another answer list than {own.run}; train it on the same data")
        task.check_blind(own.batches, own.scoring, other.batches, other.scoring)
    except DataError as error:
        raise DataError(f"{blind}: {error}") from error
    return other


def run_on_split(
    run: Path, prepared: PreparedData, split: str, scoring: Scoring, model: str
) -> tuple[Task, Any, Inputs, Scoring]:
    """A run's task, model on its device, the batches of a whole split, and how it is scored. Raises as `open_on`."""
    part = whole_split(prepared, split)
    opened = open_on(run, part, scoring, model)
    opened.task.check_ids(part.records, part.place)
    return opened.task, opened.model, opened.batches, opened.ready()
