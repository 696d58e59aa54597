"""How well a text's words are found among an image's pixels: beyond the paper, off in its recipes."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from pixelbert.model.config import PixelBertConfig
from pixelbert.model.pixels import Grid

ALIGNMENT_SCALE = 15.0  # inverse temperature of the loss `align`, which brings pixels to their words

_PIECES = 1024  # compared with all pixels of some images at a time


class WordPixels(nn.Module):
    """How much better than usual each word of a text is found among an image's pixels; rare words count more.

    Pooled vectors are means over all pixels and all words: what a single word names in a corner is lost in them. The
    loss `align` brings pixels to where their words' embeddings are, so that words can be looked up there one by one.
    A word's evidence is its best scaled cosine with a pixel, less what that is in images on average: without that,
    texts of words that are found everywhere would fit every image best. The evidence of a text is the sum over its
    words: the more of them are found, the surer. Nothing of it is trained; `weight`, in a fitted match, is 0 until
    then.
    """

    middle: Tensor
    rarity: Tensor
    usual: Tensor
    weight: Tensor

    def __init__(self, config: PixelBertConfig) -> None:
        super().__init__()
        # the mean of the words' embeddings, which all of them share: directions start there
        self.register_buffer("middle", torch.zeros(config.hidden_size))
        self.register_buffer("rarity", torch.ones(config.text_config.vocab_size))
        self.register_buffer("usual", torch.zeros(config.text_config.vocab_size))
        self.register_buffer("weight", torch.tensor(0.0))

    @torch.no_grad()
    def count(self, pieces: Tensor, texts: int, middle: Tensor) -> None:
        """Take how rare each piece is from all pieces [N] of so many texts, and the mean [d] of their embeddings.

        Rarity is -log of a piece's share, in units of an average text's whole.
        """
        self.middle.copy_(middle)
        counts = torch.bincount(pieces, minlength=len(self.rarity)) + 1  # one that never stood there is rarest
        self.rarity.copy_(-(counts / max(len(pieces), 2)).log().clamp(max=0.0))
        whole = self.rarity[pieces].sum() / max(texts, 1)
        if whole > 0:
            self.rarity /= whole

    @torch.no_grad()
    def expect(self, pieces: Tensor, grids: Iterable[Grid]) -> None:
        """Take what is usual: of each piece, embedded alone [vocabulary, d], its best pixel on average over images."""
        total, images = torch.zeros_like(self.usual), 0
        for grid in grids:
            for rows in torch.arange(len(pieces), device=pieces.device).split(_PIECES):
                total[rows] += self.best(pieces[rows], grid).sum(0)
            images += len(grid.pixels)
        self.usual.copy_(total / max(images, 1))

    def best(self, words: Tensor, grid: Grid) -> Tensor:
        """float32 [T, L]: scaled cosine of each word with its best pixel; words [T, L, d], or [L, d] for all T."""
        with torch.autocast(words.device.type, enabled=False):
            directions = [nn.functional.normalize(x.float() - self.middle, dim=-1) for x in (words, grid.pixels)]
            scores = ALIGNMENT_SCALE * directions[0] @ directions[1].transpose(1, 2)
        return scores.masked_fill(~grid.mask[:, None], -ALIGNMENT_SCALE).amax(-1)

    def forward(self, words: Tensor, input_ids: Tensor, mask: Tensor, grid: Grid) -> Tensor:
        """float32 [T]: the sum over a text's words of what they are found better than usual, weighted by rarity.

        Args:
            words: embeddings [T, L, d] of `input_ids` [T, L] with [CLS] first and [SEP] last; mask [T, L].
            grid: of each text's image, T of them. A text without words gets 0.
        """
        evidence = self.rarity[input_ids] * (self.best(words, grid) - self.usual[input_ids])
        return (evidence * inner_pieces(mask)).sum(1)


def inner_pieces(mask: Tensor) -> Tensor:
    """bool [T, L]: the pieces of texts, without [CLS] at the start and [SEP] at the end."""
    places = torch.arange(mask.shape[1], device=mask.device)
    return (places > 0) & (places < mask.sum(1, keepdim=True) - 1)
