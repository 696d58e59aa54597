"""What holds at which optimizer step: rates, losses, frozen stages, and where to validate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pixelbert.errors import UsageError, nearest
from pixelbert.recipes.schema import Phase, Recipe
from pixelbert.tasks.table import TASKS
from pixelbert.training.optimizers import rate_factor


@dataclass(frozen=True)
class StepSettings:
    """What holds at one optimizer step. `rate` multiplies every group's first rate."""

    rate: float
    losses: Any  # a frozen dataclass of the task, with a weight for each loss
    frozen_stages: int


class RunPlan:
    """A recipe's steps on a number of records, shared by some processes.

    Raises UsageError when the processes cannot share a step equally, or when the best model is to be chosen by a figure
    that the run does not compute.
    """

    def __init__(self, recipe: Recipe, records: int, ranks: int = 1) -> None:
        self.recipe, self.batch_size = recipe, recipe.optim.batch_size
        if self.batch_size % ranks:
            raise UsageError(f"optim.batch_size {self.batch_size} cannot be shared equally by {ranks} processes")
        self.task = TASKS[recipe.task]
        figures = self.task.figure_names(recipe)
        if recipe.validation.times and recipe.validation.select_on not in figures:
            name = recipe.validation.select_on
            raise UsageError(f"validation.select_on: no figure '{name}' in this recipe; {nearest(name, figures)}")
        schedule = recipe.schedule
        pairs = schedule.pairs if schedule.pairs is not None else round((schedule.epochs or 0) * records)
        self.steps = max(1, pairs // self.batch_size)
        self.steps_per_epoch = records / self.batch_size

    @property
    def pairs(self) -> int:
        """Pairs that the whole run sees."""
        return self.steps * self.batch_size

    def phase(self, step: int) -> Phase:
        """The phase a step lies in; past the last one the recipe's own settings hold."""
        return next((p for p in self.recipe.phases if step < p.until * self.steps), Phase())

    def at(self, step: int) -> StepSettings:
        """The settings of a step, counted from 0."""
        recipe, phase = self.recipe, self.phase(step)
        rate = phase.lr_scale * rate_factor(step, self.steps, self.steps_per_epoch, recipe.schedule)
        frozen = recipe.backbone.frozen_stages if phase.frozen_stages is None else phase.frozen_stages
        return StepSettings(rate, self.task.losses(recipe, phase), frozen)

    def validation_steps(self) -> set[int]:
        """Steps done at which to validate: evenly spread, the last at the end."""
        times = self.recipe.validation.times
        return {round(self.steps * (i + 1) / times) for i in range(times)} if times else set()
