"""The overlay lights up the right place of the photo, whatever its shape; sheets hold every word."""

from __future__ import annotations

import io
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from attending import noise, pretraining_model, processor
from PIL import Image, ImageDraw

from pixelbert.errors import UsageError
from pixelbert.inference import attention_pictures
from pixelbert.inference.answers import Attention
from pixelbert.inference.attention import AttentionMap, Method, look_all, see
from pixelbert.inference.attention_pictures import colours, heat_of, overlay, picture, png, sheet, spread, write_png
from pixelbert.inference.cells import Cells
from pixelbert.inference.sentence_words import Word
from pixelbert.inference.shown import show_attention

WORD = Word("dog", 2, 5, (2,))


def forced(cells: Cells, row: int, column: int) -> AttentionMap:
    """Attention wholly on one cell."""
    weights = np.zeros(cells.shape)
    weights[row, column] = 1
    return AttentionMap(WORD, Method(), weights, cells)


CASES = {
    "shorter edge, wide photo": ({"shorter": 96, "longer": 256}, (60, 150), (1, 4)),
    "shorter edge, tall photo": ({"shorter": 64, "longer": 200}, (300, 110), (4, 1)),
    "square": ({"shorter": None, "longer": None, "square": 128}, (90, 260), (2, 3)),
    "last cell cut by the photo's edge": ({"shorter": 80, "longer": 150}, (160, 290), (2, 4)),
}


@pytest.mark.parametrize("style", ["smooth", "cells"])
@pytest.mark.parametrize("name", CASES)
def test_a_bright_square_under_the_cell_that_is_looked_at(name, style):
    """A photo with a white square exactly where the cell lies: the heat falls on it, and nowhere far from it."""
    rule, size, (row, column) = CASES[name]
    cells = see(pretraining_model(visual_pool=False), processor(**rule), noise(*size)).cells
    left, top, right, bottom = cells.rectangles[row, column]
    pixels = np.zeros((*size, 3), np.uint8)
    pixels[round(top) : round(bottom), round(left) : round(right)] = 255
    heat = spread(forced(cells, row, column), size, style)
    inside = pixels[..., 0] > 0
    assert heat.shape == size
    assert heat[inside].mean() > 8 * heat[~inside].mean()
    brightest = np.argwhere(heat > 0.9 * heat.max())
    assert inside[tuple(brightest.T)].mean() > 0.95
    if style == "cells":
        assert (heat[inside] > 0).mean() > 0.95  # but for pixels that an edge of the cell runs through
        assert (heat[~inside] > 0).mean() < 0.05


def test_padding_is_cut_off():
    """A grid padded on the right and below, as in a batch with a larger photo: nothing of it is drawn."""
    padded = Cells((4, 6), 32, (64, 96), (128, 192))
    alone = Cells((2, 3), 32, (64, 96), (128, 192))
    for style in ("smooth", "cells"):
        assert np.array_equal(
            spread(forced(padded, 1, 2), (128, 192), style), spread(forced(alone, 1, 2), (128, 192), style)
        )


def test_overlay_takes_the_brightest_colour_where_all_look_and_fades_the_rest():
    cells = Cells((2, 2), 32, (64, 64), (64, 64))
    pixels = np.full((64, 64, 3), (10, 200, 10), np.uint8)
    drawn = np.asarray(overlay(forced(cells, 0, 1), pixels, style="cells")).astype(int)
    assert drawn.shape == pixels.shape
    assert np.abs(drawn[10, 50] - colours()[255]).max() < 60  # the photo shows through
    assert (drawn[50, 10] < 200).all()
    assert (drawn[:32, 32:] == drawn[10, 50]).all()
    assert (drawn[32:] == drawn[50, 10]).all()


def test_heat_is_told_in_multiples_of_an_even_map():
    cells = Cells((3, 2), 32, (64, 64), (64, 64))  # the third row is padding
    assert heat_of(forced(cells, 0, 0))[0, 0] == 4
    even = AttentionMap(WORD, Method(), cells.even, cells)
    assert heat_of(even).tolist() == [[1, 1], [1, 1], [0, 0]]


