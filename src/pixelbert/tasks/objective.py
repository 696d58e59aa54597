"""A model with its losses as one module, so that a distributed wrapper sees one forward."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from pixelbert.data.batches import Batch
from pixelbert.errors import CheckpointError
from pixelbert.model.pixels import Grid


class Objective(nn.Module):
    """Base of every task's losses: images first, then what the task makes of them.

    Args:
        model: has the Transformer as `.pixelbert`.
        encoder_dtype: autocast of everything behind the CNN; None = float32.
        chunks: the texts of a batch go through the encoder in so many groups of like length.
    """

    def __init__(self, model: Any, encoder_dtype: torch.dtype | None = None, chunks: int = 1) -> None:
        super().__init__()
        self.model = model
        self.encoder_dtype = encoder_dtype
        self.encode: Callable[[Batch], Grid] | None = None  # instead of `encode_images`: from features kept before
        self.chunks = chunks

    def forward(self, batch: Batch, settings: Any) -> dict[str, Tensor]:
        """The summed losses of a batch, by name."""
        with self.cast():
            return self.losses(batch, self._grid(batch), settings)

    @torch.no_grad()
    def predict(self, batch: Batch) -> Tensor:
        """The task's scores float32 of every text of a batch, in its order: the one way from records to answers."""
        with self.cast():
            return self.scores(batch, self._grid(batch)).float()

    @torch.no_grad()
    def encode_images(self, batch: Batch) -> Grid:
        """The pixels of the images of a batch: pixel_values and image_sizes."""
        with self.cast():
            return self._encode_images(batch)

    def _encode_images(self, batch: Batch) -> Grid:
        grid: Grid = self.model.pixelbert.encode_images(batch["pixel_values"], batch["image_sizes"])
        return grid

    def _grid(self, batch: Batch) -> Grid:
        return self._encode_images(batch) if self.encode is None else self.encode(batch)

    def cast(self) -> Any:
        """The autocast that losses and scores are computed in."""
        device = next(self.model.parameters()).device.type
        return torch.autocast(device, self.encoder_dtype) if self.encoder_dtype else nullcontext()

    def scores(self, batch: Batch, grid: Grid) -> Tensor:
        """[T, K] scores of the texts of a batch; of tasks that answer."""
        raise NotImplementedError

    def losses(self, batch: Batch, grid: Grid, settings: Any) -> dict[str, Tensor]:
        """The task's summed losses, from a batch and the pixels of its images."""
        raise NotImplementedError


def finite(scores: Tensor) -> Tensor:
    """The scores, which rank and answer. Raises CheckpointError where one is not a number: the model is of no use."""
    if not torch.isfinite(scores).all():
        raise CheckpointError(
            "the model's scores are not finite: its training has diverged, or its weights are damaged"
        )
    return scores


def match_log_odds(model: Any, ids: Tensor, mask: Tensor, grid: Grid, cosine: Tensor | None = None) -> Tensor:
    """Log-odds [T] that texts [T, L] and grids of T images belong together, of a model that scores matches.

    Where the model's are fitted (`match_fitted`), with the fitted weights, and the similarities of pooled vectors
    (`cosine` [T] where it is known already) and of words with pixels.
    """
    hidden = model.pixelbert(ids, attention_mask=mask, grid=grid, places=1).last_hidden_state
    scores: Tensor = model.match_scores(hidden[:, 0])
    if not model.config.match_fitted:
        return scores
    own, pooled, constant = model.match_fit
    scores = own * scores + constant
    if model.word_pixels is not None and model.word_pixels.weight:
        scores = scores + model.word_pixels.weight * word_similarity(model, ids, mask, grid)
    if model.contrastive is None or not pooled:
        return scores
    if cosine is None:
        cosine = (model.image_vectors(grid) * model.text_vectors(ids, mask)).sum(-1)
    fitted: Tensor = scores + pooled * model.contrastive.scale() * cosine
    return fitted


def word_similarity(model: Any, ids: Tensor, mask: Tensor, grid: Grid) -> Tensor:
    """float32 [T]: how well the words of texts [T, L] are found among the pixels of T images, of a model with
    `word_pixels`."""
    similarity: Tensor = model.word_pixels(model.pixelbert.text.embeddings(ids), ids, mask, grid)
    return similarity


def pair_scores(model: Any, batch: Batch, grid: Grid, chunks: int) -> Tensor:
    """`match_log_odds` of the texts of a batch with their images."""
    ids, mask, images = batch["input_ids"], batch["attention_mask"], batch["image_of_text"]

    def log_odds(rows: Tensor, length: int) -> Tensor:
        return match_log_odds(model, ids[rows, :length], mask[rows, :length], grid.select(images[rows]))

    return by_length(mask, chunks, log_odds)


def by_length(mask: Tensor, chunks: int, scores: Callable[[Tensor, int], Tensor]) -> Tensor:
    """`scores(rows, longest)` of all texts, computed in groups of like length and put back in order: [T, ...]."""
    parts, order = [], []
    for rows, length in length_chunks(mask, chunks):
        parts.append(scores(rows, length))
        order.append(rows)
    return torch.cat(parts)[torch.cat(order).argsort()]


def length_chunks(mask: Tensor, chunks: int) -> Iterator[tuple[Tensor, int]]:
    """Rows of [T, L] texts in `chunks` groups of like length, each with its longest: short texts carry less padding."""
    lengths = mask.sum(1)
    if chunks <= 1:
        yield torch.arange(mask.shape[0], device=mask.device), mask.shape[1]
        return
    for rows in lengths.argsort(stable=True).chunk(chunks):
        yield rows, int(lengths[rows].max())
