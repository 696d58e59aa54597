"""Validation while training: figures on held-out images, the best model so far, files for the report."""

from __future__ import annotations

from pathlib import Path

import torch

from pixelbert.recipes.schema import Recipe
from pixelbert.tasks.pretraining_scores import HeldOut, validate
from pixelbert.training.progress import note
from pixelbert.training.run_folder import save_best, save_last, write_validation
from pixelbert.training.setup import Parts, pretraining_batches

_SHOWN = ("itm_accuracy", "mlm_accuracy", "mlm_gain_shuffled", "dual_t2i_r10", "itm_t2i_r10")


class Validator:
    """Scores a run's model on the held-out split and keeps it: as the last, and as the best by the recipe's measure."""

    def __init__(self, recipe: Recipe, run: Path, parts: Parts, encoder_dtype: torch.dtype | None) -> None:
        self.recipe, self.run, self.parts, self.encoder_dtype = recipe, run, parts, encoder_dtype
        self.best: float | None = None  # value of the best model so far; part of a checkpoint

    def __call__(self) -> dict[str, float]:
        """The figures, percent. The model is left in evaluation mode."""
        settings, model, val = self.recipe.validation, self.parts.model, self.parts.val
        batches = pretraining_batches(self.recipe, val, self.parts.processor, model.config, train=False)
        count = min(settings.images or val.num_images, val.num_images)
        held_out = HeldOut(
            model, batches, list(range(count)), settings.captions_per_image, settings.seed, settings.batch_size,
            self.encoder_dtype,
        )  # fmt: skip
        figures, words = validate(held_out, settings.exact_images)
        note("val  " + "  ".join(f"{name} {figures[name]:.1f}" for name in _SHOWN if name in figures))
        write_validation(self.run, held_out, figures, words)
        self.keep(figures[settings.select_on])
        return figures

    def keep(self, value: float) -> None:
        """Save the model as the last, and as the best if none before had a higher value."""
        if self.best is None or value > self.best:
            self.best = value
            save_best(self.run, self.parts.model)
        save_last(self.run, self.parts.model, self.parts.processor)
