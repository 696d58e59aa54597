"""Image-text retrieval (Section 4.2): score 1 true and 20 random captions per image, learn from the 5 hardest."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pixelbert.data.batches import Batch, Plan, pad_ids
from pixelbert.data.draws import generator
from pixelbert.model.heads import PixelBertForImageAndTextRetrieval
from pixelbert.model.pixels import Grid
from pixelbert.tasks.inputs import Inputs
from pixelbert.tasks.matching import draw_foreign, text_key, true_of
from pixelbert.tasks.objective import Objective, by_length, pair_scores
from pixelbert.tasks.pretraining import contrastive_loss


def retrieval_loss(scores: Tensor) -> Tensor:
    """Softmax cross-entropy summed over the pairs: scores [P, 1 + n], the true caption first."""
    scores = scores.float()
    return F.cross_entropy(scores, scores.new_zeros(len(scores), dtype=torch.long), reduction="sum")


def hardest(scores: Tensor, count: int) -> Tensor:
    """Places [P, 1 + count] of the true caption and of its `count` best-scored negatives: scores [P, 1 + n]."""
    negatives = scores[:, 1:].topk(min(count, scores.shape[1] - 1), dim=1).indices + 1
    return torch.cat([torch.zeros_like(negatives[:, :1]), negatives], dim=1)


@dataclass
class RetrievalBatches(Inputs):
    """Builds the batch of a plan: each pair's true caption and `negatives` random ones of other images."""

    negatives: int = 20
    contrastive: bool = False  # also which of the batch's captions are true of which image

    def __call__(self, plan: Plan) -> Batch:
        """As `PretrainingBatches`, with candidate_ids and candidate_mask int64 [P, 1 + negatives, L].

        The true one comes first; the negatives never are a caption of the same image, nor equal to one of its own.
        """
        images = self.records.image_of[plan.records]
        batch = self.images_of(images, plan.epochs)
        texts: list[str] = []
        for image, epoch, record in zip(images, plan.epochs.tolist(), plan.records.tolist(), strict=True):
            draw = generator(self.seed, "candidates", epoch, record)
            foreign = [draw_foreign(self.records, int(image), draw) for _ in range(self.negatives)]
            texts += [self.records.text(r) for r in (record, *foreign)]
        ids = self.tokenize(texts)
        shape = (len(images), 1 + self.negatives, -1)
        batch["candidate_ids"] = pad_ids(ids).view(shape)
        batch["candidate_mask"] = pad_ids([np.ones_like(row) for row in ids]).view(shape)
        batch["records"], batch["step"] = plan.records.tolist(), plan.step
        if self.contrastive:
            keys = [text_key(self.records.text(record)) for record in plan.records.tolist()]
            batch["own"] = true_of(self.records, (batch["image_rows"] % self.records.num_images).tolist(), keys)
        return batch


@dataclass(frozen=True)
class RetrievalLosses:
    """The weights of the losses, and how many of the negatives are learnt from."""

    retrieval: float = 1.0
    contrastive: float = 0.0
    hard_negatives: int = 5


class RetrievalObjective(Objective):
    """All candidates are scored without gradient, then the true caption and the hardest negatives with it."""

    model: PixelBertForImageAndTextRetrieval

    def scores(self, batch: Batch, grid: Grid) -> Tensor:
        """Log-odds of a match [T]."""
        return pair_scores(self.model, batch, grid, self.chunks)

    def losses(self, batch: Batch, grid: Grid, settings: RetrievalLosses) -> dict[str, Tensor]:
        """retrieval, and beyond the paper contrastive: summed over the pairs."""
        ids, mask = batch["candidate_ids"], batch["candidate_mask"]
        with torch.no_grad():
            everything = self._scores(ids, mask, grid, batch["image_of_text"])
        places = hardest(everything, settings.hard_negatives)
        wide = places[..., None].expand(-1, -1, ids.shape[2])
        scores = self._scores(ids.gather(1, wide), mask.gather(1, wide), grid, batch["image_of_text"])
        losses = {"retrieval": retrieval_loss(scores)}
        if settings.contrastive:
            losses["contrastive"] = self._contrastive(ids[:, 0], mask[:, 0], grid, batch)
        return losses

    def _contrastive(self, ids: Tensor, mask: Tensor, grid: Grid, batch: Batch) -> Tensor:
        """Of the pooled vectors of the images and their true captions."""
        assert self.model.contrastive is not None
        vectors = self.model.text_vectors
        texts = by_length(mask, self.chunks, lambda rows, length: vectors(ids[rows, :length], mask[rows, :length]))
        scale = self.model.contrastive.log_scale.exp().clamp(max=100.0)
        return contrastive_loss(self.model.image_vectors(grid), texts, batch["image_of_text"], batch["own"], scale)

    def _scores(self, ids: Tensor, mask: Tensor, grid: Grid, image_of_text: Tensor) -> Tensor:
        """[P, n] for candidates [P, n, L]."""
        pairs, count, width = ids.shape
        ids, mask = ids.reshape(-1, width), mask.reshape(-1, width)
        images = image_of_text.repeat_interleave(count)

        def logits(rows: Tensor, length: int) -> Tensor:
            copies = grid.select(images[rows])
            return self.model(ids[rows, :length], attention_mask=mask[rows, :length], grid=copies).logits

        return by_length(mask, self.chunks, logits).view(pairs, count)