def test_colours_grow_lighter_in_even_steps():
    """CIE L* (not the space they were made in) along the map, by its own formula."""
    linear = (colours() / 255.0).astype(np.float64)
    linear = np.where(linear <= 0.04045, linear / 12.92, ((linear + 0.055) / 1.055) ** 2.4)
    steps = np.diff(116 * np.cbrt(linear @ [0.2126, 0.7152, 0.0722]) - 16)
    assert (steps > 0).all()
    assert steps.std() < 0.35 * steps.mean()


def test_pictures_and_sheets_as_png(tmp_path):
    model, read = pretraining_model(), processor()
    photo = see(model, read, noise(60, 150))
    sentence = "a dog in the snow, the fire hydrant"
    maps = look_all(model, read, photo, sentence)
    page = sheet(maps, photo.pixels, sentence, size=120, columns=3)
    assert page.width == 3 * 120 + 4 * 12
    assert len(maps) == 8
    one = picture(maps[1], photo.pixels, sentence, size=300)
    write_png(tmp_path / "new" / "dog.png", one)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["dog.png"]
    again = Image.open(io.BytesIO(png(one)))
    assert (again.format, again.size) == ("PNG", one.size)
    marked = np.asarray(one.convert("RGB")).reshape(-1, 3)
    assert (marked == (255, 214, 130)).all(1).sum() > 100  # the word stands out in the sentence
    with pytest.raises(UsageError, match="no style 'smoth'; did you mean 'smooth'"):
        picture(maps[1], photo.pixels, sentence, style="smoth")
    with pytest.raises(UsageError, match="at least one"):
        sheet([], photo.pixels, sentence)


def test_letters_beyond_ascii_are_drawn_or_replaced_in_their_places(monkeypatch):
    sentence = "ein H\u00fcndchen \u2014 \u72ac, caf\u00e9"
    monkeypatch.setattr(attention_pictures, "_WIDE_FONTS", ("no such font.ttf",))
    assert attention_pictures._drawable(sentence)[0] == "ein Hundchen - ?, cafe"
    assert attention_pictures._drawable("plain")[0] == "plain"


@pytest.mark.parametrize("shape", [(600, 12), (320, 80), (12, 600)])
def test_the_words_of_slivers_can_be_read(shape):
    """Captions lie beside each other, not on each other, and the whole sentence stands on the page."""
    model, read = pretraining_model(), processor()
    photo = see(model, read, noise(*shape))
    sentence = "a skateboarder dog in the snow, the fire hydrant"
    maps = look_all(model, read, photo, sentence)
    drawn: list[tuple[float, float, float, str]] = []
    real = ImageDraw.ImageDraw.text

    def watched(self, at, text, *rest, **more):
        left, top, right, bottom = self.textbbox(at, text, font=more["font"])
        drawn.append((at[1], left, right, text))
        assert left >= 0 and top >= 0 and right <= self.im.size[0] and bottom <= self.im.size[1], f"{text!r} is cut"
        return real(self, at, text, *rest, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ImageDraw.ImageDraw, "text", watched)
        for draw in (
            lambda: sheet(maps, photo.pixels, sentence),
            lambda: sheet(maps, photo.pixels, sentence, columns=1),
            lambda: picture(maps[0], photo.pixels, sentence),
        ):
            drawn.clear()
            page = draw()
            assert all((y, left) < (other, start) and (y != other or right < start)
                       for (y, left, right, _), (other, start, _, _) in pairwise(sorted(drawn)))  # fmt: skip
            assert sentence == " ".join(text for _, _, _, text in sorted(drawn))[: len(sentence)]
            assert max(y for y, *_ in drawn) + 16 <= page.height


def test_a_map_of_zeros_is_said_to_have_found_nothing(capsys):
    model, read = pretraining_model(), processor()
    photo = see(model, read, noise(64, 64))
    found = look_all(model, read, photo, "a dog")[0]
    nothing = replace(found, weights=np.zeros_like(found.weights))
    drawn = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ImageDraw.ImageDraw, "text", lambda self, at, text, *rest, **more: drawn.append(text))
        picture(nothing, photo.pixels, "a dog")
        sheet([nothing, found], photo.pixels, "a dog")
    assert "found nothing" in drawn and "a   nothing" in drawn
    zeros = [[0.0, 0.0]]
    show_attention([Attention("dog", "occlusion-word", None, None, zeros, [[[0, 0, 1, 1]] * 2], None)])
    assert "dog  found nothing" in capsys.readouterr().out
