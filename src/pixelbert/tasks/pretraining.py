"""Pretraining: a pair -> masked and matched inputs, and the losses, each a function (Section 3.3).

Every loss is a sum with its count, so that the loop divides by the count of the whole optimizer step and k
micro-batches equal one large batch. The contrastive loss compares the pairs of one micro-batch: there the equality
holds only when a step is one micro-batch.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pixelbert.data.batches import Batch, Plan, pad_ids
from pixelbert.data.draws import generator, seed_of
from pixelbert.model.modeling import PixelBertForPreTraining
from pixelbert.model.pixels import Grid, mean_over, sample_pixels
from pixelbert.model.word_pixels import ALIGNMENT_SCALE, inner_pieces
from pixelbert.tasks.inputs import Inputs
from pixelbert.tasks.masking import IGNORED, Vocabulary, mask_tokens
from pixelbert.tasks.matching import draw_foreign, is_negative, text_key, true_of
from pixelbert.tasks.objective import Objective, by_length, length_chunks, pair_scores

# -- losses ------------------------------------------------------------------------------------------------------------


def mlm_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Eq. (7), summed over the masked pieces: logits [M, V], labels [M]."""
    return F.cross_entropy(logits.float(), labels, reduction="sum")


def itm_loss(logits: Tensor, match: Tensor) -> Tensor:
    """Eq. (8) as two-way cross-entropy, summed over the pairs: logits [T, 2], match [T] with 1 = match."""
    return F.cross_entropy(logits.float(), match, reduction="sum")


def contrastive_loss(images: Tensor, texts: Tensor, image_of_text: Tensor, own: Tensor, scale: Tensor) -> Tensor:
    """Image to text and text to image cross-entropy on unit vectors, summed over the texts (beyond the paper).

    For each text: its image against the images that the text is not true of, and, for that image, the text against
    the texts that are not true of it; the mean of the two.

    Args:
        images, texts: float32 [I, D] and [T, D].
        image_of_text: int64 [T].
        own: bool [I, T], texts that are true of an image (its own captions, and texts equal to one of them); they
            are never each other's negatives.
        scale: inverse temperature.
    """
    with _float32(images):
        scores = scale * images.float() @ texts.float().T
    rows = torch.arange(texts.shape[0], device=texts.device)
    positive = scores[image_of_text, rows]
    foreign = scores.masked_fill(own, float("-inf"))
    text_to_image = torch.logsumexp(torch.cat([positive[None], foreign]), dim=0) - positive
    against_texts = torch.logsumexp(foreign, dim=1)[image_of_text]
    image_to_text = torch.logaddexp(against_texts, positive) - positive
    return (text_to_image + image_to_text).sum() / 2


def alignment_loss(pixels: Tensor, words: Tensor, image_of_text: Tensor, own: Tensor) -> Tensor:
    """`contrastive_loss` between what goes into the Transformer: mean pixel and mean word embedding (beyond the paper).

    It brings pixels to where the words are that they show, so that attention can read them like words from the start.
    Directions are taken from the mean of the batch's texts: all embeddings share most of theirs.

    Args:
        pixels, words: means of the inputs of Eq. (6), [I, d] and [T, d]. image_of_text, own: as in `contrastive_loss`.
    """
    with _float32(pixels):
        middle = words.float().mean(0)
        pixels, words = (F.normalize(x.float() - middle, dim=-1) for x in (pixels, words))
    return contrastive_loss(pixels, words, image_of_text, own, words.new_tensor(ALIGNMENT_SCALE))


def tags_loss(scores: Tensor, places: Tensor, counts: Tensor, images: Tensor) -> Tensor:
    """The words of a batch's captions, each from its image's mean pixel alone, summed (beyond the paper).

    Among the words of the batch, whose counts there stand for how frequent they are anyway: what the picture has to
    tell is which of them are more likely with it than without.

    Args:
        scores: [I, W] of the W different words for each image. counts: int64 [W], how often each stands in the batch.
        places, images: int64 [N], for each word of the captions which of the W it is, and its image.
    """
    chances = (scores.float() + counts.log()).log_softmax(-1)
    return -chances[images, places].sum()


