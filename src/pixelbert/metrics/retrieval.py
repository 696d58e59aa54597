"""Image-text retrieval: recall at K and ranks, with ties ranked against the model.

Source: fartashf/vsepp, evaluation.py (`i2t`, `t2i`, `evalrank`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pixelbert.metrics._naming import first_few

_BLOCK_SCORES = 1 << 22  # scores compared at once: bounds the memory beside the matrix to some 20 MB


class BothDirections(NamedTuple):
    """One number for each direction of retrieval."""

    text_retrieval: float
    image_retrieval: float


@dataclass(frozen=True)
class RecallScores:
    """Retrieval scores of both directions; with folds, the unweighted mean over them.

    Attributes:
        text_retrieval: {K: percent of images with one of their own texts among the first K texts} (TR, i2t).
        image_retrieval: {K: percent of texts with their image among the first K images} (IR, t2i).
        median_rank: floor of the median rank, the best rank being 1.
        mean_rank: mean rank, the best rank being 1.
    """

    text_retrieval: dict[int, float]
    image_retrieval: dict[int, float]
    median_rank: BothDirections
    mean_rank: BothDirections

    @property
    def mean_recall(self) -> BothDirections:
        """Mean of each direction's recalls, in percent."""
        recalls = (self.text_retrieval, self.image_retrieval)
        return BothDirections(*(sum(recall.values()) / len(recall) for recall in recalls))

    @property
    def recall_sum(self) -> float:
        """All recalls added ("rsum"). The reference prints six times this for folds, by mistake."""
        return sum(self.text_retrieval.values()) + sum(self.image_retrieval.values())


def recall_scores(
    scores: ArrayLike, image_of_text: Sequence[int], ks: Sequence[int] = (1, 5, 10), fold_images: int | None = None
) -> RecallScores:
    """Recall at K and ranks of image-text retrieval from a full score matrix.

    An image is ranked by its best own text: its rank is the number of texts of *other* images that score as high or
    higher. A text's rank is the number of other images that score as high or higher. So a tie ranks against the
    model (the reference leaves ties to an unstable sort), except among an image's own texts; without ties
    the ranks are the reference's. An image may have any number of texts; the reference takes the first five.

    Args:
        scores: [images, texts], higher is better; any real dtype. -inf may stand for a pair not scored. Not changed.
        image_of_text: [texts], the row of each text's image, in any order.
        ks: the cut-offs K.
        fold_images: size of the folds, cut from the images in order (1,000 for COCO 1K); each is scored with its own
            images and texts alone. It must divide the number of images. None: no folds.

    Raises:
        ValueError: shapes that do not fit, an image without text, a text of an image that is not there, a score
            that is not a number, cut-offs below 1, folds that do not divide the images.

    Time: one comparison pass over the matrix for each direction; memory: some 20 MB beside the matrix.

    Source: fartashf/vsepp, evaluation.py; the ties are this project's rule (docs/metrics.md).
    """
    matrix = _checked_scores(scores)
    images, texts = matrix.shape
    owner = _checked_owners(image_of_text, images, texts)
    cuts = _checked_cuts(ks)
    fold = images if fold_images is None else fold_images
    if isinstance(fold, bool) or not isinstance(fold, (int, np.integer)) or fold < 1 or images % fold:
        raise ValueError(f"fold_images is {fold_images!r}: {images} images cannot be cut into folds of that size")
    folds = [_fold_values(matrix, owner, first, first + int(fold), cuts) for first in range(0, images, int(fold))]
    i2t, t2i = np.mean(folds, axis=0).tolist()
    return RecallScores(
        text_retrieval=dict(zip(cuts, i2t[:-2], strict=True)),
        image_retrieval=dict(zip(cuts, t2i[:-2], strict=True)),
        median_rank=BothDirections(i2t[-2], t2i[-2]),
        mean_rank=BothDirections(i2t[-1], t2i[-1]),
    )


