"""Words found among pixels: by hand, against loops, and unmoved by padding."""

from __future__ import annotations

import math

import pytest
import torch

from memory_records import tiny_config
from pixelbert.model.pixels import Grid
from pixelbert.model.word_pixels import ALIGNMENT_SCALE, WordPixels, inner_pieces


def best_by_loops(module: WordPixels, word: torch.Tensor, pixels: torch.Tensor, mask: torch.Tensor) -> float:
    """One word's best pixel of one image, pixel by pixel."""
    word = word - module.middle
    return ALIGNMENT_SCALE * max(
        torch.dot(word, pixel - module.middle).item() / (word.norm() * (pixel - module.middle).norm()).item()
        for pixel, valid in zip(pixels, mask, strict=True)
        if valid
    )


def found_by_loops(module: WordPixels, words: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor, grid: Grid) -> list:
    """The same, word by word and pixel by pixel."""
    found = []
    for text in range(len(ids)):
        total = 0.0
        for place in range(1, int(mask[text].sum()) - 1):
            piece = ids[text, place]
            best = best_by_loops(module, words[text, place], grid.pixels[text], grid.mask[text])
            total += module.rarity[piece].item() * (best - module.usual[piece].item())
        found.append(total)
    return found


def drawn() -> tuple[WordPixels, torch.Tensor, torch.Tensor, torch.Tensor, Grid]:
    """Three texts of 4, 2 and 0 words, each with an image of 6 cells of which 6, 4 and 5 are its own."""
    module, draw = WordPixels(tiny_config()), torch.Generator().manual_seed(0)
    size = module.middle.shape[0]
    module.middle.copy_(torch.randn(size, generator=draw))
    module.rarity.copy_(torch.rand(len(module.rarity), generator=draw))
    module.usual.copy_(torch.randn(len(module.usual), generator=draw))
    ids = torch.randint(5, len(module.rarity), (3, 6), generator=draw)
    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2, [1] * 2 + [0] * 4])
    valid = torch.tensor([[1] * 6, [1, 1, 0, 1, 1, 0], [1] * 5 + [0]]).bool()
    grid = Grid(torch.randn(3, 6, size, generator=draw), valid, (2, 3))
    return module, torch.randn(3, 6, size, generator=draw), ids, mask, grid


def test_it_is_the_best_pixel_of_each_word_over_the_usual_weighted_by_rarity() -> None:
    module, *inputs = drawn()
    assert module(*inputs).tolist() == pytest.approx(found_by_loops(module, *inputs), abs=1e-5)
    assert module(*inputs)[2] == 0.0  # a text without words


def test_a_case_to_check_by_eye() -> None:
    module = WordPixels(tiny_config())
    words, pixels = torch.zeros(1, 4, len(module.middle)), torch.zeros(1, 2, len(module.middle))
    words[0, 1, 0] = words[0, 2, 1] = 1.0  # [CLS] east north [SEP]
    pixels[0, 0, 0] = 2.0  # east
    pixels[0, 1, 0] = pixels[0, 1, 1] = 1.0  # north-east
    module.rarity[7], module.rarity[8] = 0.75, 0.25
    module.usual[7], module.usual[8] = 5.0, 1.0
    ids, grid = torch.tensor([[2, 7, 8, 3]]), Grid(pixels, torch.ones(1, 2, dtype=torch.bool), (1, 2))
    assert module(words, ids, torch.ones(1, 4), grid).item() == pytest.approx(
        0.75 * (15 - 5) + 0.25 * (15 * math.sqrt(0.5) - 1)
    )


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
    module.count(torch.tensor([7, 7, 7, 8]), 2, torch.arange(len(module.middle)))
    assert module.middle.tolist() == list(range(len(module.middle)))
    whole = math.log(2) / 2  # of two texts: four of 4 pieces, and two of 4
    assert module.rarity[[7, 8, 9]].tolist() == pytest.approx([0.0, math.log(2) / whole, math.log(4) / whole])
    module.count(torch.tensor([], dtype=torch.long), 0, torch.zeros(len(module.middle)))
    assert torch.isfinite(module.rarity).all() and (module.rarity > 0).all()


def test_what_is_usual_is_the_mean_over_images() -> None:
    module, words, _, _, grid = drawn()
    pieces = torch.cat([words[0], words[1]])
    vocabulary = torch.randn(len(module.usual), len(module.middle), generator=torch.Generator().manual_seed(1))
    vocabulary[7:19] = pieces
    module.expect(vocabulary, (grid.select(torch.tensor(rows)) for rows in ([0, 1], [2])))
    for piece in range(12):
        each = [best_by_loops(module, pieces[piece], grid.pixels[i], grid.mask[i]) for i in range(3)]
        assert module.usual[7 + piece].item() == pytest.approx(sum(each) / 3, abs=1e-4)


def test_a_text_of_common_sights_fits_no_image_better_for_it() -> None:
    """Over the images that say what is usual, every text has the same mean evidence: none."""
    module, words, *_ = drawn()
    draw = torch.Generator().manual_seed(2)
    grid = Grid(torch.randn(4, 6, words.shape[-1], generator=draw), torch.ones(4, 6, dtype=torch.bool), (2, 3))
    vocabulary = torch.randn(len(module.usual), words.shape[-1], generator=draw)
    vocabulary[7] += 3 * grid.pixels[:, 0].mean(0)  # found nearly everywhere
    module.expect(vocabulary, [grid])
    ids = torch.tensor([[2, 7, 8, 9, 3]])
    evidence = module(vocabulary[ids].expand(4, -1, -1), ids.expand(4, -1), torch.ones(4, 5), grid)
    assert evidence.mean().item() == pytest.approx(0.0, abs=1e-5) and evidence.std() > 0.1


def test_inner_pieces_are_those_between_start_and_end() -> None:
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]])
    assert inner_pieces(mask).int().tolist() == [[0, 1, 1, 0], [0, 0, 0, 0], [0, 1, 0, 0]]
