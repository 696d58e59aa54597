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
from pixelbert.tasks.matching import draw_foreign, own_keys, text_key, true_of
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
    contrasted: int = 0  # so many of the negatives come with their own images

    def __call__(self, plan: Plan) -> Batch:
        """As `PretrainingBatches`, with candidate_ids and candidate_mask int64 [P, 1 + negatives, L].

        The true one comes first; the negatives never are a caption of the same image, nor equal to one of its own.
        For the contrastive loss, own bool [I, P * (1 + contrasted)] and contrast_image int64 [P, 1 + contrasted]: the
        image of the true caption and of the first negatives.
        """
        candidates = np.array([self._candidates(*pair) for pair in zip(plan.epochs, plan.records, strict=True)])
        contrasted = candidates[:, : 1 + self.contrasted] if self.contrastive else candidates[:, :1]
        batch = self.images_of(self.records.image_of[contrasted], plan.epochs)
        ids = self.tokenize([self.records.text(record) for record in candidates.ravel().tolist()])
        batch["candidate_ids"] = pad_ids(ids).view(*candidates.shape, -1)
        batch["candidate_mask"] = pad_ids([np.ones_like(row) for row in ids]).view(*candidates.shape, -1)
        batch["records"], batch["step"] = plan.records.tolist(), plan.step
        if self.contrastive:
            keys = [text_key(self.records.text(record)) for record in contrasted.ravel().tolist()]
            batch["own"] = true_of(self.records, (batch["image_rows"] % self.records.num_images).tolist(), keys)
            batch["contrast_image"] = batch["image_of_text"]
        batch["image_of_text"] = batch["image_of_text"][:, 0].contiguous()
        return batch

    def _candidates(self, epoch: int, record: int) -> list[int]:
        """The records of a pair's true caption and of its negatives."""
        draw, image = generator(self.seed, "candidates", int(epoch), int(record)), int(self.records.image_of[record])
        own = own_keys(self.records, image)
        return [int(record), *(draw_foreign(self.records, image, draw, own=own) for _ in range(self.negatives))]


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
            losses["contrastive"] = self._contrastive(ids, mask, grid, batch)
        return losses

    def _contrastive(self, ids: Tensor, mask: Tensor, grid: Grid, batch: Batch) -> Tensor:
        """Of the pooled vectors of images and captions that are true of them."""
        assert self.model.contrastive is not None
        image_of = batch["contrast_image"]
        ids, mask = ids[:, : image_of.shape[1]].flatten(0, 1), mask[:, : image_of.shape[1]].flatten(0, 1)
        vectors = self.model.text_vectors
        texts = by_length(mask, self.chunks, lambda rows, length: vectors(ids[rows, :length], mask[rows, :length]))
        scale = self.model.contrastive.scale()
        return contrastive_loss(self.model.image_vectors(grid), texts, image_of.flatten(), batch["own"], scale)

    def _scores(self, ids: Tensor, mask: Tensor, grid: Grid, image_of_text: Tensor) -> Tensor:
        """[P, n] for candidates [P, n, L]."""
        pairs, count, width = ids.shape
        ids, mask = ids.reshape(-1, width), mask.reshape(-1, width)
        images = image_of_text.repeat_interleave(count)

        def logits(rows: Tensor, length: int) -> Tensor:
            copies = grid.select(images[rows])
            return self.model(ids[rows, :length], attention_mask=mask[rows, :length], grid=copies).logits

        return by_length(mask, self.chunks, logits).view(pairs, count)