def _checked_scores(scores: ArrayLike) -> NDArray[Any]:
    matrix = np.asarray(scores)
    if matrix.ndim != 2 or matrix.size == 0:
        raise ValueError(f"scores has shape {matrix.shape}, not [images, texts] with at least one of each")
    if matrix.dtype.kind not in "fiub":
        raise ValueError(f"scores holds {matrix.dtype}, not real numbers")
    for rows in _row_blocks(0, *matrix.shape):
        nans = np.isnan(matrix[rows])
        if nans.any():
            image, text = np.argwhere(nans)[0]
            raise ValueError(f"the score of image {rows.start + image} and text {text} is not a number (NaN)")
    return matrix


def _checked_owners(image_of_text: Sequence[int], images: int, texts: int) -> NDArray[np.intp]:
    owner = np.asarray(image_of_text)
    if owner.shape != (texts,):
        raise ValueError(f"image_of_text has shape {owner.shape}, but scores has {texts} texts")
    if owner.dtype.kind not in "iu":
        raise ValueError(f"image_of_text holds {owner.dtype}, not whole numbers")
    strangers = np.flatnonzero((owner < 0) | (owner >= images))
    if len(strangers):
        text = strangers[0]
        raise ValueError(f"text {text} belongs to image {owner[text]}, but scores has {images} images")
    owner = owner.astype(np.intp)
    bare = np.flatnonzero(np.bincount(owner, minlength=images) == 0)
    if len(bare):
        raise ValueError(f"{len(bare)} images have no text: {first_few(bare.tolist())}")
    return owner


def _checked_cuts(ks: Sequence[int]) -> list[int]:
    cuts = list(ks)
    if not cuts or any(isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1 for k in cuts):
        raise ValueError(f"ks is {ks!r}, not a list of whole numbers from 1")
    return [int(k) for k in cuts]


def _row_blocks(first: int, last: int, texts: int) -> Iterator[slice]:
    """Slices of rows that hold about `_BLOCK_SCORES` scores each."""
    step = max(1, _BLOCK_SCORES // texts)
    return (slice(start, min(start + step, last)) for start in range(first, last, step))


def _fold_values(
    scores: NDArray[Any], owner: NDArray[np.intp], first: int, last: int, cuts: Sequence[int]
) -> list[list[float]]:
    """Recalls in percent, median and mean rank of i2t and of t2i over images first..last."""
    rows = []
    for ranks in _pessimistic_ranks(scores, owner, first, last):
        recalls = [100.0 * np.count_nonzero(ranks < k) / len(ranks) for k in cuts]
        # The reference counts ranks from 0, floors the median (of an even number: mean of the middle two), adds 1.
        rows.append([*recalls, float(np.floor(np.median(ranks))) + 1.0, float(np.mean(ranks)) + 1.0])
    return rows


def _pessimistic_ranks(
    scores: NDArray[Any], owner: NDArray[np.intp], first: int, last: int
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Ranks from 0 of images first..last among their texts, [images], and of those texts among the images, [texts]."""
    texts = np.flatnonzero((owner >= first) & (owner < last))
    image = owner[texts] - first
    own = scores[owner[texts], texts]
    # Each image's best own text: texts sorted by image, then the maximum of each run (no run is empty).
    order = np.argsort(image, kind="stable")
    best = np.maximum.reduceat(own[order], np.searchsorted(image[order], np.arange(last - first)))
    # Own texts as high as the best one are counted below with all others, so they are taken off beforehand.
    image_ranks = -np.bincount(image[own == best[image]], minlength=last - first)
    text_ranks = np.full(len(texts), -1, dtype=np.intp)  # the text's own image is counted once
    is_run = texts[-1] - texts[0] + 1 == len(texts)
    columns: slice | NDArray[np.intp] = slice(int(texts[0]), int(texts[-1]) + 1) if is_run else texts
    for rows in _row_blocks(first, last, len(texts)):
        block = scores[rows, columns]
        here = slice(rows.start - first, rows.stop - first)
        image_ranks[here] += np.count_nonzero(block >= best[here, None], axis=1)
        text_ranks += np.count_nonzero(block >= own, axis=0)
    return image_ranks, text_ranks
