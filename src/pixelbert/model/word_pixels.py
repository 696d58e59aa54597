"""How well a text's words are found among an image's pixels: beyond the paper, off in its recipes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pixelbert.model.config import PixelBertConfig
from pixelbert.model.pixels import Grid

ALIGNMENT_SCALE = 15.0  # inverse temperature of the loss `align`, which brings pixels to their words


class WordPixels(nn.Module):
    """Each word takes the pixel that points most nearly where its embedding does; rare words count more.

    Pooled vectors are means over all pixels and all words: what a single word names in a corner is lost in them. The
    loss `align` brings pixels to where their words' embeddings are, so that words can be looked up there one by one.
    Nothing of it is trained; `weight`, in a fitted match, is 0 until then.
    """

    middle: Tensor
    rarity: Tensor
    weight: Tensor

    def __init__(self, config: PixelBertConfig) -> None:
        super().__init__()
        # the mean of the words' embeddings, which all of them share: directions start there
        self.register_buffer("middle", torch.zeros(config.hidden_size))
        self.register_buffer("rarity", torch.ones(config.text_config.vocab_size))
        self.register_buffer("weight", torch.tensor(0.0))

    @torch.no_grad()
    def count(self, pieces: Tensor, middle: Tensor) -> None:
        """Take how rare each piece is from all pieces [N] of many texts, and the mean [d] of their embeddings."""
        self.middle.copy_(middle)
        counts = torch.bincount(pieces, minlength=len(self.rarity)) + 1  # one that never stood there is rarest
        self.rarity.copy_(-(counts / max(len(pieces), 2)).log().clamp(max=0.0))

    def forward(self, words: Tensor, input_ids: Tensor, mask: Tensor, grid: Grid) -> Tensor:
        """float32 [T]: mean over a text's words of the scaled cosine with their best pixel, weighted by rarity.

        Args:
            words: embeddings [T, L, d] of `input_ids` [T, L] with [CLS] first and [SEP] last; mask [T, L].
            grid: of each text's image, T of them. A text without words gets 0.
        """
        with torch.autocast(words.device.type, enabled=False):
            directions = [nn.functional.normalize(x.float() - self.middle, dim=-1) for x in (words, grid.pixels)]
            scores = ALIGNMENT_SCALE * directions[0] @ directions[1].transpose(1, 2)
        best = scores.masked_fill(~grid.mask[:, None], -ALIGNMENT_SCALE).amax(-1)  # [T, L]
        weights = self.rarity[input_ids] * inner_pieces(mask)
        return (best * weights).sum(1) / weights.sum(1).clamp(min=torch.finfo(weights.dtype).tiny)


def inner_pieces(mask: Tensor) -> Tensor:
    """bool [T, L]: the pieces of texts, without [CLS] at the start and [SEP] at the end."""
    places = torch.arange(mask.shape[1], device=mask.device)
    return (places > 0) & (places < mask.sum(1, keepdim=True) - 1)