def hard_negatives(images: Tensor, texts: Tensor, own: Tensor, rows: Tensor, scale: float) -> Tensor:
    """For each image in `rows` [H] a text [H] of the batch that is not its own, likelier the closer it is.

    Rows without any foreign text get -1.
    """
    if rows.numel() == 0:
        return rows
    with _float32(images):
        scores = (scale * images.float() @ texts.float().T).masked_fill(own, float("-inf"))[rows]
    possible = (~own[rows]).any(dim=1)
    weights = torch.softmax(scores.masked_fill(~possible[:, None], 0.0), dim=1)
    return torch.where(possible, torch.multinomial(weights, 1)[:, 0], -1)


def _float32(tensor: Tensor) -> AbstractContextManager[Any]:
    """Similarities are compared finely: no autocast."""
    return torch.autocast(tensor.device.type, enabled=False)


# -- records -> batch --------------------------------------------------------------------------------------------------


@dataclass
class PretrainingBatches(Inputs):
    """Builds the batch of a plan: decoded images, masked texts, negatives; every draw keyed by the record."""

    mask_probability: float = 0.15
    whole_word: bool = False
    heavy_share: float = 0.0  # of the texts, hidden with `heavy_probability` (beyond the paper)
    heavy_probability: float = 0.85
    mlm_on_negatives: bool = False
    negative_ratio: float = 0.5
    contrastive: bool = False  # also the plain captions, and each caption's own masked version
    text_mlm: bool = False  # also the captions hidden a second time, to be read without their image

    def __post_init__(self) -> None:
        self.vocabulary = Vocabulary.of(self.tokenizer)

    def __call__(self, plan: Plan) -> Batch:
        """The batch of a plan.

        pixel_values, image_sizes: of every image once, see `collate_images`; image_rows: int64 [I], its row in the
            split; image_of_text: int64 [T].
        input_ids, attention_mask, labels: int64 [T, L], pieces hidden; labels -100 where nothing is to be predicted.
        match: int64 [T], 0 where the text is another image's; sampling_seed: int64 [T].
        records: the pairs' records; step.
        """
        images = self.records.image_of[plan.records]
        batch = self.images_of(images, plan.epochs)
        pairs = list(zip(plan.epochs.tolist(), plan.records.tolist(), strict=True))
        negative = [is_negative(position, self.negative_ratio) for position in plan.positions.tolist()]
        shown = [
            draw_foreign(self.records, int(image), generator(self.seed, "negative", *pair)) if wrong else pair[1]
            for wrong, image, pair in zip(negative, images, pairs, strict=True)
        ]
        texts = self.tokenize([self.records.text(r) for r in shown])
        masked = [self.mask(ids, *pair) for ids, pair in zip(texts, pairs, strict=True)]
        labels = [
            np.full_like(label, IGNORED) if wrong and not self.mlm_on_negatives else label
            for wrong, (_, label) in zip(negative, masked, strict=True)
        ]
        batch["input_ids"] = pad_ids([ids for ids, _ in masked])
        batch["attention_mask"] = pad_ids([np.ones_like(ids) for ids, _ in masked])
        batch["labels"] = pad_ids(labels, IGNORED)
        batch["match"] = torch.tensor([0 if wrong else 1 for wrong in negative])
        batch["sampling_seed"] = torch.tensor([seed_of(self.seed, "pixels", *pair) for pair in pairs])
        batch["records"] = plan.records.tolist()
        batch["step"] = plan.step
        if self.contrastive:
            self._add_captions(batch, pairs, (batch["image_rows"] % self.records.num_images).tolist())
        return batch

    def _add_captions(self, batch: Batch, pairs: list[tuple[int, int]], images: list[int]) -> None:
        """Every pair's true caption, plain and masked, and which captions are true of which image."""
        captions = [self.records.text(record) for _, record in pairs]
        plain = self.tokenize(captions)
        masked = [self.mask(ids, *pair)[0] for ids, pair in zip(plain, pairs, strict=True)]
        batch["caption_ids"] = pad_ids(plain)
        batch["caption_mask"] = pad_ids([np.ones_like(ids) for ids in plain])
        batch["masked_caption_ids"] = pad_ids(masked)
        if self.text_mlm:
            hidden = [
                self._mask(ids, self.mask_probability, "text mask", pair)
                for ids, pair in zip(plain, pairs, strict=True)
            ]
            batch["text_ids"] = pad_ids([ids for ids, _ in hidden])
            batch["text_labels"] = pad_ids([label for _, label in hidden], IGNORED)
        keys = [text_key(text) for text in captions]
        batch["own"] = true_of(self.records, images, keys)

    def mask(self, ids: np.ndarray, epoch: int, record: int) -> tuple[np.ndarray, np.ndarray]:
        """A text with pieces hidden, and its labels.

        Some texts are hidden nearly whole (`heavy_share`): where words tell little, it is the picture that must.
        """
        heavy = self.heavy_share and generator(self.seed, "heavy", epoch, record).random() < self.heavy_share
        probability = self.heavy_probability if heavy else self.mask_probability
        return self._mask(ids, probability, "mask", (epoch, record))

    def _mask(
        self, ids: np.ndarray, probability: float, draw: str, pair: tuple[int, int]
    ) -> tuple[np.ndarray, np.ndarray]:
        return mask_tokens(ids, self.vocabulary, generator(self.seed, draw, *pair), probability, self.whole_word)


