"""The match's log-odds fitted on photos that were never trained on (beyond the paper).

Training photos are seen many times, so the head is surer of them than of new ones, and its zero lies wrong for these;
and where a run has pooled vectors, their similarity knows things that [CLS] does not; and so does how well each word
is found among the pixels (`WordPixels`). A few numbers put it right: log-odds = a * [CLS] log-odds + w * scaled cosine
+ v * words + b, a logistic regression on the captions of held-out training photos and as many captions of others.
Random pairs are told apart by other things than the best of many; a task that ranks takes the proportion of a, w and v
from shortlists, and only scale and b from the pairs.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch

from pixelbert.data.batches import Records
from pixelbert.errors import UsageError
from pixelbert.model.config import PixelBertConfig
from pixelbert.recipes.schema import Recipe
from pixelbert.tasks.calibration import logistic_regression, softmax_regression
from pixelbert.tasks.held_out import HeldOutPairs
from pixelbert.tasks.task import Scoring, Task

LISTED = 20
"""So many best photos of a caption, by pooled vectors, a ranking chooses between."""


class FitsMatches(Task):
    """A task whose model scores matches: their log-odds may be fitted after the last step.

    listed: so many best photos of a caption say how [CLS] and pooled vectors are weighed; 0: random pairs alone do.
    Words among pixels are always weighed so: they say nothing of random pairs that pooled vectors do not, and much of
    photos that are alike.
    """

    listed = 0

    def model_settings(self, recipe: Recipe, train: Records) -> dict[str, Any]:
        """Whether the match's log-odds are fitted, and with how well the words are found among the pixels."""
        return {"match_fitted": recipe.itm.calibration_images > 0, "match_words": recipe.itm.words}

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
        fit = fit_matches(held_out, self.listed if model.word_pixels is None else LISTED)
        words = f", {fit.words:.2f} of words" if model.word_pixels is not None else ""
        weights = f"{fit.own:.2f} of [CLS], {fit.pooled:.2f} of pooled vectors{words}, {fit.constant:+.2f}"
        return f"matches fitted on {count} photos kept out: {weights}"


class MatchFit(NamedTuple):
    """What the log-odds of a match are made of: weights of [CLS], of pooled vectors and of words, and a constant."""

    own: float = 1.0
    pooled: float = 0.0
    words: float = 0.0
    constant: float = 0.0

    def put(self, model: Any) -> MatchFit:
        """Into a model with `match_fit`."""
        with torch.no_grad():
            model.match_fit.copy_(torch.tensor([self.own, self.pooled, self.constant]))
            if model.word_pixels is not None:
                model.word_pixels.weight.fill_(self.words)
        return self


def fit_matches(held_out: HeldOutPairs, shortlist: int = 0) -> MatchFit:
    """Fit a model's matches on these images and put the fit into it.

    With `shortlist` and pooled vectors the proportion of the weights is the one under which each caption's own photo is
    likeliest among so many best photos by pooled vectors: between these a ranking chooses.
    """
    model, count = held_out.model, len(held_out.records)
    if model.word_pixels is not None:
        held_out.learn_words()
    false = np.array([held_out.false_caption(i) for i in range(count)])
    images = np.concatenate([held_out.image_of, held_out.image_of])
    features = _features(held_out, images, np.concatenate([np.arange(count), false]))
    weights = np.eye(features.shape[1])  # columns: how the fitted numbers make up those of the features
    if shortlist and model.contrastive is not None:
        weights = _proportion(held_out, shortlist)[:, None]
    design = np.concatenate([features @ weights, np.ones((len(images), 1))], axis=1)
    *scale, constant = logistic_regression(design, np.repeat([1.0, 0.0], count), np.eye(design.shape[1])[0]).tolist()
    own, *others = (weights @ scale).tolist()  # the start was the head as it is
    pooled = others.pop(0) if model.contrastive is not None else 0.0
    return MatchFit(own, pooled, others[0] if others else 0.0, constant).put(model)


def _proportion(held_out: HeldOutPairs, shortlist: int) -> np.ndarray:
    """Weights float64 [features] that tell a caption's photo from the others of its shortlist."""
    pooled = held_out.pooled_scores()  # [images, texts]
    listed = np.argsort(-pooled, axis=0, kind="stable")[:shortlist].T
    own = listed == held_out.image_of[:, None]
    texts = np.flatnonzero(own.any(axis=1))  # the others are lost already
    images = listed[texts]
    features = _features(held_out, images.ravel(), np.repeat(texts, images.shape[1]))
    x = features.reshape(*images.shape, features.shape[-1])
    return softmax_regression(x, own[texts].argmax(axis=1), np.eye(x.shape[-1])[0])


def _features(held_out: HeldOutPairs, images: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """Log-odds of [CLS] and, where there are any, the scaled similarities of pooled vectors and of words with pixels:
    float64 [pairs, features]."""
    model = held_out.model
    MatchFit().put(model)
    features = [held_out.match_scores(images, texts, "fitting matches")]
    if model.contrastive is not None:
        of_images, of_texts = held_out.pooled_vectors
        cosine = (of_images[images] * of_texts[texts]).sum(-1) * model.contrastive.scale()
        features.append(cosine.detach().double().cpu().numpy())
    if model.word_pixels is not None:
        features.append(held_out.word_scores(images, texts))
    return np.stack(features, axis=1)
