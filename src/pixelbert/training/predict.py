"""`pixelbert predict`: the answers of a run as the file that an evaluation server takes; and scores of such files."""

from __future__ import annotations

import datetime as dt
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import pixelbert
from pixelbert.data.files import check_output
from pixelbert.data.records import PreparedData
from pixelbert.errors import DataError, UsageError
from pixelbert.model import precision
from pixelbert.tasks.table import task_of_data
from pixelbert.tasks.task import Scoring
from pixelbert.training.evaluate import run_on_split
from pixelbert.training.files import check_writable, write_whole
from pixelbert.training.opened import check_labels, left_out, whole_split
from pixelbert.training.progress import PairProgress


def predict(
    run: str | Path,
    data: str | Path,
    out: str | Path,
    *,
    split: str = "test",
    shortlist: int = 0,
    model: str = "best",
) -> dict[str, Any]:
    """Write a run's answers to every record of a split to the file `out`; the split needs no answers or labels.

    Questions: VQA 2.0's JSON list of {"question_id", "answer"}. Statements: NLVR2's CSV lines `identifier,prediction`,
    True or False. Retrieval: JSON with the ten best images of every text ("images_of_text") and the ten best texts of
    every image ("texts_of_image"). The file is written whole or not at all: before it gets its name it is read again,
    and must hold every record once, of the right types, in the split's order. A long ranking keeps its finished scores
    beside the file and goes on there after a stop.

    Args:
        shortlist: retrieval: so many images a text go from the pooled vectors to the model; 0 scores every pair.
        model: `best` (by the recipe's measure on val) or `last`.

    Returns:
        {"run", "task", "file", "split", "records", "minutes", ...}

    Raises CheckpointError for a damaged or unfinished run, DataError for a split that is not there or data of another
    task, UsageError for a pretraining run, a shortlist without pooled vectors, or a folder as `out`.
    """
    started, folder, target, prepared = time.monotonic(), Path(run), Path(out), PreparedData(data)
    check_output(target)
    partial = target.with_name(f".{target.name}.partial")
    scoring = Scoring(
        shortlist=shortlist, progress=PairProgress(), partial=partial,
        announce=lambda text: print(text, file=sys.stderr),
    )  # fmt: skip
    task, loaded, batches, own = run_on_split(folder, prepared, split, scoring, model)
    if shortlist and task.name != "retrieval":
        raise UsageError(f"{run}: trained for {task.name}; a shortlist is for retrieval")
    if missing := left_out(prepared, split):
        print(missing, file=sys.stderr)
    check_writable(target)
    submission = task.predict(loaded, batches, own)

    def fill(path: Path) -> None:
        path.write_text(submission.text, encoding="utf-8", newline="\n")
        submission.check(path)

    write_whole(target, fill)
    shutil.rmtree(partial, ignore_errors=True)
    return {
        "run": folder.name, "task": task.name, "model": model, "data": prepared.folder.name, "split": split,
        "file": str(target), "records": submission.records, "shortlist": shortlist,
        "minutes": round((time.monotonic() - started) / 60, 2), "version": pixelbert.__version__,
        "date": dt.date.today().isoformat(), "machine": precision.detect().name,
    }  # fmt: skip


def score_predictions(file: str | Path, data: str | Path, *, split: str = "val") -> dict[str, Any]:
    """The figures of a predictions file of questions or statements, whoever made it, by the rules of `evaluate`.

    Raises DataError when the file is not of this split or the split has no answers, UsageError for rankings.
    """
    started, path, prepared = time.monotonic(), Path(file), PreparedData(data)
    task = task_of_data(prepared.task)
    if task is None:
        raise DataError(f"{prepared.folder}: prepared for {prepared.task}, which no task is scored on")
    part = whole_split(prepared, split)
    records = part.records
    check_labels(task, part)
    figures = task.score_file(path, records, f"{prepared.folder}, split '{split}'")
    return {
        "run": path.name, "task": task.name, "model": "predictions", "data": prepared.folder.name, "split": split,
        "images": records.num_images, "texts": records.num_records, "figures": figures,
        "minutes": round((time.monotonic() - started) / 60, 2), "version": pixelbert.__version__,
        "date": dt.date.today().isoformat(),
    }  # fmt: skip