# -- losses of a batch -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LossSettings:
    """The weights of a phase, and its share of hard negatives."""

    mlm: float = 1.0
    itm: float = 1.0
    contrastive: float = 0.0
    hard_share: float = 0.0
    sample_pixels: int = 0  # 0 = all
    align: float = 0.0
    tags: float = 0.0
    text_mlm: float = 0.0


def loss_counts(batch: Batch, settings: LossSettings) -> dict[str, int]:
    """How many predictions each loss with a weight sums over; known before the forward pass."""
    counts = {
        "mlm": int((batch["labels"] != IGNORED).sum()),
        "itm": len(batch["match"]),
        "contrastive": len(batch["match"]),
        "align": len(batch["match"]),
    }
    if "caption_mask" in batch:
        counts["tags"] = int(inner_pieces(batch["caption_mask"]).sum())
    if "text_labels" in batch:
        counts["text_mlm"] = int((batch["text_labels"] != IGNORED).sum())
    return {name: count for name, count in counts.items() if getattr(settings, name)}


class PretrainingObjective(Objective):
    """Masked words, matches and, beyond the paper, pooled vectors, and pixels like word embeddings."""

    model: PixelBertForPreTraining

    def scores(self, batch: Batch, grid: Grid) -> Tensor:
        """Log-odds of a match [T]."""
        return pair_scores(self.model, batch, grid, self.chunks)

    @torch.no_grad()
    def words(self, batch: Batch) -> Tensor:
        """Scores float32 [masked, vocabulary] of the places of a batch whose label is not -100, in row-major order.

        A batch without `image_of_text` is of texts alone.
        """
        with self.cast():
            grid = self._grid(batch).select(batch["image_of_text"]) if "image_of_text" in batch else None
            output = self.model(
                batch["input_ids"], labels=batch["labels"], attention_mask=batch["attention_mask"], grid=grid,
                places=batch["input_ids"].shape[1],
            )  # fmt: skip
        return output.mlm_logits.float()

    def losses(self, batch: Batch, grid: Grid, settings: LossSettings) -> dict[str, Tensor]:
        """mlm, itm, contrastive, align, tags and text_mlm, those with a weight."""
        losses: dict[str, Tensor] = {}
        replaced = None
        texts = None
        if settings.text_mlm:
            texts, losses["text_mlm"] = self._text_alone(batch)
        if settings.contrastive or settings.hard_share:
            images = self.model.image_vectors(grid)
            if texts is None:
                texts = self._text_vectors(batch["caption_ids"], batch["caption_mask"])
            assert self.model.contrastive is not None
            scale = self.model.contrastive.scale()
            if settings.contrastive:
                losses["contrastive"] = contrastive_loss(images, texts, batch["image_of_text"], batch["own"], scale)
            if settings.hard_share:
                replaced = self._harden(
                    batch, images.detach(), texts.detach(), float(scale.detach()), settings.hard_share
                )
        if settings.align:
            losses["align"] = self._alignment(batch, grid)
        if settings.tags:
            losses["tags"] = self._tags(batch, grid)
        if settings.mlm or settings.itm:
            losses |= self._fused(batch, grid, settings, replaced)
        return losses

    def _tags(self, batch: Batch, grid: Grid) -> Tensor:
        inner = inner_pieces(batch["caption_mask"])
        words, places, counts = batch["caption_ids"][inner].unique(return_inverse=True, return_counts=True)
        scores = self.model.picture_words(mean_over(grid.pixels, grid.mask), words)
        return tags_loss(scores, places, counts, batch["image_of_text"][:, None].expand_as(inner)[inner])

    def _alignment(self, batch: Batch, grid: Grid) -> Tensor:
        words = self.model.pixelbert.text.embeddings(batch["caption_ids"])
        return alignment_loss(
            mean_over(grid.pixels, grid.mask), mean_over(words, batch["caption_mask"]),
            batch["image_of_text"], batch["own"],
        )  # fmt: skip

    def _harden(self, batch: Batch, images: Tensor, texts: Tensor, scale: float, share: float) -> tuple[Tensor, Tensor]:
        """Some negatives get a close caption of the batch instead of a random one: new ids and mask."""
        negative = (batch["match"] == 0).nonzero()[:, 0]
        chosen = negative[torch.rand(len(negative), device=negative.device) < share]
        others = hard_negatives(images, texts, batch["own"], batch["image_of_text"][chosen], scale)
        chosen, others = chosen[others >= 0], others[others >= 0]
        ids, mask = batch["input_ids"], batch["attention_mask"]
        width = max(ids.shape[1], batch["caption_ids"].shape[1])
        ids = F.pad(ids, (0, width - ids.shape[1]))
        mask = F.pad(mask, (0, width - mask.shape[1]))
        extra = width - batch["caption_ids"].shape[1]
        ids = ids.index_copy(0, chosen, F.pad(batch["masked_caption_ids"], (0, extra))[others])
        mask = mask.index_copy(0, chosen, F.pad(batch["caption_mask"], (0, extra))[others])
        return ids, mask

    def _fused(
        self, batch: Batch, grid: Grid, settings: LossSettings, replaced: tuple[Tensor, Tensor] | None
    ) -> dict[str, Tensor]:
        ids, mask = replaced if replaced is not None else (batch["input_ids"], batch["attention_mask"])
        labels = F.pad(batch["labels"], (0, ids.shape[1] - batch["labels"].shape[1]), value=IGNORED)
        losses: dict[str, Tensor] = {}
        for rows, length in length_chunks(mask, self.chunks):
            copies = sample_pixels(
                grid.select(batch["image_of_text"][rows]), settings.sample_pixels, batch["sampling_seed"][rows]
            )
            hidden_labels, match = labels[rows, :length], batch["match"][rows]
            output = self.model(
                ids[rows, :length], labels=hidden_labels, attention_mask=mask[rows, :length], grid=copies,
                places=length,
            )  # fmt: skip
            if settings.mlm:
                hidden = hidden_labels[hidden_labels != IGNORED]
                losses["mlm"] = losses.get("mlm", 0) + mlm_loss(output.mlm_logits, hidden)
            if settings.itm:
                losses["itm"] = losses.get("itm", 0) + itm_loss(output.itm_logits, match)
        return losses

    def _text_alone(self, batch: Batch) -> tuple[Tensor | None, Tensor]:
        """Pooled vectors [T, D] of captions with words hidden, and the loss of those words, without any image."""
        ids, labels, mask = batch["text_ids"], batch["text_labels"], batch["caption_mask"]
        head, losses = self.model.contrastive, []

        def read(rows: Tensor, length: int) -> Tensor:
            inner, wanted = mask[rows, :length], labels[rows, :length]
            words: Tensor = self.model.pixelbert(ids[rows, :length], attention_mask=inner).last_hidden_state
            hidden = wanted != IGNORED
            losses.append(mlm_loss(self.model.word_scores(words[hidden]), wanted[hidden]))
            return words[:, 0] if head is None else head.text_vectors(words, inner)

        vectors = by_length(mask, self.chunks, read)
        return None if head is None else vectors, torch.stack(losses).sum()

    def _text_vectors(self, ids: Tensor, mask: Tensor) -> Tensor:
        return by_length(mask, self.chunks, lambda rows, n: self.model.text_vectors(ids[rows, :n], mask[rows, :n]))
