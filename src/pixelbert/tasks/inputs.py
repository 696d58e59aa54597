"""What every task's batches share: images decoded once each, texts as wordpieces, draws keyed by the record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pixelbert.data.augment import augment, middle
from pixelbert.data.batches import Batch, Plan, Records, pad_ids
from pixelbert.data.draws import generator, seed_of
from pixelbert.data.images import ImageLimits, ResizeRule, collate_images, load_ref
from pixelbert.model.image_processing import DEFAULT_LIMITS


@dataclass
class Inputs:
    """Images and texts of records as the model takes them."""

    records: Records
    tokenizer: Any
    rule: ResizeRule
    size_divisor: int
    seed: int
    limits: ImageLimits = DEFAULT_LIMITS
    max_length: int = 32
    augmentation: str = "none"
    crop_scale: float = 0.6
    constant: tuple[int, int, int] | None = None  # blind: this colour instead of every image
    without_images: bool = False  # their features are kept already
    views: int = 1  # augmented so many ways and no more, one of them as it is: what can be kept
    sampled: bool = False  # random pixels while fine-tuning too (beyond the paper)

    def __call__(self, plan: Plan) -> Batch:
        """The batch of a plan, with all that its task's losses and scores need."""
        raise NotImplementedError

    def tokenize(self, texts: Sequence[str]) -> list[np.ndarray]:
        """[CLS] pieces [SEP] of each text, at most `max_length`."""
        encoded = self.tokenizer(list(texts), truncation=True, max_length=self.max_length)["input_ids"]
        return [np.asarray(ids, dtype=np.int64) for ids in encoded]

    def text_batch(self, texts: Sequence[str]) -> Batch:
        """input_ids and attention_mask int64 [T, L]."""
        ids = self.tokenize(texts)
        return {"input_ids": pad_ids(ids), "attention_mask": pad_ids([np.ones_like(row) for row in ids])}

    def images_of(self, images: np.ndarray, epochs: np.ndarray) -> Batch:
        """Every image of an array [T] or [T, n] once: pixel_values, image_sizes, image_rows [I], and image_of_text.

        An image of two epochs (where one ends and the next begins) is augmented differently: it comes twice. With
        `views` an epoch shows one of them, and image_rows counts images x views: all of view 0 first.
        """
        epochs = np.broadcast_to(epochs.reshape(-1, *[1] * (images.ndim - 1)), images.shape)
        if self.views > 1:
            epochs = np.vectorize(self._view, otypes=[np.int64])(epochs, images)
        keys, places = np.unique(epochs * self.records.num_images + images, return_inverse=True)
        epoch, rows = np.divmod(keys, self.records.num_images)
        batch: Batch = {"image_rows": torch.from_numpy(keys if self.views > 1 else rows)}
        if not self.without_images:
            batch |= self.image_batch(rows.tolist(), epoch.tolist())
        batch["image_of_text"] = torch.from_numpy(places.reshape(images.shape).astype(np.int64))
        return batch

    def sampling_seeds(self, plan: Plan, images: int = 1) -> torch.Tensor:
        """int64 [T, images]: what draws the pixels of each text's copy of each of its images."""
        pairs = zip(plan.epochs.tolist(), plan.records.tolist(), strict=True)
        return torch.tensor([[seed_of(self.seed, "pixels", *pair, i) for i in range(images)] for pair in pairs])

    def _view(self, epoch: int, image: int) -> int:
        return seed_of(self.seed, "view", int(epoch), int(image)) % self.views

    def image_batch(self, images: Sequence[int], epochs: Sequence[int]) -> Batch:
        """pixel_values uint8 [I, 3, H, W] and image_sizes [I, 2] of these images."""
        pixels = [self._image(image, epoch) for image, epoch in zip(images, epochs, strict=True)]
        values, sizes = collate_images(pixels, self.size_divisor)
        return {"pixel_values": values, "image_sizes": sizes}

    def middle_batch(self, images: Sequence[int]) -> Batch:
        """`image_batch` of the middles of these images as they are."""
        values, sizes = collate_images([middle(self._image(image, 0)) for image in images], self.size_divisor)
        return {"pixel_values": values, "image_sizes": sizes}

    def _image(self, image: int, epoch: int) -> np.ndarray:
        if self.constant is not None and self.rule.square is not None:  # its size is known without a look at it
            return np.broadcast_to(np.array(self.constant, dtype=np.uint8), (*self.rule.target(1, 1), 3))
        pixels = load_ref(self.records.image(image), self.rule, self.limits, record=self._first_record(image))
        if self.constant is not None:
            return np.broadcast_to(np.array(self.constant, dtype=np.uint8), pixels.shape)
        if self.views > 1 and epoch == 0:
            return pixels
        draw = generator(self.seed, "augment", epoch, image)
        return augment(pixels, self.augmentation, draw, self.crop_scale)

    def _first_record(self, image: int) -> str:
        """A record that shows the image, for messages; none where it is only ever a second image."""
        records = self.records.records_of(image)
        return self.records.record_id(records[0]) if len(records) else self.records.image_id(image)
