"""Pooled vectors of images and texts in one space: beyond the paper, off in its recipes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pixelbert.model.config import PixelBertConfig
from pixelbert.model.pixels import Grid, mean_over

INITIAL_LOG_SCALE = 2.6592  # ln(1 / 0.07), as in CLIP


class ContrastiveHead(nn.Module):
    """Two linear layers over mean-pooled pixels and words: for shortlists, search and hard negatives."""

    def __init__(self, config: PixelBertConfig) -> None:
        super().__init__()
        self.image = nn.Linear(config.hidden_size, config.contrastive_size)
        self.text = nn.Linear(config.hidden_size, config.contrastive_size)
        self.log_scale = nn.Parameter(torch.tensor(INITIAL_LOG_SCALE))

    def image_vectors(self, grid: Grid) -> Tensor:
        """Unit vectors [I, contrastive_size]."""
        return nn.functional.normalize(self.image(mean_over(grid.pixels, grid.mask)).float(), dim=-1)

    def text_vectors(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Unit vectors [T, contrastive_size] of the text alone: hidden [T, L, d]."""
        return nn.functional.normalize(self.text(mean_over(hidden, mask)).float(), dim=-1)

    def scale(self) -> Tensor:
        """What cosines are multiplied with, at most 100 (CLIP)."""
        return self.log_scale.exp().clamp(max=100.0)
