"""Validation while training: figures on held-out records, the best model so far, files for the report."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pixelbert.data.batches import Records
from pixelbert.errors import CheckpointError, TrainingStopped
from pixelbert.recipes.schema import Recipe
from pixelbert.tasks.calibration import FILE, calibrate
from pixelbert.tasks.table import TASKS
from pixelbert.tasks.task import Outcome, Scoring
from pixelbert.training.files import write_file
from pixelbert.training.frozen_features import scoring_encoder
from pixelbert.training.progress import note
from pixelbert.training.run_folder import save_best, save_last, write_validation
from pixelbert.training.setup import Parts

_SHOWN = (
    "itm_accuracy", "mlm_accuracy", "mlm_gain_shuffled", "dual_t2i_r10", "itm_t2i_r10", "vqa_score", "accuracy",
    "consistency", "rsum", "t2i_r1", "t2i_r10", "i2t_r1", "i2t_r10",
)  # fmt: skip


#: Adds attention sheets to a folder of examples: FOLDER, model, processor, records. Training itself draws none: it does
#: not know `inference`, which whoever starts it may hand in.
Attend = Callable[[Path, Any, Any, Records], None]


class Validator:
    """Scores a run's model on the held-out split and keeps it: as the last, and as the best by the recipe's measure."""

    def __init__(
        self,
        recipe: Recipe,
        run: Path,
        parts: Parts,
        encoder_dtype: torch.dtype | None,
        fingerprint: str = "",
        attend: Attend | None = None,
    ) -> None:
        self.recipe, self.run, self.parts, self.task = recipe, run, parts, TASKS[recipe.task]
        self.fingerprint = fingerprint  # of the data
        self.attend = None if recipe.blind else attend  # a blind model has nothing to look at
        settings = recipe.validation
        self.scoring = Scoring(
            images=settings.images, captions_per_image=settings.captions_per_image,
            exact_images=settings.exact_images, shortlist=settings.shortlist, seed=settings.seed,
            batch_size=settings.batch_size, workers=recipe.data.workers, encoder_dtype=encoder_dtype, announce=note,
        )  # fmt: skip
        self.best: float | None = None  # value of the best model so far; part of a checkpoint

    def __call__(self) -> dict[str, float]:
        """The figures, percent. The model is left in evaluation mode."""
        model, val = self.parts.model, self.parts.val
        batches = self.task.batches(self.recipe, val, self.parts.processor, model.config, train=False)
        encode = scoring_encoder(
            self.recipe, self.run, model.pixelbert, batches, self.fingerprint, self.recipe.data.val_split, self.scoring
        )  # fmt: skip
        self.fit()
        try:
            outcome = self.task.score(model, batches, replace(self.scoring, encode=encode))
        except CheckpointError as error:
            raise TrainingStopped(f"{self.run}: while validating, {error}; lower the rates") from error
        figures = outcome.figures
        note("val  " + "  ".join(f"{name} {figures[name]:.1f}" for name in _SHOWN if name in figures))
        write_validation(self.run, outcome, attending(self.attend, model, self.parts.processor, val, note))
        self.keep(figures[self.recipe.validation.select_on], outcome)
        return figures

    def fit(self) -> None:
        """What the task fits on training images that were kept out: before each validation, and after the last step."""
        if self.parts.calibration is not None:
            model = self.parts.model
            batches = self.task.batches(
                self.recipe, self.parts.calibration, self.parts.processor, model.config, train=False
            )
            note(self.task.finish(model, batches, self.scoring))

    def keep(self, value: float, outcome: Outcome | None = None) -> None:
        """Save the model as the last, and as the best if none before had a higher value; then with its calibration.

        Of equal ones the later is the best: it has learnt longer.
        """
        if self.best is None or value >= self.best:
            self.best = value
            save_best(self.run, self.parts.model)
            if outcome is not None and outcome.stated is not None and not self.scoring.images and not self.recipe.blind:
                told = {"task": self.task.name, "split": self.recipe.data.val_split}
                write_file(self.run / FILE, json.dumps(told | calibrate(outcome.stated()), indent=1) + "\n")
        save_last(self.run, self.parts.model, self.parts.processor)


def attending(
    attend: Attend | None, model: Any, processor: Any, records: Records, note: Callable[[str], None]
) -> Callable[[Path], None] | None:
    """`attend` for one model, as a writer of a folder; pictures for the report never end a run: `note` is told why."""
    if attend is None:
        return None

    def write(folder: Path) -> None:
        try:
            attend(folder, model, processor, records)
        except Exception as error:
            note(f"the attention sheets were not drawn: {error}")

    return write
