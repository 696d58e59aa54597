"""Words found among pixels: by hand, against loops, and unmoved by padding."""

from __future__ import annotations

import math

import pytest
import torch

from memory_records import tiny_config
from pixelbert.model.pixels import Grid
from pixelbert.model.word_pixels import ALIGNMENT_SCALE, WordPixels, inner_pieces


def found_by_loops(module: WordPixels, words: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor, grid: Grid) -> list:
    """The same, word by word and pixel by pixel."""
    found = []
    for text in range(len(ids)):
        total = weights = 0.0
        for place in range(1, int(mask[text].sum()) - 1):
            word = words[text, place] - module.middle
            best = max(
                torch.dot(word, pixel - module.middle).item() / (word.norm() * (pixel - module.middle).norm()).item()
                for pixel, valid in zip(grid.pixels[text], grid.mask[text], strict=True)
                if valid
            )
            rarity = module.rarity[ids[text, place]].item()
            total, weights = total + rarity * best, weights + rarity
        found.append(ALIGNMENT_SCALE * total / weights if weights else 0.0)
    return found


def drawn() -> tuple[WordPixels, torch.Tensor, torch.Tensor, torch.Tensor, Grid]:
    """Three texts of 4, 2 and 0 words, each with an image of 6 cells of which 6, 4 and 5 are its own."""
    module, draw = WordPixels(tiny_config()), torch.Generator().manual_seed(0)
    size = module.middle.shape[0]
    module.middle.copy_(torch.randn(size, generator=draw))
    module.rarity.copy_(torch.rand(len(module.rarity), generator=draw))
    ids = torch.randint(5, len(module.rarity), (3, 6), generator=draw)
    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2, [1] * 2 + [0] * 4])
    valid = torch.tensor([[1] * 6, [1, 1, 0, 1, 1, 0], [1] * 5 + [0]]).bool()
    grid = Grid(torch.randn(3, 6, size, generator=draw), valid, (2, 3))
    return module, torch.randn(3, 6, size, generator=draw), ids, mask, grid


def test_it_is_the_best_pixel_of_each_word_weighted_by_rarity() -> None:
    module, *inputs = drawn()
    assert module(*inputs).tolist() == pytest.approx(found_by_loops(module, *inputs), abs=1e-5)
    assert module(*inputs)[2] == 0.0  # a text without words


def test_a_case_to_check_by_eye() -> None:
    module = WordPixels(tiny_config())
    words, pixels = torch.zeros(1, 4, len(module.middle)), torch.zeros(1, 2, len(module.middle))
    words[0, 1, 0] = words[0, 2, 1] = 1.0  # [CLS] east north [SEP]
    pixels[0, 0, 0] = 2.0  # east
    pixels[0, 1, 0] = pixels[0, 1, 1] = 1.0  # north-east
    module.rarity[7], module.rarity[8] = 3.0, 1.0
    ids, grid = torch.tensor([[2, 7, 8, 3]]), Grid(pixels, torch.ones(1, 2, dtype=torch.bool), (1, 2))
    assert module(words, ids, torch.ones(1, 4), grid).item() == pytest.approx(15 * (3 * 1 + 1 * math.sqrt(0.5)) / 4)


def test_padding_and_the_number_format_of_the_encoder_change_nothing() -> None:
    module, words, ids, mask, grid = drawn()
    alone = module(words, ids, mask, grid)
    wider = Grid(torch.cat([grid.pixels, 9 * torch.ones_like(grid.pixels)], 1), grid.mask.repeat(1, 2), (4, 3))
    wider.mask[:, 6:] = False
    longer = [torch.cat([x, torch.ones_like(x)], 1) for x in (words, ids)]
    assert torch.allclose(module(*longer, torch.cat([mask, torch.zeros_like(mask)], 1), wider), alone, rtol=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(module(words, ids, mask, grid), alone)


def test_rare_pieces_weigh_more() -> None:
    module = WordPixels(tiny_config())
    module.count(torch.tensor([7, 7, 7, 8]), torch.arange(len(module.middle)))
    assert module.middle.tolist() == list(range(len(module.middle)))
    assert module.rarity[[7, 8, 9]].tolist() == pytest.approx([0.0, math.log(2), math.log(4)])  # 4, 2 and 1 of 4
    module.count(torch.tensor([], dtype=torch.long), torch.zeros(len(module.middle)))
    assert torch.isfinite(module.rarity).all() and (module.rarity > 0).all()


def test_inner_pieces_are_those_between_start_and_end() -> None:
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]])
    assert inner_pieces(mask).int().tolist() == [[0, 1, 1, 0], [0, 0, 0, 0], [0, 1, 0, 0]]
