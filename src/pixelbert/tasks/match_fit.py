"""The match's log-odds fitted on photos that were never trained on (beyond the paper).

Training photos are seen many times, so the head is surer of them than of new ones, and its zero lies wrong for these;
and where a run has pooled vectors, their similarity knows things that [CLS] does not. Three numbers put both right:
log-odds = a * [CLS] log-odds + w * scaled cosine + b, a logistic regression on the captions of held-out training photos
and as many captions of others. Random pairs are told apart by other things than the best of many; a task that ranks
takes the proportion of a and w from shortlists, and only scale and b from the pairs.
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
from pixelbert.tasks.calibration import logistic_regression, softmax_regression
from pixelbert.tasks.held_out import HeldOutPairs
from pixelbert.tasks.task import Scoring, Task


class FitsMatches(Task):
    """A task whose model scores matches: their log-odds may be fitted after the last step.

    listed: so many best photos of a caption say how [CLS] and pooled vectors are weighed; 0: random pairs alone do.
    """

    listed = 0

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
        held_out = HeldOutPairs.of(model, batches, count, replace(scoring, partial=None))
        a, w, b = fit_matches(held_out, self.listed)
        return f"matches fitted on {count} photos kept out: {a:.2f} of [CLS], {w:.2f} of pooled vectors, {b:+.2f}"


def fit_matches(held_out: HeldOutPairs, shortlist: int = 0) -> list[float]:
    """Fit `model.match_fit` on these images and put it into the model; returns a, w, b.

    With `shortlist` and pooled vectors the proportion of a and w is the one under which each caption's own photo is
    likeliest among so many best photos by pooled vectors: between these a ranking chooses.
    """
    model, count = held_out.model, len(held_out.records)
    false = np.array([held_out.false_caption(i) for i in range(count)])
    images = np.concatenate([held_out.image_of, held_out.image_of])
    features = _features(held_out, images, np.concatenate([np.arange(count), false]))
    weights = np.eye(features.shape[1])  # columns: how the fitted numbers make up those of the features
    if shortlist and model.contrastive is not None:
        weights = _proportion(held_out, shortlist)[:, None]
    design = np.concatenate([features @ weights, np.ones((len(images), 1))], axis=1)
    *scale, b = logistic_regression(design, np.repeat([1.0, 0.0], count), np.eye(design.shape[1])[0]).tolist()
    a, *w = (weights @ scale).tolist()  # the start was the head as it is
    return _put(model, (a, w[0] if w else 0.0, b))


def _proportion(held_out: HeldOutPairs, shortlist: int) -> np.ndarray:
    """Weights float64 [2] of the features that tell a caption's photo from the others of its shortlist."""
    pooled = held_out.pooled_scores()  # [images, texts]
    listed = np.argsort(-pooled, axis=0, kind="stable")[:shortlist].T
    own = listed == held_out.image_of[:, None]
    texts = np.flatnonzero(own.any(axis=1))  # the others are lost already
    images = listed[texts]
    features = _features(held_out, images.ravel(), np.repeat(texts, images.shape[1]))
    x = features.reshape(*images.shape, features.shape[-1])
    return softmax_regression(x, own[texts].argmax(axis=1), np.eye(2)[0])


def _features(held_out: HeldOutPairs, images: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """Log-odds of [CLS] and, where there are pooled vectors, their scaled cosine: float64 [pairs, 1 or 2]."""
    model = held_out.model
    _put(model, (1.0, 0.0, 0.0))
    features = [held_out.match_scores(images, texts, "fitting matches")]
    if model.contrastive is not None:
        of_images, of_texts = held_out.pooled_vectors
        cosine = (of_images[images] * of_texts[texts]).sum(-1) * model.contrastive.scale()
        features.append(cosine.detach().double().cpu().numpy())
    return np.stack(features, axis=1)


def _put(model: Any, fit: tuple[float, float, float]) -> list[float]:
    with torch.no_grad():
        model.match_fit.copy_(torch.tensor(fit))
    return list(fit)
