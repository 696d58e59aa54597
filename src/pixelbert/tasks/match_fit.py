"""The match's log-odds fitted on photos that were never trained on (beyond the paper).

Training photos are seen many times, so the head is surer of them than of new ones, and its zero lies wrong for these;
and where a run has pooled vectors, their similarity knows things that [CLS] does not. Three numbers put both right:
log-odds = a * [CLS] log-odds + w * scaled cosine + b, a logistic regression on the captions of held-out training photos
and as many captions of others.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from pixelbert.data.batches import Records
from pixelbert.errors import UsageError
from pixelbert.model.config import PixelBertConfig
from pixelbert.recipes.schema import Recipe
from pixelbert.tasks.calibration import logistic_regression
from pixelbert.tasks.held_out import HeldOutPairs
from pixelbert.tasks.task import Scoring, Task


class FitsMatches(Task):
    """A task whose model scores matches: their log-odds may be fitted after the last step."""

    def model_settings(self, recipe: Recipe, train: Records) -> dict[str, Any]:
        """Whether the match's log-odds are fitted."""
        return {"match_fitted": recipe.itm.calibration_images > 0}

    def check_scoring(self, config: PixelBertConfig, images: int, scoring: Scoring) -> None:
        """Raises UsageError for a shortlist without pooled vectors."""
        if scoring.shortlist and not config.contrastive_size:
            raise UsageError("a shortlist needs pooled vectors; train with contrastive_size, or leave it out")

    def calibration_images(self, recipe: Recipe) -> int:
        """For the match's log-odds."""
        return recipe.itm.calibration_images

    def finish(self, model: Any, batches: Any, scoring: Scoring) -> str:
        """Fits them on the images that were kept out."""
        count = batches.records.num_images
        a, w, b = fit_matches(HeldOutPairs.of(model, batches, count, replace(scoring, partial=None)))
        return f"matches fitted on {count} photos kept out: {a:.2f} of [CLS], {w:.2f} of pooled vectors, {b:+.2f}"


def fit_matches(held_out: HeldOutPairs) -> list[float]:
    """Fit `model.match_fit` on these images and put it into the model; returns a, w, b."""
    model, count = held_out.model, len(held_out.records)
    false = np.array([held_out.false_caption(i) for i in range(count)])
    images = np.concatenate([held_out.image_of, held_out.image_of])
    texts = np.concatenate([np.arange(count), false])
    true = np.repeat([1.0, 0.0], count)
    features = [_scores(model, held_out, (1.0, 0.0, 0.0), images, texts)]
    if model.contrastive is not None:
        features.append(_scores(model, held_out, (0.0, 1.0, 0.0), images, texts))
    features.append(np.ones_like(true))
    start = np.eye(len(features))[0]  # the head as it is
    a, *w, b = logistic_regression(np.stack(features, axis=1), true, start).tolist()
    return _put(model, (a, w[0] if w else 0.0, b))


def _scores(
    model: Any, held_out: HeldOutPairs, fit: tuple[float, float, float], images: np.ndarray, texts: np.ndarray
) -> np.ndarray:
    _put(model, fit)
    return held_out.match_scores(images, texts, "fitting matches")


def _put(model: Any, fit: tuple[float, float, float]) -> list[float]:
    with torch.no_grad():
        model.match_fit.copy_(torch.tensor(fit))
    return list(fit)
