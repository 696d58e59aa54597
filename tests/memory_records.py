"""A training set in memory, a tokenizer and a model of a few weights: for the tests of tasks, batches and training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pixelbert.data.batches import PairOrder, Plan
from pixelbert.data.images import ResizeRule
from pixelbert.data.records import ImageRef
from pixelbert.model.config import PixelBertConfig
from pixelbert.model.modeling import PixelBertForPreTraining
from pixelbert.model.tokenization import load_tokenizer
from pixelbert.tasks.pretraining import PretrainingBatches

_TEXT = (
    "a the dog cat bird fish horse man woman child red green blue black white small large old young "
    "run ##s ##ning jump sit sleep on in under near with grass snow water street house tree ball hat car . !"
)
WORDS = _TEXT.split()
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]


class MemoryRecords:
    """`Records` from lists: texts[i] are those of image i, whose picture is noise of sizes[i] (height, width)."""

    def __init__(self, folder: Path, texts: Sequence[Sequence[str]], sizes: Sequence[tuple[int, int]] = ((32, 32),)):
        self._texts = [text for own in texts for text in own]
        self.image_of = np.repeat(np.arange(len(texts)), [len(own) for own in texts])
        self._first = np.cumsum([0, *(len(own) for own in texts)])
        self.num_images, self.num_records = len(texts), len(self._texts)
        self._folder, self._sizes = folder, sizes

    def records_of(self, image: int) -> range:
        return range(int(self._first[image]), int(self._first[image + 1]))

    def text(self, record: int) -> str:
        return self._texts[record]

    def record_id(self, record: int) -> str:
        return f"record-{record}"

    def image_id(self, image: int) -> str:
        return f"image-{image}"

    def image(self, image: int) -> ImageRef:
        path = self._folder / f"{image}.png"
        if not path.exists():
            size = self._sizes[image % len(self._sizes)]
            pixels = np.random.default_rng(image).integers(0, 256, (*size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path)
        return ImageRef(str(path))

    def image_places(self) -> list[tuple[str, int]]:
        return [(str(self._folder / f"{image}.png"), -1) for image in range(self.num_images)]

    def rows_of_photo(self, image: int) -> tuple[int, ...]:
        return (image,)


def random_texts(
    images: int, per_image: int, seed: int = 0, words: tuple[int, int] = (2, 9), unique: bool = True
) -> list[list[str]]:
    """Random captions of `words` (least, most) words; with `unique` all differ."""
    draw, seen, result = np.random.default_rng(seed), set(), []
    for _ in range(images):
        own: list[str] = []
        while len(own) < per_image:
            text = " ".join(draw.choice([w for w in WORDS if w.isalpha()], draw.integers(words[0], words[1] + 1)))
            if not unique or text not in seen:
                seen.add(text)
                own.append(text)
        result.append(own)
    return result


def batches_of(records: MemoryRecords, rule: ResizeRule | None = None, **settings: Any) -> PretrainingBatches:
    """A builder of batches with the vocabulary above."""
    settings = {"size_divisor": 32, "seed": 0, **settings}
    return PretrainingBatches(records, load_tokenizer(VOCABULARY), rule or ResizeRule(square=32), **settings)


def plan_of(records: MemoryRecords, start: int, stop: int, per_image: int = 2) -> Plan:
    epochs, chosen = PairOrder(records.image_of, 0, per_image).pairs(start, stop)
    return Plan(0, np.arange(start, stop), epochs, chosen)


def full_of_duplicates(folder: Path) -> MemoryRecords:
    """Twelve images that share few texts, some of them equal but for case, spaces and a full stop."""
    pool = ["a dog", "A dog .", "a  DOG", "the cat", "red ball", "Red ball.", "man in hat", "snow"]
    draw = np.random.default_rng(0)
    return MemoryRecords(folder, [[str(t) for t in draw.choice(pool, draw.integers(1, 4))] for _ in range(12)])


def tiny_config(**settings: Any) -> PixelBertConfig:
    """Two layers of 32, timm's smallest ResNet without batch statistics, no dropout."""
    text = {"vocab_size": len(VOCABULARY), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
            "intermediate_size": 48, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # fmt: skip
    text |= settings.pop("text", {})
    defaults = {"backbone": "test_resnet", "frozen_stages": -1, "visual_pool": False, "contrastive_size": 16}
    return PixelBertConfig(text, **(defaults | settings))


def tiny_model(seed: int = 0, **settings: Any) -> PixelBertForPreTraining:
    """A model of `tiny_config`, with weights large enough that inputs make a difference."""
    import torch

    torch.manual_seed(seed)
    model = PixelBertForPreTraining(tiny_config(**settings))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and ".visual.body." not in name:
                parameter.normal_(std=0.15)
    return model.eval()


def head_config(**settings: Any) -> PixelBertConfig:
    """Two layers of 16 over a small CNN of random weights, for the heads of the downstream tasks."""
    text = {
        "vocab_size": 50,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    return PixelBertConfig(text, backbone="resnet10t", visual_pool=False, **settings)
