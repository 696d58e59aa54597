"""A run opened on the records of a split: what `evaluate` and `predict` check before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pixelbert.data.batches import Records
from pixelbert.data.records import PreparedData
from pixelbert.errors import DataError, UsageError
from pixelbert.model.memory import keep_freed
from pixelbert.model.processor import PixelBertProcessor
from pixelbert.recipes.schema import Recipe
from pixelbert.tasks.inputs import Inputs
from pixelbert.tasks.run import find_device, load_run, put_on_device, read_facts
from pixelbert.tasks.table import TASKS
from pixelbert.tasks.task import Scoring, Task
from pixelbert.training.frozen_features import scoring_encoder
from pixelbert.training.history import recorded, seen_before
from pixelbert.training.setup import open_splits


@dataclass(frozen=True)
class Part:
    """Records of a split of prepared data, all or some.

    split: its name in the data. place: folder and split as the user named it, for messages. is_val: whether the run
    held these very records out and chose its best model by them. note: what must be known of their scores, or nothing.
    """

    prepared: PreparedData
    split: str
    place: str
    records: Records
    is_val: bool = False
    note: str = ""


def whole_split(prepared: PreparedData, split: str) -> Part:
    """All records of a split. Raises DataError when it is not there."""
    records = prepared.split(split)
    return Part(prepared, prepared.own_name(split), f"{prepared.folder}: split '{split}'", records)


def part_to_score(run: Path, recipe: Recipe, prepared: PreparedData, split: str) -> Part:
    """The records of a split that a run is scored on: where it was trained on its val split too, those it held out.

    Raises DataError when the split is not there.
    """
    part = whole_split(prepared, split)
    val, trained = recipe.data.val_split, recipe.data.train_splits
    same = (read_facts(run).get("data") or {}).get("fingerprint") == prepared.fingerprint
    part = replace(part, is_val=same and part.split == prepared.own_name(val))
    earlier = recorded(read_facts(run))
    if part.split not in [prepared.own_name(name) for name in trained]:
        return replace(part, note=seen_before(earlier, prepared, part.split, part.records.num_images))
    if not same:
        note = f"was trained on split '{split}' of other data; whether it has seen records scored here is not known"
        return replace(part, note=note)
    if part.is_val:
        held_out = open_splits(prepared, recipe)[1]
        note = f"was trained on split '{split}' but for its first {held_out.num_images:,} images; these are scored"
        seen = seen_before(earlier, prepared, part.split, held_out.num_images)
        return replace(part, records=held_out, note="; ".join(text for text in (note, seen) if text))
    return replace(part, is_val=False, note=f"was trained on the records of split '{split}' that are scored here")


def left_out(prepared: PreparedData, split: str) -> str:
    """That a split lacks rows which were bad when it was prepared; empty where it lacks none."""
    count = prepared.info.get("bad_rows", {}).get("splits", {}).get(prepared.own_name(split), 0)
    if not count:
        return ""
    rows = "1 row that was" if count == 1 else f"{count:,} rows that were"
    return f"{prepared.folder}: split '{split}' lacks {rows} bad when it was prepared; they are in its bad_rows.jsonl"


@dataclass(frozen=True)
class Opened:
    """A run's task, model and processor, the batches of the records it is scored on, and how."""

    run: Path
    recipe: Recipe
    task: Task
    model: Any
    processor: PixelBertProcessor
    batches: Inputs
    scoring: Scoring
    part: Part

    def ready(self) -> Scoring:
        """Puts the model on its device; where the recipe keeps features of a frozen CNN, they are computed now."""
        if self.recipe.image.square:
            keep_freed()
        dtype = put_on_device(self.model, self.recipe.train.precision, find_device())
        encode = scoring_encoder(
            self.recipe, self.run, self.model.pixelbert, self.batches, self.part.prepared.fingerprint, self.part.split,
            self.scoring,
        )  # fmt: skip
        return replace(self.scoring, encode=encode, encoder_dtype=dtype)


def open_on(run: Path, part: Part, scoring: Scoring, model: str) -> Opened:
    """A run opened on some records, with all checked that can be told before anything is computed.

    Raises CheckpointError as `load_run`, DataError for data of another task or too few images, UsageError for what the
    model or the number of images does not allow.
    """
    recipe, loaded, processor = load_run(run, model)
    task, records = TASKS[recipe.task], part.records
    task.check(part.prepared)
    count = task.scored_images(scoring, records.num_images)
    if count < task.least_images:
        raise DataError(f"{part.place} has {count} image(s), at least {task.least_images} are needed")
    try:
        batches = task.batches(recipe, records, processor, loaded.config, train=False)
    except DataError as error:
        raise DataError(f"{part.place}: {error}") from error
    try:
        task.check_scoring(loaded.config, records.num_images, scoring)
    except UsageError as error:
        raise UsageError(f"{run}: {error}") from error
    settings = recipe.validation
    scoring = replace(scoring, seed=settings.seed, batch_size=settings.batch_size, workers=recipe.data.workers)
    return Opened(run, recipe, task, loaded, processor, batches, scoring, part)


def check_labels(task: Task, part: Part, among: Sequence[int] | None = None) -> None:
    """Raises DataError naming data, split and record where an answer or a label is missing; `among`: None = all."""
    try:
        task.check_labels(part.records, among)
    except DataError as error:
        raise DataError(f"{part.place}: {error}") from error
