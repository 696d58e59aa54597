"""What the loop, `evaluate` and `predict` ask of a task. Each task is one class, and `tasks.table` lists them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch

from pixelbert.data.batches import Batch, Records
from pixelbert.data.records import PreparedData
from pixelbert.errors import DataError, UsageError
from pixelbert.model.config import PixelBertConfig
from pixelbert.model.modeling import PixelBertPreTrainedModel
from pixelbert.model.pixels import Grid
from pixelbert.model.processor import PixelBertProcessor
from pixelbert.recipes.schema import Phase, Recipe
from pixelbert.tasks.calibration import Stated
from pixelbert.tasks.inputs import Inputs
from pixelbert.tasks.objective import Objective
from pixelbert.tasks.submission import Submission


class Progress(Protocol):
    """Told how many of how many are done."""

    def __call__(self, what: str, done: int, total: int) -> None: ...


def silent(what: str, done: int, total: int) -> None:
    """Reports nothing."""


@dataclass(frozen=True)
class Scoring:
    """How held-out records are scored; each task takes what concerns it.

    images: so many of the split's first images, 0 = all. exact_images, shortlist: see `evaluate`; 0 leaves them out.
    middle_view: the pooled vector of an image is the mean of its own and that of its middle.
    folds: retrieval: so many images at a time are ranked alone, and the figures are their mean; 0 = all together.
    partial: where finished parts of a long scoring are kept, to go on with after a stop.
    encode: the pixels of a batch's images, instead of the model's `encode_images`: from features kept before.
    """

    images: int = 0
    captions_per_image: int = 5
    exact_images: int = 0
    shortlist: int = 0
    middle_view: bool = False
    folds: int = 0
    seed: int = 1234
    batch_size: int = 256
    workers: int = 0
    encoder_dtype: torch.dtype | None = None
    progress: Progress = silent
    partial: Path | None = None
    announce: Callable[[str], None] = field(default=lambda text: None)
    encode: Callable[[Batch], Grid] | None = None


@dataclass
class Outcome:
    """What scoring gives: figures in percent, a row for each record or masked word, and how to write them down.

    write: puts the per-record file and the examples to look at into a folder. images, texts: how many were scored.
    stated: what the model stated of each record and what was found, for calibration; None where it states nothing.
    """

    figures: dict[str, float]
    rows: list[dict[str, Any]]
    write: Callable[[Path], None]
    images: int = 0
    texts: int = 0
    stated: Callable[[], Stated] | None = None


class Task(ABC):
    """A task's own answers to the questions that the common code asks."""

    name: ClassVar[str]
    data: ClassVar[tuple[str, ...]]  # of which tasks prepared data may be
    needs: ClassVar[str]  # the same in words
    model_class: ClassVar[type[PixelBertPreTrainedModel]]
    beside: ClassVar[tuple[str, ...]] = ()  # figures that are told of the blind model too
    least_images: ClassVar[int] = 2  # of a split that is scored; with fewer nothing could be told apart

    # -- from a recipe to the parts ---------------------------------------------------------------------------------

    def check(self, prepared: PreparedData) -> None:
        """Raises DataError for data prepared for another task."""
        if prepared.task not in self.data:
            raise DataError(f"{prepared.folder}: prepared for {prepared.task}, {self.name} needs {self.needs}")

    def model_settings(self, recipe: Recipe, train: Records) -> dict[str, Any]:
        """Settings of the model's config that come from the task and its training data, such as the answer list."""
        return {}

    def prior(self, model: Any, recipe: Recipe, train: Records) -> None:
        """Set what a fresh head starts from in the training data, where the recipe asks for it."""
        del model, recipe, train

    def start(self, model: Any, source: PixelBertPreTrainedModel) -> None:
        """Fill a head from another run's model, where more than equal names can be used."""
        del model, source

    @abstractmethod
    def batches(
        self, recipe: Recipe, records: Records, processor: PixelBertProcessor, config: PixelBertConfig, train: bool
    ) -> Inputs:
        """The builder of a run's batches; held-out ones are not augmented."""

    @abstractmethod
    def objective(self, model: Any, encoder_dtype: torch.dtype | None = None, chunks: int = 1) -> Objective:
        """The model with its losses."""

    @abstractmethod
    def losses(self, recipe: Recipe, phase: Phase) -> Any:
        """A frozen dataclass with the weight of each loss by name, and what else a phase sets."""

    @abstractmethod
    def counts(self, batch: Batch, losses: Any) -> dict[str, int]:
        """How many predictions each loss with a weight sums over; known before the forward pass."""

    def calibration_images(self, recipe: Recipe) -> int:
        """So many of the training images at the most are kept out of training, for `finish`."""
        del recipe
        return 0

    def finish(self, model: Any, batches: Any, scoring: Scoring) -> str:
        """After the last step: what is fitted on the images kept out for it; returns what to tell, or nothing."""
        del model, batches, scoring
        return ""

    # -- scores -----------------------------------------------------------------------------------------------------

    @abstractmethod
    def figure_names(self, recipe: Recipe) -> list[str]:
        """The figures that a validation gives; the first is the one the best model is chosen by, unless told."""

    @abstractmethod
    def score(self, model: Any, batches: Any, scoring: Scoring) -> Outcome:
        """Score a model on held-out records. The model is left in evaluation mode."""

    def scored_images(self, scoring: Scoring, images: int) -> int:
        """So many of a split's images are scored."""
        return min(scoring.images or images, images)

    def check_scoring(self, config: PixelBertConfig, images: int, scoring: Scoring) -> None:
        """Raises UsageError for what a model, or a split of so many images, does not allow; nothing is computed yet."""
        del config, images, scoring

    def blind_scoring(self, scoring: Scoring) -> Scoring:
        """How a blind model is scored: what `beside_blind` reads, and nothing that costs more."""
        return scoring

    def check_blind(self, batches: Any, scoring: Scoring, blind: Any, blind_scoring: Scoring) -> None:
        """Raises DataError when the batches of the two models cannot be compared; `beside_blind` before any score."""
        del batches, scoring, blind, blind_scoring

    def beside_blind(self, outcome: Outcome, blind: Outcome) -> dict[str, float]:
        """The blind model's figures, and the gain over them. Raises DataError when the two cannot be compared."""
        figures = {}
        for name in self.beside:
            if name in blind.figures:
                figures[f"{name}_blind"] = blind.figures[name]
                figures[f"{name}_gain_blind"] = outcome.figures[name] - blind.figures[name]
        return figures

    def check_labels(self, records: Records, among: Sequence[int] | None = None) -> None:
        """Raises DataError for a record without the answer or label to be scored by; `among`: None looks at all."""
        del records, among

    # -- answers ----------------------------------------------------------------------------------------------------

    def check_ids(self, records: Records, split: str) -> None:
        """Raises DataError where a predictions file could not tell two records apart. `split`: what they are called."""
        del records, split

    def predict(self, model: Any, batches: Any, scoring: Scoring) -> Submission:
        """Answer every record of a split, labelled or not. Raises UsageError where the task has no answers."""
        raise UsageError(f"a run of {self.name} answers nothing; train one for a task with --from this one")

    def score_file(self, path: Path, records: Records, split: str) -> dict[str, float]:
        """Figures of a predictions file, as `score` gives them for a model. `split` names the records in messages.

        Raises DataError when the file is not of this split, or the split has no labels; UsageError where the task's
        predictions cannot be scored without their model.
        """
        raise UsageError(f"{path}: predictions of {self.name} cannot be scored without their run")


def common_inputs(
    recipe: Recipe, records: Records, processor: PixelBertProcessor, config: PixelBertConfig, train: bool
) -> dict[str, Any]:
    """The arguments of `Inputs` that every task's batches share."""
    images: Any = processor.image_processor
    grey = [round(255 * m) for m in config.image_mean]
    if config.image_channels == "BGR":
        grey.reverse()
    return {
        "records": records, "tokenizer": processor.tokenizer, "rule": images.rule, "size_divisor": images.size_divisor,
        "seed": recipe.seed, "limits": images.limits, "max_length": processor.max_length,
        "augmentation": recipe.image.augment if train else "none", "crop_scale": recipe.image.crop_scale,
        "constant": (grey[0], grey[1], grey[2]) if recipe.blind else None,
        "views": recipe.train.feature_views if train else 1,
        "sampled": train and recipe.head.sample_pixels,
        "without_images": train and recipe.train.keep_frozen_features,
    }  # fmt: skip
