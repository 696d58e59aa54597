"""A small pretraining model with its processor, and a photo, for the tests of inference; random weights, CPU."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from pixelbert.inference.attention import Photo, see
from pixelbert.model.config import PixelBertConfig
from pixelbert.model.modeling import PixelBertForPreTraining
from pixelbert.model.pixels import Grid
from pixelbert.model.processor import PixelBertImageProcessor, PixelBertProcessor
from pixelbert.model.tokenization import SPECIAL_TOKENS, load_tokenizer

PIECES = ["a", "dog", "##s", "in", "the", "snow", "fire", "hydrant", "red", "##cap", "cat", "'", "s", "run", "##ning"]
VOCABULARY = [*SPECIAL_TOKENS, *PIECES]
TEXT = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
}


def config(**settings: Any) -> PixelBertConfig:
    return PixelBertConfig(text_config=dict(TEXT), **{"backbone": "resnet18", "num_sampled_pixels": 0, **settings})


@torch.no_grad()
def pretraining_model(**settings: Any) -> PixelBertForPreTraining:
    """The same one each time, with attention that is far from even."""
    torch.manual_seed(0)
    model = PixelBertForPreTraining(config(**settings)).eval()
    for layer in model.pixelbert.text.encoder.layer:
        layer.attention.self.query.weight.mul_(30)
        layer.attention.self.key.weight.mul_(10)
        layer.attention.self.value.weight.mul_(10)  # and what is looked at tells
    return model


def processor(max_length: int = 32, **image: Any) -> PixelBertProcessor:
    image = image or {"shorter": 96, "longer": 256}
    return PixelBertProcessor(PixelBertImageProcessor(**image), load_tokenizer(VOCABULARY), max_length)


def seen(model: Any, height: int = 100, width: int = 230) -> Photo:
    """A photo of noise whose cells differ as much as words do: a random CNN tells patches of noise hardly apart."""
    photo = see(model, processor(), noise(height, width))
    cells = torch.randn(photo.grid.pixels.shape, generator=torch.Generator().manual_seed(1))
    return replace(photo, grid=Grid(cells, photo.grid.mask, photo.grid.shape))


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A photo: uint8 [height, width, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
